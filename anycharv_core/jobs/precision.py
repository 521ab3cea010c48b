"""Which number format a job computes in, where the caller leaves the choice."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..bench.metrics import psnr
from ..checkpoints.places import EMBEDDED
from ..device import device_name, has_bf16
from ..errors import UserError
from ..inference.pipeline import Pipeline
from ..models.slots import FRAMES as FEWEST
from ..opencv import cv2
from ..preprocess.cache import cached, content_key, weights_key

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
AUTO = "auto"
HOLDS = 40.0  # dB from float32 that bfloat16 must keep
FRAMES, SIDE, STEPS = 2, 64, 2  # of the video that both are tried on
RESULT = "bf16.json"


@dataclass(frozen=True)
class Precision:
    """A name of `DTYPES`, and why it was taken, None = because it was asked for."""

    name: str
    why: str | None = None

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.name]


def precision_for(
    dtype: str,
    model: str,
    vae: Path | None,
    image_encoder: Path | None,
    device: str,
    recorded: bool = False,
    base: Path | None = None,
) -> Precision:
    """The number format of that name; for "auto" bfloat16 where the device has it and the model tolerates it.

    recorded: whether the recipe is, which "auto" keeps in float32. base: what a model of AnimateAnywhere was
    trained on, whose weights are published in bfloat16. What another model tolerates is tried once for every
    model and device, on a video of two small frames, and remembered in `cache.cache_folder`. Raises UserError for
    a model that cannot be read.
    """
    if dtype != AUTO:
        return Precision(dtype)
    if recorded:
        return Precision("fp32", "the recipe's outputs are recorded ones, of float32")
    if not has_bf16(device):
        return Precision("fp32", f"{device} here has no instructions for bfloat16")
    if base is not None:
        return Precision("bf16", "the model's base was trained and is published in it")
    kept = _remembered(model, vae, image_encoder, device)
    if kept >= HOLDS:
        return Precision("bf16", f"{kept:.1f} dB from float32, of {HOLDS:g} asked for")
    return Precision("fp32", f"bfloat16 comes only to {kept:.1f} dB from float32, and {HOLDS:g} are asked for")


def _remembered(model: str, vae: Path | None, image_encoder: Path | None, device: str) -> float:
    """What `_decibels` gives, now or in an earlier run."""
    measured = []

    def measure(folder: Path) -> None:
        measured.append(_decibels(model, vae, image_encoder, device))
        (folder / RESULT).write_text(json.dumps({"psnr_db": measured[0]}) + "\n", encoding="utf-8")

    places = [EMBEDDED.get(model, Path(model)), *filter(None, (vae, image_encoder))]
    try:
        weights = [weights_key(place) for place in places]
        key = content_key(weights, device_name(device), torch.__version__, FRAMES, SIDE, STEPS)
        stored = json.loads((cached("precision", key, measure) / RESULT).read_text(encoding="utf-8"))
        return float(stored["psnr_db"])
    except (OSError, UserError):
        # No cache can be written, which is no reason to stop, or the model is not there, which is said here again.
        return measured[0] if measured else _decibels(model, vae, image_encoder, device)


def _decibels(model: str, vae: Path | None, image_encoder: Path | None, device: str) -> float:
    """PSNR of a small video in bfloat16 on the device against float32, for which the CPU has the memory."""
    made = []
    for place, name in (("cpu", "fp32"), (device, "bf16")):
        pipe = Pipeline.from_pretrained(model, vae, image_encoder, place, DTYPES[name])
        made.append(_small_video(pipe))
        del pipe  # before the next one is read
    return psnr(made[1], made[0], np.ones(made[0].shape[:3], bool))


def _small_video(pipe: Pipeline) -> np.ndarray:
    """uint8 [F, SIDE, SIDE, 3] that the networks make of smooth colours, all of which they may replace."""
    rng = np.random.default_rng(0)
    size = (SIDE, SIDE)
    frames = FEWEST if pipe.system.clips else FRAMES
    coarse = rng.integers(256, size=(frames, 6, 6, 3), dtype=np.uint8)
    scene = np.stack([cv2.resize(frame, size, interpolation=cv2.INTER_CUBIC) for frame in coarse])
    pose = np.zeros_like(scene)
    pose[:, SIDE // 4 : -SIDE // 4, SIDE // 2 - 2 : SIDE // 2 + 2] = (255, 85, 0)
    steps, guidance = pipe.system.sampling(pipe.settings, None, None)
    driving: dict[str, Any] = {}
    if pipe.system.reads_scene:
        driving = {"scene": scene, "mask": np.full(scene.shape[:3], 255, np.uint8)}
    elif pipe.system.reads_background:
        driving = {"background": scene[0]}
    made = pipe(scene[0], pose=pose, steps=min(steps, STEPS), guidance_scale=guidance, canvas="frame", **driving)
    return np.stack(list(made.frames))
