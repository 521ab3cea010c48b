"""Sizes of the networks, read from the `config.json` beside the official weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..errors import UserError
from .fields import Fields

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


# The same of spatial blending: one gate for all channels, of a 3 x 3 convolution.
FIXED_BLENDING = {"channels": 1, "kernel": 3}
ALL_BLOCKS, MID_UP = REFERENCE_BLOCKS = ("all", "mid_up")
PATCH = 2  # latents, and latent pixels along either side, of one token of a DiT
HEAD_WIDTH = 32  # channels of one head of the depth modulation, and its normalisation's groups

# Settings that would change the arithmetic, with the value that CogVideoX1.5 has and these networks implement.
FIXED_DIT = {
    "activation_fn": "gelu-approximate",
    "attention_bias": True,
    "dropout": 0.0,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "norm_elementwise_affine": True,
    "norm_eps": 1e-5,
    "patch_size": PATCH,
    "temporal_compression_ratio": 4,
    "timestep_activation_fn": "silu",
    "use_learned_positional_embeddings": False,
    "use_rotary_positional_embeddings": True,
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
class BlendingConfig:
    """Spatial blending of objects. bias: what the gates start with, before the sigmoid: 0 lets half of an object's
    features in, -2 an eighth."""

    bias: float = 0.0


@dataclass(frozen=True)
class UNetConfig:
    """Shape of a denoising UNet or a ReferenceNet (`motion` and `object_blending` are None for the latter).

    reference_blocks: the spatial blocks that read the reference, "all" or those of the middle and the way up.
    """

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
    reference_blocks: str = ALL_BLOCKS
    object_blending: BlendingConfig | None = None

    @classmethod
    def from_dict(cls, config: Any, name: str = "config.json") -> UNetConfig:
        """Reads a diffusers-style UNet config, called `name` in messages.

        Raises UserError where a setting is missing, is not of its type, does not go with the others, or asks for
        something these networks do not have.
        """
        given = Fields(config, name)
        given.check_fixed(FIXED_SETTINGS)
        channels = given.wholes("block_out_channels")
        levels, groups = len(channels), given.whole("norm_num_groups")
        kinds = [given.texts(f"{way}_block_types", levels) for way in ("down", "up")]
        heads = "num_attention_heads" if given.has("num_attention_heads") else "attention_head_dim"
        made = cls(
            in_channels=given.whole("in_channels"),
            out_channels=given.whole("out_channels"),
            block_out_channels=channels,
            down_attention=tuple(kind.startswith("CrossAttn") for kind in kinds[0]),
            up_attention=tuple(kind.startswith("CrossAttn") for kind in kinds[1]),
            layers_per_block=given.whole("layers_per_block"),
            heads=given.wholes(heads, levels),
            cross_attention_dim=given.whole("cross_attention_dim"),
            norm_num_groups=groups,
            norm_eps=given.number("norm_eps", above=0),
            flip_sin_to_cos=given.flag("flip_sin_to_cos"),
            freq_shift=given.number("freq_shift", above=-1, below=channels[0] // 2),
            use_linear_projection=given.flag("use_linear_projection", False),
            motion=_motion(given) if given.flag("use_motion_module", False) else None,
            joint_norm=not given.flag("use_inflated_groupnorm", True),
            reference_blocks=given.choice("reference_blocks", REFERENCE_BLOCKS, ALL_BLOCKS),
            object_blending=_blending(given) if given.has("object_blending") else None,
        )
        given.check_divides("block_out_channels", channels, (2, groups, *({32} if made.motion else ())))
        for width, count in zip(channels, made.heads, strict=True):
            given.check_divides("block_out_channels", [width], (count, made.motion.heads if made.motion else 1))
        return made


@dataclass(frozen=True)
class PoseGuiderConfig:
    """Pose guider: RGB skeletons in, `embedding_channels` features at latent resolution out.

    depth_modulation: whether it also reads structured depth (Animate Anyone 2, section 3.4).
    """

    embedding_channels: int
    conditioning_channels: int = 3
    block_out_channels: tuple[int, ...] = (16, 32, 64, 128)
    depth_modulation: bool = False

    @classmethod
    def from_dict(cls, config: Any, name: str = "config.json") -> PoseGuiderConfig:
        """Reads the pose guider's config, called `name` in messages.

        Raises UserError where a setting is not of its type, or when it is another model's.
        """
        given = Fields(config, name)
        if not given.has("conditioning_embedding_channels"):
            raise UserError(f"{name} has no 'conditioning_embedding_channels': it is not a pose guider.")
        made = cls(
            embedding_channels=given.whole("conditioning_embedding_channels"),
            conditioning_channels=given.whole("conditioning_channels", 3),
            block_out_channels=given.wholes("block_out_channels", default=cls.block_out_channels),
            depth_modulation=given.flag("depth_modulation", False),
        )
        if made.depth_modulation:
            given.check_divides("block_out_channels", made.block_out_channels[-1:], (HEAD_WIDTH,))
        return made


@dataclass(frozen=True)
class ObjectGuiderConfig:
    """Object guider (Animate Anyone 2, section 3.3): latents of `latent_channels` in, a feature of the width of
    every level of the denoising UNet out."""

    latent_channels: int
    block_out_channels: tuple[int, ...]

    @classmethod
    def from_dict(cls, config: Any, name: str = "config.json") -> ObjectGuiderConfig:
        """Reads the object guider's config, called `name` in messages.

        Raises UserError where a setting is missing or not of its type.
        """
        given = Fields(config, name)
        return cls(given.whole("latent_channels"), given.wholes("block_out_channels"))


@dataclass(frozen=True)
class DiTConfig:
    """Shape of the transformer; positions: the rows or columns of tokens that it has positions for."""

    heads: int
    head_dim: int
    in_channels: int
    out_channels: int
    layers: int
    time_dim: int
    text_dim: int
    text_length: int
    positions: int

    @property
    def dim(self) -> int:
        """The width of a token."""
        return self.heads * self.head_dim

    @classmethod
    def from_dict(cls, config: Any, name: str = "config.json") -> DiTConfig:
        """Reads diffusers' transformer/config.json, called `name` in messages.

        Raises UserError where a setting is missing, is not of its type, or is another model's.
        """
        given = Fields(config, name)
        if not given.has("patch_size_t") or not given.has("ofs_embed_dim"):
            raise UserError(
                f"{name} is of another CogVideoX, such as CogVideoX-5b-I2V: give that of CogVideoX1.5-5B-I2V, "
                "which alone AnimateAnywhere is built on."
            )
        given.check_fixed(FIXED_DIT | {"patch_size_t": PATCH})
        made = cls(
            heads=given.whole("num_attention_heads"),
            head_dim=given.whole("attention_head_dim"),
            in_channels=given.whole("in_channels"),
            out_channels=given.whole("out_channels"),
            layers=given.whole("num_layers"),
            time_dim=given.whole("time_embed_dim"),
            text_dim=given.whole("text_embed_dim"),
            text_length=given.whole("max_text_seq_length", 226),
            positions=max(given.whole("sample_height"), given.whole("sample_width")) // PATCH,
        )
        given.check_divides("attention_head_dim", [made.head_dim], [16])
        if made.in_channels != 2 * made.out_channels or given.whole("ofs_embed_dim") != made.time_dim:
            raise UserError(
                f"{name} has in_channels {made.in_channels}, out_channels {made.out_channels}, time_embed_dim "
                f"{made.time_dim} and ofs_embed_dim {config['ofs_embed_dim']}, but an image-to-video model takes "
                "twice the channels it gives, and its embeddings are equally wide: give another config."
            )
        return made


def _motion(given: Fields) -> MotionConfig:
    inner = given.section("motion_module_kwargs")
    kinds = inner.texts("attention_block_types")
    narrower = inner.whole("temporal_attention_dim_div", 1) != 1
    if any(k != "Temporal_Self" for k in kinds) or not inner.flag("temporal_position_encoding") or narrower:
        raise UserError(f"{given.name} asks for motion modules other than positional temporal self-attention.")
    return MotionConfig(
        heads=inner.whole("num_attention_heads"),
        blocks=inner.whole("num_transformer_block"),
        attentions=len(kinds),
        max_len=inner.whole("temporal_position_encoding_max_len"),
        resolutions=given.wholes("motion_module_resolutions"),
        mid_block=given.flag("motion_module_mid_block", False),
        decoder_only=given.flag("motion_module_decoder_only", False),
    )


def _blending(given: Fields) -> BlendingConfig:
    inner = given.section("object_blending")
    inner.check_fixed(FIXED_BLENDING)
    return BlendingConfig(bias=inner.number("bias", BlendingConfig.bias))
