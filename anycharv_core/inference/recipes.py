"""What surrounds the networks: each release's own way, and the same with its defects mended."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from ..media.imaging import Size, latent_mask, resize
from .canvas import Canvas, nearest_multiple
from .windows import Windows, closed_loop_windows, linear_windows


@dataclass(frozen=True)
class Recipe:
    """The choices around the sampler.

    canvas(scene size or None where there is no scene, pose size, asked size or None, multiple of the VAE);
    cut_out(picture, alpha or None) -> the reference as it is shown to the networks, uint8 [H, W, 3], of
    which reference(picture, canvas) is the VAE's view and clip_view(picture) what is squashed for CLIP;
    mask(masks [F, H, W], canvas, latent size) -> float32 [F, 1, h, w]; windows(frames, guidance scale);
    noise(latents' shape (F, c, h, w), CPU generator) -> float32 of that shape;
    `bank_dtype` the ReferenceNet's tokens are rounded to; `paste_back` and `round` of the output pixels.
    """

    canvas: Callable[[Size | None, Size, Size | None, int], Canvas]
    cut_out: Callable[[np.ndarray, np.ndarray | None], np.ndarray]
    reference: Callable[[np.ndarray, Canvas], np.ndarray]
    clip_view: Callable[[np.ndarray], np.ndarray]
    mask: Callable[[np.ndarray, Canvas, torch.Size], Tensor]
    windows: Callable[[int, float], Windows]
    noise: Callable[[Sequence[int], torch.Generator], Tensor]
    bank_dtype: torch.dtype | None
    paste_back: bool
    round: bool


def _official_canvas(scene: Size | None, pose: Size, size: Size | None, multiple: int) -> Canvas:
    width, height = (side // multiple * multiple for side in size or pose)
    if not (width and height):
        raise UserError(f"The size {size or pose} is smaller than one latent pixel; use at least {multiple}.")
    return Canvas((width, height), (width, height), (width, height))


def _official_noise(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    # The release draws all frames of a channel before the next channel.
    frames, channels, height, width = shape
    return torch.randn((channels, frames, height, width), generator=generator).movedim(0, 1)


def _default_canvas(scene: Size | None, pose: Size, size: Size | None, multiple: int) -> Canvas:
    source = scene or pose
    # A skeleton drawn for another picture format would put the character elsewhere.
    if abs(pose[0] * source[1] / (pose[1] * source[0]) - 1) > 0.05:
        raise UserError(
            f"The pose frames are {pose[0]}x{pose[1]} but the scene is {source[0]}x{source[1]}; give poses of "
            "the scene's proportions."
        )
    scale = min(size[0] / source[0], size[1] / source[1]) if size else 1.0
    inner = tuple(max(1, round(side * scale)) for side in source)
    return Canvas(scene or inner, inner, tuple(-(-side // multiple) * multiple for side in inner))


def _animate_official_canvas(scene: Size | None, pose: Size, size: Size | None, multiple: int) -> Canvas:
    # The release rounds down without a word, and then fails to put reference and video side by side.
    _check_multiple(size or pose, multiple)
    return _official_canvas(scene, pose, size, multiple)


def _animate_canvas(scene: Size | None, pose: Size, size: Size | None, multiple: int) -> Canvas:
    if size:
        _check_multiple(size, multiple)
    return _default_canvas(scene, pose, size, multiple)


def _check_multiple(size: Size, multiple: int) -> None:
    if any(side % multiple for side in size):
        width, height = nearest_multiple(size, multiple)
        raise UserError(f"The size {size[0]}x{size[1]} is not divisible by {multiple}; use {width}x{height}, say.")


def _on_black(picture: np.ndarray, alpha: np.ndarray | None) -> np.ndarray:
    """The character alone, as in training (paper 3.2, "Reference Identity Preservation")."""
    if alpha is None:
        return picture
    return np.rint(picture * (alpha[..., None] / 255.0)).astype(np.uint8)


def _letterbox(picture: np.ndarray, size: Size, mode: str = "constant") -> np.ndarray:
    """The whole picture, its proportions kept, in the middle of one of `size`: black, or its edges repeated."""
    scale = min(size[0] / picture.shape[1], size[1] / picture.shape[0])
    width, height = (max(1, round(side * scale)) for side in (picture.shape[1], picture.shape[0]))
    x, y = (size[0] - width) // 2, (size[1] - height) // 2
    bands = [(y, size[1] - height - y), (x, size[0] - width - x), (0, 0)]
    return np.pad(resize(picture, (width, height)), bands, mode)


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


# Animate Anyone's. The reference brings the background with it, so there is nothing to paste back into, and what
# its proportions leave open of the canvas goes on as its edges do.
ANIMATE_RECIPES = {
    "official": replace(
        RECIPES["official"],
        canvas=_animate_official_canvas,
        windows=lambda frames, guidance: closed_loop_windows(frames, guidance > 1, overlap=4),
    ),
    "default": replace(
        RECIPES["default"],
        canvas=_animate_canvas,
        reference=lambda picture, canvas: canvas.pad(_letterbox(picture, canvas.inner, "edge"), "edge"),
        clip_view=lambda picture: _letterbox(picture, (max(picture.shape[:2]),) * 2, "edge"),
        paste_back=False,
    ),
}


def get_recipe(name: str, scene: bool = True) -> Recipe:
    """The recipe of that name for a model that takes a scene or for one that does not.

    Raises UserError for an unknown name.
    """
    recipes = RECIPES if scene else ANIMATE_RECIPES
    if name not in recipes:
        raise UserError(f"There is no recipe '{name}'; use one of {', '.join(map(repr, sorted(recipes)))}.")
    return recipes[name]
