"""Masks of the character to replace: boxes, blocks, augmentation, and the soft paste-back.

Masks are uint8 [H, W] or [F, H, W], 255 where the picture is replaced and 0 where it is kept. A pixel
belongs to the mask from 128 on, so that the noise of a compressed mask video does not; bool masks are
taken as they are. Boxes are (x0, y0, x1, y1) in pixels with exclusive ends.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError
from ..foreign import read_json
from ..opencv import cv2
from .colour import widened

Box = tuple[int, int, int, int]

# A margin for small or distant people, whose masks are off by more than a tenth of their size.
_MIN_PADDING = 4
# Irregular borders reach between these fractions of the character's size at strength 1.
_REACH = (0.03, 0.2)
# Cells of the border noise over the character: wide bulges, then finer teeth.
_NOISE_CELLS = (7, 21)


def mask_box(mask: np.ndarray) -> Box | None:
    """The smallest box around a mask [H, W], with its last row and column; None for an empty mask.

    The official release measured its boxes one row and one column short.
    """
    inside = _inside(mask)
    columns, rows = (np.flatnonzero(inside.any(axis)) for axis in (0, 1))
    if not rows.size:
        return None
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def box_masks(masks: np.ndarray, padding: float = 0.1, smooth: int = 2) -> np.ndarray:
    """Coarse masks that hide the character's outline (AnyCharV, section 3.2): a box in every frame.

    Args:
        masks: uint8 [F, H, W].
        padding, smooth: as `steady_boxes` takes them.

    Returns:
        uint8 [F, H, W] of 0 and 255; all 0 where the frame's mask is empty.
    """
    _, height, width = masks.shape
    return boxes_to_masks(steady_boxes([mask_box(mask) for mask in masks], padding, smooth), width, height)


def steady_boxes(
    boxes: Sequence[Sequence[float] | None], padding: float = 0.1, smooth: int = 2
) -> list[tuple[float, float, float, float] | None]:
    """Boxes with a margin that move calmly, yet never lose a pixel of their own frame's box.

    Each box is padded, then steadied over time: every edge becomes the outermost over the frames within
    `smooth` of it, and then the mean of those over the same frames. Every term of that mean takes the
    frame itself into account. A cut inside the video widens the boxes next to it: give shots one by one.

    Args:
        boxes: (x0, y0, x1, y1) in pixels with exclusive ends per frame, or None.
        padding: margin on each side as a fraction of the box's width or height, at least 4 pixels.
        smooth: frames on either side to steady over; 0 only pads.

    Returns:
        The new boxes, None where there was none; they may reach over the picture's edges.
    """
    # The far edges are negated, so that the outermost of each of the four is its minimum.
    edges = np.full((len(boxes), 4), np.nan)
    for index, box in enumerate(boxes):
        if box is not None:
            x0, y0, x1, y1 = box
            dx, dy = margins(box, padding)
            edges[index] = x0 - dx, y0 - dy, -x1 - dx, -y1 - dy
    present = np.flatnonzero(~np.isnan(edges[:, 0]))
    reach = {
        t: present[np.searchsorted(present, t - smooth) : np.searchsorted(present, t + smooth, "right")]
        for t in present
    }
    outermost = edges.copy()
    for t, window in reach.items():
        outermost[t] = edges[window].min(axis=0)
    steady: list[tuple[float, float, float, float] | None] = [None] * len(boxes)
    for t, window in reach.items():
        x0, y0, x1, y1 = outermost[window].mean(axis=0).tolist()
        steady[t] = (x0, y0, -x1, -y1)
    return steady


def margins(box: Sequence[float], padding: float) -> tuple[int, int]:
    """Pixels to pad a box with at its left and right, and at its top and bottom: the fraction `padding` of
    its width and height, at least 4."""
    x0, y0, x1, y1 = box
    dx, dy = (max(_MIN_PADDING, math.ceil(padding * side)) for side in (x1 - x0, y1 - y0))
    return dx, dy


def block_masks(masks: np.ndarray, rows: int = 10, columns: int = 10) -> np.ndarray:
    """Shape-agnostic masks (Animate Anyone 2, section 3.2, equation 2): a coarse picture of the mask.

    The mask's bounding box, h x w pixels, is divided into `rows` x `columns` blocks that don't overlap, and
    every block takes the largest value in it. Blocks are as equal as whole pixels allow; there are no more
    than pixels. 1 x 1 gives the box, h x w the mask itself.

    The paper sets k_h = h / 10 and k_w = w / 10 for inference and says both that the box is divided into
    k_h x k_w blocks and that k grows with the box. The default takes k for a block's size, which gives
    blocks that grow with the character, ten along each side.

    Args:
        masks: uint8 [F, H, W].
        rows, columns: number of blocks along the height and width, at least 1.

    Returns:
        uint8 [F, H, W] of 0 and 255, which covers `masks`; all 0 where the frame's mask is empty.
    """
    blocks = np.zeros(masks.shape, np.uint8)
    for mask, filled in zip(masks, blocks, strict=True):
        box = mask_box(mask)
        if box:
            x0, y0, x1, y1 = box
            window = _inside(mask[y0:y1, x0:x1])
            tops, lefts = (
                np.arange(min(number, side)) * side // min(number, side)
                for number, side in zip((rows, columns), window.shape, strict=True)
            )
            largest = np.logical_or.reduceat(np.logical_or.reduceat(window, tops, 0), lefts, 1)
            heights, widths = np.diff(tops, append=y1 - y0), np.diff(lefts, append=x1 - x0)
            filled[y0:y1, x0:x1] = 255 * largest.repeat(heights, 0).repeat(widths, 1)
    return blocks


def grow_boxes(masks: np.ndarray, smallest: int) -> np.ndarray:
    """Box masks uint8 [F, H, W] whose boxes are at least `smallest` pixels wide and high, where they fit.

    A smaller box grows evenly around its middle, and is pushed back inside where it would leave the picture.
    """
    _, height, width = masks.shape
    boxes = []
    for box in map(mask_box, masks):
        if box is not None:
            (x0, x1), (y0, y1) = (
                _widened(low, high, smallest, side)
                for low, high, side in ((box[0], box[2], width), (box[1], box[3], height))
            )
            box = (x0, y0, x1, y1)
        boxes.append(box)
    return boxes_to_masks(boxes, width, height)


def _widened(low: int, high: int, smallest: int, side: int) -> tuple[int, int]:
    length = max(high - low, min(smallest, side))
    start = min(max(0, low - (length - (high - low)) // 2), side - length)
    return start, start + length


def fill_absent(masks: np.ndarray, hold: bool) -> np.ndarray:
    """Masks uint8 [F, H, W] in which empty frames have got one.

    With `hold` it is the mask of the nearest earlier frame that has one, or of the first later one;
    otherwise, and where no frame has one, the whole frame.
    """
    filled = masks.copy()
    present = np.flatnonzero(_inside(masks).any(axis=(1, 2)))
    for index in np.setdiff1d(np.arange(len(masks)), present):
        earlier = present[present < index]
        source = earlier[-1:] if earlier.size else present[:1]
        filled[index] = masks[source[0]] if hold and source.size else 255
    return filled


def augment_mask(mask: np.ndarray, generator: np.random.Generator, strength: float = 1.0) -> np.ndarray:
    """The training augmentation of fine masks: an irregular border (AnyCharV, section 3.2).

    The border moves outwards by a smooth random amount of 0 up to a reach, itself random between 3 and
    20 percent of the character's size (geometric mean of its box's sides). It never moves inwards: the
    character to paint over must stay covered, as it is in use.

    Args:
        mask: uint8 [H, W].
        generator: source of the border; the same state gives the same mask.
        strength: factor on the reach; 0 gives back the mask.

    Returns:
        uint8 [H, W] of 0 and 255, which covers `mask`.
    """
    inside = _inside(mask)
    augmented = np.zeros(mask.shape, np.uint8)
    box = mask_box(inside)
    if box is None:
        return augmented
    reach = strength * generator.uniform(*_REACH) * math.sqrt((box[2] - box[0]) * (box[3] - box[1]))
    window = _window(box, math.ceil(reach))
    distance = _distance(inside[window])
    wide, fine = (
        cv2.resize(generator.random((cells, cells), np.float32), distance.shape[::-1]) for cells in _NOISE_CELLS
    )
    # Sums of uniform noise crowd around 0.5; doubling their spread makes some of the border stay put.
    noise = np.clip(1.2 * wide + 0.8 * fine - 0.5, 0.0, 1.0)
    augmented[window] = np.where(distance <= reach * noise, 255, 0)
    return augmented


def feather(mask: np.ndarray, pad: int, radius: int) -> np.ndarray:
    """Soft weights to paste a generated character back with.

    Args:
        mask: uint8 [H, W].
        pad: pixels around the mask that keep full weight, at least 0.
        radius: pixels over which the weight then falls to 0, at least 0.

    Returns:
        float32 [H, W] in 0..1: exactly 1 within `pad` pixels (Euclidean) of the mask, and exactly 0 from
        `pad + radius` pixels on (for radius 0: beyond `pad`).
    """
    inside = _inside(mask)
    alpha = np.zeros(mask.shape, np.float32)
    box = mask_box(inside)
    if box is None:
        return alpha
    window = _window(box, pad + radius)
    distance = _distance(inside[window])
    if radius:
        ramp = np.clip((pad + radius - distance) / radius, 0.0, 1.0)
        alpha[window] = ramp * ramp * (3.0 - 2.0 * ramp)
    else:
        alpha[window] = distance <= pad
    return alpha


def composite(generated: np.ndarray, original: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Blend two pictures, rounded to the nearest level.

    Args:
        generated: uint8 [..., H, W, C], weight `alpha`; or uint16, if the original is.
        original: uint8 or uint16 of the same shape, weight `1 - alpha`.
        alpha: float32 [..., H, W] in 0..1.

    Returns:
        The original's shape and type, bit-equal to `original` where alpha is 0 and to `generated` where it is 1.
    """
    if generated.dtype != original.dtype:
        generated = widened(generated)
    base = original.astype(np.float32)
    return np.rint(base + alpha[..., None] * (generated - base)).astype(original.dtype)


def boxes_to_masks(boxes: Sequence[Sequence[float] | None], width: int, height: int) -> np.ndarray:
    """Box masks from one box per frame.

    Args:
        boxes: x0, y0, x1, y1 in pixels per frame, or None for a frame without the character. Fractions of
            a pixel count as whole ones; what lies outside the picture is cut off.
        width, height: size of the masks in pixels.

    Returns:
        uint8 [F, H, W] of 0 and 255.
    """
    masks = np.zeros((len(boxes), height, width), np.uint8)
    for mask, box in zip(masks, boxes, strict=True):
        if box is not None:
            x0, y0, x1, y1 = (max(0, side) for side in (*map(math.floor, box[:2]), *map(math.ceil, box[2:])))
            mask[y0:y1, x0:x1] = 255
    return masks


def read_boxes(path: str | Path) -> list[tuple[float, float, float, float] | None]:
    """Read the character's box in every frame of a video.

    Args:
        path: a JSON list with one entry per frame: null for a frame without the character,
            `[x0, y0, x1, y1]`, or `{"x": .., "y": .., "width": .., "height": ..}`, in pixels.

    Returns:
        One (x0, y0, x1, y1) with exclusive ends, or None, per frame; as `boxes_to_masks` takes it.

    Raises:
        UserError: the file cannot be read, is not JSON, is no such list, is empty, or has a box that is
            empty or not made of four finite numbers.
    """
    content = read_json(path)
    if not isinstance(content, list) or not content:
        raise UserError(f"{path} must hold a JSON list with one box or null for every frame.")
    return [None if box is None else _parse_box(box, f"{path}, frame {i}") for i, box in enumerate(content)]


def _parse_box(value: Any, name: str) -> tuple[float, float, float, float]:
    sides = [value.get(k) for k in ("x", "y", "width", "height")] if isinstance(value, dict) else value
    if (
        not isinstance(sides, list)
        or len(sides) != 4
        or not all(type(side) in (int, float) and math.isfinite(side) for side in sides)
    ):
        raise UserError(f"{name}: a box must be null, [x0, y0, x1, y1] or x, y, width and height in pixels.")
    x0, y0, x1, y1 = map(float, sides)
    if isinstance(value, dict):
        x1, y1 = x0 + x1, y0 + y1
    if x1 <= x0 or y1 <= y0:
        raise UserError(
            f"{name}: the box {value} is empty; its right and bottom edges must lie beyond the left and top ones."
        )
    return x0, y0, x1, y1


def _inside(mask: np.ndarray) -> np.ndarray:
    return mask if mask.dtype == np.bool_ else mask > 127


def _window(box: Box, margin: int) -> tuple[slice, slice]:
    x0, y0, x1, y1 = box
    return slice(max(0, y0 - margin), y1 + margin), slice(max(0, x0 - margin), x1 + margin)


def _distance(inside: np.ndarray) -> np.ndarray:
    """float32 [H, W]: exact Euclidean distance in pixels to the nearest mask pixel, of which there is one."""
    return cv2.distanceTransform((~inside).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
