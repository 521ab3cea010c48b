"""Choosing people of a video by number, place or likeness.

People are numbered from 1, as on the contact sheet, in the order of `tracking.track`; indices count from 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from ..errors import UserError
from ..media.masks import mask_box
from .tracking import Track, body_looks, box_overlap, looks_distance

Box = tuple[float, float, float, float]

# How much of a box drawn by hand the person's must share (intersection over union).
_MIN_OVERLAP = 0.1


def by_number(tracks: Sequence[Track], choice: str | Iterable[int]) -> list[int]:
    """Indices of the people with the numbers in `choice` ("1,3", or ints), in that order.

    Raises:
        UserError: nobody is in the video, or a number is none, given twice, or not on the sheet.
    """
    check_anybody(tracks)
    parts = choice.split(",") if isinstance(choice, str) else choice
    try:
        numbers = [int(part) for part in parts]
    except ValueError as error:
        raise UserError(f"{choice!r} is not a list of people's numbers; {_offer(tracks)}.") from error
    if not numbers or not all(1 <= number <= len(tracks) for number in numbers):
        named = ", ".join(map(str, numbers)) or "nobody"
        raise UserError(f"There {_count(len(tracks))} in the video, not {named}; {_offer(tracks)}.")
    if len(set(numbers)) < len(numbers):
        raise UserError(f"Person {max(numbers, key=numbers.count)} is chosen twice; give each number once.")
    return [number - 1 for number in numbers]


def by_click(tracks: Sequence[Track], frame: int, x: float, y: float) -> int:
    """Index of the person in whose box the point (x, y) of a frame lies, in pixels; of several, the one
    nearest whose middle, measured in box sizes, it lies.

    Raises:
        UserError: nobody is in the video, there is no such frame, or nobody is at the point.
    """
    boxes = _boxes_at(tracks, frame)
    inside = (boxes[:, 0] <= x) & (x < boxes[:, 2]) & (boxes[:, 1] <= y) & (y < boxes[:, 3])
    if not inside.any():
        raise UserError(f"Nobody is at {x:g}, {y:g} in frame {frame}; {_whereabouts(tracks, frame)}.")
    away = np.abs((np.array((x, y)) - (boxes[:, :2] + boxes[:, 2:]) / 2) / (boxes[:, 2:] - boxes[:, :2]))
    return int(np.argmin(np.where(inside, away.max(axis=1), np.inf)))


def by_box(tracks: Sequence[Track], frame: int, box: Sequence[float]) -> int:
    """Index of the person whose box in a frame overlaps x0, y0, x1, y1 (pixels) most.

    Raises:
        UserError: nobody is in the video, there is no such frame, the box is empty, or nobody is in it.
    """
    boxes = _boxes_at(tracks, frame)
    if len(box) != 4 or not (box[0] < box[2] and box[1] < box[3]):
        raise UserError(f"The box {_sides(box)} is empty; give x0, y0, x1, y1 with x0 < x1 and y0 < y1.")
    overlap = box_overlap(boxes, np.array([box], np.float64))[:, 0]
    if overlap.max() < _MIN_OVERLAP:
        raise UserError(f"Nobody is in the box {_sides(box)} in frame {frame}; {_whereabouts(tracks, frame)}.")
    return int(np.argmax(overlap))


def by_likeness(tracks: Sequence[Track], picture: np.ndarray) -> tuple[int, float]:
    """The person whose colours are most like a picture's.

    Args:
        picture: uint8 RGB or RGBA [H, W, 3 or 4] of one person, head to foot; where it is transparent
            somewhere, only the rest counts.

    Returns:
        The index, and the likeness in 0..1: 1 less the Hellinger distance of `tracking.looks_distance`, so that
        about 0.5 and less is somebody else.

    Raises:
        UserError: nobody is in the video, or the picture is transparent everywhere.
    """
    check_anybody(tracks)
    alpha = picture[..., 3] > 127 if picture.shape[2] == 4 else np.ones(picture.shape[:2], bool)
    box = mask_box(alpha)
    if box is None:
        raise UserError("The picture of the person is transparent everywhere; give one that shows somebody.")
    rgb = np.ascontiguousarray(picture[..., :3])
    looks = body_looks(rgb, np.array(box), alpha=None if alpha.all() else alpha)
    likeness = 1 - looks_distance(looks[None], np.stack([track.looks for track in tracks]))[0]
    best = int(np.argmax(likeness))
    return best, float(likeness[best])


def chosen_boxes(track: Track) -> list[Box | None]:
    """The person's box x0, y0, x1, y1 in pixels in every frame, None where absent."""
    pairs = zip(track.boxes.tolist(), track.present, strict=True)
    return [tuple(box) if present else None for box, present in pairs]


def check_anybody(tracks: Sequence[Track]) -> None:
    """Raises UserError where there is nobody to choose from."""
    if not tracks:
        raise UserError("Nobody was found in the video; give a video in which people can be seen.")


def _count(people: int) -> str:
    return "is 1 person" if people == 1 else f"are {people} people"


def _offer(tracks: Sequence[Track]) -> str:
    if len(tracks) == 1:
        return "choose 1"
    return "choose 1 or 2" if len(tracks) == 2 else f"choose from 1 to {len(tracks)}"


def _boxes_at(tracks: Sequence[Track], frame: int) -> np.ndarray:
    """float64 [people, 4], NaN for those not in the frame."""
    check_anybody(tracks)
    count = len(tracks[0].people)
    if not 0 <= frame < count:
        raise UserError(f"The video has no frame {frame}; choose one from 0 to {count - 1}.")
    return np.stack([track.boxes[frame] for track in tracks]).astype(np.float64)


def _whereabouts(tracks: Sequence[Track], frame: int) -> str:
    there = [
        f"person {index + 1} is in {_sides(track.boxes[frame])}"
        for index, track in enumerate(tracks)
        if track.present[frame]
    ]
    if there:
        return ", ".join(there)
    seen = np.flatnonzero(np.any([track.present for track in tracks], axis=0))
    return f"nobody is in that frame at all, but there is somebody in frame {_nearest(seen, frame)}"


def _nearest(frames: np.ndarray, frame: int) -> int:
    return int(frames[np.argmin(np.abs(frames - frame))])


def _sides(box: Iterable[float]) -> str:
    return ", ".join(f"{side:.0f}" for side in box)
