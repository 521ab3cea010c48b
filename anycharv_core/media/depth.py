"""Structured depth: the depth of a person along their skeleton alone (Animate Anyone 2, section 3.4).

Depth pictures are uint8 or uint16 [H, W], nearer being larger and 0 unknown, such as an estimation gives them.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from ..opencv import cv2
from .canvas import Canvas

STROKE = 64  # levels from which on a pixel belongs to a skeleton, whose ends fade out
LOWEST, TAILS = 0.1, (2.0, 98.0)  # of the finished range: what the farthest gets; percent that are cut off


def place_depth(depth: np.ndarray, canvas: Canvas) -> np.ndarray:
    """A depth picture of the canvas's source -> uint16 [padded height, padded width].

    Each pixel takes the depth at its middle: between a person and what lies behind them there is none to blend to.
    """
    width, height = canvas.inner
    points = np.stack(np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5), axis=-1)
    x, y = np.moveaxis(np.floor(canvas.to_source(points)).astype(int), -1, 0)
    inside = (x >= 0) & (y >= 0) & (x < depth.shape[1]) & (y < depth.shape[0])
    placed = np.zeros((height, width), np.uint16)
    placed[inside] = depth[y[inside], x[inside]]
    return canvas.pad(placed * np.uint16(257) if depth.dtype == np.uint8 else placed, "constant")


def along_skeleton(depth: np.ndarray, skeleton: np.ndarray) -> np.ndarray:
    """depth uint16 [H, W] where the skeleton uint8 [H, W, 3] is drawn, else 0.

    Where the depth is unknown there, as beside a limb that is thinner than its stroke, it is that of the nearest
    pixel that has one: gaps would redraw the outline that a skeleton is to hide.
    """
    stroke = skeleton.max(axis=-1) >= STROKE
    known = depth > 0
    if not known.any() or not stroke.any():
        return np.zeros_like(depth)
    _, labels = cv2.distanceTransformWithLabels(
        (~known).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_5, labelType=cv2.DIST_LABEL_PIXEL
    )
    of_label = np.zeros(int(labels.max()) + 1, np.uint16)
    of_label[labels[known]] = depth[known]
    return np.where(stroke, of_label[labels], np.uint16(0))


class DepthRange:
    """Brings the depth of one clip to one range, so that coming nearer shows; add its frames, then ask."""

    def __init__(self, frames: Iterable[np.ndarray] = ()) -> None:
        """frames: as `add` takes them."""
        self._counts = np.zeros(2**16, np.int64)
        for frame in frames:
            self.add(frame)

    def add(self, depth: np.ndarray) -> None:
        """Counts a frame as `along_skeleton` gives it."""
        self._counts += np.bincount(depth.ravel(), minlength=2**16)

    def structured(self, depth: np.ndarray) -> np.ndarray:
        """Such a frame -> uint8: 0 off the skeleton, `LOWEST` of 255 at the farthest, 255 at the nearest."""
        known = np.cumsum(np.r_[0, self._counts[1:]])
        if not known[-1]:
            return np.zeros(depth.shape, np.uint8)
        low, high = (np.searchsorted(known, np.ceil(known[-1] * tail / 100), "left") for tail in TAILS)
        share = np.clip((depth - float(low)) / max(1, high - low), 0, 1)
        levels = np.rint(255 * (LOWEST + (1 - LOWEST) * share)).astype(np.uint8)
        return np.where(depth > 0, levels, np.uint8(0))


def structured_depth(depth: np.ndarray, skeletons: np.ndarray) -> np.ndarray:
    """Depth uint16 [F, H, W] and skeletons uint8 [F, H, W, 3] of one clip -> uint8 [F, H, W], see `DepthRange`."""
    along = [along_skeleton(*frame) for frame in zip(depth, skeletons, strict=True)]
    spread = DepthRange(along)
    return np.stack([spread.structured(frame) for frame in along])
