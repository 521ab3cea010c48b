"""How a frame maps to the network's canvas and back."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from ..media.imaging import Size, resize


@dataclass(frozen=True)
class Canvas:
    """Where a picture lies on the network's canvas: scaled to `inner`, then padded right and below."""

    source: Size
    inner: Size
    padded: Size

    def place(self, picture: np.ndarray) -> np.ndarray:
        """uint8 [H, W, 3] of any size -> [padded height, padded width, 3], edges repeated."""
        return self.pad(resize(picture, self.inner), "edge")

    def place_mask(self, mask: np.ndarray) -> np.ndarray:
        """uint8 [H, W] -> [padded height, padded width] of 0 and 255; every pixel the mask touches is in."""
        touched = resize(np.where(mask >= 128, np.uint8(255), np.uint8(0)), self.inner, Image.Resampling.BOX)
        return self.pad(np.where(touched > 0, np.uint8(255), np.uint8(0)), "constant")

    def restore(self, picture: np.ndarray) -> np.ndarray:
        """uint8 [padded height, padded width, 3] -> the source's own size."""
        width, height = self.inner
        return resize(picture[:height, :width], self.source)

    def pad(self, picture: np.ndarray, mode: str) -> np.ndarray:
        """A picture of the inner size -> of the padded size, in one of np.pad's ways."""
        extra = (self.padded[1] - self.inner[1], self.padded[0] - self.inner[0])
        return np.pad(picture, [(0, extra[0]), (0, extra[1])] + [(0, 0)] * (picture.ndim - 2), mode)


def nearest_multiple(size: Size, multiple: int) -> Size:
    """The size next to `size` whose sides are divisible by `multiple`, none of them 0."""
    width, height = (max(1, round(side / multiple)) * multiple for side in size)
    return width, height
