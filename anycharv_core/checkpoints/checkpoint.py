"""Reading and writing weights: the official folder layouts and one single file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from ..errors import UserError
from ..files import atomic_path
from ..foreign import parse_json, read_header, read_json
from ..models import DenoisingUNet, PatchCodec, PoseGuider, PoseGuiderConfig, ReferenceNet, UNetConfig
from ..systems import animate_anyone
from .places import EMBEDDED, FOLDERS, NETWORKS
from .state_dicts import UNKNOWN, Weights, identify, read_weights, save_safetensors, stored, weights_file

LIBRARY_PARTS = ("vae", "image_encoder")
FORMAT = "anycharv"
SETTINGS = "settings.json"
# All that `write_folder` may leave in a folder.
WRITTEN = (*NETWORKS, *LIBRARY_PARTS, SETTINGS, *animate_anyone.WRITTEN)


@dataclass
class Checkpoint:
    """Configs and weights of each part: the three networks, and `vae` and `image_encoder` where present.

    `settings` are the defaults the weights were made for, such as {"size": [128, 128]}, and under
    "noise_scheduler_kwargs" the schedule, where it is not AnyCharV's.
    """

    configs: dict[str, dict[str, Any]] = field(default_factory=dict)
    weights: dict[str, Weights] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def takes_scene(self) -> bool:
        """Whether the denoising UNet takes scene and mask (AnyCharV) or neither (Animate Anyone)."""
        return UNetConfig.from_dict(self.configs["denoising_unet"]).takes_scene


@dataclass
class Networks:
    """The modules of one model; `vae` is a diffusers AutoencoderKL, `image_encoder` a transformers CLIP."""

    denoising_unet: DenoisingUNet
    reference_unet: ReferenceNet
    pose_guider: PoseGuider
    vae: nn.Module | None = None
    image_encoder: nn.Module | None = None


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Reads a name of `EMBEDDED`, a .safetensors file, or a folder in AnyCharV's or Animate Anyone's layout.

    Raises UserError naming the file when it is missing, torn, incomplete, holds NaN, or is another model's.
    """
    path = EMBEDDED.get(str(path), Path(path))
    if path.is_dir():
        return _read_folder(path)
    if path.is_file():
        return _read_single(path)
    if path in EMBEDDED.values():
        raise UserError(f"{path.name}, an embedded model's weights, is missing: install the package again.")
    names = " or ".join(f"'{name}'" for name in EMBEDDED)
    raise UserError(f"There is no model at {path}: give a folder, a .safetensors file, or {names}.")


def write_single(checkpoint: Checkpoint, path: str | Path, dtype: torch.dtype | None = None) -> None:
    """Writes one .safetensors file: keys `<part>.<name>`, configs in the metadata. Atomic.

    dtype None keeps each weight's own.
    """
    tensors = {
        f"{part}.{key}": stored(key, value, dtype)
        for part, weights in checkpoint.weights.items()
        for key, value in weights.items()
    }
    metadata = {
        "format": FORMAT,
        "configs": json.dumps(checkpoint.configs),
        "settings": json.dumps(checkpoint.settings),
    }
    save_safetensors(tensors, Path(path), metadata)


def write_folder(checkpoint: Checkpoint, folder: str | Path, dtype: torch.dtype | None = None) -> None:
    """Writes the model's official layout.

    AnyCharV's is one folder per part with its config.json and .safetensors weights; Animate Anyone's has one .pth
    file per network. Settings, which neither release has, go into a settings.json beside them. dtype None keeps
    each weight's own.
    """
    folder, settings = Path(folder), checkpoint.settings
    parts = dict(checkpoint.weights)
    if "denoising_unet" in parts and not checkpoint.takes_scene:
        animate_anyone.write_published(checkpoint.configs, parts, settings, folder, dtype)
        parts = {part: parts[part] for part in LIBRARY_PARTS if part in parts}
        settings = animate_anyone.own_settings(settings)
    for part, weights in parts.items():
        target = folder / part
        target.mkdir(parents=True, exist_ok=True)
        name = "model" if part == "image_encoder" else "diffusion_pytorch_model"
        with atomic_path(target / "config.json") as tmp:
            tmp.write_text(json.dumps(checkpoint.configs[part], indent=2) + "\n")
        kept = {k: stored(k, v, dtype) for k, v in weights.items()}
        save_safetensors(kept, target / f"{name}.safetensors", {"format": "pt"})
    if settings:
        with atomic_path(folder / SETTINGS) as tmp:
            tmp.write_text(json.dumps(settings, indent=2) + "\n")


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
    published = animate_anyone.is_published(folder)
    checkpoint = Checkpoint(*animate_anyone.read_published(folder)) if published else _read_parts(folder)
    for part, names in FOLDERS.items():
        place = next((folder / name for name in names if (folder / name).is_dir()), None)
        if place is not None:
            checkpoint.configs[part], checkpoint.weights[part] = read_library_part(part, place)
    if (folder / SETTINGS).is_file():
        checkpoint.settings |= read_json(folder / SETTINGS)
    return checkpoint


def _read_parts(folder: Path) -> Checkpoint:
    checkpoint = Checkpoint()
    for part in NETWORKS:
        config, weights = folder / part / "config.json", weights_file(folder / part)
        if weights is None or not config.is_file():
            lacking = "config.json" if weights else "weights (.safetensors, .bin or .pth)"
            raise UserError(f"{folder / part} has no {lacking}: {folder} is not a complete AnyCharV folder.")
        checkpoint.configs[part] = read_json(config)
        checkpoint.weights[part] = read_weights(weights)
    return checkpoint


def _read_single(path: Path) -> Checkpoint:
    if path.suffix != ".safetensors":
        raise UserError(f"{path} is not a .safetensors file: convert it with 'anycharv convert'.")
    header = read_header(path)
    if header.metadata.get("format") != FORMAT:
        raise UserError(f"{path} is {_described(list(header.shapes))}, not an AnyCharV model.")
    checkpoint = Checkpoint(
        configs=parse_json(header.metadata.get("configs", ""), f"The configs in {path}"),
        settings=parse_json(header.metadata.get("settings", "{}"), f"The settings in {path}"),
    )
    for key, value in read_weights(path).items():
        part, _, name = key.partition(".")
        checkpoint.weights.setdefault(part, {})[name] = value
    for part in NETWORKS:
        if part not in checkpoint.weights or part not in checkpoint.configs:
            raise UserError(f"{path} has no {part}: it is not a complete AnyCharV model.")
    return checkpoint


def check_keys(part: str, module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Raises UserError naming the first key of `weights` that `module` lacks, misses or has in another shape."""
    expected = module.state_dict()
    missing = [key for key in expected if key not in weights]
    unexpected = [key for key in weights if key not in expected]
    if missing or unexpected:
        stranger = identify(list(weights))
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
    latent = unet.cfg.out_channels
    if unet.cfg.in_channels not in (latent, 2 * latent + 1):
        raise UserError(
            f"denoising_unet takes {unet.cfg.in_channels} channels; AnyCharV's takes noisy latent, scene "
            f"latent and mask, {2 * latent + 1} in all, and Animate Anyone's the noisy latent, {latent}."
        )


def _described(keys: list[str]) -> str:
    if any(key.startswith(tuple(f"{part}." for part in NETWORKS)) for key in keys):
        return "a file without AnyCharV metadata"
    return identify(keys)
