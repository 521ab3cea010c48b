"""How a phase does on held-out clips: the loss at fixed timesteps and noise, and sheets of sampled clips.

Nothing here touches a random state: clips are numbered, and their noise is drawn by generators of their own.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator, DistributedType
from torch import Tensor, nn
from torch.utils.data import Dataset

from anycharv_core.files import atomic_path
from anycharv_core.media.sheet import sheet, upscale
from anycharv_core.puppets.task import sample_followed_swap
from training.config import Data, Phase, Validate
from training.data.samples import Samples
from training.data.sources import open_dataset

TITLES = ("reference", "scene", "background", "pose", "result", "truth")
SMALLEST = 128  # pixels a picture on the sheet is wide, at least


class Swaps(Dataset):
    """Held-out puppets for self-boosting: the driving clip shows another character, the truth is exact."""

    def __init__(self, data: Data, frames: int, clips: int):
        self.data, self.frames, self.clips = data, frames, clips
        self.size = data.size or (64, 64)

    def __len__(self) -> int:
        return self.clips

    def __getitem__(self, sample: tuple[int, int]) -> dict[str, Tensor]:
        data, number = self.data, sample[0]
        context = None if data.context is None else sum(data.context) / 2
        swap = sample_followed_swap(data.world, number, self.frames, self.size, context)
        cut = swap.reference[..., :3] * (swap.reference[..., 3:] >= 128)
        arrays = {
            "frames": swap.truth.frames,
            "pose": swap.pose,
            "character": swap.truth.mask,
            "mask": np.maximum(swap.box, swap.truth.mask),
            "reference": cut,
            "scene": swap.driving.frames,
        }
        return {name: torch.from_numpy(array) for name, array in arrays.items()}


def held_out(phase: Phase, data: Data) -> Samples:
    """The clips of `data` that `phase` is validated on; `Swaps` where it trains on pairs and `data` names puppets.

    Raises UserError where they cannot be read.
    """
    if data.source != "puppets":
        return open_dataset(data, phase.frames)
    if phase.data.source == "pairs":
        return Swaps(data, phase.frames, phase.validate.clips)
    return open_dataset(replace(data, clips=phase.validate.clips), phase.frames)


def validate(
    accelerator: Accelerator, model: nn.Module, data: Samples, cfg: Validate, path: Path
) -> dict[str, float]:
    """Held-out losses by name, "held_out" their mean; the sheet goes to `path`, a PNG. All processes call it."""
    world, rank = accelerator.num_processes, accelerator.process_index
    clips = min(cfg.clips, len(data))
    sums = torch.zeros(len(cfg.timesteps), device=accelerator.device)
    with torch.no_grad():
        # Where parameters are sharded, every process must take part as often as the others.
        for first in range(0, clips, world):
            index = first + rank
            batch = _clip(data, index % clips, accelerator.device)
            losses = model(batch, task="held_out", timesteps=cfg.timesteps)[0].float()
            sums += losses if index < clips else 0
        sums = accelerator.reduce(sums, "sum") / max(1, clips)
        rows = [_row(accelerator, model, data, cfg, index) for index in range(min(cfg.sheet, clips))]
    if rows and accelerator.is_main_process:
        path.parent.mkdir(parents=True, exist_ok=True)
        titles = [title for title in TITLES if title in rows[0]]
        with atomic_path(path) as tmp:
            sheet([[row[title] for title in titles] for row in rows], titles).save(tmp, "PNG")
    by_step = dict(zip((f"held_out/{t}" for t in cfg.timesteps), sums.tolist(), strict=True))
    return {"held_out": float(sums.mean())} | by_step


def _row(
    accelerator: Accelerator, model: nn.Module, data: Samples, cfg: Validate, index: int
) -> dict[str, np.ndarray]:
    """Pictures by their titles; none on a process that only helps."""
    batch = _clip(data, index, accelerator.device)
    sharded = accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED)
    if not (accelerator.is_main_process or sharded):
        return {}
    made = model(batch, task="sample", steps=cfg.steps, guidance=cfg.guidance)[0]
    middle = made.shape[0] // 2
    result = (made[middle].movedim(0, -1) * 255).round().byte()
    frame = batch["frames"][0, middle]
    row = {"pose": batch["pose"][0, middle], "result": result, "truth": frame}
    row |= accelerator.unwrap_model(model).shown(batch, middle)
    zoom = -(-SMALLEST // frame.shape[1])
    return {title: upscale(picture.cpu().numpy(), zoom) for title, picture in row.items()}


def _clip(data: Samples, index: int, device: torch.device) -> dict[str, Tensor]:
    """Clip `index` as a batch of one."""
    batch = {name: value[None].to(device) for name, value in data[index, 0].items()}
    return batch | {"position": torch.tensor([index])}
