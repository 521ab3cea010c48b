"""Modules from a checkpoint: built from its configs, checked against its weights."""

from __future__ import annotations

import inspect
import reprlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..models import (
    DenoisingUNet,
    ObjectGuider,
    ObjectGuiderConfig,
    PatchCodec,
    PoseGuider,
    PoseGuiderConfig,
    ReferenceNet,
    UNetConfig,
)
from ..models.clip_codec import ClipCodec
from .check import check_ends
from .checkpoint import CLIP_CODEC, COGVIDEOX_VAE, LIBRARY_PARTS, NETWORKS, OPTIONAL_NETWORKS, Checkpoint
from .recognise import UNKNOWN, identify

# The libraries raise all of these for settings that are not of their kind or do not go together.
_BAD_CONFIG = (
    *(TypeError, ValueError, LookupError, ArithmeticError, AttributeError, AssertionError, RuntimeError),
    ImportError,
)


# What a CLIP vision model computes depends on these alone.
CLIP_SETTINGS = (
    *("hidden_size", "intermediate_size", "projection_dim", "num_hidden_layers", "num_attention_heads"),
    *("num_channels", "image_size", "patch_size", "hidden_act", "layer_norm_eps"),
)

# Our own autoencoders by the names that their configs have; others are diffusers'.
CODECS: dict[str, type[PatchCodec] | type[ClipCodec]] = {"PatchCodec": PatchCodec, CLIP_CODEC: ClipCodec}
TINY_VAE = "AutoencoderTiny"  # TAESD's: small, fast, and close to the VAE that it was distilled from


@dataclass
class Networks:
    """The modules of one model; `vae` is a diffusers AutoencoderKL or a PatchCodec, `image_encoder` a transformers
    CLIP, `object_guider` Animate Anyone 2's, each None where a checkpoint lacks it. The libraries' classes are not
    loaded to be named here."""

    denoising_unet: DenoisingUNet
    reference_unet: ReferenceNet
    pose_guider: PoseGuider
    vae: Any = None
    image_encoder: Any = None
    object_guider: ObjectGuider | None = None


def build_networks(
    checkpoint: Checkpoint,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Networks:
    """Builds every part the checkpoint has, in inference mode.

    Raises UserError naming the part and the first offending key when weights and config disagree.
    """
    with torch.device("meta"):
        nets = _networks(checkpoint.configs)
    for part in (*NETWORKS, *OPTIONAL_NETWORKS):
        if (network := getattr(nets, part)) is not None:
            check_keys(part, network, checkpoint.weights[part])
    check_pairing(nets.denoising_unet, nets.reference_unet, nets.pose_guider)
    for part in LIBRARY_PARTS:
        if part in checkpoint.weights:
            module = library_part(part, checkpoint.configs[part], checkpoint.weights[part])
            setattr(nets, part, module)
    modules = {part: module for part, module in vars(nets).items() if module is not None}
    check_ends({part: checkpoint.configs[part] for part in modules})
    fill(modules, checkpoint, device, dtype)
    return nets


def fill(
    modules: Mapping[str, nn.Module], checkpoint: Checkpoint, device: torch.device | str, dtype: torch.dtype
) -> None:
    """Gives each part its weights, which were checked, and brings it into inference mode."""
    for part, module in modules.items():
        weights = {
            key: value.to(device, dtype if value.is_floating_point() else None)
            for key, value in checkpoint.weights[part].items()
        }
        module.load_state_dict(weights, assign=True)
        module.to(device).requires_grad_(False).train(False)


def untrained(configs: Mapping[str, Mapping[str, Any]]) -> Networks:
    """Every part that `configs` describes, freshly initialised."""
    nets = _networks(configs)
    for part in LIBRARY_PARTS:
        if part in configs:
            setattr(nets, part, new_library_part(part, configs[part]))
    return nets


def library_part(part: str, config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> nn.Module:
    """A `vae` or `image_encoder` of this config, with room for these weights but without them.

    Raises UserError where the two disagree.
    """
    with torch.device("meta"):
        # Before any memory is taken: only the weights of the file bound what its config asks for.
        check_keys(part, new_library_part(part, config), weights)
    return new_library_part(part, config)


def new_library_part(part: str, config: Mapping[str, Any]) -> nn.Module:
    """An untrained `vae` (diffusers' AutoencoderKL, its AutoencoderKLCogVideoX or AutoencoderTiny or one of
    `CODECS`, where the config names it) or `image_encoder` (transformers CLIP vision model)."""
    name = str(config.get("_class_name"))
    if name in CODECS:
        return CODECS[name].from_config(config)
    try:
        if part == "vae":
            from diffusers import AutoencoderKL, AutoencoderKLCogVideoX, AutoencoderTiny

            kinds: dict[Any, Any] = {COGVIDEOX_VAE: AutoencoderKLCogVideoX, TINY_VAE: AutoencoderTiny}
            kind = kinds.get(name, AutoencoderKL)
            parameters = inspect.signature(kind.__init__).parameters.values()
            defaults = {each.name: each.default for each in parameters if each.default is not each.empty}
            vae: nn.Module = kind(**_of_types(part, config, defaults))
            return vae
        from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

        defaults = {key: value for key, value in CLIPVisionConfig().to_dict().items() if key in CLIP_SETTINGS}
        known = _of_types(part, config, defaults)
        whole = defaults | known
        # Later versions of transformers raise an error of their own here, which is none of the ordinary ones.
        if whole["num_attention_heads"] < 1 or whole["hidden_size"] % whole["num_attention_heads"]:
            raise ValueError("'hidden_size' is no multiple of 'num_attention_heads'")
        return CLIPVisionModelWithProjection(CLIPVisionConfig(**known))
    except UserError:
        raise
    except _BAD_CONFIG as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"No {part} can be built from its config.json ({reason[:200]}).") from error


def _of_types(part: str, config: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a config that its library knows, but for those that are None.

    Raises UserError where one is of another type than its default, which could show only when the part runs.
    """
    known = {key: value for key, value in config.items() if key in defaults and value is not None}
    for key, value in known.items():
        default = defaults[key]
        kinds = {float: (int, float), tuple: (list, tuple)}.get(type(default), type(default))
        if type(default) in (bool, int, float, str, tuple) and (
            not isinstance(value, kinds) or isinstance(value, bool) is not isinstance(default, bool)
        ):
            raise UserError(
                f"The {part} config has {key}={reprlib.repr(value)}, but it must be something like {default!r}."
            )
    return known


def check_keys(
    part: str, module: nn.Module, weights: Mapping[str, Tensor], may_lack: Collection[str] = ()
) -> None:
    """Raises UserError naming the first key of `weights` that `module` lacks, misses or has in another shape; it
    may miss those of `may_lack`."""
    expected = module.state_dict()
    missing = [key for key in expected if key not in weights and key not in may_lack]
    unexpected = [key for key in weights if key not in expected]
    if missing or unexpected:
        other = identify(list(weights))
        if other != UNKNOWN and len(missing) == len(expected):
            raise UserError(f"The {part} weights are {other}, not an AnyCharV {part}.")
        kind, keys = ("lack", missing) if missing else ("have the unexpected", unexpected)
        more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
        raise UserError(
            f"The {part} weights {kind} key '{keys[0]}'{more}: they don't belong to its config.json; give both of "
            "one model."
        )
    for key, value in weights.items():
        if value.shape != expected[key].shape:
            raise UserError(
                f"The {part} weight '{key}' has shape {tuple(value.shape)}, but its config.json asks for "
                f"{tuple(expected[key].shape)}."
            )
        if value.is_floating_point() != expected[key].is_floating_point():
            raise UserError(
                f"The {part} weight '{key}' is of {value.dtype}, which no weight of it can be; fetch it again."
            )


def check_pairing(unet: DenoisingUNet, reference: ReferenceNet, guider: PoseGuider) -> None:
    """Raises UserError where the three networks are of different models."""
    shapes = [[block.norm1.normalized_shape for block in net.spatial_blocks()] for net in (unet, reference)]
    if shapes[0] != shapes[1]:
        raise UserError(
            "reference_unet and denoising_unet have different attention layers: take both from one model."
        )
    width = unet.cfg.block_out_channels[0]
    if guider.conv_out.out_channels != width:
        raise UserError(
            f"pose_guider gives {guider.conv_out.out_channels} channels, but denoising_unet takes {width}: take "
            "both from one model."
        )


def _networks(configs: Mapping[str, Mapping[str, Any]]) -> Networks:
    return Networks(
        DenoisingUNet(UNetConfig.from_dict(configs["denoising_unet"])),
        ReferenceNet(UNetConfig.from_dict(configs["reference_unet"])),
        PoseGuider(PoseGuiderConfig.from_dict(configs["pose_guider"])),
        object_guider=_object_guider(configs.get("object_guider")),
    )


def _object_guider(config: Mapping[str, Any] | None) -> ObjectGuider | None:
    if config is None:
        return None
    cfg = ObjectGuiderConfig.from_dict(config)
    return ObjectGuider(cfg.latent_channels, cfg.block_out_channels)
