"""What surrounds the networks: the release's own way, and the same with its defects mended."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .errors import UserError
from .imaging import latent_mask, resize
from .sampling import Windows, closed_loop_windows, linear_windows

Size = tuple[int, int]
"""(width, height) in pixels."""


@dataclass(frozen=True)
class Canvas:
    """Where a picture lies on the network's canvas: scaled to `inner`, then padded right and below."""

    source: Size
    inner: Size
    padded: Size

    def place(self, picture: np.ndarray) -> np.ndarray:
        """uint8 [H, W, 3] of any size -> [padded height, padded width, 3], edges repeated."""
        return self._pad(resize(picture, self.inner), "edge")

    def place_mask(self, mask: np.ndarray) -> np.ndarray:
        """uint8 [H, W] -> [padded height, padded width] of 0 and 255; every pixel the mask touches is in."""
        touched = resize(np.where(mask >= 128, np.uint8(255), np.uint8(0)), self.inner, Image.Resampling.BOX)
        return self._pad(np.where(touched > 0, np.uint8(255), np.uint8(0)), "constant")

    def restore(self, picture: np.ndarray) -> np.ndarray:
        """uint8 [padded height, padded width, 3] -> the source's own size."""
        width, height = self.inner
        return resize(picture[:height, :width], self.source)

    def _pad(self, picture: np.ndarray, mode: str) -> np.ndarray:
        extra = (self.padded[1] - self.inner[1], self.padded[0] - self.inner[0])
        return np.pad(picture, [(0, extra[0]), (0, extra[1])] + [(0, 0)] * (picture.ndim - 2), mode)


@dataclass(frozen=True)
class Recipe:
    """The choices around the sampler.

    canvas(scene size, pose size, asked size or None, multiple of the VAE);
    cut_out(picture, alpha or None) -> the reference as it is shown to the networks, uint8 [H, W, 3], of
    which reference(picture, canvas) is the VAE's view and clip_view(picture) what is squashed for CLIP;
    mask(masks [F, H, W], canvas, latent size) -> float32 [F, 1, h, w]; windows(frames, guidance scale);
    noise(latents' shape (F, c, h, w), CPU generator) -> float32 of that shape;
    `bank_dtype` the ReferenceNet's tokens are rounded to; `paste_back` and `round` of the output pixels.
    """

    canvas: Callable[[Size, Size, Size | None, int], Canvas]
    cut_out: Callable[[np.ndarray, np.ndarray | None], np.ndarray]
    reference: Callable[[np.ndarray, Canvas], np.ndarray]
    clip_view: Callable[[np.ndarray], np.ndarray]
    mask: Callable[[np.ndarray, Canvas, torch.Size], Tensor]
    windows: Callable[[int, float], Windows]
    noise: Callable[[Sequence[int], torch.Generator], Tensor]
    bank_dtype: torch.dtype | None
    paste_back: bool
    round: bool


def _official_canvas(scene: Size, pose: Size, size: Size | None, multiple: int) -> Canvas:
    width, height = (side // multiple * multiple for side in size or pose)
    if not (width and height):
        raise UserError(f"The size {size or pose} is smaller than one latent pixel; use at least {multiple}.")
    return Canvas((width, height), (width, height), (width, height))


def _official_noise(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    # The release draws all frames of a channel before the next channel.
    frames, channels, height, width = shape
    return torch.randn((channels, frames, height, width), generator=generator).movedim(0, 1)


def _default_canvas(scene: Size, pose: Size, size: Size | None, multiple: int) -> Canvas:
    # A skeleton drawn for another picture format would put the character elsewhere.
    if abs(pose[0] * scene[1] / (pose[1] * scene[0]) - 1) > 0.05:
        raise UserError(
            f"The pose frames are {pose[0]}x{pose[1]} but the scene is {scene[0]}x{scene[1]}; give poses of "
            "the scene's proportions."
        )
    scale = min(size[0] / scene[0], size[1] / scene[1]) if size else 1.0
    inner = tuple(max(1, round(side * scale)) for side in scene)
    return Canvas(scene, inner, tuple(-(-side // multiple) * multiple for side in inner))


def _on_black(picture: np.ndarray, alpha: np.ndarray | None) -> np.ndarray:
    """The character alone, as in training (paper 3.2, "Reference Identity Preservation")."""
    if alpha is None:
        return picture
    return np.rint(picture * (alpha[..., None] / 255.0)).astype(np.uint8)


def _letterbox(picture: np.ndarray, size: Size) -> np.ndarray:
    """The whole picture, its proportions kept, in the middle of a black one of `size`."""
    scale = min(size[0] / picture.shape[1], size[1] / picture.shape[0])
    width, height = (max(1, round(side * scale)) for side in (picture.shape[1], picture.shape[0]))
    x, y = (size[0] - width) // 2, (size[1] - height) // 2
    box = np.zeros((size[1], size[0], 3), np.uint8)
    box[y : y + height, x : x + width] = resize(picture, (width, height))
    return box


RECIPES = {
    "official": Recipe(
        canvas=_official_canvas,
        cut_out=lambda picture, alpha: picture,
        reference=lambda picture, canvas: resize(picture, canvas.padded),
        clip_view=lambda picture: picture,
        mask=lambda masks, canvas, size: latent_mask(masks, size),
        windows=lambda frames, guidance: closed_loop_windows(frames, average=guidance > 1),
        noise=_official_noise,
        bank_dtype=torch.float16,
        paste_back=False,
        round=False,
    ),
    "default": Recipe(
        canvas=_default_canvas,
        cut_out=_on_black,
        reference=lambda picture, canvas: _letterbox(picture, canvas.padded),
        clip_view=lambda picture: _letterbox(picture, (max(picture.shape[:2]),) * 2),
        mask=lambda masks, canvas, size: latent_mask(np.stack([canvas.place_mask(m) for m in masks]), size),
        windows=lambda frames, guidance: linear_windows(frames),
        noise=lambda shape, generator: torch.randn(shape, generator=generator),
        bank_dtype=None,
        paste_back=True,
        round=True,
    ),
}


def get_recipe(name: str) -> Recipe:
    """Raises UserError for an unknown name."""
    if name not in RECIPES:
        raise UserError(f"There is no recipe '{name}'; use one of {', '.join(map(repr, sorted(RECIPES)))}.")
    return RECIPES[name]
