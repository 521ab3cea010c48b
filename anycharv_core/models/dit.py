"""CogVideoX1.5's diffusion transformer, and where AnimateAnywhere joins pose, reference and learner to it."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .config import PATCH, DiTConfig
from .dit_layers import Block, BlockLearner, Grid, LastModulation, MotionLearner, PatchEmbed, Rope, rope_of
from .hooks import AttentionFunction
from .layers import KeyValue, TimestepEmbedding, for_rows, sdpa, timestep_embedding

OFS = 2.0  # the constant whose embedding 1.5's image-to-video model adds to the timestep's


class Trunk(nn.Module):
    """The embedders and `blocks` blocks, of which the ControlNet and the ReferenceNet have copies.

    checkpointing: in training, blocks keep their input alone and are computed again on the way back.
    """

    def __init__(self, cfg: DiTConfig, blocks: int, operations: Any = nn, **factory: Any):
        super().__init__()
        self.cfg = cfg
        self.checkpointing = False
        self.patch_embed = PatchEmbed(cfg, operations, **factory)
        self.time_embedding = TimestepEmbedding(cfg.dim, cfg.time_dim, operations, **factory)
        self.ofs_embedding = TimestepEmbedding(cfg.time_dim, cfg.time_dim, operations, **factory)
        self.transformer_blocks = nn.ModuleList([Block(cfg, operations, **factory) for _ in range(blocks)])

    def blocks(self) -> list[Block]:
        """Its blocks in order."""
        return cast(list[Block], list(self.transformer_blocks))

    def embed_time(self, t: Tensor, dtype: torch.dtype) -> Tensor:
        """Timesteps t [B or 1] -> [B or 1, time_dim]."""
        ofs = torch.full((1,), OFS, device=t.device)
        waves = (
            timestep_embedding(each, width, True, 0).to(dtype)
            for each, width in ((t, self.cfg.dim), (ofs, self.cfg.time_dim))
        )
        return self.time_embedding(next(waves)) + self.ofs_embedding(next(waves))

    def run(self, block: Block, *call: Any) -> Tensor:
        """What a block makes of its arguments."""
        if self.checkpointing and torch.is_grad_enabled():
            return cast(Tensor, checkpoint(block, *call, use_reentrant=False))
        return cast(Tensor, block(*call))


def grid_of(x: Tensor) -> Grid:
    """The grid of the tokens of latents [B, T, c, h, w]."""
    return x.shape[1] // PATCH, x.shape[3] // PATCH, x.shape[4] // PATCH


class DiT(Trunk):
    """Predicts v for noisy latents, given the background, and where they are given pose and reference (section
    III-B). Without them, and with a learner that was not trained, it is CogVideoX1.5's image-to-video model."""

    def __init__(self, cfg: DiTConfig, operations: Any = nn, **factory: Any):
        super().__init__(cfg, cfg.layers, operations, **factory)
        self.norm_final = operations.LayerNorm(cfg.dim, eps=1e-5, **factory)
        self.norm_out = LastModulation(cfg, operations, **factory)
        self.proj_out = operations.Linear(cfg.dim, cfg.out_channels * PATCH**3, **factory)

    def project_bank(self, tokens: Sequence[Tensor], learner: MotionLearner | None = None) -> list[KeyValue]:
        """The ReferenceNet's tokens [R, rows, columns, D] of each of the first blocks -> keys and values
        [R, rows columns, D] there, once for all steps.

        The reference lies at time -1: on a time of the clip its tokens would pass for those of a frame.
        """
        rows, columns = tokens[0].shape[1:3]
        rope = rope_of(self.cfg, (1, rows, columns), tokens[0].device, first=-1)
        bank = []
        for index, each in enumerate(tokens):
            attn, own, flat = self.blocks()[index].attn1, _own(learner, index), each.flatten(1, 2)
            bank.append((attn.keys(flat, rope, own), attn.values(flat, own)))
        return bank

    def forward(self, *call: Any, **settings: Any) -> Tensor:
        """The prediction that `trace` makes."""
        return self.trace(*call, **settings)[0]

    def trace(
        self,
        x: Tensor,
        t: Tensor,
        text: Tensor,
        *,
        control: Iterable[Tensor] = (),
        bank: Sequence[KeyValue] | None = None,
        learner: MotionLearner | None = None,
        plain_rows: int = 0,
        rope: Rope | None = None,
        attention: AttentionFunction = sdpa,
        blocks: Collection[int] = (),
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """One denoising call on B clips.

        x [B, T, in_channels, h, w]: noisy latents, then the background's; t [B or 1]: timestep; text
        [B or 1, n, text_dim]; control: what the ControlNet adds to the video tokens at the input of each of the
        first blocks, [B - plain_rows, L, D] (eq. 2); bank: of `project_bank`, each of whose rows serves as many
        clips; the first `plain_rows` clips get neither. learner: the background motion learner; rope: that of the
        clip's grid, where the caller keeps it. Returns v [B, T, out_channels, h, w], and the inputs [B, n + L, D]
        of the `blocks` asked for, which `attention_map` reads.
        """
        grid, length = grid_of(x), text.shape[1]
        rope = rope_of(self.cfg, grid, x.device) if rope is None else rope
        time = self.embed_time(t, x.dtype)
        h = self.patch_embed(x, text)
        features = iter(control)
        kept = {}
        for index, block in enumerate(self.blocks()):
            pose = next(features, None)
            if pose is not None:
                h = h + F.pad(pose, (0, 0, length, 0, plain_rows, 0))
            if index in blocks:
                kept[index] = h
            read = bank[index] if bank is not None and index < len(bank) else None
            h = self.run(block, h, time, length, rope, attention, _own(learner, index), read, plain_rows)
        h = self.proj_out(self.norm_out(self.norm_final(h[:, length:]), time))
        pattern = "b (s h w) (c t y x) -> b (s t) c (h y) (w x)"
        slots, rows, _ = grid
        return rearrange(h, pattern, s=slots, h=rows, t=PATCH, y=PATCH, x=PATCH), kept

    def attention_map(
        self,
        index: int,
        hidden: Tensor,
        t: Tensor,
        queries: Tensor,
        grid: Grid,
        *,
        bank: Sequence[KeyValue] | None = None,
        learner: MotionLearner | None = None,
        plain_rows: int = 0,
    ) -> Tensor:
        """How much each of some video tokens attends to all video tokens in a block: float32 [B, heads, q, L].

        hidden [B, n + L, D]: the block's input from `trace`, whose other arguments these are; queries int64
        [B, q]: places 0..L-1. Each softmax is over all keys, of text, video and reference, so that the video's
        share is less than 1. Scaled dot-product attention shows no map: it is computed again, for these queries.
        """
        block, own = self.blocks()[index], _own(learner, index)
        attn, (cos, sin) = block.attn1, rope_of(self.cfg, grid, hidden.device)
        length = hidden.shape[1] - len(cos)
        tokens, _ = block.norm1(hidden, self.embed_time(t, hidden.dtype), length)
        rows = torch.arange(len(tokens), device=tokens.device)[:, None]
        asked = attn.queries(tokens[rows, length + queries], (cos[queries], sin[queries]), own)
        q, k = (_by_head(each, attn.heads) for each in (asked, attn.keys(tokens, (cos, sin), own)))
        scores = q @ k.mT / math.sqrt(q.shape[-1])
        total = scores.logsumexp(dim=-1, keepdim=True)
        if bank is not None and index < len(bank) and plain_rows < len(q):
            key = _by_head(for_rows(bank[index][0], len(q) - plain_rows), attn.heads)
            more = (q[plain_rows:] @ key.mT / math.sqrt(q.shape[-1])).logsumexp(dim=-1, keepdim=True)
            total = torch.cat([total[:plain_rows], torch.logaddexp(total[plain_rows:], more)])
        return (scores[..., length:] - total).exp()


def _own(learner: MotionLearner | None, index: int) -> BlockLearner | None:
    return None if learner is None else learner.of(index)


def _by_head(x: Tensor, heads: int) -> Tensor:
    return rearrange(x, "b l (h d) -> b h l d", h=heads).float()
