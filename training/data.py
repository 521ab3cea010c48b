"""The sources of training samples: puppets rendered on the fly, shards of real videos, generated pairs.

A sample is one clip, a dict of uint8 tensors, and a pure function of (seed, epoch, index) (`samples.py`):

    frames     [F, H, W, 3]  RGB
    pose       [F, H, W, 3]  skeletons, drawn `pose_scale` times as large and brought down
    character  [F, H, W]     exact mask of the person, 0 or 255
    mask       [F, H, W]     what the network is told, 0 or 255; covers `character`
    reference  [H, W, 3]     the same person elsewhere, background black, or as `Data.reference` says
    scene      [F, H, W, 3]  of pairs only: the generated driving clip (eq. 3)
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from anycharv_core.errors import UserError
from anycharv_core.media.imaging import resize
from anycharv_core.media.masks import augment_mask, block_masks, box_masks
from anycharv_core.media.pose import Poses
from anycharv_core.media.pose_drawing import draw_poses
from anycharv_core.puppets import (
    Character,
    Motion,
    Scene,
    render,
    render_reference,
    sample_character,
    sample_motion,
    sample_scene,
    studio,
)
from anycharv_core.puppets.task import POSE_SCALE

Size = tuple[int, int]
"""(width, height) in pixels"""

MOTION_FRAMES = 48
SCATTERED = 8  # up to this many frames of a puppet are picked at random from a longer motion
STEADY = 2  # frames on either side over which the boxes of a clip are steadied, as at inference


@dataclass(frozen=True)
class Data:
    """The `data` section of a recipe; a phase may override any of it.

    source: "puppets" renders `clips` of them; "shards" reads what prepare_dataset made in `path`; "pairs" what
    make_pairs made in `path`, or what the phase that `made_by` names makes in the run's own folder.
    size: [width, height] in pixels; None takes each shard's own bucket, and 64 x 64 for puppets.
    mask: what the network is told (paper 3.2 and 3.3; "block" is Animate Anyone 2's): "fine", exact but for an
    irregular border where `augment`, "box" or "block". strength: lowest and highest factor on the border's
    reach (`masks.augment_mask`); box_share: share of clips told a box in place of an augmented mask;
    padding: lowest and highest margin of a box in parts of its size.
    reference: "cutout" shows the person elsewhere, background black, as in the paper; "picture" with its
    background; "frame" is Animate Anyone's, a whole frame of the same clip. Puppets then perform, and stand,
    before a plain wall.
    pose_scale: how many times as large skeletons are drawn before they are brought down; None: 4 for puppets,
    as the embedded model wants it, and 1 otherwise.
    stride: frames of a real video from one frame of a clip to the next. flip: probability of mirroring a real
    clip, and on its own the reference. split: "train" or "heldout". seed: which puppets, and all chance.
    """

    source: Literal["puppets", "shards", "pairs"] = "puppets"
    path: str | None = None
    made_by: str | None = None
    size: tuple[int, int] | None = None
    clips: int = 1000
    mask: Literal["fine", "box", "block"] = "fine"
    augment: bool = True
    strength: tuple[float, float] = (0.2, 2.0)
    box_share: float = 0.0
    padding: tuple[float, float] = (0.0, 0.2)
    reference: Literal["cutout", "picture", "frame"] = "cutout"
    pose_scale: int | None = None
    stride: int = 1
    flip: float = 0.0
    split: Literal["train", "heldout"] = "train"
    seed: int = 0


def open_dataset(data: Data, frames: int) -> Dataset:
    """The finite dataset of clips of `frames` frames; item (index, epoch) is a sample as this module says.

    Besides `__getitem__` and `__len__` it has `reference(index, epoch)`, a sample's reference without its clip,
    and `origin(index, epoch)`, where the sample comes from, for JSON; "video" in it tells videos apart.

    Raises UserError where `path` is not named or does not hold what it should.
    """
    if data.source == "puppets":
        return PuppetClips(data, frames)
    if data.path is None:
        raise UserError(f"data.source is '{data.source}' but data.path names no folder; name the prepared one.")
    if data.source == "shards":
        from training.shard_clips import ShardClips

        return ShardClips(data, frames)
    from training.pairs import Pairs

    return Pairs(data, frames)


def told_masks(masks: np.ndarray, data: Data, rng: np.random.Generator, smooth: int) -> np.ndarray:
    """Exact masks uint8 [F, H, W] -> what the network is told of them, uint8 [F, H, W] that covers them.

    `smooth`: frames on either side over which boxes are steadied; 0 for frames that don't follow each other.
    """
    augmented = data.mask == "fine" and data.augment
    if data.mask == "box" or (augmented and rng.random() < data.box_share):
        return box_masks(masks, padding=rng.uniform(*data.padding), smooth=smooth)
    if data.mask == "block":
        return block_masks(masks)
    if not augmented:
        return np.where(masks > 127, np.uint8(255), np.uint8(0))
    strength = rng.uniform(*data.strength)
    return np.stack([augment_mask(mask, rng, strength) for mask in masks])


def drawn_poses(poses: Poses, size: Size, scale: int) -> np.ndarray:
    """Skeletons uint8 [F, H, W, 3], drawn `scale` times as large as `size` and brought down."""
    drawn = draw_poses(poses.scaled(scale * size[0], scale * size[1]))
    return np.stack([resize(picture, size) for picture in drawn])


class PuppetClips(Dataset):
    """`data.clips` puppet clips, each a character, a motion and a scene that depend on nothing but the index,
    `data.seed` and `data.split`. Every epoch has other references, masks and, up to 8 frames, another choice of
    frames, which are picked from a longer motion; more are consecutive.
    """

    def __init__(self, data: Data, frames: int):
        self.data, self.frames, self.size = data, frames, data.size or (64, 64)
        self.pose_scale = data.pose_scale or POSE_SCALE
        self._whole = data.reference == "frame"

    def __len__(self) -> int:
        return self.data.clips

    def __getitem__(self, sample: tuple[int, int]) -> dict[str, Tensor]:
        index, epoch = sample
        split = self.data.split
        character, motion_seed, scene = self._cast(index)
        rng = np.random.default_rng([self.data.seed, epoch, index])
        reference_seed = int(rng.integers(2**31))
        scattered = self.frames <= SCATTERED
        length = MOTION_FRAMES if scattered else self.frames
        motion = sample_motion(motion_seed, length, character.proportions, split)
        if scattered:
            motion = _moments(motion, rng.choice(MOTION_FRAMES, self.frames, replace=False))
        clip = render(character, motion, scene, self.size)
        arrays = {
            "frames": clip.frames,
            "pose": drawn_poses(clip.poses(), self.size, self.pose_scale),
            "character": clip.mask,
            "mask": told_masks(clip.mask, self.data, rng, smooth=0 if scattered else STEADY),
            "reference": self._reference(character, scene, reference_seed),
        }
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    def reference(self, index: int, epoch: int) -> Tensor:
        seed = int(np.random.default_rng([self.data.seed, epoch, index]).integers(2**31))
        character, _, scene = self._cast(index)
        return torch.from_numpy(self._reference(character, scene, seed))

    def origin(self, index: int, epoch: int) -> dict[str, Any]:
        return {"video": f"puppet {self.data.split} {self.data.seed} {index}", "epoch": epoch}

    def _cast(self, index: int) -> tuple[Character, int, Scene]:
        """Character, motion's seed and scene of a clip."""
        split = self.data.split
        seeds = np.random.default_rng([self.data.seed, 0, index, 1]).integers(2**31, size=3).tolist()
        scene = sample_scene(seeds[2], split)
        return sample_character(seeds[0], split), seeds[1], studio(scene) if self._whole else scene

    def _reference(self, character: Character, scene: Scene, seed: int) -> np.ndarray:
        backdrop = scene if self._whole else None
        rgb, alpha = render_reference(character, seed, self.size, self.data.split, backdrop)
        return rgb * (alpha >= 128)[..., None] if self.data.reference == "cutout" else rgb


def _moments(motion: Motion, chosen: np.ndarray) -> Motion:
    """The motion at some of its frames."""
    arrays = {f.name: getattr(motion, f.name) for f in fields(motion)}
    return replace(motion, **{k: v[chosen] for k, v in arrays.items() if isinstance(v, np.ndarray)})
