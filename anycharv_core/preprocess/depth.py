"""How near people are: a depth estimation model of transformers, such as Depth Anything V2, frame by frame."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch.nn import functional

from ..device import pick_device
from ..errors import UserError
from ..media.frames import FrameStore
from .sam2 import CONFIG_ERRORS, quiet_transformers

# Kinds of model that tell how far things are and not how near. DepthPro's own output is the inverse of its metres.
_METRES = ("glpn", "tipsv2_dpt", "zoedepth")
_TAILS = (0.01, 0.99)  # of a frame's person: what lies beyond is taken for an error of the estimation


class DepthEstimator:
    """A depth estimation model, loaded when it is first used.

    Args:
        model: folder as `save_pretrained` writes model and image processor, or a name on the Hugging Face hub,
            such as "depth-anything/Depth-Anything-V2-Small-hf".
        device: "cuda", "mps" or "cpu"; by default the GPU where torch finds one.
    """

    def __init__(self, model: Path | str, device: str | None = None) -> None:
        self.model = model
        self.device = device

    def nearness(self, frame: np.ndarray) -> np.ndarray:
        """A frame uint8 [H, W, 3] -> float32 [H, W], nearer being larger, on a scale of the model's own.

        Metres are turned round: those of GLPN, TIPSv2, ZoeDepth, and of models whose config says
        `depth_estimation_type: metric`. A DPT that was trained on metres says so nowhere, and its far is near.

        Raises UserError where the model cannot be loaded or is of another kind.
        """
        model, processor = self._loaded
        device = pick_device(self.device)
        with torch.inference_mode():
            pixels = processor(images=frame, return_tensors="pt")["pixel_values"].to(device)
            depth = model(pixel_values=pixels).predicted_depth.float()
            found = functional.interpolate(depth[:, None], size=frame.shape[:2], mode="bilinear")[0, 0]
        kind = model.config
        far = kind.model_type in _METRES or getattr(kind, "depth_estimation_type", "") == "metric"
        return (1 / found.clamp_min(1e-3) if far else found).cpu().numpy()

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        from transformers import AutoImageProcessor, AutoModelForDepthEstimation

        folder = Path(self.model).is_dir()
        with quiet_transformers():
            try:
                read: Any = AutoModelForDepthEstimation.from_pretrained
                model, report = read(str(self.model), local_files_only=folder, output_loading_info=True)
                processor = AutoImageProcessor.from_pretrained(str(self.model), local_files_only=folder)
            except (OSError, SafetensorError, ImportError, *CONFIG_ERRORS) as error:
                raise UserError(
                    f"{self.model} is no depth estimation model of transformers: give a folder with one and its "
                    "image processor, or a name on the Hugging Face hub, such as "
                    "depth-anything/Depth-Anything-V2-Small-hf."
                ) from error
        if report["missing_keys"]:
            raise UserError(f"{self.model} lacks weights of a depth estimation model; fetch it again.")
        processor.do_pad = False  # what ZoeDepth's adds around a frame would shift the depth against it
        return model.to(pick_device(self.device)).train(False), processor


def depth_pictures(
    estimator: DepthEstimator, frames: Iterable[np.ndarray], masks: Iterable[np.ndarray]
) -> Iterator[np.ndarray]:
    """Grey pictures uint8 [H, W] as media/depth.py takes them: 255 where the person is nearest in the whole video,
    1 where farthest, and 0 off the masks uint8 [H, W], where it is not the person that is seen.

    All frames are looked at before the first picture is given.
    """
    found, low, high = FrameStore(), np.inf, -np.inf
    for frame, mask in zip(frames, masks, strict=True):
        inside = mask >= 128
        nearness = np.where(inside, estimator.nearness(frame), np.nan).astype(np.float32)
        found.append(nearness)
        if inside.any():
            ends = np.quantile(nearness[inside], _TAILS)
            low, high = min(low, float(ends[0])), max(high, float(ends[1]))
    for number in range(len(found)):
        share = np.clip((found[number] - low) / max(high - low, 1e-6), 0, 1)
        yield np.where(np.isnan(share), 0, np.rint(1 + 254 * np.nan_to_num(share))).astype(np.uint8)
