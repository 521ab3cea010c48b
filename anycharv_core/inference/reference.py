"""The picture of the character: parsed, cut out, and as the networks see it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ..errors import UserError
from ..media.camera import Box, window_around
from ..media.canvas import CanvasPath
from ..media.chroma_key import Colour, key_colour, on_colour
from ..media.imaging import resample
from ..media.masks import mask_box
from ..systems.recipes import Recipe


@dataclass(frozen=True)
class Reference:
    """A character as the networks see it: picture uint8 [H, W, 3].

    key: the colour behind it that is to be taken out again, or None. box: around the character, where there is a
    matte.
    """

    picture: np.ndarray
    key: Colour | None
    box: Box | None

    def beside(self, path: CanvasPath) -> Reference:
        """The same as large in its picture as a person is on a canvas that follows one; its edges go on."""
        if path.windows is None or self.box is None:
            return self
        size = path.canvas.padded
        return replace(self, picture=resample(self.picture, window_around(self.box, size), size), box=None)


def refer(recipe: Recipe, reference: np.ndarray, mask: np.ndarray | None, keyed: bool = False) -> Reference:
    """The character of `reference`, given with its mask as in `Pipeline.__call__`.

    keyed: it goes in front of a scene by its colours. Raises UserError for pictures that cannot be used.
    """
    picture, alpha = split_reference(reference, mask)
    key = None
    if keyed:
        key = scene_key(picture, alpha)
        picture = on_colour(picture, alpha, key)  # type: ignore[arg-type]  # scene_key wants a matte
    else:
        picture = recipe.cut_out(picture, alpha)
    return Reference(picture, key, None if alpha is None else mask_box(alpha))


def split_reference(reference: np.ndarray, mask: np.ndarray | None) -> tuple[np.ndarray, np.ndarray | None]:
    """A reference uint8 [H, W, 3 or 4] and its mask [H, W] or None -> picture [H, W, 3] and alpha or None.

    Raises UserError for other shapes or types, and where nothing of the reference would be left.
    """
    reference = np.asarray(reference)
    if reference.dtype != np.uint8 or reference.ndim != 3 or reference.shape[2] not in (3, 4):
        raise UserError(
            f"The reference must be uint8 [H, W, 3] or [H, W, 4]; it is {reference.dtype} {list(reference.shape)}."
        )
    if mask is None and reference.shape[2] == 4:
        mask = reference[..., 3]
        if not mask.any():
            raise UserError("The reference is transparent everywhere; give a picture that shows the character.")
    if mask is not None and (mask.dtype != np.uint8 or mask.shape != reference.shape[:2]):
        raise UserError(
            f"The reference mask must be uint8 {list(reference.shape[:2])}, the reference's size; it is "
            f"{mask.dtype} {list(mask.shape)}."
        )
    if mask is not None and not mask.any():
        raise UserError(
            "The reference mask is black everywhere; mark the character with white, or leave the mask out."
        )
    return reference[..., :3], mask


def check_background(picture: np.ndarray) -> np.ndarray:
    """The picture of a place. Raises UserError where it is not uint8 [H, W, 3]."""
    picture = np.asarray(picture)
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or not picture.size:
        raise UserError(f"The background must be uint8 [H, W, 3]; it is {picture.dtype} {list(picture.shape)}.")
    return picture


def scene_key(picture: np.ndarray, alpha: np.ndarray | None) -> Colour:
    """The colour behind a reference whose character goes in front of a scene, see chroma_key.py.

    Raises UserError where it has no matte.
    """
    if alpha is None:
        raise UserError(
            "To put the character in front of a scene, its reference needs a matte: give a picture with "
            "transparency, or a reference mask, or a mask for every frame."
        )
    return key_colour(picture, alpha)
