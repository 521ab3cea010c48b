"""Pictures in and out of the networks: resizing, value ranges, CLIP's input."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

Size = tuple[int, int]
"""(width, height) in pixels."""

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def same_proportions(one: Size, other: Size) -> bool:
    """Whether pictures of these (width, height) may show the same; sides may have been rounded."""
    return abs(one[0] * other[1] / (one[1] * other[0]) - 1) <= 0.05


def resize(picture: np.ndarray, size: Size, method: Image.Resampling = Image.Resampling.LANCZOS) -> np.ndarray:
    """uint8 or uint16 [H, W(, 3)] -> the same at `size` (width, height), antialiased; itself when equal."""
    if (picture.shape[1], picture.shape[0]) == size:
        return picture
    return _scaled(picture, size, method)


def resample(picture: np.ndarray, part: tuple[float, float, float, float], size: Size) -> np.ndarray:
    """The part (x0, y0, x1, y1) of a picture, as `resize` takes it -> the same at `size` (width, height).

    The part is in pixels, of which pixel i covers i to i + 1. It must overlap the picture and may reach past it;
    edges are repeated there. Antialiased; all of a picture gives what `resize` does.
    """
    (left, right), (top, bottom) = (
        _filtered(low, high, out, side)
        for low, high, out, side in zip(part[:2], part[2:], size, picture.shape[1::-1], strict=True)
    )
    height, width = picture.shape[:2]
    seen = picture[max(0, top) : bottom, max(0, left) : right]
    past = [(max(0, -top), max(0, bottom - height)), (max(0, -left), max(0, right - width))]
    if np.any(past):
        seen = np.pad(seen, past + [(0, 0)] * (picture.ndim - 2), "edge")
    x0, y0, x1, y1 = part
    box = (x0 - left, y0 - top, x1 - left, y1 - top)
    if size == (seen.shape[1], seen.shape[0]) and box == (0, 0, *size):
        return seen
    return _scaled(seen, size, Image.Resampling.LANCZOS, box)


def _scaled(
    picture: np.ndarray,
    size: Size,
    method: Image.Resampling,
    box: tuple[float, float, float, float] | None = None,
) -> np.ndarray:
    if picture.dtype == np.uint8:
        return np.array(Image.fromarray(picture).resize(size, method, box))
    # Pillow has no pictures of several channels of 16 bits.
    planes = picture.astype(np.float32).reshape(*picture.shape[:2], -1)
    pictures = (Image.fromarray(planes[..., index]) for index in range(planes.shape[2]))
    scaled = [np.asarray(each.resize(size, method, box)) for each in pictures]
    levels = np.rint(np.clip(np.stack(scaled, axis=-1), 0, np.iinfo(picture.dtype).max))
    return levels.astype(picture.dtype).reshape(size[1], size[0], *picture.shape[2:])


def _filtered(low: float, high: float, out: int, side: int) -> tuple[int, int]:
    """The pixels, first and one past the last, that scaling low..high of `side` pixels to `out` of them takes."""
    reach = math.ceil(3 * max(1.0, (high - low) / out)) + 1
    first, last = math.floor(low), math.ceil(high)
    return min(first, max(0, first - reach)), max(last, min(side, last + reach))


def to_unit(pictures: np.ndarray | Tensor) -> Tensor:
    """uint8 [..., H, W, 3] -> float32 [..., 3, H, W] in 0..1."""
    return torch.as_tensor(pictures).movedim(-1, -3).float() / 255


def to_levels(unit: Tensor, rounded: bool = True, deep: bool = False) -> np.ndarray:
    """float32 [..., 3] in 0..1 -> uint8 of the same shape, or uint16 if deep, rounded or truncated."""
    levels = unit * (65535 if deep else 255)
    levels = levels.round() if rounded else levels
    return levels.cpu().numpy().astype(np.uint16) if deep else levels.byte().cpu().numpy()


def clip_input(reference: np.ndarray, size: int = 224) -> Tensor:
    """A reference uint8 [H, W, 3], squashed to a square as the release does -> CLIP pixels [1, 3, S, S]."""
    return normalise_clip(to_unit(clip_square(reference, size))[None])


def clip_square(reference: np.ndarray, size: int) -> np.ndarray:
    """A reference uint8 [H, W, 3] -> uint8 [S, S, 3], squashed."""
    return resize(reference, (size, size), Image.Resampling.BICUBIC)


def normalise_clip(unit: Tensor) -> Tensor:
    """float [N, 3, H, W] in 0..1 -> CLIP's normalised pixels."""
    # Filled in on the device: a copy from the CPU could not be part of a CUDA graph.
    mean, std = (torch.stack([unit.new_full((1, 1), each) for each in of]) for of in (CLIP_MEAN, CLIP_STD))
    return (unit - mean) / std


def clip_batch(unit: Tensor, size: int = 224) -> Tensor:
    """References float [N, 3, H, W] in 0..1 -> CLIP pixels [N, 3, S, S], on their device.

    The same filter as `clip_input`, without its rounding to 8 bits.
    """
    return normalise_clip(F.interpolate(unit, (size, size), mode="bicubic", antialias=True).clamp(0, 1))


def latent_mask(masks: np.ndarray | Tensor, size: torch.Size) -> Tensor:
    """Masks uint8 [F, H, W] -> float32 [F, 1, h, w] in 0..1, nearest, not binarised."""
    unit = torch.as_tensor(masks)[:, None].float() / 255
    return F.interpolate(unit, size=tuple(size), mode="nearest")
