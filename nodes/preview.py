"""What is shown of a video while it is made."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import comfy.utils
import latent_preview
import numpy as np
from PIL import Image
from torch import Tensor

from ..anycharv_core.media.colour import eight_bits
from ..anycharv_core.media.imaging import resize
from ..anycharv_core.media.masks import Box
from ..anycharv_core.media.video_write import VideoWriter
from .pictures import interruptible

SHOWN_EVERY = 8  # frames between pictures of what is being read and written
_TINT = np.array([255, 0, 128])


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


def write_shown(writer: VideoWriter, frames: Iterable[np.ndarray], count: int) -> None:
    """Writes the frames of a video, `count` of them, and shows some as they are finished."""
    bar = comfy.utils.ProgressBar(count)
    for index, frame in enumerate(interruptible(frames)):
        writer.write(frame)
        preview = None if index % SHOWN_EVERY else frame_preview(frame)
        bar.update_absolute(index + 1, count, preview)


def marked(frame: np.ndarray, mask: np.ndarray, skeleton: np.ndarray) -> np.ndarray:
    """A frame uint8 [H, W, 3] with its mask uint8 [H, W] tinted, and a skeleton of any size, on black, over it."""
    shown = np.where(mask[..., None] >= 128, (frame + _TINT) // 2, frame).astype(np.uint8)
    lines = resize(skeleton, (frame.shape[1], frame.shape[0]))
    return np.where(lines.any(axis=-1, keepdims=True), lines, shown)


class Overlay:
    """Shows frames with the people to be replaced in them, as they are encoded.

    boxes: of every person in every frame; frames: how many there are.
    """

    def __init__(self, boxes: Sequence[Sequence[Box | None]], frames: int):
        self._boxes, self._bar = list(zip(*boxes, strict=True)), comfy.utils.ProgressBar(frames)
        self._done = 0

    def __call__(self, frame: np.ndarray, skeletons: Sequence[np.ndarray]) -> None:
        preview = None
        if self._done % SHOWN_EVERY == 0:
            mask = np.zeros(frame.shape[:2], np.uint8)
            for x0, y0, x1, y1 in filter(None, self._boxes[self._done]):
                mask[y0:y1, x0:x1] = 255
            for skeleton in skeletons:
                frame = marked(frame, mask, skeleton)
            preview = frame_preview(frame)
        self._done += 1
        self._bar.update_absolute(self._done, preview=preview)
