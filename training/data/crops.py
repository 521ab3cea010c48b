"""Cutting a clip to the size it is trained at: pictures, masks and poses alike.

A window is (x0, y0, x1, y1) in whole pixels, ends exclusive; it may reach over the picture's edges.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from PIL import Image

from anycharv_core.media.cameras import Cameras
from anycharv_core.media.imaging import resize
from anycharv_core.media.pose import BODY, BOX, FEET, HANDS, MIRRORED_BODY, PLACES, POINTS, Poses

Size = tuple[int, int]
"""(width, height) in pixels"""
Window = tuple[int, int, int, int]

# How much larger than the person's way through the clip a window is at most, so that distant people are not lost
# in their scene, and by how much of their size it surrounds them at least, where the picture allows it.
_LOOSEST, _MARGIN = 2.5, 0.1
_MIRRORED_FEET = [3, 4, 5, 0, 1, 2]


def nearest_bucket(size: Size, buckets: Sequence[Size]) -> Size:
    """The bucket whose proportions are nearest to those of `size`."""
    return min(buckets, key=lambda bucket: abs(math.log(bucket[0] / bucket[1] * size[1] / size[0])))


def person_window(boxes: Sequence[Sequence[float]], picture: Size, size: Size) -> Window:
    """The window of `size`'s proportions in a picture that keeps the person.

    Args:
        boxes: of the person in one or more frames, all of which share the window.
        picture: the frames' size.
        size: the size the window is to be brought to.

    Returns:
        A window inside the picture, around the middle of all boxes: as large as the picture allows, but not
        much larger than the boxes together. Where it cannot hold them it is as large as it can be.
    """
    around = np.array(boxes, np.float64)
    low = np.clip(around[:, :2].min(0), 0, picture)
    high = np.clip(around[:, 2:].max(0), low + 1, np.maximum(picture, low + 1))
    shape = np.array(size, np.float64)
    largest = (np.array(picture) / shape).min()
    scale = min(largest, _LOOSEST * ((high - low) / shape).max())
    sides = np.maximum(1, np.rint(shape * scale)).astype(int)
    start = np.clip(np.rint((low + high - sides) / 2).astype(int), 0, np.array(picture) - sides)
    return (*start.tolist(), *(start + sides).tolist())


def figure_window(box: Sequence[float], size: Size, margin: float = _MARGIN) -> Window:
    """The window of `size`'s proportions around a box with a margin, in parts of the box's longer side."""
    low, high = np.array(box[:2], np.float64), np.array(box[2:], np.float64)
    shape = np.array(size, np.float64)
    scale = ((high - low + 2 * margin * (high - low).max()) / shape).max()
    start = np.rint((low + high - shape * scale) / 2).astype(int)
    return (*start.tolist(), *(start + np.maximum(1, np.rint(shape * scale))).astype(int).tolist())


def cut(picture: np.ndarray, window: Window, size: Size) -> np.ndarray:
    """The window of a picture uint8 [h, w, 3] or mask [h, w], black past its edges, at `size`.

    Masks come back as 0 and 255.
    """
    x0, y0, x1, y1 = window
    height, width = picture.shape[:2]
    inside = picture[max(0, y0) : max(0, y1), max(0, x0) : max(0, x1)]
    before, after = (max(0, -y0), max(0, -x0)), (max(0, y1 - height), max(0, x1 - width))
    if any((*before, *after)):
        inside = np.pad(inside, ((before[0], after[0]), (before[1], after[1]), (0, 0))[: picture.ndim])
    inside = np.ascontiguousarray(inside)
    if picture.ndim == 3:
        return resize(inside, size)
    return np.where(resize(inside, size, Image.Resampling.BOX) > 127, np.uint8(255), np.uint8(0))


def cut_nearest(picture: np.ndarray, window: Window, size: Size) -> np.ndarray:
    """The window of a picture [h, w] at `size`, each pixel the one in its middle, 0 past the picture's edges: for
    depth, which is not to be blended."""
    x0, y0, x1, y1 = window
    columns, rows = (
        np.floor(low + (np.arange(count) + 0.5) * (high - low) / count).astype(int)
        for low, high, count in ((x0, x1, size[0]), (y0, y1, size[1]))
    )
    height, width = picture.shape
    seen = ((rows >= 0) & (rows < height))[:, None] & ((columns >= 0) & (columns < width))
    taken = picture[np.clip(rows, 0, height - 1)[:, None], np.clip(columns, 0, width - 1)]
    return np.where(seen, taken, np.zeros_like(taken))


def cut_poses(poses: Poses, window: Window, size: Size) -> Poses:
    """The poses as seen in the window at `size`; points outside it stay, outside the canvas."""
    x0, y0, x1, y1 = window
    moved = [people - (x0, y0, 0.0) for people in poses.people]
    return Poses(x1 - x0, y1 - y0, moved).scaled(*size)


def cut_cameras(cameras: Cameras, window: Window, size: Size) -> Cameras:
    """The cameras of frames of which the window is shown at `size`."""
    x0, y0, x1, y1 = window
    return cameras.cropped(x0, y0).scaled(size[0] / (x1 - x0), size[1] / (y1 - y0))


def mirror_poses(poses: Poses) -> Poses:
    """The poses in a mirror: left and right change sides, and so the colours they are drawn with."""
    mirrored = [people[:, _MIRRORED] * (-1, 1, 1) + (poses.width, 0, 0) for people in poses.people]
    for people in mirrored:
        corners = people[:, PLACES[BOX]]  # they stay upper left and lower right
        corners[..., 0] = corners[:, ::-1, 0].copy()
    return replace(poses, people=mirrored)


def _mirrored_points() -> np.ndarray:
    order = np.arange(POINTS)
    for part, source in (*zip(HANDS, HANDS[::-1], strict=True), (BODY, BODY), (FEET, FEET)):
        inner = {BODY: MIRRORED_BODY, FEET: _MIRRORED_FEET}.get(part, slice(None))
        order[PLACES[part]] = np.arange(POINTS)[PLACES[source]][inner]
    return order


_MIRRORED = _mirrored_points()
