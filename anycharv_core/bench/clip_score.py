"""CLIP-I: how alike a picture of the character and the frames made of it are to CLIP's image encoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ..media.imaging import normalise_clip, resize, to_unit
from .pretrained import load_pretrained

Embed = Callable[[Sequence[np.ndarray]], np.ndarray]
"""Pictures uint8 [H, W, 3] -> float64 [N, D] of length 1."""


def load_clip(path: Path, device: str) -> Embed:
    """The image encoder in the transformers folder `path`: a whole CLIP or its vision half.

    Raises UserError where there is none.
    """
    from transformers import CLIPVisionModelWithProjection

    network = load_pretrained(CLIPVisionModelWithProjection, path, "transformers' CLIP", device)

    @torch.inference_mode()
    def embed(pictures: Sequence[np.ndarray]) -> np.ndarray:
        squares = np.stack([_square(picture, network.config.image_size) for picture in pictures])
        found = network(normalise_clip(to_unit(squares).to(device))).image_embeds.double()
        return (found / found.norm(dim=1, keepdim=True)).cpu().numpy()

    return embed


def _square(picture: np.ndarray, side: int) -> np.ndarray:
    """As CLIP's own preprocessing: the shorter side becomes `side`, and the middle square is cut out."""
    height, width = picture.shape[:2]
    scale = side / min(height, width)
    size = max(side, round(width * scale)), max(side, round(height * scale))
    scaled = resize(picture, size, Image.Resampling.BICUBIC)
    left, top = (size[0] - side) // 2, (size[1] - side) // 2
    return scaled[top : top + side, left : left + side]
