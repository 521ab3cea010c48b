"""What happens to what was decoded: it becomes a frame, and where there is a scene the character goes in front."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from ..media.camera import Box
from ..media.canvas import Canvas
from ..media.chroma_key import Colour, key_onto
from ..media.colour_match import match_colour
from ..media.imaging import Size
from ..media.keep_scene import keep_scene
from ..media.masks import feather, mask_box
from ..systems.recipes import Recipe

FEATHER = 0.015  # of the shorter side: what the mask is padded by, and the width of the soft edge

Finish = Callable[[np.ndarray, Canvas], np.ndarray]
"""What was decoded for each frame in turn, uint8 or uint16 [H, W, 3] of the padded size, and its canvas -> the
frame, uint8 or uint16."""


def paste_weights(mask: np.ndarray, growth: float = 0.0) -> np.ndarray:
    """The network's share of each pixel, float32 [H, W], for a mask uint8 [H, W]; 0 is the scene alone.

    growth: how far past the mask is pasted, in heights of its box.
    """
    width = _feather_width(mask.shape)
    return feather(mask, width + _grown(mask_box(mask), growth), width)


def paste_reach(size: Size, boxes: Iterable[Box | None] = (), growth: float = 0.0) -> int:
    """How many pixels around a mask of this (width, height) may have a weight of more than 0, for any of the masks
    with these boxes."""
    return 2 * _feather_width(size) + max((_grown(box, growth) for box in boxes), default=0)


def grown_mask(mask: np.ndarray, growth: float) -> np.ndarray:
    """A mask uint8 [H, W] and what lies less far past it than `growth` heights of its box, 0 and 255."""
    return (255 * feather(mask, _grown(mask_box(mask), growth), 0)).astype(np.uint8)


def _grown(box: Box | None, growth: float) -> int:
    return round(growth * (box[3] - box[1])) if box else 0


def _feather_width(sides: tuple[int, ...]) -> int:
    return max(1, round(FEATHER * min(sides)))


def whole(made: np.ndarray, canvas: Canvas) -> np.ndarray:
    """The frame as it was decoded; there is no scene."""
    return canvas.restore(made)


class PasteBack:
    """Puts what was decoded into the padded and feathered masks of a scene; both are read as the frames come.

    recipe: whose paste_growth, match_colour and keeps_scene say how; untouched: whether every pixel outside the
    masks has so far been the scene's, bit for bit.
    """

    def __init__(self, scene: Iterable[np.ndarray], masks: Iterable[np.ndarray], recipe: Recipe):
        self._rows = zip(scene, masks, strict=True)
        self._recipe = recipe
        self.untouched = True

    def __call__(self, made: np.ndarray, canvas: Canvas) -> np.ndarray:
        original, mask = next(self._rows)
        weights = paste_weights(mask, self._recipe.paste_growth)
        if self._recipe.match_colour:
            made = match_colour(made, canvas.place(original), canvas.place_mask(mask))
        finished = canvas.paste(made, original, weights)
        if self._recipe.keeps_scene:
            finished = keep_scene(finished, original, mask, weights > 0)
        self.untouched = self.untouched and bool((finished == original).all(axis=-1)[weights == 0].all())
        return finished


def keyed(scene: Iterable[np.ndarray], key: Colour) -> Finish:
    """Puts what is not of the colour `key` in front of the scene, which is read as the frames come."""
    frames = iter(scene)
    return lambda made, canvas: key_onto(canvas.restore(made), next(frames), key)
