"""The character swap with its exact truth: what the embedded model is shown and scored on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from ..imaging import resize
from ..masks import box_masks, mask_box
from ..pose import draw_pose, scale_pose
from .character import sample_character
from .motion import sample_motion
from .render import Clip, render, render_reference
from .scene import sample_scene

POSE_SCALE = 4  # skeletons are drawn larger and brought down, which keeps joints to a fraction of a pixel


@dataclass(frozen=True)
class Swap:
    """One task: `reference` RGBA uint8 [H, W, 4] into the driving clip; `truth` is the perfect answer.

    pose: uint8 [F, H, W, 3]; box: uint8 [F, H, W], 255 in the padded box of the driving character.
    """

    reference: np.ndarray
    driving: Clip
    truth: Clip
    pose: np.ndarray
    box: np.ndarray

    @property
    def region(self) -> np.ndarray:
        """bool [F, H, W]: pixels of the driving or of the true character."""
        return (self.driving.mask > 0) | (self.truth.mask > 0)


def sample_swap(seed: int, frames: int, size: int, split: str = "heldout", flow: bool = False) -> Swap:
    """Swap number `seed` (>= 0) of `split`: `frames` frames of `size` x `size` pixels."""
    driver, other = sample_character(2 * seed, split), sample_character(2 * seed + 1, split)
    motion = sample_motion(seed, frames, driver.proportions, split)
    scene = sample_scene(seed, split)
    driving, truth = (render(c, motion, scene, (size, size), flow) for c in (driver, other))
    rgb, alpha = render_reference(other, seed, (size, size), split)
    return Swap(
        reference=np.dstack([rgb, alpha]),
        driving=driving,
        truth=truth,
        pose=pose_pictures(driving.poses(), size),
        box=box_masks(driving.mask),
    )


def pose_pictures(poses: list[dict], size: int) -> np.ndarray:
    """POSE_KEYPOINT frames of a square clip -> skeleton pictures uint8 [F, size, size, 3]."""
    canvas = POSE_SCALE * size
    return np.stack([resize(draw_pose(scale_pose(pose, canvas, canvas)), (size, size)) for pose in poses])


def copy_driving(swap: Swap) -> np.ndarray:
    """Baseline: the driving clip as it is."""
    return swap.driving.frames


def background_only(swap: Swap) -> np.ndarray:
    """Baseline: the driving character filled with the mean colour of the scene inside the box."""
    frames = swap.driving.frames.copy()
    for frame, mask, box in zip(frames, swap.driving.mask > 0, swap.box > 0, strict=True):
        around = box & ~mask
        if mask.any():
            frame[mask] = frame[around].mean(axis=0) if around.any() else frame.mean(axis=(0, 1))
    return frames


def pasted_reference(swap: Swap) -> np.ndarray:
    """Baseline: the reference character scaled into the driving character's box, over `background_only`."""
    frames = background_only(swap)
    x0, y0, x1, y1 = mask_box(swap.reference[..., 3]) or (0, 0, 1, 1)
    cut = swap.reference[y0:y1, x0:x1]
    for frame, mask in zip(frames, swap.driving.mask, strict=True):
        box = mask_box(mask)
        if box is not None:
            left, top, right, bottom = box
            fitted = cv2.resize(cut, (right - left, bottom - top), interpolation=cv2.INTER_AREA)
            inside = fitted[..., 3] >= 128
            frame[top:bottom, left:right][inside] = fitted[inside][:, :3]
    return frames


BASELINES: dict[str, Callable[[Swap], np.ndarray]] = {
    "copy driving": copy_driving,
    "background only": background_only,
    "reference pasted into the box": pasted_reference,
}
