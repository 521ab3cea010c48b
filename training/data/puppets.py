"""Puppets rendered on the fly as training samples."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from anycharv_core.puppets import Character, Motion, Scene, render, render_reference
from anycharv_core.puppets.framing import following_camera
from anycharv_core.puppets.task import POSE_SCALE
from anycharv_core.puppets.worlds import WORLDS
from training.config import Data
from training.data.conditions import SCATTERED, STEADY, drawn_poses, given_masks

MOTION_FRAMES = 48


class PuppetClips(Dataset):
    """`data.clips` puppet clips, each a character, a motion and a scene that depend on nothing but the index,
    `data.seed` and `data.split`. Every epoch has other references, masks and, up to 8 frames, another choice of
    frames, which are picked from a longer motion; more are consecutive.
    """

    def __init__(self, data: Data, frames: int):
        self.data, self.frames, self.size = data, frames, data.size or (64, 64)
        self.pose_scale = data.pose_scale or POSE_SCALE
        self.world = WORLDS[data.world]
        self._whole = data.reference == "frame"

    def __len__(self) -> int:
        return self.data.clips

    def __getitem__(self, sample: tuple[int, int]) -> dict[str, Tensor]:
        index, epoch = sample
        character, motion_seed, scene = self._sampled(index)
        rng = np.random.default_rng([self.data.seed, epoch, index])
        reference_seed = int(rng.integers(2**31))
        scattered = self.frames <= SCATTERED
        length = MOTION_FRAMES if scattered else self.frames
        perform = self.world.close if self._whole else self.world.motion
        motion = perform(motion_seed, length, character.proportions, self.data.split)
        chosen = rng.choice(MOTION_FRAMES, self.frames, replace=False) if scattered else np.arange(length)
        camera = None
        if self.data.context is not None:
            context = rng.uniform(*self.data.context)
            camera = following_camera(character, motion, scene, self.size, context)[chosen]
        clip = render(character, _moments(motion, chosen), scene, self.size, camera=camera)
        arrays = {
            "frames": clip.frames,
            "pose": drawn_poses(clip.poses(), self.size, self.pose_scale),
            "character": clip.mask,
            "mask": given_masks(clip.mask, self.data, rng, smooth=0 if scattered else STEADY),
            "reference": self._reference(character, scene, reference_seed),
        }
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    def reference(self, index: int, epoch: int) -> Tensor:
        seed = int(np.random.default_rng([self.data.seed, epoch, index]).integers(2**31))
        character, _, scene = self._sampled(index)
        return torch.from_numpy(self._reference(character, scene, seed))

    def origin(self, index: int, epoch: int) -> dict[str, Any]:
        return {"video": f"puppet {self.data.split} {self.data.seed} {index}", "epoch": epoch}

    def _sampled(self, index: int) -> tuple[Character, int, Scene]:
        """Character, motion's seed and scene of a clip."""
        split = self.data.split
        seeds = np.random.default_rng([self.data.seed, 0, index, 1]).integers(2**31, size=3).tolist()
        scene = self.world.scene(seeds[2], split)
        return self.world.character(seeds[0], split), seeds[1], self.world.stage(scene) if self._whole else scene

    def _reference(self, character: Character, scene: Scene, seed: int) -> np.ndarray:
        backdrop = scene if self._whole else None
        rgb, alpha = render_reference(character, seed, self.size, self.data.split, backdrop)
        return rgb * (alpha >= 128)[..., None] if self.data.reference == "cutout" else rgb


def _moments(motion: Motion, chosen: np.ndarray) -> Motion:
    """The motion at some of its frames."""
    arrays = {f.name: getattr(motion, f.name) for f in fields(motion)}
    return replace(motion, **{k: v[chosen] for k, v in arrays.items() if isinstance(v, np.ndarray)})
