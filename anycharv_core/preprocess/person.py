"""Masks and boxes of one person over a video, written as they are found."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np

from ..errors import UserError
from ..foreign import read_json
from ..media.masks import boxes_to_masks, mask_box, steady_boxes
from ..media.pose import BOX, MIN_SCORE, PLACES, Poses, person_in_mask
from ..media.video_write import write_masks
from .cache import cached, content_key
from .find import FoundPeople

Box = tuple[float, float, float, float]

MASKS, BOXES = "mask.mkv", "box.mkv"
_COUNTS = "counts.json"


def cached_person(
    found: FoundPeople,
    sources: Sequence[object],
    boxes: Sequence[Box | None],
    extents: Sequence[Box | None],
    masks: Callable[[], Iterable[np.ndarray]],
) -> tuple[Path, dict[str, int]]:
    """The folder with what `write_person` makes of `masks()`, from the cache or made now, and what it returned.

    sources: what the masks depend on beside the video and `boxes`, see `content_key`. Raises UserError as
    `write_person` does.
    """

    def make(folder: Path) -> None:
        cuts, times = found.findings.cuts, found.timestamps
        counts = write_person(folder, masks(), boxes, extents, cuts, times, found.time_base)
        (folder / _COUNTS).write_text(json.dumps(counts), encoding="utf-8")

    folder = cached("mask", content_key(found.key, *sources, boxes, extents), make)
    return folder, read_json(folder / _COUNTS)


def write_person(
    folder: Path,
    masks: Iterable[np.ndarray],
    boxes: Sequence[Box | None],
    extents: Sequence[Box | None],
    cuts: Sequence[int],
    timestamps: Sequence[int],
    time_base: Fraction,
) -> dict[str, int]:
    """Writes the fine masks to `folder`/mask.mkv and the coarse ones, steady boxes, to `folder`/box.mkv.

    A box surrounds the frame's mask, or the person's box where the mask is empty although the person is there,
    and in either case also the frame's extent; it is padded, and steadied within a shot.

    Args:
        masks: uint8 [H, W], one per frame.
        boxes: the person's detected box in each frame, None where absent or unknown.
        extents: what the box must cover besides in each frame, or None.
        cuts: the first frame of every shot but the first.
        timestamps, time_base: the video's.

    Returns:
        What to report: frames with the person, and those of them whose mask is empty.

    Raises:
        UserError: there is another number of masks than frames, or none of masks and boxes marks anything.
    """
    around: list[Box | None] = []
    size = (0, 0)

    def measured() -> Iterator[np.ndarray]:
        nonlocal size
        for mask in masks:
            size = mask.shape[1], mask.shape[0]
            around.append(mask_box(mask))
            if len(around) > len(timestamps):
                break
            yield mask
        if len(around) != len(timestamps):
            given = "more" if len(around) > len(timestamps) else len(around)
            raise UserError(
                f"There are {given} masks but the video has {len(timestamps)} frames; give one for each."
            )

    write_masks(folder / MASKS, measured(), timestamps, time_base)
    regions = [
        _union(mask or box, extent if mask or box else None)
        for mask, box, extent in zip(around, boxes, extents, strict=True)
    ]
    if not any(regions):
        raise UserError("The masks mark nothing in any frame; mark the person to replace with white.")
    starts = [0, *cuts, len(regions)]
    steady = [box for start, end in pairwise(starts) for box in steady_boxes(regions[start:end])]
    write_masks(folder / BOXES, (boxes_to_masks([box], *size)[0] for box in steady), timestamps, time_base)
    return {
        "frames": sum(region is not None for region in regions),
        "frames_with_empty_mask": sum(not mask and bool(box) for mask, box in zip(around, boxes, strict=True)),
    }


def poses_inside(poses: Poses, masks: Iterable[np.ndarray]) -> Poses:
    """In every frame only the person in the mask. Raises UserError where there are fewer masks than frames."""
    found = [person_in_mask(poses, frame, mask) for frame, mask in zip(range(len(poses)), masks, strict=False)]
    if len(found) < len(poses):
        raise UserError(f"There are {len(found)} masks but the video has {len(poses)} frames; give one for each.")
    return poses.only(np.array(found))


def pose_extent(people: np.ndarray) -> Box | None:
    """The box around all points seen of a frame's people [n, POINTS, 3]; None where there are none."""
    points = people[:, : PLACES[BOX].start]
    seen = points[points[..., 2] > MIN_SCORE, :2]
    return (*seen.min(axis=0).tolist(), *seen.max(axis=0).tolist()) if len(seen) else None


def _union(box: Box | None, other: Box | None) -> Box | None:
    if box is None or other is None:
        return box or other
    return min(box[0], other[0]), min(box[1], other[1]), max(box[2], other[2]), max(box[3], other[3])
