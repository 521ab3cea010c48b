"""What happens to a decoded frame where there is a scene: the character goes in front of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from ..media.chroma_key import Colour, key_onto
from ..media.masks import composite, feather

FEATHER = 0.015  # of the shorter side: what the mask is padded by, and the width of the soft edge

Finish = Callable[[np.ndarray], np.ndarray]
"""Every decoded frame in turn, uint8 [H, W, 3] of the scene's size -> the finished one."""


def paste_weights(mask: np.ndarray) -> np.ndarray:
    """The network's share of each pixel, float32 [H, W], for a mask uint8 [H, W]; 0 is the scene alone."""
    width = max(1, round(FEATHER * min(mask.shape)))
    return feather(mask, width, width)


class PasteBack:
    """Puts frames into the padded and feathered masks of a scene; both are read as the frames come.

    untouched: whether every pixel outside them has so far been the scene's, bit for bit.
    """

    def __init__(self, scene: Iterable[np.ndarray], masks: Iterable[np.ndarray]):
        self._rows = zip(scene, masks, strict=True)
        self.untouched = True

    def __call__(self, made: np.ndarray) -> np.ndarray:
        original, mask = next(self._rows)
        weights = paste_weights(mask)
        finished = composite(made, original, weights)
        self.untouched = self.untouched and bool((finished == original).all(axis=-1)[weights == 0].all())
        return finished


def keyed(scene: Iterable[np.ndarray], key: Colour) -> Finish:
    """Puts what is not of the colour `key` in front of the scene, which is read as the frames come."""
    frames = iter(scene)
    return lambda made: key_onto(made, next(frames), key)
