"""Pictures in and out of the networks: resizing, value ranges, CLIP's input."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

Size = tuple[int, int]
"""(width, height) in pixels."""

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def resize(picture: np.ndarray, size: Size, method: Image.Resampling = Image.Resampling.LANCZOS) -> np.ndarray:
    """uint8 [H, W] or [H, W, 3] -> the same at `size` (width, height), antialiased; itself when equal."""
    if (picture.shape[1], picture.shape[0]) == size:
        return picture
    return np.array(Image.fromarray(picture).resize(size, method))


def to_unit(pictures: np.ndarray | Tensor) -> Tensor:
    """uint8 [..., H, W, 3] -> float32 [..., 3, H, W] in 0..1."""
    return torch.as_tensor(pictures).movedim(-1, -3).float() / 255


def clip_input(reference: np.ndarray, size: int = 224) -> Tensor:
    """A reference uint8 [H, W, 3], squashed to a square as the release does -> CLIP pixels [1, 3, S, S]."""
    return normalise_clip(to_unit(clip_square(reference, size))[None])


def clip_square(reference: np.ndarray, size: int) -> np.ndarray:
    """A reference uint8 [H, W, 3] -> uint8 [S, S, 3], squashed."""
    return resize(reference, (size, size), Image.Resampling.BICUBIC)


def normalise_clip(unit: Tensor) -> Tensor:
    """float [N, 3, H, W] in 0..1 -> CLIP's normalised pixels."""
    mean, std = (torch.tensor(v, device=unit.device).reshape(3, 1, 1) for v in (CLIP_MEAN, CLIP_STD))
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
