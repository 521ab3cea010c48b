"""Layers shared by the denoising UNet and the ReferenceNet.

Module names are those of the official state dict. Every layer that holds weights comes from an
`operations` namespace (`torch.nn`, or one with the same names that streams weights on small cards).
Activations are [N, C, H, W] with the frames of a video folded into N, video after video.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from .config import BlendingConfig, MotionConfig, UNetConfig
from .hooks import AttentionFunction, Hooks

KeyValue = tuple[Tensor, Tensor]
# That attention takes at once on a card, where rows lie along a side of CUDA's grid. Over time each pixel is one.
MOST_ROWS = 2**16 - 1


def sdpa(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """PyTorch's attention as an `AttentionFunction`."""
    if len(q) > MOST_ROWS:
        parts = zip(q.split(MOST_ROWS), k.split(MOST_ROWS), v.split(MOST_ROWS), strict=True)
        return torch.cat([sdpa(*part, heads=heads) for part in parts])
    q, k, v = (rearrange(x, "n l (h d) -> n h l d", h=heads) for x in (q, k, v))
    return rearrange(F.scaled_dot_product_attention(q, k, v), "n h l d -> n l (h d)")


@dataclass(frozen=True)
class Conditions:
    """What every block of one forward pass on N rows reads.

    time [N or 1, 4 C0]; image: per spatial block what its cross-attention adds, [R, C]; `frames` per video; bank:
    per spatial block the reference's key and value [R, T, C], or None where it reads none; each of R rows serves
    N / R consecutive ones; objects: per level of the UNet their features [N, C, h, w], and which rows have any, 0
    or 1 [N, 1, 1, 1]; the first `plain_rows` rows ignore the bank; without `motion` frames stay independent;
    keep_tokens: spatial blocks return their normalised tokens, which a ReferenceNet offers as its bank, but which
    would fill memory to the end of a denoising UNet's pass; hooks: what else is called at the blocks.
    """

    time: Tensor
    image: Sequence[Tensor]
    frames: int = 1
    bank: Sequence[KeyValue | None] | None = None
    objects: tuple[Sequence[Tensor], Tensor] | None = None
    plain_rows: int = 0
    motion: bool = True
    keep_tokens: bool = False
    attention: AttentionFunction = sdpa
    hooks: Hooks | None = None


def timestep_embedding(t: Tensor, dim: int, flip_sin_to_cos: bool, freq_shift: float) -> Tensor:
    """Sinusoidal embedding of timesteps t [N] -> float32 [N, dim]."""
    half = dim // 2
    freqs = torch.exp(-math.log(10000) * torch.arange(half, device=t.device) / (half - freq_shift))
    args = t[:, None].float() * freqs
    pair = (args.cos(), args.sin()) if flip_sin_to_cos else (args.sin(), args.cos())
    return torch.cat(pair, dim=-1)


class TimestepEmbedding(nn.Module):
    def __init__(self, dim: int, width: int, operations: Any, **factory: Any):
        super().__init__()
        self.linear_1 = operations.Linear(dim, width, **factory)
        self.linear_2 = operations.Linear(width, width, **factory)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(x)))


def normalised(x: Tensor, norm: nn.Module, frames: int) -> Tensor:
    """`norm` of x [N, C, H, W], with one mean and variance per group for every `frames` consecutive rows."""
    if frames == 1:
        return norm(x)
    videos = norm(rearrange(x, "(b f) c h w -> b c f h w", f=frames))
    return rearrange(videos, "b c f h w -> (b f) c h w")


class ResnetBlock(nn.Module):
    def __init__(self, c_in: int, c_out: int, cfg: UNetConfig, operations: Any, **factory: Any):
        super().__init__()
        groups, eps = cfg.norm_num_groups, cfg.norm_eps
        self.joint_norm = cfg.joint_norm
        self.norm1 = operations.GroupNorm(groups, c_in, eps=eps, **factory)
        self.conv1 = operations.Conv2d(c_in, c_out, 3, padding=1, **factory)
        self.time_emb_proj = operations.Linear(4 * cfg.block_out_channels[0], c_out, **factory)
        self.norm2 = operations.GroupNorm(groups, c_out, eps=eps, **factory)
        self.conv2 = operations.Conv2d(c_out, c_out, 3, padding=1, **factory)
        self.conv_shortcut = operations.Conv2d(c_in, c_out, 1, **factory) if c_in != c_out else None

    def forward(self, x: Tensor, cond: Conditions) -> Tensor:
        together = cond.frames if self.joint_norm else 1
        h = self.conv1(F.silu(normalised(x, self.norm1, together)))
        h = h + self.time_emb_proj(F.silu(cond.time))[:, :, None, None]
        h = self.conv2(F.silu(normalised(h, self.norm2, together)))
        return h + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class Downsample(nn.Module):
    def __init__(self, channels: int, operations: Any, **factory: Any):
        super().__init__()
        self.conv = operations.Conv2d(channels, channels, 3, stride=2, padding=1, **factory)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Upsample(nn.Module):
    def __init__(self, channels: int, operations: Any, **factory: Any):
        super().__init__()
        self.conv = operations.Conv2d(channels, channels, 3, padding=1, **factory)

    def forward(self, x: Tensor, size: torch.Size) -> Tensor:
        """Doubles the resolution; `size` is the next skip's, one less than double where that was odd."""
        return self.conv(F.interpolate(x, size=size, mode="nearest"))


class Attention(nn.Module):
    def __init__(self, dim: int, context_dim: int, heads: int, operations: Any, **factory: Any):
        super().__init__()
        self.heads = heads
        self.to_q = operations.Linear(dim, dim, bias=False, **factory)
        self.to_k = operations.Linear(context_dim, dim, bias=False, **factory)
        self.to_v = operations.Linear(context_dim, dim, bias=False, **factory)
        self.to_out = nn.ModuleList([operations.Linear(dim, dim, **factory)])

    def forward(
        self, x: Tensor, attention: AttentionFunction, bank: KeyValue | None = None, plain_rows: int = 0
    ) -> Tensor:
        """Self-attention of x [N, L, C]; all but the first `plain_rows` rows also read the bank."""
        return self.of_sources((x, x, x), attention, attention, bank, plain_rows)

    def of_sources(
        self,
        sources: tuple[Tensor, Tensor, Tensor],
        plain: AttentionFunction,
        banked: AttentionFunction,
        bank: KeyValue | None = None,
        plain_rows: int = 0,
    ) -> Tensor:
        """Attention of queries, keys and values projected from `sources`, [N, L, C], [N, T, C'] and [N, T, C'],
        computed by `plain` for the first `plain_rows` rows and by `banked` for those that also read the bank.

        Where the queries are cut into r N rows, each of them sees as many of the row's keys, and the whole bank.
        """
        q, k, v = (project(x) for project, x in zip((self.to_q, self.to_k, self.to_v), sources, strict=True))
        if len(q) != len(k):
            plain_rows *= len(q) // len(k)
            k, v = (x.reshape(len(q), -1, x.shape[-1]) for x in (k, v))
        return self.to_out[0](attend(q, k, v, self.heads, plain, banked, bank, plain_rows))

    def of_one_token(self, token: Tensor) -> Tensor:
        """Cross-attention over a single token [R, D] -> [R, C]: its softmax is 1, so the queries cancel out."""
        return self.to_out[0](self.to_v(token))


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    heads: int,
    plain: AttentionFunction,
    banked: AttentionFunction,
    bank: KeyValue | None,
    plain_rows: int,
) -> Tensor:
    """Attention of q [N, L, C] over k and v [N, T, C], by `plain` for the first `plain_rows` rows, and for the
    others by `banked` over these and the bank."""
    if bank is None or plain_rows >= len(q):
        return plain(q, k, v, heads)
    own = slice(plain_rows)
    rows = [plain(q[own], k[own], v[own], heads)] if plain_rows else []
    k, v = (_append_bank(x[plain_rows:], added) for x, added in zip((k, v), bank, strict=True))
    rows.append(banked(q[plain_rows:], k, v, heads))
    return torch.cat(rows)


def for_rows(x: Tensor, rows: int) -> Tensor:
    """x [R, ...] -> [rows, ...]: each of its rows serves rows / R consecutive ones."""
    if len(x) == 1:
        return x.expand(rows, *x.shape[1:])
    return x if len(x) == rows else x.repeat_interleave(rows // len(x), dim=0)


def _append_bank(own: Tensor, bank: Tensor) -> Tensor:
    """own [N, L, C] + bank [R, T, C] -> [N, L + T, C]."""
    return torch.cat([own, for_rows(bank, len(own)).to(own.dtype)], dim=1)


class GEGLU(nn.Module):
    def __init__(self, dim: int, operations: Any, **factory: Any):
        super().__init__()
        self.proj = operations.Linear(dim, 8 * dim, **factory)

    def forward(self, x: Tensor) -> Tensor:
        x, gate = self.proj(x).chunk(2, dim=-1)
        return x * F.gelu(gate)


class FeedForward(nn.Module):
    def __init__(self, dim: int, operations: Any, **factory: Any):
        super().__init__()
        # Index 1 is the official dropout, which holds no weights.
        linear = operations.Linear(4 * dim, dim, **factory)
        self.net = nn.ModuleList([GEGLU(dim, operations, **factory), nn.Identity(), linear])

    def forward(self, x: Tensor) -> Tensor:
        return self.net[2](self.net[0](x))


class SpatialBlock(nn.Module):
    """Self-attention (+ reference bank), image-embedding bias, feed-forward over the tokens of a frame.

    `index`: its place in the bank, among all spatial blocks of the network.
    """

    def __init__(self, index: int, dim: int, heads: int, cfg: UNetConfig, operations: Any, **factory: Any):
        super().__init__()
        self.index = index
        self.norm1 = operations.LayerNorm(dim, **factory)
        self.attn1 = Attention(dim, dim, heads, operations, **factory)
        # norm2 and attn2.to_q/to_k carry no signal with one token; they are kept for the weights' sake.
        self.norm2 = operations.LayerNorm(dim, **factory)
        self.attn2 = Attention(dim, cfg.cross_attention_dim, heads, operations, **factory)
        self.norm3 = operations.LayerNorm(dim, **factory)
        self.ff = FeedForward(dim, operations, **factory)

    def forward(self, x: Tensor, cond: Conditions) -> tuple[Tensor, list[Tensor]]:
        """x [N, L, C] -> the same, and its normalised tokens [N, L, C] where `cond.keep_tokens`."""
        tokens = self.norm1(x)
        bank = None if cond.bank is None else cond.bank[self.index]
        if cond.hooks is None:
            x = x + self.attn1(tokens, cond.attention, bank, cond.plain_rows)
            x = x + for_rows(cond.image[self.index], len(x))[:, None]
        else:
            x = self._attend(x, tokens, bank, cond, cond.hooks)
        return x + self.ff(self.norm3(x)), [tokens] if cond.keep_tokens else []

    def _attend(self, x: Tensor, tokens: Tensor, bank: KeyValue | None, cond: Conditions, hooks: Hooks) -> Tensor:
        """x [N, L, C] after both attentions, with everything that `hooks` changes about them."""
        sources = hooks.sources("self", tokens, tokens, tokens)
        functions = hooks.attention("self", True), hooks.attention("self", False)
        x = x + hooks.added("self", self.attn1.of_sources(sources, *functions, bank, cond.plain_rows))
        x = hooks.between(x)
        if hooks.context is None:
            seen = for_rows(cond.image[self.index], len(x))[:, None].expand_as(x)
        else:
            sources = hooks.sources("cross", self.norm2(x), hooks.context, hooks.context)
            function = hooks.attention("cross", True)
            seen = self.attn2.of_sources(sources, function, function)
        return x + hooks.added("cross", seen)


class SpatialTransformer(nn.Module):
    def __init__(self, index: int, dim: int, heads: int, cfg: UNetConfig, operations: Any, **factory: Any):
        super().__init__()
        self.norm = operations.GroupNorm(cfg.norm_num_groups, dim, eps=1e-6, **factory)
        self.linear = cfg.use_linear_projection
        project, extra = (operations.Linear, ()) if self.linear else (operations.Conv2d, (1,))
        self.proj_in = project(dim, dim, *extra, **factory)
        # A list of one, for the weights' names.
        self.transformer_blocks = nn.ModuleList([SpatialBlock(index, dim, heads, cfg, operations, **factory)])
        self.proj_out = project(dim, dim, *extra, **factory)

    @property
    def block(self) -> SpatialBlock:
        """Its only block."""
        return cast(SpatialBlock, self.transformer_blocks[0])

    def forward(self, x: Tensor, cond: Conditions) -> tuple[Tensor, list[Tensor]]:
        """x [N, C, h, w] -> the same, and the tokens of its block."""
        height = x.shape[2]
        if cond.hooks is not None:
            cond.hooks.transformer(x.shape, self.block.attn1.heads)
        h = self.norm(x)
        if self.linear:
            h = self.proj_in(rearrange(h, "n c h w -> n (h w) c"))
        else:
            h = rearrange(self.proj_in(h), "n c h w -> n (h w) c")
        h, tokens = self.block(h, cond)
        if self.linear:
            h = rearrange(self.proj_out(h), "n (h w) c -> n c h w", h=height)
        else:
            h = self.proj_out(rearrange(h, "n (h w) c -> n c h w", h=height))
        return h + x, tokens


class SpatialBlending(nn.Module):
    """Blends the features of objects into those of the picture (Animate Anyone 2, equations 3 and 4).

    `level`: of the UNet, 0 being the finest. The gate is one for all channels. A zero convolution before a sigmoid
    opens it by half: it is the config's bias that decides how much of an untrained guider gets in.
    """

    def __init__(self, level: int, dim: int, cfg: BlendingConfig, operations: Any, **factory: Any):
        super().__init__()
        self.level = level
        self.conv = operations.Conv2d(2 * dim, 1, 3, padding=1, **factory)
        nn.init.zeros_(self.conv.weight)
        nn.init.constant_(self.conv.bias, cfg.bias)

    def alpha(self, x: Tensor, objects: Tensor) -> Tensor:
        """x, objects [N, C, h, w] -> the objects' share of every pixel, [N, 1, h, w] in 0..1."""
        return torch.sigmoid(self.conv(torch.cat([x, objects], dim=1)))

    def forward(self, x: Tensor, cond: Conditions) -> Tensor:
        """x [N, C, h, w] -> the same; rows without an object come back bit for bit."""
        if cond.objects is None:
            return x
        features, holds = cond.objects
        own = features[self.level]
        return x + holds * self.alpha(x, own) * (own - x)


class PositionalEncoding(nn.Module):
    pe: Tensor  # [1, max_len, dim]

    def __init__(self, dim: int, max_len: int, device: torch.device | None = None):
        super().__init__()
        position = torch.arange(max_len, device=device)[:, None]
        freqs = torch.exp(torch.arange(0, dim, 2, device=device) * (-math.log(10000.0) / dim))
        angles = position * freqs
        self.register_buffer("pe", torch.stack([angles.sin(), angles.cos()], dim=-1).reshape(1, max_len, dim))

    def forward(self, x: Tensor) -> Tensor:
        """Adds the code of its position inside the window to each of the F tokens of x [N, F, C]."""
        return x + self.pe[:, : x.shape[1]].to(x)


class TemporalAttention(Attention):
    def __init__(self, dim: int, cfg: MotionConfig, operations: Any, **factory: Any):
        super().__init__(dim, dim, cfg.heads, operations, **factory)
        self.pos_encoder = PositionalEncoding(dim, cfg.max_len, factory.get("device"))

    def forward(
        self, x: Tensor, attention: AttentionFunction, bank: KeyValue | None = None, plain_rows: int = 0
    ) -> Tensor:
        """Attention between the F tokens of each row of x [N, F, C], which are distinguished by their "
        "positions."""
        return super().forward(self.pos_encoder(x), attention, bank, plain_rows)


class TemporalBlock(nn.Module):
    def __init__(self, dim: int, cfg: MotionConfig, operations: Any, **factory: Any):
        super().__init__()
        layers = range(cfg.attentions)
        self.attention_blocks = nn.ModuleList([TemporalAttention(dim, cfg, operations, **factory) for _ in layers])
        self.norms = nn.ModuleList([operations.LayerNorm(dim, **factory) for _ in layers])
        self.ff_norm = operations.LayerNorm(dim, **factory)
        self.ff = FeedForward(dim, operations, **factory)

    def forward(self, x: Tensor, attention: AttentionFunction) -> Tensor:
        for norm, attend in zip(self.norms, self.attention_blocks, strict=True):
            x = x + attend(norm(x), attention)
        return x + self.ff(self.ff_norm(x))


class TemporalTransformer(nn.Module):
    def __init__(self, dim: int, cfg: MotionConfig, operations: Any, **factory: Any):
        super().__init__()
        # 32 groups whatever the config says, and normalised per frame (AnimateDiff's is over all frames).
        self.norm = operations.GroupNorm(32, dim, eps=1e-6, **factory)
        self.proj_in = operations.Linear(dim, dim, **factory)
        self.transformer_blocks = nn.ModuleList(
            [TemporalBlock(dim, cfg, operations, **factory) for _ in range(cfg.blocks)]
        )
        self.proj_out = operations.Linear(dim, dim, **factory)

    def forward(self, x: Tensor, frames: int, attention: AttentionFunction) -> Tensor:
        height, width = x.shape[2:]
        h = rearrange(self.norm(x), "(b f) c h w -> (b h w) f c", f=frames)
        h = self.proj_in(h)
        for block in self.transformer_blocks:
            h = block(h, attention)
        return x + rearrange(self.proj_out(h), "(b h w) f c -> (b f) c h w", h=height, w=width)


class MotionModule(nn.Module):
    """Self-attention over time at every pixel, added as a residual (AnimateDiff)."""

    def __init__(self, dim: int, cfg: MotionConfig, operations: Any, **factory: Any):
        super().__init__()
        self.temporal_transformer = TemporalTransformer(dim, cfg, operations, **factory)

    def forward(self, x: Tensor, cond: Conditions) -> Tensor:
        return self.temporal_transformer(x, cond.frames, cond.attention)
