"""Whether configs can be those of the weights they came with, before anything is built from them.

A config is a few bytes that can ask for any amount of memory or time, so every size in it is bounded by the
tensors of its own file.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from ..errors import UserError
from ..models import ObjectGuiderConfig, PoseGuiderConfig, UNetConfig
from ..models.config import PATCH, DiTConfig
from ..models.fields import Fields
from ..models.schedule import SCHEDULER, NoiseSchedule
from .checkpoint import CLIP_CODEC, COGVIDEOX_VAE, NETWORKS, Checkpoint

# Sizes of the library parts that are sides of their tensors.
LIBRARY_WIDTHS = (
    *("in_channels", "out_channels", "latent_channels"),
    *("hidden_size", "intermediate_size", "projection_dim", "patch_size"),
)


def check_checkpoint(checkpoint: Checkpoint, name: str) -> None:
    """Raises UserError, naming the model `name`, where a part is missing or unknown or a setting cannot be."""
    Fields(checkpoint.configs, f"The configs of {name}")
    for part in checkpoint.parts.networks:
        if part not in checkpoint.weights or part not in checkpoint.configs:
            raise UserError(f"{name} has no {part}: it is not a complete AnyCharV model; give a complete one.")
    for part in checkpoint.weights:
        if part not in checkpoint.parts.all or part not in checkpoint.configs:
            raise UserError(
                f"{name} has weights of '{part}' but no config for them: it is not an AnyCharV model; give "
                "another."
            )
        check_part(part, checkpoint.configs[part], checkpoint.weights[part], f"The {part} config of {name}")
    check_settings(checkpoint.settings, f"The settings of {name}")


def check_part(part: str, config: Any, weights: Mapping[str, Tensor], name: str) -> None:
    """Raises UserError, calling the config `name`, where it cannot be that of these weights of a part."""
    if part == "pose_guider":
        guider = PoseGuiderConfig.from_dict(config, name)
        widths = (guider.embedding_channels, guider.conditioning_channels, *guider.block_out_channels)
        _check_sizes(name, weights, len(guider.block_out_channels), widths)
    elif part == "object_guider":
        objects = ObjectGuiderConfig.from_dict(config, name)
        widths = (objects.latent_channels, *objects.block_out_channels)
        _check_sizes(name, weights, len(objects.block_out_channels), widths)
    elif part == "transformer":
        cfg = DiTConfig.from_dict(config, name)
        widths = (cfg.in_channels * PATCH**3, cfg.dim, cfg.head_dim, cfg.time_dim, cfg.text_dim)
        _check_sizes(name, weights, cfg.layers, widths)
    elif part in ("control", "reference"):
        _check_sizes(name, weights, Fields(config, name).whole("blocks"), (1,))
    elif part == "bml":
        _check_sizes(name, weights, 1, (Fields(config, name).whole("rank"),))
    elif part == "prompt":
        Fields(config, name)
    elif part in NETWORKS:
        check_unet(UNetConfig.from_dict(config, name), weights, name)
    else:
        _check_library_part(Fields(config, name), weights)


def check_unet(cfg: UNetConfig, weights: Mapping[str, Tensor], name: str) -> None:
    """Raises UserError, calling the config `name`, where it asks for more than these weights are, or less."""
    layers = sum(key.endswith(".conv1.weight") for key in weights)
    levels = len(cfg.block_out_channels)
    if (asked := levels * (2 * cfg.layers_per_block + 1) + 2) != layers:
        raise UserError(
            f"{name} asks for {asked} resnets, but the file has {layers}; give a config that belongs to the "
            "weights."
        )
    widths = [cfg.in_channels, cfg.out_channels, cfg.cross_attention_dim, *cfg.block_out_channels]
    if cfg.motion is not None:
        temporal = cfg.motion.blocks * cfg.motion.attentions
        widths.append(cfg.motion.max_len)
        if temporal > max(1, sum(key.endswith(".pos_encoder.pe") for key in weights)):
            raise UserError(
                f"{name} asks for {temporal} temporal attentions in a row, more than the file has; give its own "
                "config."
            )
    _check_sizes(name, weights, levels, widths)


def check_settings(settings: Any, name: str) -> None:
    """Raises UserError where a setting of a model, called `name`, is not of its kind; unknown ones are ignored."""
    given = Fields(settings, name)
    if given.has("size") and len(given.wholes("size")) != 2:
        raise UserError(f"{name} have a size that is not a width and a height; give two whole numbers.")
    given.whole("steps", 1)
    given.number("guidance_scale", 1.0)
    given.number("pose_scale", 1.0, above=0, below=64)
    if given.has("blocks") and len(given.wholes("blocks")) != 2:
        raise UserError(f"{name} have blocks that are not a number of rows and one of columns; give two numbers.")
    given.whole("frames", 1)
    given.number("image_scale", 1.0, above=0)
    if given.has("base"):
        base = given.section("base")
        base.text("name"), base.text("sha256")
    if given.has(SCHEDULER):
        NoiseSchedule.from_dict(settings[SCHEDULER])


def check_dit_ends(configs: Mapping[str, Mapping[str, Any]]) -> None:
    """As `check_ends`, of a transformer's parts."""
    cfg = DiTConfig.from_dict(configs["transformer"])
    for part in ("control", "reference"):
        if (blocks := configs[part]["blocks"]) > cfg.layers:
            raise UserError(
                f"{part} has {blocks} blocks, but transformer only {cfg.layers}: take both from one model."
            )
    if "vae" in configs and configs["vae"].get("_class_name") not in (CLIP_CODEC, COGVIDEOX_VAE):
        raise UserError(
            f"vae is no autoencoder of clips, {COGVIDEOX_VAE} or {CLIP_CODEC} by its config: give the base's own."
        )
    vae = configs.get("vae", {})
    if (channels := vae.get("latent_channels", cfg.out_channels)) != cfg.out_channels:
        raise UserError(
            f"vae has {channels} channels, but transformer takes {cfg.out_channels}: take both from one model."
        )


def check_ends(configs: Mapping[str, Mapping[str, Any]]) -> None:
    """Raises UserError where a part gives what the next does not take. All configs are checked ones."""
    unet, guider = (
        UNetConfig.from_dict(configs["denoising_unet"]),
        PoseGuiderConfig.from_dict(configs["pose_guider"]),
    )
    ends = [("pose_guider", guider.conditioning_channels, "a picture has", 3)]
    if "object_guider" in configs:
        objects = ObjectGuiderConfig.from_dict(configs["object_guider"])
        ends.append(("object_guider", objects.latent_channels, "denoising_unet takes", unet.out_channels))
        if objects.block_out_channels != unet.block_out_channels:
            raise UserError(
                f"object_guider gives {objects.block_out_channels} channels, but denoising_unet's levels have "
                f"{unet.block_out_channels}: take both from one model."
            )
    if ("object_guider" in configs) != (unet.object_blending is not None):
        raise UserError(
            "An object_guider and a denoising_unet with object_blending belong together, but the model has only "
            "one of them: give a complete one."
        )
    if "vae" in configs:
        vae = configs["vae"]
        ends += [
            ("vae", vae.get("in_channels", 3), "a picture has", 3),
            ("vae", vae.get("latent_channels", 4), "denoising_unet takes", unet.out_channels),
        ]
        if len(guider.block_out_channels) != len(vae["block_out_channels"]):
            raise UserError(
                "vae and pose_guider make pictures smaller by different factors: take both from one model."
            )
    if "image_encoder" in configs:
        encoder = configs["image_encoder"]
        ends += [
            ("image_encoder", encoder.get("num_channels", 3), "a picture has", 3),
            (
                "image_encoder",
                encoder.get("projection_dim", 512),
                "denoising_unet takes",
                unet.cross_attention_dim,
            ),
        ]
    for part, own, other, wanted in ends:
        if own != wanted:
            raise UserError(f"{part} has {own} channels, but {other} {wanted}: take both from one model.")


def _check_library_part(given: Fields, weights: Mapping[str, Tensor]) -> None:
    """`vae` or `image_encoder`: the sizes alone. What else they may hold, their libraries know."""
    given.number("scaling_factor", 1.0, above=0)
    widths = [given.whole(key, 1) for key in LIBRARY_WIDTHS]
    if given.has("hidden_size"):
        given.check_divides("hidden_size", [given.whole("hidden_size")], [given.whole("num_attention_heads", 12)])
    layers = given.whole("layers_per_block", 1) * given.whole("num_hidden_layers", 1)
    if given.has("block_out_channels"):
        levels = given.wholes("block_out_channels")
        layers *= len(levels)
        widths += levels
    for way in ("encoder", "decoder"):  # of an AutoencoderTiny
        if given.has(f"num_{way}_blocks"):
            layers = max(layers, sum(given.wholes(f"num_{way}_blocks")))
        if given.has(f"{way}_block_out_channels"):
            widths += given.wholes(f"{way}_block_out_channels")
    _check_sizes(given.name, weights, layers, widths)


def _check_sizes(name: str, weights: Mapping[str, Tensor], layers: int, widths: Iterable[int]) -> None:
    # Every layer has a tensor of its own, and every width is a side of one.
    if layers > len(weights):
        raise UserError(f"{name} asks for {layers} layers or more, but the file has {len(weights)} tensors.")
    most = max((side for tensor in weights.values() for side in tensor.shape), default=0)
    if (widest := max(widths)) > most:
        raise UserError(f"{name} asks for a size of {widest}, but no tensor of the file has a side above {most}.")
