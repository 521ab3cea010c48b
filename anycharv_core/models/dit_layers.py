"""The layers of CogVideoX1.5's diffusion transformer, and the LoRA that AnimateAnywhere puts beside its attention.

Module names are those of diffusers' CogVideoXTransformer3DModel. Every layer that holds weights comes from an
`operations` namespace, as in layers.py. Tokens are [B, n + L, D]: n of the text, then those of the video, by slot
of two latents, row and column of the grid of 2 x 2 latent pixels.
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..errors import UserError
from .config import PATCH, DiTConfig
from .hooks import AttentionFunction
from .layers import KeyValue, attend, for_rows

THETA = 10000.0

Rope = tuple[Tensor, Tensor]
"""Cosines and sines float32 [L, head_dim] of the angles that the tokens of a grid are turned by."""
Grid = tuple[int, int, int]
"""Slots, rows and columns of video tokens."""


def rope_of(cfg: DiTConfig, grid: Grid, device: torch.device | None = None, first: int = 0) -> Rope:
    """The angles of a grid's tokens, whose positions are whole numbers, the first slot's being `first`.

    Of every head 1/4 turns with the slot, 3/8 with the row and 3/8 with the column. Raises UserError where the
    grid has more rows or columns than the model has positions for.
    """
    slots, *sides = grid
    if max(sides) > cfg.positions:
        most = cfg.positions * PATCH * 8
        raise UserError(
            f"The picture is larger than the {most} pixels a side that the model has positions for: give a "
            "smaller size."
        )
    spans = (first, slots), *((0, side) for side in sides)
    angles = []
    for axis, ((start, count), eighths) in enumerate(zip(spans, (2, 3, 3), strict=True)):
        width = cfg.head_dim // 8 * eighths
        freqs = 1.0 / THETA ** (torch.arange(0, width, 2, device=device, dtype=torch.float32) / width)
        at = torch.arange(start, start + count, device=device, dtype=torch.float32)
        shape = [count if axis == each else 1 for each in range(3)]
        own = torch.outer(at, freqs).repeat_interleave(2, dim=1).reshape(*shape, width)
        angles.append(own.expand(*grid, width))
    whole = torch.cat(angles, dim=-1).flatten(0, 2)
    return whole.cos(), whole.sin()


def rotate(x: Tensor, rope: Rope) -> Tensor:
    """x [B, M, heads, d], the last of whose M tokens are turned by `rope`, [L, d] or [B, L, d] each."""
    cos, sin = (each.unsqueeze(-2) for each in rope)
    still = x.shape[1] - cos.shape[-3]
    moved = x[:, still:].float()
    crossed = torch.stack([-moved[..., 1::2], moved[..., ::2]], dim=-1).flatten(-2)
    return torch.cat([x[:, :still], (moved * cos + crossed * sin).to(x.dtype)], dim=1)


class LowRank(nn.Module):
    """What a LoRA adds to a linear layer, its alpha being its rank; nothing before training."""

    def __init__(self, dim: int, rank: int, operations: Any, **factory: Any):
        super().__init__()
        self.down = operations.Linear(dim, rank, bias=False, **factory)
        self.up = operations.Linear(rank, dim, bias=False, **factory)
        # Operations that make no weights before they are loaded have no parameters here.
        for weight in self.down.parameters():
            nn.init.kaiming_uniform_(weight, math.sqrt(5))
        for weight in self.up.parameters():
            nn.init.zeros_(weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.down(x))


class BlockLearner(nn.Module):
    """The LoRA of one block's attention."""

    def __init__(self, dim: int, rank: int, operations: Any, **factory: Any):
        super().__init__()
        self.q, self.k, self.v, self.out = (LowRank(dim, rank, operations, **factory) for _ in range(4))


class MotionLearner(nn.ModuleList):
    """The background motion learner: LoRA on the attention of every block (section III-B, eq. 2)."""

    def __init__(self, cfg: DiTConfig, rank: int, operations: Any = nn, **factory: Any):
        super().__init__(BlockLearner(cfg.dim, rank, operations, **factory) for _ in range(cfg.layers))

    def of(self, index: int) -> BlockLearner:
        """That of a block."""
        return cast(BlockLearner, self[index])


class Modulation(nn.Module):
    """LayerNorm with shift, scale and gate from the timestep, of their own for text and for video."""

    def __init__(self, cfg: DiTConfig, operations: Any, **factory: Any):
        super().__init__()
        self.linear = operations.Linear(cfg.time_dim, 6 * cfg.dim, **factory)
        self.norm = operations.LayerNorm(cfg.dim, eps=1e-5, **factory)

    def forward(self, x: Tensor, time: Tensor, text: int) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """x [B, n + L, D], `text` = n, time [B or 1, time_dim] -> tokens of that shape, and the gates of text and
        video, [B or 1, 1, D] each."""
        parts = self.linear(F.silu(time))[:, None].chunk(6, dim=-1)
        shift, scale, gate, text_shift, text_scale, text_gate = parts
        x = self.norm(x)
        own = x[:, :text] * (1 + text_scale) + text_shift
        return torch.cat([own, x[:, text:] * (1 + scale) + shift], dim=1), (text_gate, gate)


def gated(x: Tensor, added: Tensor, gates: tuple[Tensor, Tensor], text: int) -> Tensor:
    """x + gate * added, both [B, n + L, D], with the gates of text and video."""
    return x + torch.cat([gates[0] * added[:, :text], gates[1] * added[:, text:]], dim=1)


class JointAttention(nn.Module):
    """Attention of text and video together, with normalised and rotated queries and keys."""

    def __init__(self, cfg: DiTConfig, operations: Any, **factory: Any):
        super().__init__()
        self.heads = cfg.heads
        self.to_q, self.to_k, self.to_v = (operations.Linear(cfg.dim, cfg.dim, **factory) for _ in range(3))
        self.to_out = nn.ModuleList([operations.Linear(cfg.dim, cfg.dim, **factory)])
        self.norm_q, self.norm_k = (operations.LayerNorm(cfg.head_dim, eps=1e-6, **factory) for _ in range(2))

    def queries(self, x: Tensor, rope: Rope, learner: BlockLearner | None) -> Tensor:
        """Of tokens [B, M, D], the last of which lie where `rope` says -> [B, M, D]."""
        return self._turned(self.norm_q, _projected(self.to_q, x, learner and learner.q), rope)

    def keys(self, x: Tensor, rope: Rope, learner: BlockLearner | None) -> Tensor:
        """Of tokens [B, M, D], the last of which lie where `rope` says -> [B, M, D]."""
        return self._turned(self.norm_k, _projected(self.to_k, x, learner and learner.k), rope)

    def values(self, x: Tensor, learner: BlockLearner | None) -> Tensor:
        """Of tokens [B, M, D] -> [B, M, D]."""
        return _projected(self.to_v, x, learner and learner.v)

    def _turned(self, norm: nn.Module, x: Tensor, rope: Rope) -> Tensor:
        return rotate(norm(x.unflatten(-1, (self.heads, -1))), rope).flatten(-2)

    def forward(
        self,
        x: Tensor,
        rope: Rope,
        attention: AttentionFunction,
        learner: BlockLearner | None,
        bank: KeyValue | None,
        plain_rows: int,
    ) -> Tensor:
        """Tokens [B, n + L, D] -> the same; all but the first `plain_rows` rows also read the bank."""
        q, k, v = self.queries(x, rope, learner), self.keys(x, rope, learner), self.values(x, learner)
        seen = attend(q, k, v, self.heads, attention, attention, bank, plain_rows)
        return _projected(self.to_out[0], seen, learner and learner.out)


def _projected(linear: nn.Module, x: Tensor, learner: nn.Module | None) -> Tensor:
    return linear(x) if learner is None else linear(x) + learner(x)


class Gelu(nn.Module):
    def __init__(self, dim: int, operations: Any, **factory: Any):
        super().__init__()
        self.proj = operations.Linear(dim, 4 * dim, **factory)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.proj(x), approximate="tanh")


class FeedForward(nn.Module):
    def __init__(self, dim: int, operations: Any, **factory: Any):
        super().__init__()
        # Index 1 is a dropout in diffusers, which holds no weights.
        linear = operations.Linear(4 * dim, dim, **factory)
        self.net = nn.ModuleList([Gelu(dim, operations, **factory), nn.Identity(), linear])

    def forward(self, x: Tensor) -> Tensor:
        return self.net[2](self.net[0](x))


class Block(nn.Module):
    def __init__(self, cfg: DiTConfig, operations: Any, **factory: Any):
        super().__init__()
        self.norm1 = Modulation(cfg, operations, **factory)
        self.attn1 = JointAttention(cfg, operations, **factory)
        self.norm2 = Modulation(cfg, operations, **factory)
        self.ff = FeedForward(cfg.dim, operations, **factory)

    def forward(
        self,
        x: Tensor,
        time: Tensor,
        text: int,
        rope: Rope,
        attention: AttentionFunction,
        learner: BlockLearner | None = None,
        bank: KeyValue | None = None,
        plain_rows: int = 0,
    ) -> Tensor:
        """x [B, n + L, D], `text` = n -> the same."""
        tokens, gates = self.norm1(x, time, text)
        x = gated(x, self.attn1(tokens, rope, attention, learner, bank, plain_rows), gates, text)
        tokens, gates = self.norm2(x, time, text)
        return gated(x, self.ff(tokens), gates, text)


class PatchEmbed(nn.Module):
    def __init__(self, cfg: DiTConfig, operations: Any, **factory: Any):
        super().__init__()
        self.proj = operations.Linear(cfg.in_channels * PATCH**3, cfg.dim, **factory)
        self.text_proj = operations.Linear(cfg.text_dim, cfg.dim, **factory)

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        """x [B, T, c, h, w], text [B or 1, n, text_dim] -> tokens [B, n + L, D]."""
        pattern = "b (s t) c (h y) (w x) -> b (s h w) (c t y x)"
        video = self.proj(rearrange(x, pattern, t=PATCH, y=PATCH, x=PATCH))
        return torch.cat([for_rows(self.text_proj(text.to(x.dtype)), len(x)), video], dim=1)


class LastModulation(nn.Module):
    def __init__(self, cfg: DiTConfig, operations: Any, **factory: Any):
        super().__init__()
        self.linear = operations.Linear(cfg.time_dim, 2 * cfg.dim, **factory)
        self.norm = operations.LayerNorm(cfg.dim, eps=1e-5, **factory)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """x [B, L, D], time [B or 1, time_dim] -> [B, L, D]."""
        shift, scale = self.linear(F.silu(time))[:, None].chunk(2, dim=-1)
        return self.norm(x) * (1 + scale) + shift
