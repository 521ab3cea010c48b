"""Puppet clips as training samples: a pure function of the sample's index, so that a resumed run sees
exactly what an uninterrupted one would."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from anycharv_core.masks import augment_mask, box_masks
from anycharv_core.puppets import (
    Character,
    Motion,
    render,
    render_reference,
    sample_character,
    sample_motion,
    sample_scene,
)
from anycharv_core.puppets.task import pose_pictures

MOTION_FRAMES = 48


class PuppetClips(Dataset):
    """Sample `index` -> uint8 tensors of one clip.

    reference [S, S, 3] (its background black), frames [F, S, S, 3], pose [F, S, S, 3],
    character [F, S, S] (exact mask), mask [F, S, S] (what the network is told: for mask="fine" the exact
    mask with an irregular border of any looseness up to the box; for mask="box" the padded box), and
    with `partner` another character's reference [S, S, 3]. The clip itself depends on nothing but the
    index, F and `seed`. Up to 8 frames are picked at random from a longer motion; more are consecutive.
    """

    def __init__(self, size: int, frames: int, seed: int, mask: str, partner: bool = False):
        self.size, self.frames, self.seed, self.mask, self.partner = size, frames, seed, mask, partner

    def __len__(self) -> int:
        return 2**31

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        rng = np.random.default_rng([self.seed, index])
        seeds = [int(s) for s in rng.integers(2**31, size=6)]
        character = sample_character(seeds[0])
        scattered = self.frames <= 8
        motion = sample_motion(seeds[1], MOTION_FRAMES if scattered else self.frames, character.proportions)
        if scattered:
            motion = _moments(motion, rng.choice(MOTION_FRAMES, self.frames, replace=False))
        clip = render(character, motion, sample_scene(seeds[2]), (self.size, self.size))
        arrays = {
            "reference": self._reference(character, seeds[3]),
            "frames": clip.frames,
            "pose": pose_pictures(clip.poses(), self.size),
            "character": clip.mask,
            "mask": self._mask(clip.mask, rng),
        }
        if self.partner:
            arrays["partner"] = self._reference(sample_character(seeds[4]), seeds[5])
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    def _reference(self, character: Character, seed: int) -> np.ndarray:
        rgb, alpha = render_reference(character, seed, (self.size, self.size))
        return rgb * (alpha >= 128)[..., None]

    def _mask(self, masks: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        if self.mask == "box" or rng.random() < 0.2:
            return box_masks(masks, padding=rng.uniform(0.0, 0.2), smooth=2 if self.frames > 8 else 0)
        strength = rng.uniform(0.2, 2.0)
        return np.stack([augment_mask(mask, rng, strength) for mask in masks])


def _moments(motion: Motion, chosen: np.ndarray) -> Motion:
    """The motion at some of its frames."""
    arrays = {f.name: getattr(motion, f.name) for f in fields(motion)}
    return replace(motion, **{k: v[chosen] for k, v in arrays.items() if isinstance(v, np.ndarray)})


class BatchIndices(Sampler):
    """Batch `b` holds samples b * size ... (b + 1) * size - 1, from batch `first` to `last` exclusive."""

    def __init__(self, size: int, first: int, last: int):
        self.size, self.first, self.last = size, first, last

    def __len__(self) -> int:
        return self.last - self.first

    def __iter__(self) -> Iterator[list[int]]:
        for batch in range(self.first, self.last):
            yield list(range(batch * self.size, (batch + 1) * self.size))


def loader(dataset: Dataset, batch: int, first: int, last: int, workers: int) -> DataLoader:
    """Batches `first`..`last` of the dataset, rendered by `workers` processes."""
    return DataLoader(
        dataset,
        batch_sampler=BatchIndices(batch, first, last),
        num_workers=workers,
        worker_init_fn=_one_thread,
        prefetch_factor=4 if workers else None,
        pin_memory=torch.cuda.is_available(),
    )


def _one_thread(_: int) -> None:
    import cv2

    cv2.setNumThreads(1)
    torch.set_num_threads(1)
