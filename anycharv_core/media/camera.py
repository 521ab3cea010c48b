"""The path of a camera that follows one person: smooth, at rest while it can be, and never cutting the person.

A camera sees a window of every frame, of the canvas's proportions, which is scaled to the canvas. The person may
move in it without moving it. Where a window must move, each of its three numbers (size, and the centre's x and y)
takes the shortest way through what is allowed, the taut string: it rests, or pans and zooms at a steady pace, as
the paths of Grundmann, Kwatra and Essa (CVPR 2011) do. A Hann window then rounds its bends. The string keeps to
what is allowed in all frames within REACH, so that rounding, a mean over just those frames, leads nowhere else.

Windows and boxes are (x0, y0, x1, y1) in pixels of the frame, of which pixel i covers i to i + 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .imaging import Size

CONTEXT = 0.1  # of the longer side of a person's box, on each side
REACH = 6  # frames on either side over which bends are rounded
_LOOSE = 0.5  # of the context, which the person may come into before the camera moves
_SPARE = 1.25  # how much larger than it needs to be a window may stay, for the sake of not zooming
_LARGEST_SCALE = 4.0  # canvas pixels a pixel of the frame: beyond it nothing is gained

Box = Sequence[float]


def camera_path(
    boxes: Sequence[Box | None],
    frame: Size,
    canvas: Size,
    cuts: Sequence[int] = (),
    context: float = CONTEXT,
    keep: int = 0,
) -> np.ndarray:
    """The window that is seen of every frame, float64 [F, 4], all of the canvas's proportions.

    A window lies inside the frame where it can. It holds its frame's box and `keep` pixels around it, as far as
    the frame goes. Where the person is absent it goes straight on to where they come back; a shot without the
    person is seen whole. Every shot's path depends on its own boxes alone.

    Args:
        boxes: the person's in every frame, inside the frame, None where absent.
        frame, canvas: (width, height) in pixels.
        cuts: the first frame of every shot but the first.
        context: what to see around the person, as a fraction of the box's longer side, on each side.
        keep: pixels around the box that must be seen too.
    """
    edges = np.array([(np.nan,) * 4 if box is None else tuple(box) for box in boxes], np.float64).reshape(-1, 4)
    shots = np.split(edges, sorted({cut for cut in cuts if 0 < cut < len(edges)}))
    return np.concatenate([_shot(shot, frame, canvas, context, keep) for shot in shots])


def window_around(box: Box, canvas: Size, context: float = CONTEXT) -> tuple[float, float, float, float]:
    """The window of the canvas's proportions with the box in its middle, and `context` around it as in
    `camera_path`; it may reach past the picture."""
    x0, y0, x1, y1 = box
    room = 2 * context * max(x1 - x0, y1 - y0)
    width = max(x1 - x0 + room, (y1 - y0 + room) * canvas[0] / canvas[1])
    height = width * canvas[1] / canvas[0]
    x, y = (x0 + x1 - width) / 2, (y0 + y1 - height) / 2
    return x, y, x + width, y + height


def seen_background(windows: np.ndarray, boxes: Sequence[Box | None], frame: Size) -> float:
    """The pixels around the person's box in windows [F, 4], past the frame's edges too, relative to those in whole
    frames: a mean over the frames with a person. 1 where nobody is ever seen, or nothing is around them."""
    shown, whole = 0.0, 0.0
    for window, box in zip(windows, boxes, strict=True):
        if box is not None:
            person = (box[2] - box[0]) * (box[3] - box[1])
            shown += float(np.prod(window[2:] - window[:2])) - person
            whole += frame[0] * frame[1] - person
    return shown / whole if whole else 1.0


def _shot(boxes: np.ndarray, frame: Size, canvas: Size, context: float, keep: int) -> np.ndarray:
    """The windows [n, 4] of one shot; boxes [n, 4], NaN where absent."""
    shape = np.array([1.0, canvas[1] / canvas[0]])  # of a window, relative to its width
    sides = np.array(frame, np.float64)
    largest = float((sides / shape).max())
    if np.isnan(boxes).all():
        sizes = np.full(len(boxes), largest)
        centres = np.repeat(sides[None] / 2, len(boxes), axis=0)
    else:
        margin = context * (boxes[:, 2:] - boxes[:, :2]).max(axis=1)
        sizes = _sizes(_grown(boxes, np.maximum(margin, keep), sides), shape, canvas[0] / _LARGEST_SCALE, largest)
        inner = _grown(boxes, np.maximum(_LOOSE * margin, keep), sides)
        centres = np.stack(
            [_centres(inner[:, axis::2], sizes * shape[axis], sides[axis]) for axis in (0, 1)], axis=1
        )
    half = sizes[:, None] * shape / 2
    return np.concatenate([centres - half, centres + half], axis=1)


def _grown(boxes: np.ndarray, margin: np.ndarray, sides: np.ndarray) -> np.ndarray:
    """Boxes [n, 4] with margins [n] on all sides, as far as the frame goes."""
    near = np.maximum(boxes[:, :2] - margin[:, None], 0)
    return np.concatenate([near, np.minimum(boxes[:, 2:] + margin[:, None], sides)], axis=1)


def _sizes(boxes: np.ndarray, shape: np.ndarray, least: float, largest: float) -> np.ndarray:
    """Widths of windows [n], each enough for what boxes [n, 4] cover in all frames within REACH, seen in one."""
    near = -_highest(np.where(np.isnan(boxes[:, :2]), -np.inf, -boxes[:, :2]), REACH)
    far = _highest(np.where(np.isnan(boxes[:, 2:]), -np.inf, boxes[:, 2:]), REACH)
    needed = ((far - near) / shape).max(axis=1)
    known = np.flatnonzero(np.isfinite(needed))
    # Logarithms, as a zoom at a steady pace multiplies.
    needed = np.log(np.clip(needed[known], min(least, largest), largest))
    filled = np.interp(np.arange(len(boxes)), known, needed)
    # Twice the reach: every window that is averaged has to be enough for each of the frames within REACH.
    low = _highest(filled[:, None], 2 * REACH)[:, 0]
    high = np.minimum(low + np.log(_SPARE), np.log(largest))
    return np.exp(_rounded(taut_string(low, np.maximum(low, high), rest=low.max())))


def _centres(spans: np.ndarray, extents: np.ndarray, side: float) -> np.ndarray:
    """Centres [n] along one axis of windows of these extents [n], which hold spans [n, 2], NaN where absent."""
    absent = np.isnan(spans[:, 0])
    low = np.where(absent, -np.inf, spans[:, 1] - extents / 2)
    high = np.where(absent, np.inf, spans[:, 0] + extents / 2)
    # Inside the frame, or around all of it. The middle is always allowed, so this leaves something.
    ends = np.sort([extents / 2, side - extents / 2], axis=0)
    low, near = _highest(np.stack([low, ends[0]], axis=1), REACH).T
    high, far = -_highest(-np.stack([high, ends[1]], axis=1), REACH).T
    high = np.maximum(low, high)  # which they are but for rounding errors, as the sizes are chosen
    # To see past the frame's edge for a while is better than to cut the person.
    low, high = np.clip(near, low, high), np.clip(far, low, high)
    return _rounded(taut_string(low, high, rest=float(np.nanmedian(spans.mean(axis=1)))))


def taut_string(low: np.ndarray, high: np.ndarray, rest: float) -> np.ndarray:
    """The shortest path [n] with low <= path <= high, float [n] each, low <= high; its ends are free.

    Where a constant is allowed the path is the one that is closest to `rest`. The string (Davies and Kovac,
    Annals of Statistics 2001) runs straight from bend to bend: from one of them it goes as far as some line
    stays within, and bends at the latest limit that the line ran along.
    """
    if low.max() <= high.min():
        return np.full(len(low), np.clip(rest, low.max(), high.min()))
    low, high = low.copy(), high.copy()
    low[0] = high[0] = _free_end(low, high)
    low[-1] = high[-1] = _free_end(low[::-1], high[::-1])
    places, values = [0], [float(low[0])]
    while places[-1] < len(low) - 1:
        place, value = _next_bend(low, high, places[-1], values[-1])
        places.append(place)
        values.append(value)
    return np.clip(np.interp(np.arange(len(low)), places, values), low, high)


def _free_end(low: np.ndarray, high: np.ndarray) -> float:
    """Where a shortest path starts if it may start anywhere: at the value that it can keep longest."""
    highest, lowest = np.maximum.accumulate(low), np.minimum.accumulate(high)
    ended = int(np.argmax(highest > lowest))
    return float(lowest[ended - 1] if low[ended] > lowest[ended - 1] else highest[ended - 1])


def _next_bend(low: np.ndarray, high: np.ndarray, start: int, value: float) -> tuple[int, float]:
    """Where the string that bends at `start` bends next."""
    ahead = 64
    while True:
        end = min(start + 1 + ahead, len(low))
        away = np.arange(1, end - start)
        least, most = (low[start + 1 : end] - value) / away, (high[start + 1 : end] - value) / away
        steepest, flattest = np.maximum.accumulate(least), np.minimum.accumulate(most)
        crossed = steepest > flattest
        if crossed.any():
            at = int(np.argmax(crossed))
            limit, slopes = (high, most) if least[at] > flattest[at - 1] else (low, -least)
            bend = start + 1 + int(np.flatnonzero(slopes[:at] == slopes[:at].min())[-1])
            return bend, float(limit[bend])
        if end == len(low):
            return end - 1, float(low[-1])
        ahead *= 4


def _highest(values: np.ndarray, reach: int) -> np.ndarray:
    """The highest of values [n, k] among the frames within `reach` of each."""
    padded = np.pad(values, [(reach, reach), (0, 0)], constant_values=-np.inf)
    return np.lib.stride_tricks.sliding_window_view(padded, 2 * reach + 1, axis=0).max(axis=-1)


def _rounded(path: np.ndarray) -> np.ndarray:
    """A path [n] under a Hann window; it stays where it begins and ends."""
    return np.convolve(np.pad(path, REACH, "edge"), KERNEL, "valid")


KERNEL = np.hanning(2 * REACH + 3)[1:-1]
KERNEL /= KERNEL.sum()
