"""What is decided of a video before it is sampled, and carried from there on."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..media.canvas import Canvas, CanvasPath
from ..media.imaging import Size
from ..systems.recipes import Recipe
from .encode import EncodedVideo
from .reference import Reference


@dataclass(frozen=True)
class Plan:
    """What is decided before a video is read.

    size: (width, height) the networks were asked to work at, None = the video's own; canvas: that of whole frames,
    which follows from it; drawing: the size at which skeletons given as points are drawn; window, window_drawing:
    the sizes of a canvas that follows a person, and of its drawings.
    """

    recipe: Recipe
    canvas: Canvas
    size: Size | None
    drawing: Size
    window: Size
    window_drawing: Size

    def drawn_at(self, path: CanvasPath) -> Size:
        """The size at which skeletons given as points are drawn for `path`."""
        return self.drawing if path.windows is None else self.window_drawing


@dataclass(frozen=True)
class Prepared:
    """Everything that sampling starts from. image_embed: of the reference, [1, D]; shape: of the latents,
    (F, c, h, w)."""

    recipe: Recipe
    reference: Reference
    image_embed: Tensor
    video: EncodedVideo
    shape: tuple[int, ...]
