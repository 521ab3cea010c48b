"""The files of a job, opened and checked before anything expensive starts."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from ..errors import UserError
from ..foreign import png_size, read_picture
from ..inference.skeletons import PointSkeletons, cut_to
from ..media.canvas import CanvasPath
from ..media.frames import Reopened, Source
from ..media.imaging import Size
from ..media.mask_read import has_alpha, numbered_pngs, read_alpha, read_gray
from ..media.masks import boxes_to_masks, read_boxes
from ..media.pose import read_poses
from ..media.video_read import Video
from .lengths import KnownLength, Length, MaskLength, Mismatch, as_many, check_early


@dataclass(frozen=True)
class Offered:
    """What a prepared folder has of a person for models that read it, where nothing else was given: the exact
    mask, for those that make a coarse one themselves, masks of objects, and depth."""

    mask: Path | None = None
    objects: Path | None = None
    depth: Path | None = None


@dataclass(frozen=True)
class Replacement:
    """A person of the video, and the character who takes their place.

    mask: a video, a folder of PNGs or a JSON list of boxes; pose: POSE_KEYPOINT JSON (a file, or
    OpenPose's folder) or a skeleton video; objects: as the mask, of what the person holds; depth: a grey video or
    folder of PNGs, nearer being brighter and black unknown; offered: what else there is.
    """

    reference: Path
    mask: Path
    pose: Path
    reference_mask: Path | None = None
    objects: Path | None = None
    depth: Path | None = None
    offered: Offered = Offered()

    @property
    def files(self) -> dict[str, Path]:
        """All that are given, by field."""
        return {name: path for name, path in vars(self).items() if isinstance(path, Path)}

    def suiting(self, extras: Collection[str], coarse: bool) -> Replacement:
        """With what is offered and a model reads: `extras` beside the mask, which is to be exact where the system
        makes a `coarse` one itself."""
        wanted = {*extras, *(("mask",) if coarse else ())}
        found = {name: path for name, path in vars(self.offered).items() if name in wanted and path is not None}
        return replace(self, **found)


@dataclass(frozen=True)
class ReplacementInputs:
    """The opened files of a `Replacement`. reference: uint8 [H, W, 3 or 4]; reference_mask: uint8 [H, W] or None;
    mask: uint8 [H, W] for every frame; unchecked: the same, of any number of frames; objects, depth: uint8 [H, W]
    for every frame, or None."""

    reference: np.ndarray
    reference_mask: np.ndarray | None
    mask: Source
    unchecked: Reopened
    skeletons: AnySkeletons
    objects: Source | None = None
    depth: Source | None = None

    def poses(self, size: Size, path: CanvasPath, files: Replacement, video: Video) -> Source:
        """The skeletons as `Skeletons.drawn` gives them, checked to be as many as the video's frames."""
        frames = as_many(self.skeletons.drawn(size, path), video, _one_each(files.pose, "poses", video))
        return Source(f"pose {files.pose}", frames, 3)


class FilmedSkeletons:
    """`Skeletons` that are already drawn, as a video of any size."""

    def __init__(self, path: Path):
        self.video = Video(path)
        self.size = self.video.size

    def drawn(self, size: Size, path: CanvasPath) -> Reopened:
        return cut_to(path, self.video)


AnySkeletons = PointSkeletons | FilmedSkeletons


def length_of(skeletons: AnySkeletons) -> Length:
    """How many there are; those of a video are decoded to be counted."""
    return skeletons.video if isinstance(skeletons, FilmedSkeletons) else KnownLength(skeletons.count)


def open_replacement(files: Replacement, video: Video) -> ReplacementInputs:
    """Opens the files of one person of the video, and decodes the first frame of each.

    Raises UserError where a file cannot be read, or where there is not a mask and a pose for every frame. Where a
    file is wrong about how many it holds, that is found when they are read, beside the video's own frames.
    """
    reference = read_reference(files.reference)
    outline = read_reference_mask(files.reference_mask, reference) if files.reference_mask else None
    masks = mask_frames(files.mask, video.size)
    wrong_masks, wrong_poses = _one_each(files.mask, "masks", video), _one_each(files.pose, "poses", video)
    check_early(length_of_masks(files.mask, masks), video, wrong_masks)
    skeletons = open_skeletons(files.pose, video.size)
    check_early(length_of(skeletons), video, wrong_poses)
    mask = Source(f"mask {files.mask}", as_many(masks, video, wrong_masks), None)
    objects = (
        _beside(files.objects, "objects", mask_frames(files.objects, video.size), video) if files.objects else None
    )
    depth = (
        _beside(files.depth, "depth", Reopened(partial(read_gray, files.depth)), video) if files.depth else None
    )
    return ReplacementInputs(reference, outline, mask, masks, skeletons, objects, depth)


def _beside(path: Path, what: str, frames: Reopened, video: Video) -> Source:
    """Pictures [H, W] of `path`, one for each of the video's frames, as `open_replacement` checks them."""
    wrong = _one_each(path, f"{what} pictures", video)
    check_early(length_of_masks(path, frames), video, wrong)
    return Source(f"{what} {path}", as_many(frames, video, wrong), None)


def check_mask_size(opened: ReplacementInputs, files: Replacement, video: Video) -> None:
    """Raises UserError where the masks are not of the video's size."""
    (width, height), size = opened.mask.size, video.size
    if (width, height) != size:
        raise UserError(
            f"{files.mask} is {width}x{height} but {video.path} is {size[0]}x{size[1]}; give masks of the video's "
            "size."
        )


def read_reference(path: Path) -> np.ndarray:
    """The character's picture, turned upright: uint8 [H, W, 3], or [H, W, 4] where it has transparency."""
    pixels = np.array(read_picture(path))
    if pixels.shape[2] == 4 and not pixels[..., 3].any():
        raise UserError(f"{path} is transparent everywhere; give a picture that shows the character.")
    return pixels


def read_reference_mask(path: Path, reference: np.ndarray) -> np.ndarray:
    """The character's outline in the reference picture: uint8 [H, W], 255 = character."""
    mask = np.asarray(read_picture(path, "L"))
    if mask.shape != reference.shape[:2]:
        raise UserError(
            f"{path} is {mask.shape[1]}x{mask.shape[0]} but the reference is "
            f"{reference.shape[1]}x{reference.shape[0]}; give a mask of the reference's size."
        )
    if not mask.any():
        raise UserError(f"{path} is black everywhere; mark the character with white.")
    return mask


def mask_frames(path: Path, video: Size) -> Reopened:
    """The masks of a video of this size from a box list (.json), a video, or a folder of PNGs.

    Of pictures that are transparent somewhere the opacity is the mask, of others the brightness.
    """
    if path.suffix.lower() == ".json":
        boxes = read_boxes(path)
        return Reopened(lambda: (boxes_to_masks([box], *video)[0] for box in boxes), len(boxes))
    masks = Reopened(partial(read_alpha if has_alpha(path) else read_gray, path))
    if path.is_dir() and len({png_size(png) for png in numbered_pngs(path)}) > 1:
        for _ in masks:  # which tells the one of another size
            pass
    return masks


def length_of_masks(path: Path, frames: Reopened) -> Length:
    """How many masks `mask_frames` has read from `path`."""
    return MaskLength(path, frames) if frames.count is None else KnownLength(frames.count)


def open_skeletons(path: Path, video: Size | None) -> AnySkeletons:
    """POSE_KEYPOINT JSON, a folder of OpenPose's JSON files, or a video of skeletons drawn already.

    video: the size of the video they are for, None where there is none.
    """
    return PointSkeletons(read_poses(path, video)) if holds_keypoints(path) else FilmedSkeletons(path)


def holds_keypoints(path: Path) -> bool:
    """Whether poses at `path` are points, a JSON file or a folder of them, rather than a video.

    Raises UserError where nothing is there.
    """
    if not path.exists():
        raise UserError(f"{path} is not there; check the path to the poses.")
    return path.suffix.lower() == ".json" or path.is_dir()


def _one_each(path: Path, what: str, video: Video) -> Mismatch:
    return lambda count, frames: UserError(
        f"{path} holds {count} {what} but {video.path} has {frames} frames; give one for every frame."
    )
