"""Boxes around people from a YOLOX detector (arXiv:2107.08430), as the DWPose release uses it."""

from __future__ import annotations

import numpy as np

from ...opencv import cv2

STRIDES = (8, 16, 32)
PADDING = 114
MAX_OVERLAP = 0.45
MIN_SCORE = 0.3
_MIN_CANDIDATE = 0.1
_BOX, _ANYTHING, _PERSON, _COLUMNS = slice(4), 4, 5, 85  # COCO's 80 classes follow the box and its confidence


def outputs(height: int, width: int) -> list[tuple[int | None, ...]]:
    """The shape of what the detector gives for pictures of that size."""
    return [(None, sum((height // stride) * (width // stride) for stride in STRIDES), _COLUMNS)]


def ratio(frame: np.ndarray, size: tuple[int, int]) -> float:
    """Pixels of the detector's input, of `size` (width, height), per pixel of the frame."""
    return min(size[1] / frame.shape[0], size[0] / frame.shape[1])


def letterbox(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The detector's input: the frame as large as it fits, at the top left, on grey.

    Args:
        frame: uint8 [H, W, 3] RGB.
        size: (width, height) of the input.

    Returns:
        float32 [3, height, width] in 0..255, BGR.
    """
    scale = ratio(frame, size)
    # Truncated, as the detector was trained; a frame 1000 times as wide as high would leave no row.
    height, width = (max(int(side * scale), 1) for side in frame.shape[:2])
    picture = np.full((size[1], size[0], 3), PADDING, np.uint8)
    picture[:height, :width] = cv2.resize(frame, (width, height), interpolation=cv2.INTER_LINEAR)
    return picture[..., ::-1].transpose(2, 0, 1).astype(np.float32)


def people(output: np.ndarray, size: tuple[int, int], scale: float) -> tuple[np.ndarray, np.ndarray]:
    """The people in one frame.

    Args:
        output: float32 [cells, 85], the detector's raw output: centres relative to their cell and logarithms
            of sizes, both in strides, then the probability of anything and of COCO's 80 classes.
        size: (width, height) of the detector's input.
        scale: see `ratio`.

    Returns:
        boxes float32 [n, 4], x0, y0, x1, y1 in pixels of the frame, which they may leave; and scores
        float32 [n] above 0.3, descending.
    """
    scores = output[:, _ANYTHING] * output[:, _PERSON]
    likely = scores > _MIN_CANDIDATE
    scores, raw = scores[likely], output[likely, _BOX]
    cells, strides = (values[likely] for values in _cells(size))
    centres = ((raw[:, :2] + cells) * strides).astype(np.float32)
    halves = (np.exp(raw[:, 2:]) * strides).astype(np.float32) / 2
    boxes = np.concatenate([centres - halves, centres + halves], axis=1) / np.float32(scale)
    # Suppression comes before the final threshold, as in the release: equal scores then sort alike.
    kept = suppress(boxes, scores)
    kept = kept[scores[kept] > MIN_SCORE]
    return boxes[kept], scores[kept]


def suppress(boxes: np.ndarray, scores: np.ndarray, limit: float = MAX_OVERLAP) -> np.ndarray:
    """Greedy non-maximum suppression.

    Overlap is intersection over union of boxes whose last pixel counts, one pixel wider and higher than
    their corners' difference, as the DWPose release measures it and torchvision does not.

    Args:
        boxes: float32 [n, 4], x0, y0, x1, y1.
        scores: float32 [n].
        limit: the largest overlap two boxes may have and both be kept.

    Returns:
        int64 [kept] indices, by descending score.
    """
    low, high = boxes[:, :2], boxes[:, 2:] + 1
    areas = (high - low).prod(axis=1)
    rest, kept = scores.argsort()[::-1], []
    while rest.size:
        best, rest = rest[0], rest[1:]
        kept.append(best)
        sides = np.minimum(high[best], high[rest]) - np.maximum(low[best], low[rest])
        shared = sides.clip(0).prod(axis=1)
        rest = rest[shared / (areas[best] + areas[rest] - shared) <= limit]
    return np.array(kept, np.int64)


def _cells(size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Every output row's cell (column, row) int [cells, 2], and its side in input pixels int [cells, 1]."""
    grids = [np.indices((size[1] // s, size[0] // s))[::-1].reshape(2, -1).T for s in STRIDES]
    return np.concatenate(grids), np.repeat(STRIDES, [len(grid) for grid in grids])[:, None]
