"""Puppets rendered on the fly as training samples."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from anycharv_core.inference.backend import OBJECTS
from anycharv_core.media.camera import window_around
from anycharv_core.media.depth import structured_depth
from anycharv_core.media.imaging import resample
from anycharv_core.media.masks import mask_box
from anycharv_core.puppets import Character, Clip, Motion, Scene, render, render_reference
from anycharv_core.puppets.framing import following_camera
from anycharv_core.puppets.motion import depth_twin, scaled
from anycharv_core.puppets.task import POSE_SCALE
from anycharv_core.puppets.worlds import WORLDS
from training.config import Data
from training.data.conditions import (
    SCATTERED,
    STEADY,
    drawn_poses,
    factor,
    given_masks,
    on_background,
    with_scene,
)

MOTION_FRAMES = 48
VISIBLE = 16  # levels
MARGINS = (0.04, 0.16)  # around the character of a reference, of its longer side


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
        data, rng = self.data, np.random.default_rng([self.data.seed, epoch, index])
        reference_seed = int(rng.integers(2**31))
        scattered = self.frames <= SCATTERED
        length = MOTION_FRAMES if scattered else self.frames
        character, motion, scene, anchor = self._performed(index, length)
        twin = depth_twin(motion)
        if np.random.default_rng([data.seed, epoch, index, 3]).random() < data.depth_twins:
            motion, twin = twin, motion
        chosen = rng.choice(MOTION_FRAMES, self.frames, replace=False) if scattered else np.arange(length)
        camera = None
        if data.context is not None:
            context = rng.uniform(*data.context)
            camera = following_camera(character, motion, scene, self.size, context)[chosen]
        parts = bool(data.conditions)

        def shown(motion: Motion) -> Clip:
            return render(character, _moments(motion, chosen), scene, self.size, camera=camera, parts=parts)

        clip = given = shown(motion)
        if (size := factor(data, rng)) != 1:
            clip, twin = shown(scaled(motion, size, anchor)), scaled(twin, size, anchor)
        body = given.mask if given.parts is None else given.parts.body
        pose = drawn_poses(clip.poses(), self.size, self.pose_scale)
        arrays = {
            "frames": clip.frames,
            "pose": pose,
            "character": clip.mask,
            "mask": given_masks(body, data, rng, smooth=0 if scattered else STEADY),
            "reference": self._reference(character, scene, reference_seed),
        }
        if data.depth_twins:
            arrays["order"] = _differing(clip.frames, shown(twin).frames)
        if clip.parts is not None:
            arrays["objects"] = clip.parts.objects
            arrays["depth"] = structured_depth(clip.parts.depth_pictures(), pose)
        arrays = with_scene(arrays, given.frames, data, rng)
        wanted = arrays.keys() - ({"objects", "depth"} - set(data.conditions))
        return {name: torch.from_numpy(array) for name, array in arrays.items() if name in wanted}

    def reference(self, index: int, epoch: int) -> Tensor:
        seed = int(np.random.default_rng([self.data.seed, epoch, index]).integers(2**31))
        character, _, scene, _ = self._performed(index, 1)
        return torch.from_numpy(self._reference(character, scene, seed))

    def origin(self, index: int, epoch: int) -> dict[str, Any]:
        return {"video": f"puppet {self.data.split} {self.data.seed} {index}", "epoch": epoch}

    def _performed(self, index: int, frames: int) -> tuple[Character, Motion, Scene, np.ndarray]:
        """Character, motion and scene of a clip, and the points about which the character is scaled."""
        split = self.data.split
        seeds = np.random.default_rng([self.data.seed, 0, index, 1]).integers(2**31, size=3).tolist()
        return self.world.perform(seeds, frames, split, self._whole)

    def _reference(self, character: Character, scene: Scene, seed: int) -> np.ndarray:
        backdrop = scene if self._whole else None
        if OBJECTS in self.data.conditions:
            character = replace(character, held="none")
        followed = self.data.context is not None and not self._whole
        size = (2 * self.size[0], 2 * self.size[1]) if followed else self.size
        rgb, alpha = render_reference(character, seed, size, self.data.split, backdrop)
        if self.data.reference == "cutout":
            rgb = rgb * (alpha >= 128)[..., None]
        if self.data.reference == "background":
            rgb = on_background(rgb, alpha, rgb, np.random.default_rng([seed, 1]))
        box = mask_box(alpha)
        if not followed or box is None:
            return rgb
        # As the pipeline shows references on a canvas that follows, but for a margin that is known there.
        margin = np.random.default_rng([seed, 2]).uniform(*MARGINS)
        return resample(rgb, window_around(box, self.size, margin), self.size)


def _differing(frames: np.ndarray, others: np.ndarray) -> np.ndarray:
    """uint8 [F, H, W], 255 where two pictures [F, H, W, 3] visibly differ."""
    apart = np.abs(frames.astype(np.int16) - others).max(axis=-1)
    return np.where(apart > VISIBLE, np.uint8(255), np.uint8(0))


def _moments(motion: Motion, chosen: np.ndarray) -> Motion:
    """The motion at some of its frames."""
    arrays = {f.name: getattr(motion, f.name) for f in fields(motion)}
    return replace(motion, **{k: v[chosen] for k, v in arrays.items() if isinstance(v, np.ndarray)})
