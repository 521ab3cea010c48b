"""Points of a person by SimCC (arXiv:2107.03332): a box, its crop, and one distribution per axis and point."""

from __future__ import annotations

import numpy as np

from ...opencv import cv2

POINTS = 133  # COCO-WholeBody: 17 body, 6 feet, 68 face, 21 left hand, 21 right hand
BINS = 2  # per pixel of the crop
PADDING = 1.25
_MEAN = np.array([123.675, 116.28, 103.53])
_STD = np.array([58.395, 57.12, 57.375])


def outputs(height: int, width: int) -> list[tuple[int | None, ...]]:
    """The shapes of what the network gives for crops of that size: columns, then rows."""
    return [(None, POINTS, BINS * width), (None, POINTS, BINS * height)]


def window(box: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """What the network is shown of the frame: a quarter more than the box, in the network's proportions.

    Args:
        box: float64 [4], x0, y0, x1, y1 in pixels of the frame.
        size: (width, height) of the crop.

    Returns:
        centre and extent, float64 [2] each (x, y), in pixels of the frame.
    """
    low, high = box[:2], box[2:]
    width, height = (high - low) * PADDING
    aspect = size[0] / size[1]
    wide = width > height * aspect
    extent = (width, width / aspect) if wide else (height * aspect, height)
    return (low + high) * 0.5, np.array(extent)


def crop_matrix(centre: np.ndarray, extent: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """float64 [2, 3], from pixels of the frame to pixels of the crop of `size` (width, height)."""
    return cv2.getAffineTransform(_corner(centre, extent[0]), _corner(np.array(size) / 2, size[0]))


def crop(frame: np.ndarray, centre: np.ndarray, extent: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The network's input.

    Args:
        frame: uint8 [H, W, 3] RGB; black surrounds it.
        centre, extent: see `window`.
        size: (width, height) of the crop.

    Returns:
        float32 [3, height, width], BGR, normalised.
    """
    picture = cv2.warpAffine(frame, crop_matrix(centre, extent, size), size, flags=cv2.INTER_LINEAR)
    # The release normalises BGR by statistics that are in RGB order, so the weights' results need that too.
    return ((picture[..., ::-1] - _MEAN) / _STD).transpose(2, 0, 1).astype(np.float32)


def decode(columns: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where the distributions peak.

    Args:
        columns: float32 [..., points, 2 x width of the crop].
        rows: float32 [..., points, 2 x height of the crop].

    Returns:
        float32 [..., points, 2], x and y in pixels of the crop, -0.5 where the score is not positive; and
        scores float32 [..., points], the lower of the two peaks.
    """
    peaks = np.stack([columns.argmax(axis=-1), rows.argmax(axis=-1)], axis=-1).astype(np.float32)
    scores = np.minimum(columns.max(axis=-1), rows.max(axis=-1))
    peaks[scores <= 0] = -1
    return peaks / BINS, scores


def to_frame(points: np.ndarray, centre: np.ndarray, extent: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Points [..., 2] in pixels of the crop -> float64 [..., 2] in pixels of the frame."""
    return points / np.array(size) * extent + centre - extent / 2


def _corner(centre: np.ndarray, width: float) -> np.ndarray:
    """float32 [3, 2]: a window's centre, half its width above that, and from there half its width left."""
    # The matrix is solved from float32 points, as in the release: its rounding shows in the crop.
    (x, y), top = centre.astype(np.float32), np.float32(centre[1] - width / 2)
    return np.array([[x, y], [x, top], [x - (y - top), top]], np.float32)
