"""Swap and animation with their exact truth: what the embedded models are shown and scored on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..media.imaging import Size, resize
from ..media.masks import box_masks, mask_box
from ..media.pose import Poses
from ..media.pose_drawing import draw_poses
from ..opencv import cv2
from .character import Character
from .framing import following_camera
from .render import Clip, render, render_reference
from .worlds import WORLDS, World

POSE_SCALE = 4  # skeletons are drawn larger and brought down, which keeps joints to a fraction of a pixel


@dataclass(frozen=True)
class Swap:
    """One task: `reference` RGBA uint8 [H, W, 4] into the driving clip; `truth` is the perfect answer.

    pose: uint8 [F, H, W, 3]; box: uint8 [F, H, W], 255 in the padded box of the driving character; character:
    whom the reference and the truth show.
    """

    reference: np.ndarray
    driving: Clip
    truth: Clip
    pose: np.ndarray
    box: np.ndarray
    character: Character

    @property
    def region(self) -> np.ndarray:
        """bool [F, H, W]: pixels of the driving or of the true character."""
        return (self.driving.mask > 0) | (self.truth.mask > 0)

    def poses(self) -> Poses:
        """POSE_KEYPOINT of every frame."""
        return self.driving.poses()


def sample_swap(seed: int, frames: int, size: int, split: str = "heldout", flow: bool = False) -> Swap:
    """Swap number `seed` (>= 0) of `split` in the first world: `frames` frames of `size` x `size` pixels."""
    return _swap(WORLDS["first"], seed, frames, (size, size), split, flow)


def sample_bold_swap(seed: int, frames: int, size: int, split: str = "heldout", flow: bool = False) -> Swap:
    """The same in the bold world, where the driving character is a quarter to two fifths of the frame tall."""
    return _swap(WORLDS["bold"], seed, frames, (size, size), split, flow)


def sample_followed_swap(
    world: str, seed: int, frames: int, size: Size, context: float | None, split: str = "heldout"
) -> Swap:
    """A swap in the world of that name, drawn as a canvas of `size` (width, height) sees it that follows the
    driving character with this context; None = whole frames of that size."""
    return _swap(WORLDS[world], seed, frames, size, split, context=context)


def _swap(
    world: World,
    seed: int,
    frames: int,
    size: Size,
    split: str,
    flow: bool = False,
    context: float | None = None,
) -> Swap:
    driver, other = world.character(2 * seed, split), world.character(2 * seed + 1, split)
    motion = world.motion(seed, frames, driver.proportions, split)
    scene = world.scene(seed, split)
    camera = None if context is None else following_camera(driver, motion, scene, size, context)
    driving, truth = (render(c, motion, scene, size, flow, camera) for c in (driver, other))
    return swap_of(driving, truth, other, seed, size, split)


def swap_of(driving: Clip, truth: Clip, other: Character, seed: int, size: Size, split: str) -> Swap:
    """The task of making `truth`, in which the character `other` is, of `driving`. seed: of the reference."""
    rgb, alpha = render_reference(other, seed, size, split)
    return Swap(
        reference=np.dstack([rgb, alpha]),
        driving=driving,
        truth=truth,
        pose=pose_pictures(driving.poses(), size),
        box=box_masks(driving.mask),
        character=other,
    )


@dataclass(frozen=True)
class Animation:
    """One task of Animate Anyone: `reference` uint8 [H, W, 3], a character standing before a wall or in a scene at
    rest, moves.

    truth: the perfect answer, its camera at rest; pose: uint8 [F, H, W, 3]; cutout: uint8 [H, W], the character
    in the reference.
    """

    reference: np.ndarray
    cutout: np.ndarray
    truth: Clip
    pose: np.ndarray

    @property
    def region(self) -> np.ndarray:
        """bool [F, H, W]: pixels of the true character, or of the one in the reference, whose place is the
        scene's in the truth."""
        return (self.truth.mask > 0) | (self.cutout > 0)

    def poses(self) -> Poses:
        """POSE_KEYPOINT of every frame."""
        return self.truth.poses()


def sample_animation(seed: int, frames: int, size: int, split: str = "heldout", flow: bool = False) -> Animation:
    """Animation number `seed` (>= 0) of `split` in the first world, before a plain wall: `frames` frames of
    `size` x `size` pixels."""
    return _animation(WORLDS["first"], seed, frames, size, split, flow)


def sample_bold_animation(
    seed: int, frames: int, size: int, split: str = "heldout", flow: bool = False
) -> Animation:
    """The same in the bold world, where the character stands in a scene."""
    return _animation(WORLDS["bold"], seed, frames, size, split, flow)


def _animation(world: World, seed: int, frames: int, size: int, split: str, flow: bool) -> Animation:
    character = world.character(2 * seed + 1, split)
    scene = world.stage(world.scene(seed, split))
    motion = world.close(seed, frames, character.proportions, split)
    truth = render(character, motion, scene, (size, size), flow)
    rgb, alpha = render_reference(character, seed, (size, size), split, scene)
    return Animation(rgb, alpha, truth, pose_pictures(truth.poses(), (size, size)))


def pose_pictures(poses: Poses, size: Size) -> np.ndarray:
    """Poses -> skeleton pictures uint8 [F, H, W, 3] of `size` (width, height), which has their proportions."""
    canvas = poses.scaled(*(POSE_SCALE * side for side in size))
    return np.stack([resize(picture, size) for picture in draw_poses(canvas)])


def copy_driving(swap: Swap) -> np.ndarray:
    """Baseline: the driving clip as it is."""
    return swap.driving.frames


def background_only(swap: Swap) -> np.ndarray:
    """Baseline: the driving character filled with the mean colour of the scene inside the box."""
    frames = swap.driving.frames.copy()
    for frame, mask, box in zip(frames, swap.driving.mask, swap.box, strict=True):
        _erase(frame, mask > 0, box > 0)
    return frames


def pasted_reference(swap: Swap) -> np.ndarray:
    """Baseline: the reference character scaled into the driving character's box, over `background_only`."""
    return _paste(background_only(swap), swap.reference, swap.driving.mask)


def still_reference(animation: Animation) -> np.ndarray:
    """Baseline: the reference as a still picture."""
    return np.repeat(animation.reference[None], len(animation.pose), axis=0)


def still_background(animation: Animation) -> np.ndarray:
    """Baseline: the reference as a still picture, its character filled with the mean colour of the box around."""
    frame, cutout = animation.reference.copy(), animation.cutout
    _erase(frame, cutout > 0, box_masks(cutout[None])[0] > 0)
    return np.repeat(frame[None], len(animation.pose), axis=0)


def moved_reference(animation: Animation) -> np.ndarray:
    """Baseline: the reference's character scaled into the true character's box, over `still_background`."""
    cut = np.dstack([animation.reference, animation.cutout])
    return _paste(still_background(animation), cut, animation.truth.mask)


BASELINES: dict[str, Callable[[Swap], np.ndarray]] = {
    "copy driving": copy_driving,
    "background only": background_only,
    "reference pasted into the box": pasted_reference,
}
ANIMATION_BASELINES: dict[str, Callable[[Animation], np.ndarray]] = {
    "reference as it is": still_reference,
    "background only": still_background,
    "reference pasted into the true box": moved_reference,
}


def _erase(frame: np.ndarray, mask: np.ndarray, box: np.ndarray) -> None:
    """Fills the mask, bool [H, W], with the mean colour of what else is in the box."""
    around = box & ~mask
    if mask.any():
        frame[mask] = frame[around].mean(axis=0) if around.any() else frame.mean(axis=(0, 1))


def _paste(frames: np.ndarray, character: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Changes and returns the frames: the character, RGBA uint8 [H, W, 4], fills the box of each one's mask."""
    x0, y0, x1, y1 = mask_box(character[..., 3]) or (0, 0, 1, 1)
    cut = character[y0:y1, x0:x1]
    for frame, mask in zip(frames, masks, strict=True):
        box = mask_box(mask)
        if box is not None:
            left, top, right, bottom = box
            fitted = cv2.resize(cut, (right - left, bottom - top), interpolation=cv2.INTER_AREA)
            inside = fitted[..., 3] >= 128
            frame[top:bottom, left:right][inside] = fitted[inside][:, :3]
    return frames
