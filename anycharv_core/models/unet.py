"""The two UNets of AnyCharV (paper sections 3.1-3.3) and of Animate Anyone, and the pose guider."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import islice, pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..errors import UserError
from .config import PoseGuiderConfig, UNetConfig
from .layers import (
    Conditions,
    Downsample,
    KeyValue,
    MotionModule,
    ResnetBlock,
    SpatialTransformer,
    TimestepEmbedding,
    Upsample,
    normalised,
    timestep_embedding,
)


class Stage(nn.Module):
    """One resolution of the UNet: per layer a resnet, then spatial attention, then motion, where present.

    With `checkpointing`, training keeps only the inputs of each of these and computes the rest again on the way
    back, one of them at a time.
    """

    checkpointing = False

    def __init__(
        self,
        cfg: UNetConfig,
        widths: Sequence[tuple[int, int]],
        heads: int | None,
        motion: bool,
        operations: Any,
        **factory: Any,
    ):
        super().__init__()
        self.resnets = nn.ModuleList([ResnetBlock(i, o, cfg, operations, **factory) for i, o in widths])
        if heads:
            self.attentions = nn.ModuleList(
                [SpatialTransformer(o, heads, cfg, operations, **factory) for _, o in widths]
            )
        if motion:
            self.motion_modules = nn.ModuleList(
                [MotionModule(o, cfg.motion, operations, **factory) for _, o in widths]
            )

    def layer(self, index: int, x: Tensor, cond: Conditions) -> Tensor:
        x = self._run(self.resnets[index], x, cond)
        if hasattr(self, "attentions"):
            x = self._run(self.attentions[index], x, cond)
        if hasattr(self, "motion_modules") and cond.motion:
            x = self._run(self.motion_modules[index], x, cond)
        return x

    def _run(self, block: nn.Module, x: Tensor, cond: Conditions) -> Tensor:
        if not (self.checkpointing and torch.is_grad_enabled()):
            return block(x, cond)
        reads = len(block.transformer_blocks) if isinstance(block, SpatialTransformer) else 0
        bank = list(islice(cond.bank, reads)) if cond.bank is not None else None

        # It runs twice, and so must not read on in the bank or add tokens to those of the first time.
        def once_more(x: Tensor) -> tuple[Tensor, ...]:
            own = replace(
                cond,
                bank=iter(bank) if bank is not None else None,
                tokens=None if cond.tokens is None else [],
            )
            return block(x, own), *(own.tokens or ())

        x, *tokens = checkpoint(once_more, x, use_reentrant=False, preserve_rng_state=False)
        if cond.tokens is not None:
            cond.tokens.extend(tokens)
        return x


class DownStage(Stage):
    def __init__(self, cfg, widths, heads, motion, last: bool, operations, **factory):
        super().__init__(cfg, widths, heads, motion, operations, **factory)
        if not last:
            self.downsamplers = nn.ModuleList([Downsample(widths[-1][1], operations, **factory)])

    def forward(self, x: Tensor, cond: Conditions, skips: list[Tensor]) -> Tensor:
        for index in range(len(self.resnets)):
            x = self.layer(index, x, cond)
            skips.append(x)
        if hasattr(self, "downsamplers"):
            x = self.downsamplers[0](x)
            skips.append(x)
        return x


class UpStage(Stage):
    def __init__(self, cfg, widths, heads, motion, last: bool, operations, **factory):
        super().__init__(cfg, widths, heads, motion, operations, **factory)
        if not last:
            self.upsamplers = nn.ModuleList([Upsample(widths[-1][1], operations, **factory)])

    def forward(self, x: Tensor, cond: Conditions, skips: list[Tensor]) -> Tensor:
        for index in range(len(self.resnets)):
            x = self.layer(index, torch.cat([x, skips.pop()], dim=1), cond)
        if hasattr(self, "upsamplers"):
            x = self.upsamplers[0](x, skips[-1].shape[-2:])
        return x


class MidStage(Stage):
    """resnet, attention, motion, resnet."""

    def __init__(self, cfg, dim: int, heads: int, motion: bool, operations, **factory):
        super().__init__(cfg, [(dim, dim)], heads, motion, operations, **factory)
        self.resnets.append(ResnetBlock(dim, dim, cfg, operations, **factory))

    def forward(self, x: Tensor, cond: Conditions) -> Tensor:
        return self.resnets[1](self.layer(0, x, cond), cond)


class UNet(nn.Module):
    """The trunk both networks share: SD1.5's UNet, with motion modules where `cfg.motion` asks for them."""

    def __init__(self, cfg: UNetConfig, operations: Any = nn, **factory: Any):
        super().__init__()
        self.cfg = cfg
        widths, layers, heads = cfg.block_out_channels, cfg.layers_per_block, cfg.heads
        motion = cfg.motion
        levels = range(len(widths))
        at = [motion is not None and 2**i in motion.resolutions for i in levels]

        self.conv_in = operations.Conv2d(cfg.in_channels, widths[0], 3, padding=1, **factory)
        self.time_embedding = TimestepEmbedding(widths[0], operations, **factory)

        self.down_blocks = nn.ModuleList()
        skips = [widths[0]]
        for i in levels:
            last = i == levels[-1]
            pairs = [(skips[-1], widths[i])] + [(widths[i], widths[i])] * (layers - 1)
            skips += [widths[i]] * (layers if last else layers + 1)
            moves = at[i] and not motion.decoder_only
            attends = heads[i] if cfg.down_attention[i] else None
            self.down_blocks.append(DownStage(cfg, pairs, attends, moves, last, operations, **factory))

        moves = motion is not None and motion.mid_block
        self.mid_block = MidStage(cfg, widths[-1], heads[-1], moves, operations, **factory)

        self.up_blocks = nn.ModuleList()
        c_in = widths[-1]
        for i in reversed(levels):
            pairs = []
            for _ in range(layers + 1):
                pairs.append((c_in + skips.pop(), widths[i]))
                c_in = widths[i]
            attends = heads[i] if cfg.up_attention[levels[-1] - i] else None
            self.up_blocks.append(UpStage(cfg, pairs, attends, at[i], i == 0, operations, **factory))

    def set_checkpointing(self, on: bool) -> None:
        """Trades a third more arithmetic in training for the memory of the activations inside blocks."""
        for stage in (*self.down_blocks, self.mid_block, *self.up_blocks):
            stage.checkpointing = on

    def embed_time(self, t: Tensor, dtype: torch.dtype) -> Tensor:
        cfg = self.cfg
        wave = timestep_embedding(t, cfg.block_out_channels[0], cfg.flip_sin_to_cos, cfg.freq_shift)
        return self.time_embedding(wave.to(dtype))

    def trunk(self, x: Tensor, cond: Conditions) -> Tensor:
        skips = [x]
        for block in self.down_blocks:
            x = block(x, cond, skips)
        x = self.mid_block(x, cond)
        for block in self.up_blocks:
            x = block(x, cond, skips)
        return x

    def spatial_blocks(self) -> list[nn.Module]:
        """The transformer blocks in the order in which the bank is written and read."""
        stages = [*self.down_blocks, self.mid_block, *self.up_blocks]
        attentions = [a for stage in stages for a in getattr(stage, "attentions", ())]
        return [block for attention in attentions for block in attention.transformer_blocks]


class ReferenceNet(UNet):
    """Encodes the reference picture into the tokens that the denoising UNet attends to (section 3.2)."""

    def __init__(self, cfg: UNetConfig, operations: Any = nn, **factory: Any):
        if cfg.motion is not None:
            raise UserError("The reference_unet config has motion modules: it is a denoising UNet's config.")
        super().__init__(cfg, operations, **factory)

    def forward(self, latents: Tensor, image_embeds: Tensor) -> list[Tensor]:
        """latents [R, 4, h, w] (clean, scaled), image_embeds [R, D] -> per block tokens [R, T, C].

        The tokens are taken after norm1 and before any projection, at timestep 0.
        """
        zero = torch.zeros(1, device=latents.device)
        tokens: list[Tensor] = []
        time = self.embed_time(zero, latents.dtype)
        self.trunk(self.conv_in(latents), Conditions(time=time, image=image_embeds, tokens=tokens))
        return tokens

    def reads(self, name: str) -> bool:
        """Whether any token depends on the parameter `name`: on those behind the last norm1 none does."""
        stage = max(i for i, block in enumerate(self.up_blocks) if hasattr(block, "attentions"))
        attention = f"up_blocks.{stage}.attentions.{len(self.up_blocks[stage].attentions) - 1}."
        block = f"{attention}transformer_blocks.0."
        if name.startswith(block):
            return name.startswith(f"{block}norm1.")
        later = [f"up_blocks.{i}." for i in range(stage + 1, len(self.up_blocks))]
        return not name.startswith((f"{attention}proj_out.", f"up_blocks.{stage}.upsamplers.", *later))


class DenoisingUNet(UNet):
    """Predicts v for noisy latents, given scene, mask, pose and reference (paper eq. 2 and 3).

    Animate Anyone's takes neither scene nor mask, and that of its first configuration predicts the noise.
    """

    def __init__(self, cfg: UNetConfig, operations: Any = nn, **factory: Any):
        super().__init__(cfg, operations, **factory)
        width = cfg.block_out_channels[0]
        self.conv_norm_out = operations.GroupNorm(cfg.norm_num_groups, width, eps=cfg.norm_eps, **factory)
        self.conv_out = operations.Conv2d(width, cfg.out_channels, 3, padding=1, **factory)

    def project_bank(self, tokens: Sequence[Tensor]) -> list[KeyValue]:
        """ReferenceNet tokens [R, T, C] per block -> keys and values, once for all frames and steps."""
        blocks = self.spatial_blocks()
        return [(b.attn1.to_k(x), b.attn1.to_v(x)) for b, x in zip(blocks, tokens, strict=True)]

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        image_embeds: Tensor,
        pose: Tensor,
        bank: Sequence[KeyValue] | None,
        frames: int = 1,
        plain_rows: int = 0,
        motion: bool = True,
    ) -> Tensor:
        """One denoising call on N = clips x frames rows, clip after clip.

        x [N, 9, h, w]: noisy latent 4 | scene latent 4 | mask 1, or [N, 4, h, w]: the noisy latent alone;
        t [N] or [1]: timestep; image_embeds [N, D] or [1, D] (zeros = unconditional); pose [N, C0, h, w]: pose
        guider features; bank: `project_bank`'s, or None; the first `plain_rows` rows ignore the bank, as
        unconditional rows must; without `motion` the frames are independent of each other, as in the frame-wise
        training phases (A.2). Returns the prediction [N, 4, h, w]. Raises UserError when a clip is longer than the
        motion modules' positional encoding.
        """
        positions = self.cfg.motion.max_len if self.cfg.motion else frames
        if frames > positions:
            raise UserError(
                f"A window of {frames} frames is longer than the {positions} positions of the motion "
                f"modules; use windows of at most {positions} frames."
            )
        cond = Conditions(
            time=self.embed_time(t, x.dtype),
            image=image_embeds,
            frames=frames if motion else 1,
            bank=iter(bank) if bank is not None else None,
            plain_rows=plain_rows,
            motion=motion,
        )
        h = self.trunk(self.conv_in(x) + pose, cond)
        h = normalised(h, self.conv_norm_out, cond.frames if self.cfg.joint_norm else 1)
        return self.conv_out(F.silu(h))


class PoseGuider(nn.Module):
    """A few convolutions that bring skeleton pictures to latent resolution (section 3.2)."""

    def __init__(self, cfg: PoseGuiderConfig, operations: Any = nn, **factory: Any):
        super().__init__()
        widths = cfg.block_out_channels
        conv = operations.Conv2d
        self.conv_in = conv(cfg.conditioning_channels, widths[0], 3, padding=1, **factory)
        self.blocks = nn.ModuleList()
        for c_in, c_out in pairwise(widths):
            self.blocks.append(conv(c_in, c_in, 3, padding=1, **factory))
            self.blocks.append(conv(c_in, c_out, 3, padding=1, stride=2, **factory))
        self.conv_out = conv(widths[-1], cfg.embedding_channels, 3, padding=1, **factory)

    def forward(self, pose: Tensor) -> Tensor:
        """pose [N, 3, H, W] in 0..1 -> features [N, C0, H / s, W / s], s = 2 per level."""
        x = F.silu(self.conv_in(pose))
        for block in self.blocks:
            x = F.silu(block(x))
        return self.conv_out(x)
