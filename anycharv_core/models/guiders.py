"""The networks beside the UNets: what they make of skeletons, depth and objects is added or blended in."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from .config import HEAD_WIDTH, PoseGuiderConfig
from .hooks import AttentionFunction
from .layers import Attention, sdpa


class Trunk(nn.Module):
    """A few convolutions that bring pictures to latent resolution."""

    def __init__(self, channels: int, widths: Sequence[int], operations: Any, **factory: Any):
        super().__init__()
        conv = operations.Conv2d
        self.conv_in = conv(channels, widths[0], 3, padding=1, **factory)
        self.blocks = nn.ModuleList()
        for c_in, c_out in pairwise(widths):
            self.blocks.append(conv(c_in, c_in, 3, padding=1, **factory))
            self.blocks.append(conv(c_in, c_out, 3, padding=1, stride=2, **factory))

    def trunk(self, picture: Tensor) -> Tensor:
        """picture [N, channels, H, W] -> [N, widths[-1], H / s, W / s], s = 2 per level."""
        x = F.silu(self.conv_in(picture))
        for block in self.blocks:
            x = F.silu(block(x))
        return x


class DepthModulation(nn.Module):
    """Merges structured depth into the features of skeletons (Animate Anyone 2, section 3.4).

    Each limb's features read the depth of all others by cross-attention, and a convolution over time evens out
    what was found wrong in single frames. Freshly made, both add nothing.
    """

    def __init__(self, widths: Sequence[int], operations: Any, **factory: Any):
        super().__init__()
        width = widths[-1]
        self.depth = Trunk(1, widths, operations, **factory)
        self.norm_pose = operations.LayerNorm(width, **factory)
        self.norm_depth = operations.LayerNorm(width, **factory)
        self.attention = Attention(width, width, width // HEAD_WIDTH, operations, **factory)
        self.temporal_norm = operations.GroupNorm(HEAD_WIDTH, width, **factory)
        self.temporal_conv = operations.Conv3d(width, width, 3, padding=(0, 1, 1), **factory)
        for weight in (*self.attention.to_out.parameters(), *self.temporal_conv.parameters()):
            nn.init.zeros_(weight)
        self._start_reading()

    @torch.no_grad()
    def _start_reading(self) -> None:
        """Starts with a depth that can be read, of which torch's start of layers leaves next to nothing.

        Its convolutions would each pass on a third of it, until biases are a hundred times as large; and unlike
        equal queries and keys, which attend to their own place, its attention would read the mean of all places.
        """
        for name, weight in self.depth.named_parameters():
            if name.endswith("weight"):
                nn.init.kaiming_normal_(weight)
        queries, keys = self.attention.to_q.parameters(), self.attention.to_k.parameters()
        for query, key in zip(queries, keys, strict=True):
            key.copy_(nn.init.normal_(query, std=2 / math.sqrt(len(query))))

    def merge(self, x: Tensor, depth: Tensor, attention: AttentionFunction = sdpa) -> Tensor:
        """x [N, C, h, w], depth [N, 1, H, W] in 0..1 -> the features with the depth in them, [N, C, h, w]."""
        height, width = x.shape[2:]
        pose, seen = (rearrange(each, "n c h w -> n (h w) c") for each in (x, self.depth.trunk(depth)))
        # Depth knows no limb, so without a place it could not be told whose it is.
        place = 2 * place_code(height, width, x.shape[1], x.device).to(x)  # as large as what it is added to
        value = self.norm_depth(seen)
        added = self.attention.of_sources(
            (self.norm_pose(pose) + place, value + place, value), attention, attention
        )
        return x + rearrange(added, "n (h w) c -> n c h w", h=height)

    def over_time(self, x: Tensor, frames: int) -> Tensor:
        """x [N, C, h, w] -> the same, every `frames` consecutive rows being a video, whose ends are repeated.

        Each frame is normalised on its own, so that it depends on its neighbours alone.
        """
        h = rearrange(F.silu(self.temporal_norm(x)), "(b f) c h w -> b c f h w", f=frames)
        h = self.temporal_conv(torch.cat([h[:, :, :1], h, h[:, :, -1:]], dim=2))
        return x + rearrange(h, "b c f h w -> (b f) c h w")


class PoseGuider(Trunk):
    """Brings skeleton pictures to latent resolution (AnyCharV, section 3.2), with their depth where it has the
    modules for it."""

    def __init__(self, cfg: PoseGuiderConfig, operations: Any = nn, **factory: Any):
        widths = cfg.block_out_channels
        super().__init__(cfg.conditioning_channels, widths, operations, **factory)
        self.conv_out = operations.Conv2d(widths[-1], cfg.embedding_channels, 3, padding=1, **factory)
        self.depth_modulation = DepthModulation(widths, operations, **factory) if cfg.depth_modulation else None

    def forward(
        self,
        pose: Tensor,
        depth: Tensor | None = None,
        frames: int | None = 1,
        attention: AttentionFunction = sdpa,
    ) -> Tensor:
        """pose [N, 3, H, W] and depth [N, 1, H, W] in 0..1, None = nowhere any -> features [N, C0, H / s, W / s].

        frames: as many consecutive rows follow each other in one video; 1 = none do; None gives what depends on no
        other frame, for `of_videos` to finish.
        """
        x = self.trunk(pose)
        if self.depth_modulation is None:
            return self.conv_out(x)
        x = self.depth_modulation.merge(x, torch.zeros_like(pose[:, :1]) if depth is None else depth, attention)
        return x if frames is None else self.of_videos(x, frames)

    def of_videos(self, x: Tensor, frames: int) -> Tensor:
        """What `forward` gave for no number of frames -> features; frames: as there."""
        if self.depth_modulation is None:
            return x
        return self.conv_out(x if frames == 1 else self.depth_modulation.over_time(x, frames))

    def idle_modules(self, motion: bool) -> list[nn.Module]:
        """Modules whose weights no output depends on, where frames follow each other (`motion`) or don't."""
        if self.depth_modulation is None or motion:
            return []
        return [self.depth_modulation.temporal_norm, self.depth_modulation.temporal_conv]


class ObjectGuider(nn.Module):
    """Features of objects at every level of the UNet (Animate Anyone 2, section 3.3).

    The paper's four convolutions have the strides 1, 2, 2, 2: no block of the UNet is a sixteenth of the latents.
    """

    def __init__(self, channels: int, widths: Sequence[int], operations: Any = nn, **factory: Any):
        super().__init__()
        sizes = enumerate(pairwise((channels, *widths)))
        self.convs = nn.ModuleList(
            operations.Conv2d(c_in, c_out, 3, padding=1, stride=2 if level else 1, **factory)
            for level, (c_in, c_out) in sizes
        )

    def forward(self, latents: Tensor) -> list[Tensor]:
        """latents [N, c, h, w] of the object on black -> per level [N, C, h / 2^level, w / 2^level]."""
        features = [self.convs[0](latents)]
        for conv in self.convs[1:]:
            features.append(conv(F.silu(features[-1])))
        return features


def place_code(height: int, width: int, dim: int, device: torch.device) -> Tensor:
    """Sinusoids of row and column, float32 [height * width, dim]; dim is a multiple of 4.

    The waves are up to some 600 places long, as no grid is longer: those of sentences, a hundred times as long,
    would leave most channels equal everywhere.
    """
    freqs = torch.exp(torch.arange(0, dim // 2, 2, device=device) * (-math.log(100.0) / (dim // 2)))
    rows, columns = (torch.arange(side, device=device)[:, None] * freqs for side in (height, width))
    rows, columns = (torch.cat([angles.sin(), angles.cos()], dim=-1) for angles in (rows, columns))
    shape = height, width, dim // 2
    return torch.cat([rows[:, None].expand(shape), columns[None].expand(shape)], dim=-1).flatten(0, 1)
