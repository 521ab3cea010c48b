"""A puppet clip as ComfyUI's types."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from comfy_api.latest import InputImpl, Types

from ...anycharv_core.puppets.task import sample_animation, sample_swap
from .pictures import image_tensor, mask_tensor

RATE = Fraction(24)


def puppet_clip(seed: int, frames: int, size: int, animation: bool) -> tuple[Any, ...]:
    """VIDEO, IMAGE frames, MASK and POSE_KEYPOINT of held-out swap or animation `seed`, its reference's IMAGE and
    MASK, and the true answer's IMAGE."""
    task = (sample_animation if animation else sample_swap)(seed, frames, size)
    clip, cutout = (task.truth, task.cutout) if animation else (task.driving, task.reference[..., 3])
    pictures = image_tensor(clip.frames)
    return (
        InputImpl.VideoFromComponents(Types.VideoComponents(images=pictures, frame_rate=RATE)),
        pictures,
        mask_tensor(clip.mask),
        clip.poses(),
        image_tensor(task.reference[..., :3]),
        mask_tensor([cutout]),
        image_tensor(task.truth.frames),
    )
