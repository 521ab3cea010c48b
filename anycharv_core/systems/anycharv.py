"""AnyCharV (arXiv 2502.08189): replaces the person of a scene by the character of a reference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from ..checkpoints.checkpoint import LIBRARY_PARTS, NETWORKS, OPTIONAL_NETWORKS, Checkpoint
from ..checkpoints.folders import read_networks, write_parts, write_settings
from ..media.canvas import working_size
from ..media.imaging import latent_mask, resize
from ..models.guidance import is_guided
from ..models.windows import closed_loop_windows, linear_windows
from .recipes import Recipe, canvas_of_pose, canvas_of_scene, channel_noise, frame_noise, letterbox, on_black
from .system import Layout, System

RECIPES = {
    "official": Recipe(
        canvas=canvas_of_pose,
        working_size=working_size,
        cut_out=lambda picture, alpha: picture,
        reference=lambda picture, canvas: resize(picture, canvas.padded),
        clip_view=lambda picture: picture,
        mask=lambda masks, canvases, size: latent_mask(masks, size),
        windows=lambda frames, guidance: closed_loop_windows(frames, average=is_guided(guidance)),
        noise=channel_noise,
        bank_dtype=torch.float16,
        composites=False,
        paste_back=False,
        keeps_aspect=False,
        round=False,
        recorded=True,
    ),
    "default": Recipe(
        canvas=canvas_of_scene,
        working_size=working_size,
        cut_out=on_black,
        reference=lambda picture, canvas: letterbox(picture, canvas.padded),
        clip_view=lambda picture: letterbox(picture, (max(picture.shape[:2]),) * 2),
        mask=lambda masks, canvases, size: latent_mask(
            np.stack([canvas.place_mask(mask) for canvas, mask in zip(canvases, masks, strict=True)]), size
        ),
        windows=lambda frames, guidance: linear_windows(frames),
        noise=frame_noise,
        bank_dtype=None,
        composites=True,
        paste_back=True,
        keeps_aspect=True,
        round=True,
        recorded=False,
        keeps_scene=True,
    ),
}


def _recognises(folder: Path) -> bool:
    return any((folder / part).is_dir() for part in NETWORKS)


def _write(checkpoint: Checkpoint, folder: Path, dtype: torch.dtype | None) -> None:
    write_parts(checkpoint, (*NETWORKS, *OPTIONAL_NETWORKS, *LIBRARY_PARTS), folder, dtype)
    write_settings(checkpoint.settings, folder)


LAYOUT = Layout(_recognises, read_networks, _write)  # a folder for each part, as diffusers has them

ANYCHARV = System(
    name="anycharv",
    title="AnyCharV",
    command="generate",
    purpose="replaces a person of a video",
    reads_scene=True,
    steps=30,
    guidance_scale=3.0,
    recipes=RECIPES,
    layout=LAYOUT,
)
