"""A model as a folder: one folder per part, each with its config.json and weights, as diffusers writes them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from ..errors import UserError
from ..files import atomic_path
from ..foreign import read_json
from .check import check_part, check_settings
from .checkpoint import COGVIDEOX_VAE, UNET_PARTS, Checkpoint, Parts, Weights
from .networks import CODECS, TINY_VAE, new_library_part
from .state_dicts import read_weights, save_safetensors, stored

SETTINGS = "settings.json"
# By these names a model's folder may hold its library parts; the first is the one we write.
FOLDERS = {"vae": ("vae", "sd-vae-ft-mse"), "image_encoder": ("image_encoder",)}
WEIGHT_NAMES = ("diffusion_pytorch_model", "model", "pytorch_model")
TINY_WIDTHS = [64] * 4  # of an AutoencoderTiny whose config leaves them out
SUFFIXES = (".safetensors", ".bin", ".pth")


def read_networks(folder: Path, parts: Parts = UNET_PARTS) -> Checkpoint:
    """The networks of a folder, and those of the optional ones that have a folder in it. Raises UserError naming
    what is missing."""
    checkpoint = Checkpoint()
    for part in (*parts.networks, *(part for part in parts.optional if (folder / part).is_dir())):
        config, weights = folder / part / "config.json", weights_file(folder / part)
        if weights is None or not config.is_file():
            lacking = "config.json" if weights else "weights (.safetensors, .bin or .pth)"
            raise UserError(
                f"{folder / part} has no {lacking}: {folder} is not a complete AnyCharV folder; add the file."
            )
        checkpoint.configs[part] = read_json(config)
        checkpoint.weights[part] = read_weights(weights)
    return checkpoint


def read_library_parts(folder: Path, checkpoint: Checkpoint) -> None:
    """Adds to `checkpoint` the vae and the image encoder that lie in the model's folder, and its settings."""
    for part, names in FOLDERS.items():
        place = next((folder / name for name in names if (folder / name).is_dir()), None)
        if place is not None:
            checkpoint.configs[part], checkpoint.weights[part] = read_library_part(part, place)
    if (folder / SETTINGS).is_file():
        settings = read_json(folder / SETTINGS)
        check_settings(settings, str(folder / SETTINGS))
        checkpoint.settings |= settings


def read_library_part(part: str, folder: Path) -> tuple[dict[str, Any], Weights]:
    """Config and weights of a `vae` or `image_encoder` folder in their libraries' layout."""
    config_file, path = folder / "config.json", weights_file(folder)
    if path is None or not config_file.is_file():
        lacking = "config.json" if path else "weights (.safetensors, .bin or .pth)"
        raise UserError(f"{folder} has no {lacking}: give the folder of the {part.replace('_', ' ')}.")
    config, weights = read_json(config_file), read_weights(path)
    check_part(part, config, weights, str(config_file))
    if config.get("_class_name") == TINY_VAE:
        # By this name the levels are known of every other autoencoder.
        return config | {"block_out_channels": config.get("decoder_block_out_channels", TINY_WIDTHS)}, weights
    if part == "image_encoder" or config.get("_class_name") in (*CODECS, COGVIDEOX_VAE):
        # Files of older transformers carry this index table, which newer ones rebuild.
        return config, {key: value for key, value in weights.items() if not key.endswith("position_ids")}
    with torch.device("meta"):
        asked = sum(tensor.numel() for tensor in new_library_part(part, config).state_dict().values())
    if asked > (there := sum(tensor.numel() for tensor in weights.values())):
        raise UserError(f"{config_file} asks for {asked:,} weights, but {path} has {there:,}.")
    if path.stem != WEIGHT_NAMES[0] or path.suffix not in SUFFIXES[:2]:
        raise UserError(
            f"{folder} holds {path.name}, but the weights of a VAE are named {WEIGHT_NAMES[0]}{SUFFIXES[0]}: give "
            "the folder of the vae."
        )
    from diffusers import AutoencoderKL

    dtype = next((value.dtype for value in weights.values()), None)
    try:
        # The library renames the attention keys of older files, such as those of sd-vae-ft-mse, and
        # without a dtype it widens all weights.
        # Told which file there is, it does not complain of the other's absence first.
        safe = path.suffix == SUFFIXES[0]
        read: Any = AutoencoderKL.from_pretrained
        vae = read(folder, local_files_only=True, torch_dtype=dtype, use_safetensors=safe)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = str(error).splitlines()[0][:200].rstrip(".:")
        raise UserError(f"{folder} can't be read as the vae ({reason}): fetch it again.") from None
    kept = {k: v for k, v in vae.config.items() if not k.startswith("_") or k == "_class_name"}
    return kept, vae.state_dict()


def write_parts(checkpoint: Checkpoint, parts: Iterable[str], folder: Path, dtype: torch.dtype | None) -> None:
    """Writes a folder for each of `parts` that the checkpoint has. dtype None keeps each weight's own."""
    for part in parts:
        if part not in checkpoint.weights:
            continue
        target = folder / part
        target.mkdir(parents=True, exist_ok=True)
        name = "model" if part == "image_encoder" else "diffusion_pytorch_model"
        with atomic_path(target / "config.json") as tmp:
            tmp.write_text(json.dumps(checkpoint.configs[part], indent=2) + "\n", encoding="utf-8")
        weights = {key: stored(key, value, dtype) for key, value in checkpoint.weights[part].items()}
        save_safetensors(weights, target / f"{name}.safetensors", {"format": "pt"})


def write_settings(settings: Mapping[str, Any], folder: Path) -> None:
    """Writes settings.json, which no release has; nothing where there are no settings."""
    if settings:
        with atomic_path(folder / SETTINGS) as tmp:
            tmp.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def weights_file(folder: Path) -> Path | None:
    """The weights in a part's folder, safetensors first; None where there are none."""
    candidates = (folder / (name + suffix) for suffix in SUFFIXES for name in WEIGHT_NAMES)
    return next((path for path in candidates if path.is_file()), None)
