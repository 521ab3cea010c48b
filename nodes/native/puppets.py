"""A puppet clip as ComfyUI's types."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from comfy_api.latest import InputImpl, Types

from ...anycharv_core.puppets.task import sample_swap
from .pictures import image_tensor, mask_tensor

RATE = Fraction(24)


def puppet_clip(seed: int, frames: int, size: int) -> tuple[Any, ...]:
    """VIDEO, IMAGE frames, MASK and POSE_KEYPOINT of held-out swap `seed`, its reference's IMAGE and MASK, and
    the true answer's IMAGE."""
    swap = sample_swap(seed, frames, size)
    pictures = image_tensor(swap.driving.frames)
    return (
        InputImpl.VideoFromComponents(Types.VideoComponents(images=pictures, frame_rate=RATE)),
        pictures,
        mask_tensor(swap.driving.mask),
        swap.driving.poses(),
        image_tensor(swap.reference[..., :3]),
        mask_tensor([swap.reference[..., 3]]),
        image_tensor(swap.truth.frames),
    )
