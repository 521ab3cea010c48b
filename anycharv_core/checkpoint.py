"""Reading and writing AnyCharV weights: the official folder layout and one single file."""

from __future__ import annotations

import json
import os
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .errors import UserError
from .files import atomic_path, read_json, write_error
from .models import DenoisingUNet, PatchCodec, PoseGuider, PoseGuiderConfig, ReferenceNet, UNetConfig

NETWORKS = ("denoising_unet", "reference_unet", "pose_guider")
LIBRARY_PARTS = ("vae", "image_encoder")
WEIGHT_NAMES = ("diffusion_pytorch_model", "model", "pytorch_model")
SUFFIXES = (".safetensors", ".bin", ".pth")
FORMAT = "anycharv"
EMBEDDED = "embedded"
EMBEDDED_FILE = Path(__file__).parent / "weights" / "embedded.safetensors"
SETTINGS = "settings.json"

# Key fragments by which a file of another model is recognised.
STRANGERS = {
    "lora_": "a LoRA",
    ".lora.": "a LoRA",
    "double_blocks.": "a Flux or HunyuanVideo model",
    "model.diffusion_model.input_blocks.": "a plain Stable Diffusion checkpoint",
    "first_stage_model.": "a plain Stable Diffusion checkpoint",
    "control_model.": "a ControlNet",
    "motion_modules.": "a motion module on its own",
}


@dataclass
class Checkpoint:
    """Configs and weights of each part: the three networks, and `vae` and `image_encoder` where present.

    `settings` are the defaults the weights were made for, such as {"size": [128, 128]}.
    """

    configs: dict[str, dict[str, Any]] = field(default_factory=dict)
    weights: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass
class Networks:
    """The modules of one model; `vae` is a diffusers AutoencoderKL, `image_encoder` a transformers CLIP."""

    denoising_unet: DenoisingUNet
    reference_unet: ReferenceNet
    pose_guider: PoseGuider
    vae: nn.Module | None = None
    image_encoder: nn.Module | None = None


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Reads "embedded", a single .safetensors file, or a folder in the official layout.

    Raises UserError naming the file when it is missing, torn, incomplete, holds NaN, or is another model's.
    """
    if str(path) == EMBEDDED:
        path = EMBEDDED_FILE
    path = Path(path)
    if path.is_dir():
        return _read_folder(path)
    if path.is_file():
        return _read_single(path)
    if path == EMBEDDED_FILE:
        raise UserError("The embedded model's weights are missing: install the package again.")
    raise UserError(f"There is no model at {path}: give a folder, a .safetensors file, or 'embedded'.")


def write_single(checkpoint: Checkpoint, path: str | Path, dtype: torch.dtype | None = None) -> None:
    """Writes one .safetensors file: keys `<part>.<name>`, configs in the metadata. Atomic.

    dtype None keeps each weight's own.
    """
    tensors = {
        f"{part}.{key}": _stored(key, value, dtype)
        for part, weights in checkpoint.weights.items()
        for key, value in weights.items()
    }
    metadata = {
        "format": FORMAT,
        "configs": json.dumps(checkpoint.configs),
        "settings": json.dumps(checkpoint.settings),
    }
    _save(tensors, Path(path), metadata)


def write_folder(checkpoint: Checkpoint, folder: str | Path, dtype: torch.dtype | None = None) -> None:
    """Writes the official layout: one folder per part with its config.json and .safetensors weights.

    Settings, which the release does not have, go into a settings.json beside them. dtype None keeps each
    weight's own.
    """
    for part, weights in checkpoint.weights.items():
        target = Path(folder) / part
        target.mkdir(parents=True, exist_ok=True)
        name = "model" if part == "image_encoder" else "diffusion_pytorch_model"
        with atomic_path(target / "config.json") as tmp:
            tmp.write_text(json.dumps(checkpoint.configs[part], indent=2) + "\n")
        stored = {k: _stored(k, v, dtype) for k, v in weights.items()}
        _save(stored, target / f"{name}.safetensors", {"format": "pt"})
    if checkpoint.settings:
        with atomic_path(Path(folder) / SETTINGS) as tmp:
            tmp.write_text(json.dumps(checkpoint.settings, indent=2) + "\n")


def _save(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    with atomic_path(path) as tmp:
        try:
            save_file(tensors, tmp, metadata)
        except SafetensorError as error:
            # Its only word on a full disk is the number in the message.
            number = int((re.search(r"os error (\d+)", str(error)) or [0, 0])[1])
            raise write_error(path, OSError(number, os.strerror(number) if number else str(error))) from None


def build_networks(
    checkpoint: Checkpoint,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    operations: Any = nn,
) -> Networks:
    """Builds every part the checkpoint has, in inference mode.

    Raises UserError naming the part and the first offending key when weights and config disagree.
    """
    modules: dict[str, nn.Module] = {}
    for part in NETWORKS:
        with torch.device("meta"):
            modules[part] = _network(part, checkpoint.configs[part], operations)
        check_keys(part, modules[part], checkpoint.weights[part])
    check_pairing(modules["denoising_unet"], modules["reference_unet"], modules["pose_guider"])
    for part in LIBRARY_PARTS:
        if part in checkpoint.weights:
            modules[part] = library_part(part, checkpoint.configs[part])
            check_keys(part, modules[part], checkpoint.weights[part])
    for part, module in modules.items():
        weights = {
            key: value.to(device, dtype if value.is_floating_point() else None)
            for key, value in checkpoint.weights[part].items()
        }
        module.load_state_dict(weights, assign=True)
        module.to(device).requires_grad_(False).train(False)
    return Networks(**modules)


def untrained(configs: Mapping[str, Mapping[str, Any]], operations: Any = nn) -> Networks:
    """Every part that `configs` describes, freshly initialised."""
    networks = {part: _network(part, configs[part], operations) for part in NETWORKS}
    others = {part: library_part(part, configs[part]) for part in LIBRARY_PARTS if part in configs}
    return Networks(**networks, **others)


def library_part(part: str, config: Mapping[str, Any]) -> nn.Module:
    """An untrained `vae` (diffusers AutoencoderKL, or our PatchCodec where the config names it) or
    `image_encoder` (transformers CLIP vision model)."""
    if config.get("_class_name") == "PatchCodec":
        return PatchCodec.from_config(dict(config))
    if part == "vae":
        from diffusers import AutoencoderKL

        return AutoencoderKL.from_config(dict(config))
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    return CLIPVisionModelWithProjection(CLIPVisionConfig.from_dict(dict(config)))


def read_library_part(part: str, folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Config and weights of a `vae` or `image_encoder` folder in their libraries' layout."""
    config_file, path = folder / "config.json", weights_file(folder)
    if path is None or not config_file.is_file():
        lacking = "config.json" if path else "weights (.safetensors, .bin or .pth)"
        raise UserError(f"{folder} has no {lacking}: give the folder of the {part.replace('_', ' ')}.")
    config, weights = read_json(config_file), read_weights(path)
    if part == "image_encoder" or config.get("_class_name") == "PatchCodec":
        # Files of older transformers carry this index table, which newer ones rebuild.
        return config, {key: value for key, value in weights.items() if not key.endswith("position_ids")}
    from diffusers import AutoencoderKL

    dtype = next((value.dtype for value in weights.values()), None)
    try:
        # The library renames the attention keys of older files, such as those of sd-vae-ft-mse, and
        # without a dtype it widens all weights.
        vae = AutoencoderKL.from_pretrained(folder, local_files_only=True, torch_dtype=dtype)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{folder} can't be read as the vae: {str(error).splitlines()[0]}") from None
    kept = {k: v for k, v in vae.config.items() if not k.startswith("_") or k == "_class_name"}
    return kept, vae.state_dict()


def _network(part: str, config: Mapping[str, Any], operations: Any) -> nn.Module:
    if part == "pose_guider":
        return PoseGuider(PoseGuiderConfig.from_dict(config), operations)
    kind = DenoisingUNet if part == "denoising_unet" else ReferenceNet
    return kind(UNetConfig.from_dict(config), operations)


def _read_folder(folder: Path) -> Checkpoint:
    checkpoint = Checkpoint()
    for part in NETWORKS:
        config, weights = folder / part / "config.json", weights_file(folder / part)
        if weights is None or not config.is_file():
            lacking = "config.json" if weights else "weights (.safetensors, .bin or .pth)"
            raise UserError(f"{folder / part} has no {lacking}: {folder} is not a complete AnyCharV folder.")
        checkpoint.configs[part] = read_json(config)
        checkpoint.weights[part] = read_weights(weights)
    for part in LIBRARY_PARTS:
        if (folder / part).is_dir():
            checkpoint.configs[part], checkpoint.weights[part] = read_library_part(part, folder / part)
    if (folder / SETTINGS).is_file():
        checkpoint.settings = read_json(folder / SETTINGS)
    return checkpoint


def _read_single(path: Path) -> Checkpoint:
    if path.suffix != ".safetensors":
        raise UserError(f"{path} is not a .safetensors file: convert it with 'anycharv convert'.")
    try:
        with safe_open(path, "pt") as file:
            metadata, keys = file.metadata() or {}, list(file.keys())
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is torn or not a safetensors file ({error}): fetch it again.") from None
    if metadata.get("format") != FORMAT:
        raise UserError(f"{path} is {_identify(keys)}, not an AnyCharV model.")
    checkpoint = Checkpoint(
        configs=json.loads(metadata["configs"]), settings=json.loads(metadata.get("settings", "{}"))
    )
    for key, value in read_weights(path).items():
        part, _, name = key.partition(".")
        checkpoint.weights.setdefault(part, {})[name] = value
    for part in NETWORKS:
        if part not in checkpoint.weights or part not in checkpoint.configs:
            raise UserError(f"{path} has no {part}: it is not a complete AnyCharV model.")
    return checkpoint


def weights_file(folder: Path) -> Path | None:
    """The weights in a part's folder, safetensors first; None where there are none."""
    candidates = (folder / (name + suffix) for suffix in SUFFIXES for name in WEIGHT_NAMES)
    return next((path for path in candidates if path.is_file()), None)


def read_weights(path: Path) -> dict[str, Tensor]:
    """All tensors of one .safetensors, .bin or .pth file (pickles with weights_only=True).

    Raises UserError when the file is torn, is no state dict, or holds NaN or infinite values.
    """
    try:
        if path.suffix == ".safetensors":
            weights = load_file(path)
        else:
            weights = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path} is torn or not a weights file ({reason}): fetch it again.") from None
    if not isinstance(weights, dict) or not all(isinstance(v, Tensor) for v in weights.values()):
        raise UserError(f"{path} is not a plain state dict of tensors.")
    _check_finite(path, weights)
    return weights


def _check_finite(path: Path, weights: Mapping[str, Tensor]) -> None:
    for key, value in weights.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise UserError(f"{path} holds NaN or infinite values in '{key}': the file is damaged.")


def check_keys(part: str, module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Raises UserError naming the first key of `weights` that `module` lacks, misses or has in another shape."""
    expected = module.state_dict()
    missing = [key for key in expected if key not in weights]
    unexpected = [key for key in weights if key not in expected]
    if missing or unexpected:
        stranger = _identify(list(weights))
        if stranger != UNKNOWN and len(missing) == len(expected):
            raise UserError(f"The {part} weights are {stranger}, not an AnyCharV {part}.")
        kind, keys = ("lack", missing) if missing else ("have the unexpected", unexpected)
        more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
        raise UserError(f"The {part} weights {kind} key '{keys[0]}'{more}: they don't fit its config.json.")
    for key, value in weights.items():
        if value.shape != expected[key].shape:
            raise UserError(
                f"The {part} weight '{key}' has shape {tuple(value.shape)}, but its config.json asks for "
                f"{tuple(expected[key].shape)}."
            )


def check_pairing(unet: DenoisingUNet, reference: ReferenceNet, guider: PoseGuider) -> None:
    """Raises UserError where the three networks are of different models."""
    shapes = [[block.norm1.normalized_shape for block in net.spatial_blocks()] for net in (unet, reference)]
    if shapes[0] != shapes[1]:
        raise UserError("reference_unet and denoising_unet have different attention layers: they don't pair.")
    width = unet.cfg.block_out_channels[0]
    if guider.conv_out.out_channels != width:
        raise UserError(
            f"pose_guider gives {guider.conv_out.out_channels} channels, but denoising_unet takes {width}."
        )
    if unet.cfg.in_channels != 2 * unet.cfg.out_channels + 1:
        raise UserError(
            f"denoising_unet takes {unet.cfg.in_channels} channels; AnyCharV's takes noisy latent, scene "
            f"latent and mask, {2 * unet.cfg.out_channels + 1} in all."
        )


UNKNOWN = "another model's file"


def _identify(keys: list[str]) -> str:
    if any(key.startswith(tuple(f"{part}." for part in NETWORKS)) for key in keys):
        return "a file without AnyCharV metadata"
    for fragment, name in STRANGERS.items():
        if any(fragment in key for key in keys):
            return name
    return UNKNOWN


def _stored(key: str, value: Tensor, dtype: torch.dtype | None) -> Tensor:
    # Positional encodings stay float32: they are a table, not weights, and the release keeps them so.
    keep = dtype is None or key.endswith(".pe") or not value.is_floating_point()
    return (value if keep else value.to(dtype)).contiguous()
