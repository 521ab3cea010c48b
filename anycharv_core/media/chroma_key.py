"""A character that moves, put on another background.

The reference's matte says where the character is in one picture only. So its background there becomes one flat
colour that the character does not have, the network carries that colour into every frame as it carries any
background, and whatever differs from it is the character: the chroma key of film studios.
"""

from __future__ import annotations

import numpy as np

from ..errors import UserError
from .colour import widened

Colour = tuple[int, int, int]

COLOURS: tuple[Colour, ...] = ((0, 255, 0), (0, 0, 255), (255, 0, 255), (0, 255, 255), (255, 0, 0), (255, 255, 0))
# Levels by which a pixel's farthest channel is off the key: as much as decoding makes of a flat colour, and as
# much as nothing mixed with it still shows.
NEAR, FAR = 40, 120


def key_colour(picture: np.ndarray, alpha: np.ndarray) -> Colour:
    """The colour that the character, uint8 [H, W, 3] where alpha uint8 [H, W] is white, has least of.

    Raises UserError where alpha shows no character.
    """
    character = picture[alpha >= 128].astype(np.int16)
    if not len(character):
        raise UserError("The reference's matte is empty; mark the character with white.")
    # A few pixels of any colour are in every picture.
    margins = [np.percentile(np.abs(character - colour).max(axis=1), 5) for colour in COLOURS]
    return COLOURS[int(np.argmax(margins))]


def on_colour(picture: np.ndarray, alpha: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """The character uint8 [H, W, 3] with matte [H, W], in front of a flat colour."""
    share = alpha[..., None] / 255.0
    return np.rint(picture * share + np.array(colour) * (1 - share)).astype(np.uint8)


def key_onto(made: np.ndarray, scene: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """What is not of the key colour in `made`, in front of `scene`, and of its type.

    made: uint8 [H, W, 3], or uint16 if the scene is; scene: uint8 or uint16 of that shape. Pixels within NEAR
    levels of the key, of 255, are the scene's, bit for bit; where character and key are mixed, the key is taken
    out.
    """
    if made.dtype != scene.dtype:
        made = widened(made)
    unit = np.float32(np.iinfo(scene.dtype).max // 255)
    frame, key = made / unit, np.array(colour, np.float32)
    off = np.abs(frame - key).max(axis=-1, keepdims=True)
    share = np.clip((off - NEAR) / (FAR - NEAR), 0, 1)
    character = np.clip((frame - (1 - share) * key) / np.maximum(share, 1e-6), 0, 255)
    return np.rint(share * (character * unit) + (1 - share) * scene).astype(scene.dtype)
