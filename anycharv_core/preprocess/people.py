"""Choosing people of a clip, and the contact sheet they are chosen from.

People are numbered from 1, as on the sheet, in the order of `tracking.track`; indices count from 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..errors import UserError
from ..media.imaging import resize
from ..media.masks import mask_box
from ..media.sheet import INK, PAPER, sheet
from .looks import body_looks, looks_distance
from .tracking import Track, present_spans
from .tracklets import box_area, box_overlap

Box = tuple[float, float, float, float]

# How much of a box drawn by hand the person's must share (intersection over union).
_MIN_OVERLAP = 0.1
_CROPS = 4
_CROP = 168  # pixels, the side of the square a crop fits in
_OVERVIEW = 720  # pixels, the longer side of the frame with everybody's number
_CARD = 132  # pixels, the width of the column with numbers
# A sheet for more people than this would be too long to look through; the rest are minor.
_ROWS = 40
_SPANS = 4
_COLOURS = ((228, 26, 28), (31, 120, 180), (51, 140, 60), (152, 78, 163), (214, 102, 0), (120, 80, 50))


def by_number(tracks: Sequence[Track], choice: str | Iterable[int]) -> list[int]:
    """Indices of the people with the numbers in `choice` ("1,3", or ints), in that order.

    Raises:
        UserError: nobody is in the clip, or a number is none, given twice, or not on the sheet.
    """
    _check_anybody(tracks)
    parts = choice.split(",") if isinstance(choice, str) else choice
    try:
        numbers = [int(part) for part in parts]
    except ValueError as error:
        raise UserError(f"{choice!r} is no list of people's numbers; {_offer(tracks)}.") from error
    if not numbers or not all(1 <= number <= len(tracks) for number in numbers):
        named = ", ".join(map(str, numbers)) or "nobody"
        raise UserError(f"There {_count(len(tracks))} in the clip, not {named}; {_offer(tracks)}.")
    if len(set(numbers)) < len(numbers):
        raise UserError(f"Person {max(numbers, key=numbers.count)} is chosen twice; name everybody once.")
    return [number - 1 for number in numbers]


def by_click(tracks: Sequence[Track], frame: int, x: float, y: float) -> int:
    """Index of the person in whose box the point (x, y) of a frame lies, in pixels; of several, the one
    nearest whose middle, measured in box sizes, it lies.

    Raises:
        UserError: nobody is in the clip, there is no such frame, or nobody is at the point.
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
        UserError: nobody is in the clip, there is no such frame, the box is empty, or nobody is in it.
    """
    boxes = _boxes_at(tracks, frame)
    if len(box) != 4 or not (box[0] < box[2] and box[1] < box[3]):
        raise UserError(f"The box {_sides(box)} is empty; give x0, y0, x1, y1 with x0 < x1 and y0 < y1.")
    overlap = box_overlap(boxes, np.array([box], np.float64))[:, 0]
    if overlap.max() < _MIN_OVERLAP:
        raise UserError(f"Nobody fills the box {_sides(box)} in frame {frame}; {_whereabouts(tracks, frame)}.")
    return int(np.argmax(overlap))


def by_likeness(tracks: Sequence[Track], picture: np.ndarray) -> tuple[int, float]:
    """The person whose colours are most like a picture's.

    Args:
        picture: uint8 RGB or RGBA [H, W, 3 or 4] of one person, head to foot; where it is transparent
            somewhere, only the rest counts.

    Returns:
        The index, and the likeness in 0..1: 1 less the Hellinger distance of `looks.looks_distance`, so that
        about 0.5 and less is a stranger.

    Raises:
        UserError: nobody is in the clip, or the picture is transparent everywhere.
    """
    _check_anybody(tracks)
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


def sheet_frames(tracks: Sequence[Track]) -> list[int]:
    """The frames that `contact_sheet` shows, rising; none where there are no tracks."""
    if not tracks:
        return []
    return sorted({_overview_frame(tracks), *(i for track in tracks[:_ROWS] for i in _clearest(tracks, track))})


def contact_sheet(tracks: Sequence[Track], pictures: Mapping[int, np.ndarray]) -> np.ndarray:
    """A page to choose from: the frame that shows most people, with its and their numbers, and below it a row for
    each person with the number, when they are seen, and crops of up to four of their clearest moments.

    Args:
        tracks: of everybody, as `tracking.track` returns them.
        pictures: the clip's frames at `sheet_frames`, uint8 RGB [H, W, 3].

    Returns:
        uint8 RGB [H, W, 3].

    Raises:
        UserError: nobody is in the clip.
    """
    _check_anybody(tracks)
    rows = []
    for index, track in enumerate(tracks[:_ROWS]):
        crops = [_crop(pictures[i], track.boxes[i]) for i in _clearest(tracks, track)]
        blanks = [np.full((1, 1, 3), PAPER, np.uint8)] * (_CROPS - len(crops))
        rows.append([_card(index, track), *crops, *blanks])
    frame = _overview_frame(tracks)
    hidden = len(tracks) - len(rows)
    title = "clearest moments" + (f" (and {hidden} more people, seen less)" if hidden else "")
    pages = [
        np.asarray(sheet([[_overview(tracks, frame, pictures[frame])]], [f"frame {frame}"])),
        np.asarray(sheet(rows, ["person", title, *[""] * (_CROPS - 1)])),
    ]
    width = max(page.shape[1] for page in pages)
    return np.concatenate([_widened(page, width) for page in pages])


def _check_anybody(tracks: Sequence[Track]) -> None:
    if not tracks:
        raise UserError("Nobody was found in the clip; give a clip in which people can be seen.")


def _count(people: int) -> str:
    return "is 1 person" if people == 1 else f"are {people} people"


def _offer(tracks: Sequence[Track]) -> str:
    if len(tracks) == 1:
        return "choose 1"
    return "choose 1 or 2" if len(tracks) == 2 else f"choose from 1 to {len(tracks)}"


def _boxes_at(tracks: Sequence[Track], frame: int) -> np.ndarray:
    """float64 [people, 4], NaN for those not in the frame."""
    _check_anybody(tracks)
    count = len(tracks[0].people)
    if not 0 <= frame < count:
        raise UserError(f"The clip has no frame {frame}; choose one from 0 to {count - 1}.")
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


def _overview_frame(tracks: Sequence[Track]) -> int:
    """The frame with most people, and of several the one that shows them largest."""
    present = np.sum([track.present for track in tracks], axis=0)
    area = np.sum([np.nan_to_num(box_area(track.boxes)) for track in tracks], axis=0)
    return int(np.argmax(present + area / (area.max() + 1)))


def _clearest(tracks: Sequence[Track], track: Track) -> list[int]:
    """Up to four frames spread over the person's time, each the one of its part that shows them largest and
    least covered by others."""
    seen = np.flatnonzero(track.present)
    visible = box_area(track.boxes[seen])
    for other in tracks:
        if other is not track:
            theirs = np.nan_to_num(other.boxes[seen])
            mine = track.boxes[seen]
            sides = np.minimum(mine[:, 2:], theirs[:, 2:]) - np.maximum(mine[:, :2], theirs[:, :2])
            visible = visible - np.maximum(sides, 0).prod(axis=1)
    parts = np.array_split(np.arange(len(seen)), min(_CROPS, len(seen)))
    return [int(seen[part[np.argmax(visible[part])]]) for part in parts]


def _crop(picture: np.ndarray, box: np.ndarray) -> np.ndarray:
    height, width = picture.shape[:2]
    x0, y0 = np.clip(np.floor(box[:2]), 0, (width - 1, height - 1)).astype(int)
    x1, y1 = np.clip(np.ceil(box[2:]), (x0 + 1, y0 + 1), (width, height)).astype(int)
    return _fitted(picture[y0:y1, x0:x1], _CROP)


def _fitted(picture: np.ndarray, side: int) -> np.ndarray:
    """The picture scaled, up or down, until its longer side is `side` pixels."""
    scale = side / max(picture.shape[:2])
    size = max(1, round(picture.shape[1] * scale)), max(1, round(picture.shape[0] * scale))
    return resize(np.ascontiguousarray(picture), size)


def _colour(index: int) -> tuple[int, int, int]:
    return _COLOURS[index % len(_COLOURS)]


def _card(index: int, track: Track) -> np.ndarray:
    """The number of a person, and the frames in which they are seen."""
    page = Image.new("RGB", (_CARD, _CROP), PAPER)
    draw = ImageDraw.Draw(page)
    draw.text((_CARD // 2, 8), str(index + 1), _colour(index), ImageFont.load_default(44), anchor="ma")
    runs = present_spans(track)
    lines = ["seen in frames", *(f"{a}" if b - a == 1 else f"{a} to {b - 1}" for a, b in runs[:_SPANS])]
    if len(runs) > _SPANS:
        lines.append(f"and {len(runs) - _SPANS} more spans")
    draw.multiline_text(
        (_CARD // 2, 64), "\n".join(lines), INK, ImageFont.load_default(12), anchor="ma", align="center"
    )
    return np.asarray(page)


def _overview(tracks: Sequence[Track], frame: int, picture: np.ndarray) -> np.ndarray:
    scale = _OVERVIEW / max(picture.shape[:2])
    page = Image.fromarray(_fitted(picture, _OVERVIEW))
    draw = ImageDraw.Draw(page)
    font = ImageFont.load_default(22)
    for index, track in enumerate(tracks):
        if track.present[frame]:
            x0, y0, x1, y1 = (float(side) * scale for side in track.boxes[frame])
            draw.rectangle((x0, y0, x1, y1), outline=_colour(index), width=3)
            label = draw.textbbox((x0 + 8, y0 + 5), str(index + 1), font)
            draw.rectangle((x0, y0, label[2] + 6, label[3] + 5), fill=_colour(index))
            draw.text((x0 + 8, y0 + 5), str(index + 1), "white", font)
    return np.asarray(page)


def _widened(page: np.ndarray, width: int) -> np.ndarray:
    wide = np.full((page.shape[0], width, 3), PAPER, np.uint8)
    wide[:, : page.shape[1]] = page
    return wide
