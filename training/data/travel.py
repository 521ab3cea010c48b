"""Puppets on journeys as training samples: clips with their background, cameras and hands."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from anycharv_core.puppets.travel import Travel, sample_travel, sample_wander
from training.config import Data
from training.data.conditions import drawn_poses, noisy_picture

POSE_SCALE = 4


class TravelClips(Dataset):
    """`data.clips` journeys, which depend on nothing but the index, `data.seed` and `data.split`. Every epoch
    has other noise on the pictures of the background."""

    def __init__(self, data: Data, frames: int):
        self.data, self.frames, self.size = data, frames, data.size or (64, 64)

    def __len__(self) -> int:
        return self.data.clips

    def __getitem__(self, sample: tuple[int, int]) -> dict[str, Tensor]:
        index, epoch = sample
        travel = self._sampled(index, self.frames)
        truth, rng = travel.truth, np.random.default_rng([self.data.seed, epoch, index])
        assert truth.cameras is not None and truth.hands is not None
        arrays = {
            "frames": truth.frames,
            "pose": drawn_poses(travel.poses(), self.size, self.data.pose_scale or POSE_SCALE),
            "character": truth.mask,
            "hands": truth.hands,
            "background": noisy_picture(travel.background, rng),
            "reference": _cut_out(travel),
            "cameras": truth.cameras.packed(),
        }
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    def reference(self, index: int, epoch: int) -> Tensor:
        return torch.from_numpy(_cut_out(self._sampled(index, 1)))

    def origin(self, index: int, epoch: int) -> dict[str, Any]:
        return {"video": f"journey {self.data.split} {self.data.seed} {index}", "epoch": epoch}

    def _sampled(self, index: int, frames: int) -> Travel:
        seed = int(np.random.default_rng([self.data.seed, 0, index, 1]).integers(2**31))
        draw = sample_wander if self.data.world == "wander" else sample_travel
        return draw(seed, frames, self.size, self.data.split)


def _cut_out(travel: Travel) -> np.ndarray:
    return travel.reference[..., :3] * (travel.reference[..., 3:] >= 128)
