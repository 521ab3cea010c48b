"""Layers shared by the denoising UNet and the ReferenceNet.

Module names are those of the official state dict. Every layer that holds weights comes from an
`operations` namespace (`torch.nn`, or one with the same names that streams weights on small cards).
Activations are [N, C, H, W] with the frames of a clip folded into N, clip after clip.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from .config import MotionConfig, UNetConfig

KeyValue = tuple[Tensor, Tensor]


@dataclass
class Conditions:
    """What every block of one forward pass reads.

    time [N or 1, 4*C0]; image [N or 1, D] (zeros = unconditional); `frames` per clip;
    `bank` yields one (key, value) pair of [R, T, C] per spatial attention, R clips or 1, or is None;
    the first `plain_rows` of the N rows ignore the bank; without `motion` frames stay independent;
    `tokens` collects the normalised tokens that a ReferenceNet offers as its bank, unless it is None, as in
    the denoising UNet, whose tokens nobody reads and which would fill memory to the end of the pass.
    """

    time: Tensor
    image: Tensor
    frames: int = 1
    bank: Iterator[KeyValue] | None = None
    plain_rows: int = 0
    motion: bool = True
    tokens: list[Tensor] | None = None


def attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Multi-head attention of q [N, L, C] over k, v [N, T, C]."""
    q, k, v = (rearrange(x, "n l (h d) -> n h l d", h=heads) for x in (q, k, v))
    return rearrange(F.scaled_dot_product_attention(q, k, v), "n h l d -> n l (h d)")


def timestep_embedding(t: Tensor, dim: int, flip_sin_to_cos: bool, freq_shift: float) -> Tensor:
    """Sinusoidal embedding of timesteps t [N] -> float32 [N, dim]."""
    half = dim // 2
    freqs = torch.exp(-math.log(10000) * torch.arange(half, device=t.device) / (half - freq_shift))
    args = t[:, None].float() * freqs
    pair = (args.cos(), args.sin()) if flip_sin_to_cos else (args.sin(), args.cos())
    return torch.cat(pair, dim=-1)


class TimestepEmbedding(nn.Module):
    def __init__(self, dim: int, operations: Any, **factory: Any):
        super().__init__()
        self.linear_1 = operations.Linear(dim, 4 * dim, **factory)
        self.linear_2 = operations.Linear(4 * dim, 4 * dim, **factory)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(x)))


def normalised(x: Tensor, norm: nn.Module, frames: int) -> Tensor:
    """`norm` of x [N, C, H, W], with one mean and variance per group for every `frames` consecutive rows."""
    if frames == 1:
        return norm(x)
    clips = norm(rearrange(x, "(b f) c h w -> b c f h w", f=frames))
    return rearrange(clips, "b c f h w -> (b f) c h w")


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

    def forward(self, x: Tensor, cond: Conditions | None = None) -> Tensor:
        """Self-attention of x [N, L, C]; conditional rows also read the reference bank of `cond`."""
        q, k, v = self.to_q(x), self.to_k(x), self.to_v(x)
        if cond is None or cond.bank is None:
            return self.to_out[0](attention(q, k, v, self.heads))
        bank_k, bank_v = next(cond.bank)
        plain = cond.plain_rows
        rows = [attention(q[:plain], k[:plain], v[:plain], self.heads)] if plain else []
        if plain < len(x):
            k, v = (_append_bank(own[plain:], bank) for own, bank in ((k, bank_k), (v, bank_v)))
            rows.append(attention(q[plain:], k, v, self.heads))
        else:
            # The sum of nothing: where processes share the weights of a ReferenceNet, the one whose clips all go
            # without it must still go back through it, or the others wait for it for ever.
            rows[0] = rows[0] + bank_k[:0].sum() + bank_v[:0].sum()
        return self.to_out[0](torch.cat(rows))

    def of_one_token(self, token: Tensor) -> Tensor:
        """Cross-attention over a single token [N, D]: its softmax is 1, so the queries cancel out."""
        return self.to_out[0](self.to_v(token))


def _append_bank(own: Tensor, bank: Tensor) -> Tensor:
    """own [N, L, C] + bank [R, T, C] -> [N, L + T, C]; each bank row serves N / R consecutive rows."""
    return torch.cat([own, bank.repeat_interleave(len(own) // len(bank), dim=0).to(own.dtype)], dim=1)


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
    """Self-attention (+ reference bank), image-embedding bias, feed-forward over the tokens of a frame."""

    def __init__(self, dim: int, heads: int, cfg: UNetConfig, operations: Any, **factory: Any):
        super().__init__()
        self.norm1 = operations.LayerNorm(dim, **factory)
        self.attn1 = Attention(dim, dim, heads, operations, **factory)
        # norm2 and attn2.to_q/to_k carry no signal with one token; they are kept for the weights' sake.
        self.norm2 = operations.LayerNorm(dim, **factory)
        self.attn2 = Attention(dim, cfg.cross_attention_dim, heads, operations, **factory)
        self.norm3 = operations.LayerNorm(dim, **factory)
        self.ff = FeedForward(dim, operations, **factory)

    def forward(self, x: Tensor, cond: Conditions) -> Tensor:
        tokens = self.norm1(x)
        if cond.tokens is not None:
            cond.tokens.append(tokens)
        x = x + self.attn1(tokens, cond)
        x = x + self.attn2.of_one_token(cond.image)[:, None]
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nn.Module):
    def __init__(self, dim: int, heads: int, cfg: UNetConfig, operations: Any, **factory: Any):
        super().__init__()
        self.norm = operations.GroupNorm(cfg.norm_num_groups, dim, eps=1e-6, **factory)
        self.linear = cfg.use_linear_projection
        project, extra = (operations.Linear, ()) if self.linear else (operations.Conv2d, (1,))
        self.proj_in = project(dim, dim, *extra, **factory)
        self.transformer_blocks = nn.ModuleList([SpatialBlock(dim, heads, cfg, operations, **factory)])
        self.proj_out = project(dim, dim, *extra, **factory)

    def forward(self, x: Tensor, cond: Conditions) -> Tensor:
        height = x.shape[2]
        h = self.norm(x)
        if self.linear:
            h = self.proj_in(rearrange(h, "n c h w -> n (h w) c"))
        else:
            h = rearrange(self.proj_in(h), "n c h w -> n (h w) c")
        for block in self.transformer_blocks:
            h = block(h, cond)
        if self.linear:
            return rearrange(self.proj_out(h), "n (h w) c -> n c h w", h=height) + x
        return self.proj_out(rearrange(h, "n (h w) c -> n c h w", h=height)) + x


class PositionalEncoding(nn.Module):
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

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.pos_encoder(x))


class TemporalBlock(nn.Module):
    def __init__(self, dim: int, cfg: MotionConfig, operations: Any, **factory: Any):
        super().__init__()
        layers = range(cfg.attentions)
        self.attention_blocks = nn.ModuleList([TemporalAttention(dim, cfg, operations, **factory) for _ in layers])
        self.norms = nn.ModuleList([operations.LayerNorm(dim, **factory) for _ in layers])
        self.ff_norm = operations.LayerNorm(dim, **factory)
        self.ff = FeedForward(dim, operations, **factory)

    def forward(self, x: Tensor) -> Tensor:
        for norm, attend in zip(self.norms, self.attention_blocks, strict=True):
            x = x + attend(norm(x))
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

    def forward(self, x: Tensor, frames: int) -> Tensor:
        height, width = x.shape[2:]
        h = rearrange(self.norm(x), "(b f) c h w -> (b h w) f c", f=frames)
        h = self.proj_in(h)
        for block in self.transformer_blocks:
            h = block(h)
        return x + rearrange(self.proj_out(h), "(b h w) f c -> (b f) c h w", h=height, w=width)


class MotionModule(nn.Module):
    """Self-attention over time at every pixel, added as a residual (AnimateDiff)."""

    def __init__(self, dim: int, cfg: MotionConfig, operations: Any, **factory: Any):
        super().__init__()
        self.temporal_transformer = TemporalTransformer(dim, cfg, operations, **factory)

    def forward(self, x: Tensor, cond: Conditions) -> Tensor:
        return self.temporal_transformer(x, cond.frames)
