"""AnimateAnywhere (arXiv 2504.19834): a character walks through the picture of a place, and the camera follows.

Neither code nor weights were ever published. What the paper leaves open is decided here and in docs/anywhere.md.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from ..checkpoints.checkpoint import DIT_PARTS, Checkpoint
from ..checkpoints.cogvideox import NAME
from ..checkpoints.folders import read_networks, write_parts, write_settings
from ..errors import UserError
from ..media.canvas import nearest_multiple, working_size
from ..models.config import PATCH
from ..models.windows import linear_windows
from . import animate_anyone, anycharv
from .system import Layout, System

_RECIPE = replace(
    anycharv.RECIPES["default"],
    canvas=animate_anyone.RECIPES["default"].canvas,
    working_size=lambda area, shown, multiple: nearest_multiple(working_size(area, shown, multiple), multiple),
    # A clip is denoised as a whole: its tokens are of eight frames each.
    windows=lambda latents, guidance: linear_windows(latents, size=latents),
    composites=False,
    paste_back=False,
)

# There is no release to work as: both are the paper's.
RECIPES = {"official": _RECIPE, "default": _RECIPE}


def _recognises(folder: Path) -> bool:
    return (folder / "transformer").is_dir()


def _read(folder: Path) -> Checkpoint:
    if not (folder / "control").is_dir():
        raise UserError(
            f"{folder} is {NAME} itself, or another base: give it as --base, and as the model the file that was "
            "trained on it."
        )
    return read_networks(folder, DIT_PARTS)


def _write(checkpoint: Checkpoint, folder: Path, dtype: torch.dtype | None) -> None:
    write_parts(checkpoint, DIT_PARTS.all, folder, dtype)
    write_settings(checkpoint.settings, folder)


ANYWHERE = System(
    name="anywhere",
    title="AnimateAnywhere",
    command="animate",
    purpose="lets the character of a picture walk through the picture of a place",
    reads_scene=False,
    steps=50,
    guidance_scale=2.5,
    recipes=RECIPES,
    layout=Layout(_recognises, _read, _write),
    reads_background=True,
    clips=True,
    patch=PATCH,
)
