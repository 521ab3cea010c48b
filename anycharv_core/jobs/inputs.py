"""The files of a job, opened and checked before anything expensive starts."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from ..errors import UserError
from ..foreign import read_picture
from ..media.frames import Reopened
from ..media.imaging import Size
from ..media.masks import boxes_to_masks, read_boxes
from ..media.pose import Poses, read_poses
from ..media.pose_drawing import draw_poses
from ..media.video_read import VideoInfo, has_alpha, probe, read_alpha, read_frames
from ..media.video_write import read_gray
from ..systems.recipes import Recipe


@dataclass(frozen=True)
class Part:
    """A person of the clip, and the character who takes their place.

    mask: a video, a folder of PNGs or a JSON list of boxes; pose: POSE_KEYPOINT JSON (a file, or
    OpenPose's folder) or a skeleton video.
    """

    reference: Path
    mask: Path
    pose: Path
    reference_mask: Path | None = None


@dataclass(frozen=True)
class PartInputs:
    """The checked files of a part. reference: uint8 [H, W, 3 or 4]; reference_mask: uint8 [H, W] or None;
    pose: the skeletons, drawn on a canvas of the size asked for; they were made for `pose_size`."""

    reference: np.ndarray
    reference_mask: np.ndarray | None
    mask: Reopened
    pose: Callable[[Size], Reopened]
    pose_size: Size


def read_inputs(
    video: Path, cast: Iterable[Part], recipe: Recipe, size: Size | None
) -> tuple[VideoInfo, list[PartInputs]]:
    """Opens and checks the files of a clip and of the parts in it, without weights.

    Raises UserError when one cannot be read, or when they don't fit together, or into the (width, height)
    `size` the networks are to work at.
    """
    info = probe(video)
    clip = info.width, info.height
    inputs = []
    for part in cast:
        reference = read_reference(part.reference)
        outline = read_reference_mask(part.reference_mask, reference) if part.reference_mask else None
        mask = mask_frames(part.mask, clip)
        _check_mask(part.mask, mask, video, info, same_size=recipe.paste_back)
        poses, count, pose_size = pose_frames(part.pose, clip)
        _check_count(part.pose, "poses", count, video, info)
        recipe.canvas(clip, pose_size, size, 1)  # raises where proportions differ
        inputs.append(PartInputs(reference, outline, mask, poses, pose_size))
    return info, inputs


def read_reference(path: Path) -> np.ndarray:
    """The character's picture, turned upright: uint8 [H, W, 3], or [H, W, 4] where it has transparency."""
    picture = read_picture(path)
    transparent = "A" in picture.getbands() or "transparency" in picture.info
    pixels = np.array(picture.convert("RGBA" if transparent else "RGB"))
    if transparent and not pixels[..., 3].any():
        raise UserError(f"{path} is transparent everywhere; give a picture that shows the character.")
    return pixels


def read_reference_mask(path: Path, reference: np.ndarray) -> np.ndarray:
    """The character's outline in the reference picture: uint8 [H, W], 255 = character."""
    mask = np.asarray(read_picture(path).convert("L"))
    if mask.shape != reference.shape[:2]:
        raise UserError(
            f"{path} is {mask.shape[1]}x{mask.shape[0]} but the reference is "
            f"{reference.shape[1]}x{reference.shape[0]}; give a mask of the reference's size."
        )
    if not mask.any():
        raise UserError(f"{path} is black everywhere; mark the character with white.")
    return mask


def mask_frames(path: Path, clip: Size) -> Reopened:
    """The masks of a clip of size `clip` from a box list (.json), a video, or a folder of PNGs.

    Of pictures that are transparent somewhere the opacity is the mask, of others the brightness.
    """
    if path.suffix.lower() != ".json":
        return Reopened(partial(read_alpha if has_alpha(path) else read_gray, path))
    boxes = read_boxes(path)
    return Reopened(lambda: (boxes_to_masks([box], *clip)[0] for box in boxes))


def pose_frames(path: Path, clip: Size | None) -> tuple[Callable[[Size], Reopened], int, Size]:
    """How to get the skeleton pictures of a clip of size `clip`, None where there is no clip (drawn on a canvas of
    the size asked for), how many there are, and the size they were made for.

    `path`: POSE_KEYPOINT JSON, a folder of OpenPose's JSON files, or a video of skeletons drawn already.
    """
    if not holds_keypoints(path):
        info = probe(path)
        return lambda canvas: Reopened(partial(read_frames, path)), info.frames, (info.width, info.height)
    return drawn_poses(read_poses(path, clip))


def holds_keypoints(path: Path) -> bool:
    """Whether poses at `path` are points, a JSON file or a folder of them, rather than a video.

    Raises UserError where nothing is there.
    """
    if not path.exists():
        raise UserError(f"{path} is not there; check the path to the poses.")
    return path.suffix.lower() == ".json" or path.is_dir()


def drawn_poses(poses: Poses) -> tuple[Callable[[Size], Reopened], int, Size]:
    """What `pose_frames` gives, for poses at hand."""

    def drawn(canvas: Size) -> Reopened:
        return Reopened(lambda: draw_poses(poses.scaled(*canvas)))

    return drawn, len(poses), poses.size


def _check_mask(path: Path, masks: Iterable[np.ndarray], video: Path, info: VideoInfo, same_size: bool) -> None:
    count, present = 0, False
    for mask in masks:
        if same_size and mask.shape != (info.height, info.width):
            raise UserError(
                f"{path} is {mask.shape[1]}x{mask.shape[0]} but {video} is {info.width}x{info.height}; "
                "give masks of the video's size."
            )
        count += 1
        present = present or bool((mask >= 128).any())
    _check_count(path, "masks", count, video, info)
    if not present:
        raise UserError(f"{path} marks nothing in any frame; mark the person to replace with white.")


def _check_count(path: Path, what: str, count: int, video: Path, info: VideoInfo) -> None:
    if count != info.frames:
        raise UserError(
            f"{path} holds {count} {what} but {video} has {info.frames} frames; give one for every frame."
        )
