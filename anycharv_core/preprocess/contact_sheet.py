"""The contact sheet: a page with everybody in a video, to choose from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..media.imaging import resize
from ..media.sheet import INK, PAPER, sheet
from .choose import check_anybody
from .tracking import Track, box_area, spans

_CROPS = 4
_CROP = 168  # pixels, the side of the square a crop fits in
_OVERVIEW = 720  # pixels, the longer side of the frame with everybody's number
_CARD = 132  # pixels, the width of the column with numbers
# A sheet for more people than this would be too long to look through; the rest are minor.
_ROWS = 40
_SPANS = 4
_COLOURS = ((228, 26, 28), (31, 120, 180), (51, 140, 60), (152, 78, 163), (214, 102, 0), (120, 80, 50))


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
        pictures: the video's frames at `sheet_frames`, uint8 RGB [H, W, 3].

    Returns:
        uint8 RGB [H, W, 3].

    Raises:
        UserError: nobody is in the video.
    """
    check_anybody(tracks)
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
    runs = spans(track.present)
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
