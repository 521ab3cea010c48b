"""The systems, one file each: its networks, released layout, recipes and defaults."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from ..checkpoints.check import check_checkpoint
from ..checkpoints.checkpoint import NETWORKS, Checkpoint
from ..checkpoints.cogvideox import join_base
from ..checkpoints.folders import read_library_parts
from ..checkpoints.places import EMBEDDED
from ..checkpoints.single_file import read_single
from ..errors import UserError
from ..foreign import parse_json, read_header, read_json
from ..models import UNetConfig
from ..models.fields import Fields
from .animate_anyone import ANIMATE_ANYONE
from .animate_anyone_2 import ANIMATE_ANYONE_2, has_its_blocks
from .anycharv import ANYCHARV
from .anywhere import ANYWHERE
from .system import System

__all__ = [
    "SYSTEMS",
    "System",
    "read_checkpoint",
    "read_unet_checkpoint",
    "recognise",
    "system_of",
    "system_of_model",
    "write_folder",
]

DENOISER = "denoising_unet"
SYSTEMS = {system.name: system for system in (ANIMATE_ANYONE, ANYCHARV, ANIMATE_ANYONE_2, ANYWHERE)}


def system_of(denoising_unet: Mapping[str, Any] | UNetConfig) -> System:
    """The system whose denoising UNet has this config. Raises UserError where there is none."""
    cfg = denoising_unet if isinstance(denoising_unet, UNetConfig) else UNetConfig.from_dict(denoising_unet)
    latent = cfg.out_channels
    for system in (ANIMATE_ANYONE_2,) if has_its_blocks(cfg) else (ANIMATE_ANYONE, ANYCHARV):
        if cfg.in_channels == system.in_channels(latent):
            return system
    raise UserError(
        f"denoising_unet takes {cfg.in_channels} channels; AnyCharV's takes noisy latent, scene latent and mask, "
        f"{2 * latent + 1} in all, as Animate Anyone 2's does, whose reference_blocks are 'mid_up', and Animate "
        f"Anyone's the noisy latent, {latent}: give a model of one of them."
    )


def recognise(path: str | Path) -> System | None:
    """The system of the model at `path`, by a config that is read in no time; None where it has none that tells,
    of which `read_checkpoint` says why."""
    path = EMBEDDED.get(str(path), Path(path))
    with suppress(UserError, OSError):
        if path.is_dir() and ANYWHERE.layout.recognises(path):
            return ANYWHERE
        if path.is_dir():
            return system_of(read_json(path / DENOISER / "config.json"))
        configs = parse_json(read_header(path).metadata.get("configs", ""), str(path))
        if isinstance(configs, dict) and not configs.keys().isdisjoint((DENOISER, "transformer")):
            return system_of_model(Checkpoint(configs))
    return None


def system_of_model(checkpoint: Checkpoint) -> System:
    """The system of a whole model. Raises UserError where there is none."""
    return ANYWHERE if checkpoint.is_dit else system_of(checkpoint.configs[DENOISER])


def read_checkpoint(path: str | Path, base: Path | None = None) -> Checkpoint:
    """Reads a name of `EMBEDDED`, a .safetensors file, or a folder in a system's layout.

    base: what a model of AnimateAnywhere was trained on, see `cogvideox.join_base`. Raises UserError naming the
    file when it is missing, torn, incomplete, holds NaN, or is another model's.
    """
    checkpoint = _read(path)
    join_base(checkpoint, base, str(path))
    return _checked(checkpoint, path)


def read_unet_checkpoint(path: str | Path) -> Checkpoint:
    """As `read_checkpoint`, for what runs or trains UNets alone. Raises UserError for AnimateAnywhere's, too."""
    checkpoint = _read(path)
    if checkpoint.is_dit:
        raise UserError(
            f"{path} is a model of {ANYWHERE.title}, which has no UNet: give a model of another system, or run it "
            f"with 'anycharv {ANYWHERE.command}'."
        )
    return _checked(checkpoint, path)


def _read(path: str | Path) -> Checkpoint:
    path = EMBEDDED.get(str(path), Path(path))
    if path.is_dir():
        system = next((system for system in SYSTEMS.values() if system.layout.recognises(path)), ANYCHARV)
        checkpoint = system.layout.read(path)
        read_library_parts(path, checkpoint)
    elif path.is_file():
        checkpoint = read_single(path)
    else:
        raise _absent(path)
    Fields(checkpoint.configs, f"The configs of {path}")
    return checkpoint


def _checked(checkpoint: Checkpoint, path: str | Path) -> Checkpoint:
    check_checkpoint(checkpoint, str(EMBEDDED.get(str(path), path)))
    system_of_model(checkpoint)
    return checkpoint


def _absent(path: Path) -> UserError:
    if path in EMBEDDED.values():
        return UserError(f"{path.name}, an embedded model's weights, is missing: install the package again.")
    *names, last = (f"'{name}'" for name in EMBEDDED)
    return UserError(
        f"There is no model at {path}: give a folder, a .safetensors file, or {', '.join(names)} or {last}."
    )


def write_folder(checkpoint: Checkpoint, folder: str | Path, dtype: torch.dtype | None = None) -> None:
    """Writes the layout of the model's system. dtype None keeps each weight's own.

    A checkpoint without all three networks is written in AnyCharV's layout, which has a folder per part.
    """
    complete = checkpoint.is_dit or checkpoint.configs.keys() >= set(NETWORKS)
    system = system_of_model(checkpoint) if complete else ANYCHARV
    system.layout.write(checkpoint, Path(folder), dtype)
