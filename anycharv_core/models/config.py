"""Sizes of the networks, read from the `config.json` beside the official weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import UserError

# Settings of the SD1.5 family that would change the arithmetic, with the value these networks implement.
FIXED_SETTINGS = {
    "act_fn": "silu",
    "center_input_sample": False,
    "class_embed_type": None,
    "downsample_padding": 1,
    "dual_cross_attention": False,
    "mid_block_scale_factor": 1,
    "num_class_embeds": None,
    "only_cross_attention": False,
    "resnet_time_scale_shift": "default",
    "transformer_layers_per_block": 1,
    "unet_use_cross_frame_attention": False,
    "unet_use_temporal_attention": False,
}


@dataclass(frozen=True)
class MotionConfig:
    """Temporal transformer: `attentions` self-attention layers in each of `blocks` blocks."""

    heads: int = 8
    blocks: int = 1
    attentions: int = 2
    max_len: int = 24
    resolutions: tuple[int, ...] = (1, 2, 4, 8)
    mid_block: bool = False
    decoder_only: bool = False


@dataclass(frozen=True)
class UNetConfig:
    """Shape of a denoising UNet or a ReferenceNet (`motion` is None for the latter)."""

    in_channels: int
    out_channels: int
    block_out_channels: tuple[int, ...]
    down_attention: tuple[bool, ...]
    up_attention: tuple[bool, ...]
    layers_per_block: int
    heads: tuple[int, ...]
    cross_attention_dim: int
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    flip_sin_to_cos: bool = True
    freq_shift: float = 0
    use_linear_projection: bool = False
    motion: MotionConfig | None = None
    joint_norm: bool = False  # resnets normalise all frames of a window together, not each on its own

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> UNetConfig:
        """Reads a diffusers-style UNet config.

        Raises UserError where a setting is missing or asks for something these networks do not have.
        """
        for name, value in FIXED_SETTINGS.items():
            if config.get(name, value) != value:
                raise UserError(f"config.json sets {name}={config[name]!r}, but only {value!r} is supported.")
        try:
            channels = tuple(config["block_out_channels"])
            down, up = config["down_block_types"], config["up_block_types"]
            heads = config.get("num_attention_heads") or config["attention_head_dim"]
            return cls(
                in_channels=config["in_channels"],
                out_channels=config["out_channels"],
                block_out_channels=channels,
                down_attention=tuple(kind.startswith("CrossAttn") for kind in down),
                up_attention=tuple(kind.startswith("CrossAttn") for kind in up),
                layers_per_block=config["layers_per_block"],
                heads=(heads,) * len(channels) if isinstance(heads, int) else tuple(heads),
                cross_attention_dim=config["cross_attention_dim"],
                norm_num_groups=config["norm_num_groups"],
                norm_eps=config["norm_eps"],
                flip_sin_to_cos=config["flip_sin_to_cos"],
                freq_shift=config["freq_shift"],
                use_linear_projection=config.get("use_linear_projection", False),
                motion=_motion(config) if config.get("use_motion_module") else None,
                joint_norm=config.get("use_inflated_groupnorm", True) is False,
            )
        except KeyError as missing:
            raise UserError(f"config.json has no {missing} setting: it is not a UNet config.") from None


@dataclass(frozen=True)
class PoseGuiderConfig:
    """Pose guider: RGB skeletons in, `embedding_channels` features at latent resolution out."""

    embedding_channels: int
    conditioning_channels: int = 3
    block_out_channels: tuple[int, ...] = (16, 32, 64, 128)

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> PoseGuiderConfig:
        """Reads the pose guider's config.json. Raises UserError when it is another model's."""
        if "conditioning_embedding_channels" not in config:
            raise UserError("config.json has no 'conditioning_embedding_channels': it is not a pose guider.")
        return cls(
            embedding_channels=config["conditioning_embedding_channels"],
            conditioning_channels=config.get("conditioning_channels", 3),
            block_out_channels=tuple(config.get("block_out_channels", cls.block_out_channels)),
        )


def _motion(config: Mapping[str, Any]) -> MotionConfig:
    kwargs = config["motion_module_kwargs"]
    kinds = kwargs["attention_block_types"]
    narrower = kwargs.get("temporal_attention_dim_div", 1) != 1
    if any(kind != "Temporal_Self" for kind in kinds) or not kwargs["temporal_position_encoding"] or narrower:
        raise UserError("config.json asks for motion modules other than positional temporal self-attention.")
    return MotionConfig(
        heads=kwargs["num_attention_heads"],
        blocks=kwargs["num_transformer_block"],
        attentions=len(kinds),
        max_len=kwargs["temporal_position_encoding_max_len"],
        resolutions=tuple(config["motion_module_resolutions"]),
        mid_block=config.get("motion_module_mid_block", False),
        decoder_only=config.get("motion_module_decoder_only", False),
    )
