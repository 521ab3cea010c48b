"""Whether one sees where a replaced person ends and the untouched picture begins."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from ..opencv import cv2

RING = 0.04  # of the shorter side: wide enough for a mask that is pasted softly
_NARROWEST = 3  # pixels
SEAMS = ("seam error", "seam jump")  # what reports call the fields of a `Seam`


class Seam(NamedTuple):
    """error: root mean square difference in the ring, in levels. jump: root mean square of the change across the
    mask's edge that the truth does not have, in levels a pixel, on the line around the mask where that is most.
    Both are 0 for the truth, and at least 0; NaN where no mask had an edge."""

    error: float
    jump: float


class SeamScore:
    """The score of a video, frame by frame.

    The ring lies around the edge of each frame's mask. Gradients are taken along the normal of that edge, the one
    direction in which a seam is steep, and compared line by line, pixel by pixel of distance, so that a thin
    seam counts as much in a wide ring as in a narrow one. A seam knows nothing of the scene that it lies on, so
    that their squares add up: what the made frames' squares have more is the seam's.
    """

    def __init__(self, inside: bool):
        """inside: whether the truth is known inside the mask too, and not outside only, as in a real scene."""
        self._inside = inside
        self._error = np.zeros(2)  # sum of squares, and how many
        self._lines: dict[int, np.ndarray] = {}  # by distance: sums of squares made and true, and how many

    def add(self, made: np.ndarray, truth: np.ndarray, mask: np.ndarray) -> None:
        """Frames uint8 [H, W, 3] and the mask [H, W], 255 where the picture was replaced."""
        distance = _distance(mask >= 128)
        if distance is None:
            return
        width = max(_NARROWEST, round(RING * min(mask.shape)))
        ring = (np.abs(distance) <= width) & ((distance > 0) | self._inside)
        difference = made[ring].astype(np.float64) - truth[ring]
        self._error += (np.square(difference).sum(), difference.size)
        slopes = [_slope_across(picture, distance)[ring] for picture in (made, truth)]
        lines = np.sign(distance[ring]).astype(int) * np.floor(np.abs(distance[ring])).astype(int)
        for line in np.unique(lines):
            on = lines == line
            sums = np.array([*(slope[on].sum() for slope in slopes), on.sum()])
            self._lines[int(line)] = self._lines.get(int(line), 0) + sums

    def result(self) -> Seam:
        if not self._lines:
            return Seam(math.nan, math.nan)
        jump = max((made - true) / count for made, true, count in self._lines.values())
        return Seam(math.sqrt(self._error[0] / self._error[1]), math.sqrt(max(0.0, jump)))


def seam(made: np.ndarray, truth: np.ndarray, masks: np.ndarray, inside: bool = True) -> Seam:
    """The score of a whole video uint8 [F, H, W, 3] with masks [F, H, W], see `SeamScore`."""
    score = SeamScore(inside)
    for frames in zip(made, truth, masks, strict=True):
        score.add(*frames)
    return score.result()


def _distance(inside: np.ndarray) -> np.ndarray | None:
    """float32 [H, W]: pixels to the mask's edge, 1 next to it, negative inside; None where there is no edge."""
    if inside.all() or not inside.any():
        return None
    outer, inner = (
        cv2.distanceTransform(side.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        for side in (~inside, inside)
    )
    return outer - inner


def _slope_across(picture: np.ndarray, distance: np.ndarray) -> np.ndarray:
    """float64 [H, W]: squared levels a pixel along the steepest change of the distance, mean over the colours."""
    down, right = np.gradient(cv2.GaussianBlur(distance, (5, 5), 1.0).astype(np.float64))
    length = np.maximum(np.hypot(down, right), 1e-9)
    rows, columns = np.gradient(picture.astype(np.float64), axis=(0, 1))
    across = (rows * (down / length)[..., None]) + columns * (right / length)[..., None]
    return np.square(across).mean(axis=-1)
