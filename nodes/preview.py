"""What is shown of a video while it is made."""

from __future__ import annotations

from typing import Any

import comfy.utils
import latent_preview
import numpy as np
from PIL import Image
from torch import Tensor

from ..anycharv_core.media.colour import eight_bits


class Previewer:
    """The progress of sampling, with a picture of where it is going: of the newest window's first frame, by
    ComfyUI's previewer of latents.

    It is drawn where ComfyUI's previews are off, too, as they are at first: a run may take hours.
    """

    def __init__(self, model: Any):
        latents = model.model.latent_format
        self._draw = latent_preview.get_previewer(model.load_device, latents)
        if self._draw is None and latents.latent_rgb_factors is not None:
            self._draw = latent_preview.Latent2RGBPreviewer(
                latents.latent_rgb_factors, latents.latent_rgb_factors_bias, latents.latent_rgb_factors_reshape
            )
        self._bar = comfy.utils.ProgressBar(1)
        self._seen: Any = None

    def look(self, clean: Tensor) -> None:
        """clean: what a window's latents [w, c, h, w] seem to become."""
        if self._draw is not None:
            self._seen = self._draw.decode_latent_to_preview_image("JPEG", clean[:1])

    def report(self, done: int, total: int) -> None:
        self._bar.update_absolute(done, total, self._seen)


def frame_preview(frame: np.ndarray) -> tuple[str, Image.Image, int]:
    """A finished frame [H, W, 3] as ComfyUI's progress bars show it."""
    return "JPEG", Image.fromarray(eight_bits(frame)), latent_preview.MAX_PREVIEW_RESOLUTION
