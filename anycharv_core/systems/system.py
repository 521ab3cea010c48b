"""What a system is: the one place everything else asks when systems differ."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..checkpoints.checkpoint import Checkpoint
from ..errors import UserError
from ..media.pose import Poses, has_ankles
from ..models.slots import layout
from .recipes import Recipe


@dataclass(frozen=True)
class Layout:
    """How a system's release lies on disk.

    recognises(folder): whether it holds this layout; read(folder) -> networks and settings, raising UserError for
    what is missing or does not belong together; write(checkpoint, folder, dtype), with dtype None to keep each
    weight's own.
    """

    recognises: Callable[[Path], bool]
    read: Callable[[Path], Checkpoint]
    write: Callable[[Checkpoint, Path, torch.dtype | None], None]


@dataclass(frozen=True)
class System:
    """One of the published methods this package runs and trains.

    title: its name for people; command: the command that runs it; purpose: what it does, as "... which <purpose>";
    reads_scene: whether the denoising UNet is given the scene's latents and the mask beside the noisy latents;
    steps, guidance_scale: the release's, where neither the caller nor the model's settings say otherwise;
    blocks: rows and columns of the coarse picture that it makes of a mask, inside which the scene is then black
    (`masks.block_masks`), where a model's settings name no others; None: masks and scenes are as they are given;
    reads_background: whether it is given the picture of a place; clips: whether its latents are of clips, several
    frames each (`slots.layout`), and not of single frames; patch: latent pixels along a side of what its network
    takes as one, of which a canvas has a whole number.
    """

    name: str
    title: str
    command: str
    purpose: str
    reads_scene: bool
    steps: int
    guidance_scale: float
    recipes: Mapping[str, Recipe]
    layout: Layout
    blocks: tuple[int, int] | None = None
    reads_background: bool = False
    clips: bool = False
    patch: int = 1

    def mask_blocks(self, settings: Mapping[str, Any]) -> tuple[int, int] | None:
        """`blocks`, or those that a model's `settings` name; None for a system that makes none."""
        rows, columns = (self.blocks and settings.get("blocks", self.blocks)) or (0, 0)
        return (rows, columns) if self.blocks else None

    def recipe(self, name: str) -> Recipe:
        """The recipe of that name. Raises UserError for an unknown one."""
        if name not in self.recipes:
            known = ", ".join(map(repr, sorted(self.recipes)))
            raise UserError(f"There is no recipe '{name}'; use one of {known}.")
        return self.recipes[name]

    def sampling(
        self, settings: Mapping[str, Any], steps: int | None = None, guidance_scale: float | None = None
    ) -> tuple[int, float]:
        """Steps and guidance scale: those asked for, or else the model's `settings`, or else the release's."""
        if steps is None:
            steps = settings.get("steps", self.steps)
        if guidance_scale is None:
            guidance_scale = settings.get("guidance_scale", self.guidance_scale)
        return steps, guidance_scale

    def in_channels(self, latent_channels: int) -> int:
        """Channels of the denoising UNet's input, for latents of so many."""
        return 2 * latent_channels + 1 if self.reads_scene else latent_channels

    def unet_input(self, noisy: Tensor, scene: Tensor | None, mask: Tensor | None) -> Tensor:
        """The denoising UNet's input [N, in_channels, h, w].

        noisy: latents [N, c, h, w]; scene: latents of that shape, and mask [N, 1, h, w] in 0..1, both None for a
        system that reads neither.
        """
        if not self.reads_scene:
            return noisy
        assert scene is not None and mask is not None  # `check_inputs` saw to it
        return torch.cat([noisy, scene.to(noisy), mask.to(noisy)], dim=1)

    def latents_of(self, frames: int) -> tuple[int, int]:
        """How many latents a video of so many frames is sampled as, and how many of them, the first ones, are not
        decoded. Raises UserError for a number of frames that is none of a clip."""
        if not self.clips:
            return frames, 0
        latents, pad, _ = layout(frames)
        return latents + pad, pad

    def check_poses(self, poses: Poses) -> None:
        """Raises UserError for poses, given as points, that say too little."""
        if self.reads_background and not any(has_ankles(people) for people in poses.people):
            raise UserError(
                "The poses have no ankles in any frame, and how the feet move tells where the camera goes; give "
                "poses of the whole body."
            )

    def check_inputs(self, scene: Any, mask: Any, pose: Any, recipe: Recipe, background: Any = None) -> None:
        """Raises UserError where an input (None = not given) is missing, or is one this system cannot use."""
        if pose is None:
            raise UserError("There is no pose; give the skeletons of the motion.")
        if background is not None and not self.reads_background:
            raise UserError(
                f"This model of {self.title} takes no background picture; leave it out, or load a model of "
                "AnimateAnywhere, which does."
            )
        if self.reads_background and (scene is not None or mask is not None):
            raise UserError(
                f"{self.title} makes all of a frame and puts nobody into a scene: leave scene and mask out, and "
                "give the picture of a place as the background."
            )
        if self.reads_background and background is None:
            raise UserError(f"There is no background; give {self.title} the picture of a place with nobody in it.")
        if self.reads_scene:
            if scene is None or mask is None:
                raise UserError(
                    "This model replaces a person in a scene: give scene and mask, or load a model of Animate "
                    "Anyone, which needs neither."
                )
        elif scene is None and mask is not None:
            raise UserError("There is a mask but no scene; give both, or neither.")
        elif scene is not None and not recipe.composites:
            raise UserError(f"{self.title}'s release knows no scene; leave it out, or use the recipe 'default'.")

    def check_command(self, command: str, model: str) -> None:
        """Raises UserError where `command` runs another system than this one, that of `model`."""
        if command != self.command:
            raise UserError(
                f"{model} is a model of {self.title}, which {self.purpose}: use 'anycharv {self.command}', or "
                f"give a model for 'anycharv {command}'."
            )
