"""AnimateAnywhere's copies of its base (section III-B): the ControlNet-DiT of poses and the ReferenceNet-DiT."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from .config import DiTConfig
from .dit import DiT, Trunk, grid_of
from .dit_layers import Rope, rope_of
from .hooks import AttentionFunction
from .layers import sdpa


class ControlDiT(Trunk):
    """A copy of the base's embedders and first blocks, each of whose results a zero layer adds to the base."""

    def __init__(self, cfg: DiTConfig, blocks: int, operations: Any = nn, **factory: Any):
        super().__init__(cfg, blocks, operations, **factory)
        self.zero = nn.ModuleList([operations.Linear(cfg.dim, cfg.dim, **factory) for _ in range(blocks)])
        for parameter in self.zero.parameters():
            nn.init.zeros_(parameter)

    def forward(self, *call: Any, **settings: Any) -> list[Tensor]:
        """All of `features`."""
        return list(self.features(*call, **settings))

    def features(
        self,
        x: Tensor,
        t: Tensor,
        text: Tensor,
        rope: Rope | None = None,
        attention: AttentionFunction = sdpa,
    ) -> Iterator[Tensor]:
        """What is added at the input of each of the base's first blocks, [B, L, D], one after another: all of them
        together would take gigabytes.

        x [B, T, in_channels, h, w]: noisy latents, then the latents of the skeletons; t, text: as the base's.
        """
        rope = rope_of(self.cfg, grid_of(x), x.device) if rope is None else rope
        time, length = self.embed_time(t, x.dtype), text.shape[1]
        h = self.patch_embed(x, text)
        for block, zero in zip(self.blocks(), self.zero, strict=True):
            h = self.run(block, h, time, length, rope, attention)
            yield zero(h[:, length:])


class ReferenceDiT(Trunk):
    """A copy of the base's embedders and first blocks, looking at a still clip of the character."""

    def forward(
        self, latents: Tensor, condition: Tensor, text: Tensor, attention: AttentionFunction = sdpa
    ) -> list[Tensor]:
        """latents [R, c, h, w] of the character on black, and as the base is given a picture's, `condition`, of
        that shape; text [1, n, text_dim] -> tokens [R, rows, columns, D] of each block.

        The tokens are those of the video, after norm1 and before any projection, at timestep 0.
        """
        still = torch.stack([latents, latents], dim=1)
        x = torch.cat([still, torch.stack([condition, torch.zeros_like(condition)], dim=1)], dim=2)
        grid, length = grid_of(x), text.shape[1]
        rope = rope_of(self.cfg, grid, x.device)
        time = self.embed_time(torch.zeros(1, device=x.device), x.dtype)
        h = self.patch_embed(x, text)
        tokens = []
        *before, last = self.blocks()
        for block in before:
            tokens.append(block.norm1(h, time, length)[0][:, length:])
            h = self.run(block, h, time, length, rope, attention)
        tokens.append(last.norm1(h, time, length)[0][:, length:])
        return [each.unflatten(1, grid[1:]) for each in tokens]

    def idle_modules(self) -> list[nn.Module]:
        """What lies behind the last norm1, where the last tokens are taken: it is never read."""
        last = self.blocks()[-1]
        return [last.attn1, last.norm2, last.ff]


class Prompt(nn.Module):
    """The text that every clip has, as a text encoder gave it once: `embeds` [n, text_dim]. The paper leaves texts
    for later (section V)."""

    embeds: Tensor

    def __init__(self, cfg: DiTConfig, **factory: Any):
        super().__init__()
        self.register_buffer("embeds", torch.zeros(cfg.text_length, cfg.text_dim, **factory))

    def forward(self) -> Tensor:
        """[1, n, text_dim], as the transformers take it."""
        return self.embeds[None]


@torch.no_grad()
def copy_trunk(base: DiT, branch: ControlDiT | ReferenceDiT) -> None:
    """Gives a branch the base's embedders and first blocks; a ControlNet's zero layers stay as they are."""
    weights = base.state_dict()
    for key, value in branch.state_dict().items():
        if not key.startswith("zero."):
            value.copy_(weights[key])
