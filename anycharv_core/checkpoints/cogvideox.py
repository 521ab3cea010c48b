"""CogVideoX1.5-5B-I2V as it is published: the base of AnimateAnywhere's weights, and how they are tied to it."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..device import free_memory
from ..errors import UserError
from ..foreign import read_json
from ..models.config import DiTConfig
from .check import check_settings
from .checkpoint import Checkpoint, Weights
from .download import COGVIDEOX
from .folders import SUFFIXES, read_library_part, weights_file
from .recognise import UNKNOWN, identify
from .state_dicts import read_shards, read_weights

NAME = COGVIDEOX.rpartition("/")[2]
BASE_PARTS = ("transformer", "vae")
INDEX = "diffusion_pytorch_model.safetensors.index.json"
# The first and the last layer, which no other training leaves as they are.
_TIES = ("patch_embed.proj.weight", "proj_out.weight")


def fingerprint(transformer: Weights) -> str:
    """What tells one base from another: the SHA-256 of two of its weights in bfloat16, as it is published."""
    digest = hashlib.sha256()
    for key in _TIES:
        digest.update(transformer[key].to(torch.bfloat16).contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def without_base(checkpoint: Checkpoint, name: str = NAME) -> Checkpoint:
    """The model without the weights that its base, called `name`, brings, and tied to it by its fingerprint."""
    base = {"name": name, "sha256": fingerprint(checkpoint.weights["transformer"])}
    weights = {part: own for part, own in checkpoint.weights.items() if part not in BASE_PARTS}
    return replace(checkpoint, weights=weights, settings={**checkpoint.settings, "base": base})


def join_base(checkpoint: Checkpoint, base: Path | None, name: str) -> None:
    """Adds what the model's base brings: the transformer, and where there is one the VAE.

    base: the folder that `anycharv download cogvideox` makes, or a .safetensors file of the transformer alone;
    None for a model, called `name`, that holds all of its own. Raises UserError where it is missing, or another
    one than the model was trained on, and for settings that cannot be.
    """
    if "transformer" in checkpoint.weights or not checkpoint.is_dit:
        if base is not None:
            raise UserError(f"{name} brings all its networks and is built on no other model: leave --base out.")
        return
    if base is None:
        raise UserError(
            f"{name} holds what was trained on {NAME}, but not that model itself: give --base DIR (in ComfyUI "
            f"base, under advanced, of AnyCharV Loader), the folder of a copy of {COGVIDEOX}, which 'anycharv "
            "download cogvideox' fetches."
        )
    check_settings(checkpoint.settings, f"The settings of {name}")
    _check_room(base)
    config, weights = read_transformer(base)
    config = config or checkpoint.configs["transformer"]
    own = DiTConfig.from_dict(checkpoint.configs["transformer"], f"The transformer config of {name}")
    tie = checkpoint.settings.get("base") or {}
    there = DiTConfig.from_dict(config, f"The transformer config of {base}")
    if own != there or fingerprint(weights) != tie.get("sha256"):
        raise UserError(
            f"{base} is not the base that {name} was trained on, {tie.get('name', NAME)}: give a copy of that "
            "one, with its weights as they were published."
        )
    checkpoint.configs["transformer"], checkpoint.weights["transformer"] = config, weights
    if (base / "vae").is_dir():
        checkpoint.configs["vae"], checkpoint.weights["vae"] = read_library_part("vae", base / "vae")


def _check_room(base: Path) -> None:
    """Raises UserError where the base's weights are more than the main memory that is free."""
    folders = [base / part for part in BASE_PARTS]
    files = [file for folder in folders for file in folder.glob("*.safetensors")] if base.is_dir() else [base]
    needed, free = sum(file.stat().st_size for file in files if file.is_file()), free_memory(torch.device("cpu"))
    if needed > free:
        raise UserError(
            f"{base} takes {needed / 1e9:.1f} GB of main memory, of which {free / 1e9:.1f} GB are free: close "
            "other programs, or use a machine that has more."
        )


def read_transformer(base: Path) -> tuple[dict[str, Any] | None, Weights]:
    """Config and weights of the transformer in a copy of the release, or the weights of a single file, which has
    no config. Raises UserError where there are none, or where they are another model's."""
    if not base.is_dir():
        config, weights = None, read_weights(base)
    else:
        folder = base / "transformer"
        single, index = weights_file(folder), folder / INDEX
        if not (folder / "config.json").is_file() or not (single or index.is_file()):
            raise UserError(
                f"{base} has no transformer folder with config.json and weights ({', '.join(SUFFIXES)}): give the "
                f"folder of a copy of {COGVIDEOX}."
            )
        config = read_json(folder / "config.json")
        DiTConfig.from_dict(config, str(folder / "config.json"))
        weights = read_weights(single) if single else read_shards(index)
    first, last = (weights.get(key) for key in _TIES)
    if first is None or last is None or first.ndim != 2:
        what = identify(list(weights))
        if what == UNKNOWN and first is not None:
            what = "another CogVideoX, such as CogVideoX-5b-I2V"
        raise UserError(f"{base} is {what}, not {NAME} in diffusers' layout: give a copy of {COGVIDEOX}.")
    return config, weights
