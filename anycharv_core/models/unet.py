"""The two UNets of AnyCharV (paper sections 3.1-3.3), of Animate Anyone and of Animate Anyone 2."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..errors import UserError
from .config import MID_UP, MotionConfig, UNetConfig
from .hooks import AttentionFunction, Half, Hooks
from .layers import (
    Conditions,
    Downsample,
    KeyValue,
    MotionModule,
    ResnetBlock,
    SpatialBlending,
    SpatialBlock,
    SpatialTransformer,
    TimestepEmbedding,
    Upsample,
    normalised,
    sdpa,
    timestep_embedding,
)


class Stage(nn.Module):
    """One resolution of the UNet: per layer a resnet, then spatial attention, then the blending of objects, then
    motion, or None where absent.

    With `checkpointing`, training keeps only the inputs of each of these and computes the rest again on the way
    back, one of them at a time. first_block: how many spatial blocks the network has before this stage's.
    """

    checkpointing = False

    def __init__(
        self,
        cfg: UNetConfig,
        widths: Sequence[tuple[int, int]],
        heads: int | None,
        first_block: int,
        motion: MotionConfig | None,
        operations: Any,
        **factory: Any,
    ):
        super().__init__()
        self.resnets = nn.ModuleList([ResnetBlock(i, o, cfg, operations, **factory) for i, o in widths])
        outs = [width for _, width in widths]
        self.attentions = self.motion_modules = None
        self.blendings: nn.ModuleList | None = None
        if heads is not None:
            blocks = [
                SpatialTransformer(first_block + index, width, heads, cfg, operations, **factory)
                for index, width in enumerate(outs)
            ]
            self.attentions = nn.ModuleList(blocks)
        if motion is not None:
            self.motion_modules = nn.ModuleList([MotionModule(o, motion, operations, **factory) for o in outs])

    def blend_objects(self, level: int, cfg: UNetConfig, operations: Any, **factory: Any) -> None:
        """Adds the blendings that the config asks for, one behind every spatial attention."""
        if cfg.object_blending is not None and self.attentions is not None:
            width = cfg.block_out_channels[level]
            blendings = [
                SpatialBlending(level, width, cfg.object_blending, operations, **factory) for _ in self.attentions
            ]
            self.blendings = nn.ModuleList(blendings)

    def spatial_transformers(self) -> list[SpatialTransformer]:
        """In the order of the layers; none where the stage has no attention."""
        return [cast(SpatialTransformer, each) for each in self.attentions or ()]

    def layer(self, index: int, x: Tensor, cond: Conditions) -> tuple[Tensor, list[Tensor]]:
        """x [N, C, h, w] -> the next x, and the tokens of its spatial block."""
        x, tokens = self._run(self.resnets[index], x, cond), []
        if self.attentions is not None:
            x, tokens = self._run(self.attentions[index], x, cond)
        if self.blendings is not None:
            x = self._run(self.blendings[index], x, cond)
        if self.motion_modules is not None and cond.motion:
            x = self._run(self.motion_modules[index], x, cond)
        return x, tokens

    def _run(self, block: nn.Module, x: Tensor, cond: Conditions) -> Any:
        if self.checkpointing and torch.is_grad_enabled():
            return checkpoint(block, x, cond, use_reentrant=False, preserve_rng_state=False)
        return block(x, cond)


class DownStage(Stage):
    def __init__(
        self,
        cfg: UNetConfig,
        widths: Sequence[tuple[int, int]],
        heads: int | None,
        first_block: int,
        motion: MotionConfig | None,
        last: bool,
        operations: Any,
        **factory: Any,
    ):
        super().__init__(cfg, widths, heads, first_block, motion, operations, **factory)
        # A list of one, for the weights' names.
        down = [] if last else [Downsample(widths[-1][1], operations, **factory)]
        self.downsamplers = nn.ModuleList(down) if down else None

    @property
    def blocks(self) -> range:
        """The indices of its blocks: the layers, and the downsampler if it has one."""
        return range(len(self.resnets) + (self.downsamplers is not None))

    def forward(self, index: int, x: Tensor, cond: Conditions, skips: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """x [N, C, h, w] -> what block `index` makes of it, which joins the skips to the way up, too, and the
        tokens of its spatial block."""
        _begin("input", cond)
        if index < len(self.resnets):
            x, tokens = self.layer(index, x, cond)
        else:
            x, tokens = cast(nn.ModuleList, self.downsamplers)[0](x), []
        return _keep(x, cond, skips), tokens


class UpStage(Stage):
    def __init__(
        self,
        cfg: UNetConfig,
        widths: Sequence[tuple[int, int]],
        heads: int | None,
        first_block: int,
        motion: MotionConfig | None,
        level: int,
        operations: Any,
        **factory: Any,
    ):
        super().__init__(cfg, widths, heads, first_block, motion, operations, **factory)
        self.blend_objects(level, cfg, operations, **factory)
        up = [Upsample(widths[-1][1], operations, **factory)] if level else []
        self.upsamplers = nn.ModuleList(up) if up else None

    @property
    def blocks(self) -> range:
        """The indices of its blocks: the layers, of which the last has the upsampler, too."""
        return range(len(self.resnets))

    def forward(self, index: int, x: Tensor, cond: Conditions, skips: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """x [N, C, h, w] -> what block `index` makes of it, and the tokens of its spatial block.

        It takes its skip off the end of the list, so that the memory is free once it is read.
        """
        _begin("output", cond)
        x, tokens = self.layer(index, _joined(x, cond, skips), cond)
        if index == self.blocks[-1] and self.upsamplers is not None:
            x = self.upsamplers[0](x, skips[-1].shape[-2:])
        return x, tokens


class MidStage(Stage):
    """resnet, attention, blending, motion, resnet."""

    def __init__(
        self,
        cfg: UNetConfig,
        dim: int,
        heads: int,
        first_block: int,
        motion: MotionConfig | None,
        operations: Any,
        **factory: Any,
    ):
        super().__init__(cfg, [(dim, dim)], heads, first_block, motion, operations, **factory)
        self.blend_objects(len(cfg.block_out_channels) - 1, cfg, operations, **factory)
        self.resnets.append(ResnetBlock(dim, dim, cfg, operations, **factory))

    def forward(self, x: Tensor, cond: Conditions) -> tuple[Tensor, list[Tensor]]:
        _begin("middle", cond)
        x, tokens = self.layer(0, x, cond)
        x = self.resnets[1](x, cond)
        return x if cond.hooks is None else cond.hooks.middle(x, cond.time), tokens


def _begin(half: Half, cond: Conditions) -> None:
    if cond.hooks is not None:
        cond.hooks.block(half)


def _keep(x: Tensor, cond: Conditions, skips: list[Tensor]) -> Tensor:
    """Adds what an input block gave to the skips; returns what the next one gets."""
    x, skip = (x, x) if cond.hooks is None else cond.hooks.input(x)
    skips.append(skip)
    return x


def _joined(x: Tensor, cond: Conditions, skips: list[Tensor]) -> Tensor:
    """x with the last of the skips, which is taken off."""
    skip = skips.pop()
    if cond.hooks is not None:
        x, skip = cond.hooks.output(x, skip)
    return torch.cat([x, skip], dim=1)


class UNet(nn.Module):
    """The trunk both networks share: SD1.5's UNet, with motion modules where `cfg.motion` asks for them."""

    def __init__(self, cfg: UNetConfig, operations: Any = nn, **factory: Any):
        super().__init__()
        self.cfg = cfg
        widths, layers, heads = cfg.block_out_channels, cfg.layers_per_block, cfg.heads
        motion = cfg.motion
        levels = range(len(widths))
        at = [motion if motion is not None and 2**i in motion.resolutions else None for i in levels]

        self.conv_in = operations.Conv2d(cfg.in_channels, widths[0], 3, padding=1, **factory)
        self.time_embedding = TimestepEmbedding(widths[0], 4 * widths[0], operations, **factory)

        self.down_blocks = nn.ModuleList()
        skips = [widths[0]]
        blocks = 0  # spatial ones so far
        for i in levels:
            last = i == levels[-1]
            pairs = [(skips[-1], widths[i])] + [(widths[i], widths[i])] * (layers - 1)
            skips += [widths[i]] * (layers if last else layers + 1)
            moves = None if motion is not None and motion.decoder_only else at[i]
            attends = heads[i] if cfg.down_attention[i] else None
            self.down_blocks.append(DownStage(cfg, pairs, attends, blocks, moves, last, operations, **factory))
            blocks += len(pairs) if attends else 0

        moves = motion if motion is not None and motion.mid_block else None
        self.mid_block = MidStage(cfg, widths[-1], heads[-1], blocks, moves, operations, **factory)
        blocks += 1

        self.up_blocks = nn.ModuleList()
        c_in = widths[-1]
        for i in reversed(levels):
            pairs = []
            for _ in range(layers + 1):
                pairs.append((c_in + skips.pop(), widths[i]))
                c_in = widths[i]
            attends = heads[i] if cfg.up_attention[levels[-1] - i] else None
            self.up_blocks.append(UpStage(cfg, pairs, attends, blocks, at[i], i, operations, **factory))
            blocks += len(pairs) if attends else 0

    def set_checkpointing(self, on: bool) -> None:
        """Trades a third more arithmetic in training for the memory of the activations inside blocks."""
        for stage in self.stages():
            stage.checkpointing = on

    def stages(self) -> list[Stage]:
        """The stages in the order in which they run."""
        return [cast(Stage, stage) for stage in (*self.down_blocks, self.mid_block, *self.up_blocks)]

    def spatial_blocks(self) -> list[SpatialBlock]:
        """The transformer blocks by their `index`, the order of the bank."""
        return [attention.block for stage in self.stages() for attention in stage.spatial_transformers()]

    def blendings(self) -> list[SpatialBlending]:
        """In the order in which they run."""
        return [cast(SpatialBlending, each) for stage in self.stages() for each in stage.blendings or ()]

    def idle_modules(self) -> list[nn.Module]:
        """Modules whose weights no output depends on, so that training gives them no gradient.

        Attention over the single image token needs neither queries nor keys.
        """
        return [m for b in self.spatial_blocks() for m in (b.norm2, b.attn2.to_q, b.attn2.to_k)]

    def project_image(self, image_embeds: Tensor) -> list[Tensor]:
        """Image embeddings [R, D] -> what each spatial block's cross-attention adds, [R, C]."""
        return [block.attn2.of_one_token(image_embeds) for block in self.spatial_blocks()]

    def embed_time(self, t: Tensor, dtype: torch.dtype) -> Tensor:
        cfg = self.cfg
        wave = timestep_embedding(t, cfg.block_out_channels[0], cfg.flip_sin_to_cos, cfg.freq_shift)
        return self.time_embedding(wave.to(dtype))

    def trunk(
        self, x: Tensor, cond: Conditions, shallow: int = 0, deep: Tensor | None = None
    ) -> tuple[Tensor, list[Tensor], Tensor | None]:
        """x [N, C0, h, w] -> the same, the tokens of all spatial blocks where `cond.keep_tokens`, and what came
        before the last `shallow` output blocks, [N, C, h', w'], or None for 0 of them.

        deep: that of another call, whose place it takes; then only those output blocks are computed, and the input
        blocks that they have skips of (Ma et al., "DeepCache", section 3.2).
        """
        inputs = [(stage, index) for stage in cast(list[DownStage], self.down_blocks) for index in stage.blocks]
        outputs = [(stage, index) for stage in cast(list[UpStage], self.up_blocks) for index in stage.blocks]
        if deep is not None:
            inputs, outputs = inputs[: shallow - 1], outputs[-shallow:]
        skips: list[Tensor] = []
        tokens = []
        _begin("input", cond)
        x = _keep(x, cond, skips)
        for down, index in inputs:
            x, own = down(index, x, cond, skips)
            tokens += own
        if deep is None:
            x, own = self.mid_block(x, cond)
            tokens += own
        else:
            x = deep
        for up, index in outputs:
            if len(skips) == shallow:
                deep = x
            x, own = up(index, x, cond, skips)
            tokens += own
        return x, tokens, deep


class ReferenceNet(UNet):
    """Encodes the reference picture into the tokens that the denoising UNet attends to (section 3.2)."""

    def __init__(self, cfg: UNetConfig, operations: Any = nn, **factory: Any):
        if cfg.motion is not None or cfg.object_blending is not None:
            what = "motion modules" if cfg.motion is not None else "object blending"
            raise UserError(
                f"The reference_unet config has {what}: it is a denoising UNet's; give the ReferenceNet's."
            )
        super().__init__(cfg, operations, **factory)

    def forward(self, latents: Tensor, image_embeds: Tensor, attention: AttentionFunction = sdpa) -> list[Tensor]:
        """latents [R, 4, h, w] (clean, scaled), image_embeds [R, D] -> per block tokens [R, T, C].

        The tokens are taken after norm1 and before any projection, at timestep 0.
        """
        time = self.embed_time(torch.zeros(1, device=latents.device), latents.dtype)
        image = self.project_image(image_embeds)
        cond = Conditions(time, image, keep_tokens=True, attention=attention)
        return self.trunk(self.conv_in(latents), cond)[1]

    def idle_modules(self) -> list[nn.Module]:
        """As in any UNet, and what lies behind the last spatial block's norm1, where the last tokens are taken."""
        stages = self.stages()
        reading = max(index for index, stage in enumerate(stages) if stage.attentions is not None)
        stage = stages[reading]
        last = stage.spatial_transformers()[-1]
        block = last.block
        behind = [block.attn1, block.attn2, block.norm3, block.ff, last.proj_out, *stages[reading + 1 :]]
        if isinstance(stage, UpStage):
            behind += stage.upsamplers or ()
        elif isinstance(stage, MidStage):
            behind.append(stage.resnets[1])
        return [*super().idle_modules(), *behind]


class DenoisingUNet(UNet):
    """Predicts v for noisy latents, given scene, mask, pose and reference (paper eq. 2 and 3).

    Animate Anyone's takes neither scene nor mask, and that of its first configuration predicts the noise. Animate
    Anyone 2's reads the reference in the middle and on the way up alone, and objects too.
    """

    def __init__(self, cfg: UNetConfig, operations: Any = nn, **factory: Any):
        super().__init__(cfg, operations, **factory)
        width = cfg.block_out_channels[0]
        self.conv_norm_out = operations.GroupNorm(cfg.norm_num_groups, width, eps=cfg.norm_eps, **factory)
        self.conv_out = operations.Conv2d(width, cfg.out_channels, 3, padding=1, **factory)

    def reading_blocks(self) -> list[SpatialBlock]:
        """The spatial blocks that read the reference."""
        blocks = self.spatial_blocks()
        if self.cfg.reference_blocks != MID_UP:
            return blocks
        return blocks[sum(len(stage.spatial_transformers()) for stage in cast(list[Stage], self.down_blocks)) :]

    def project_bank(self, tokens: Sequence[Tensor]) -> list[KeyValue]:
        """ReferenceNet tokens [R, T, C] per block -> keys and values of those that are read, once for all frames
        and steps."""
        blocks = self.reading_blocks()
        return [(b.attn1.to_k(tokens[b.index]), b.attn1.to_v(tokens[b.index])) for b in blocks]

    def forward(self, *call: Any, **settings: Any) -> Tensor:
        """The prediction that `denoise` makes."""
        return self.denoise(*call, **settings)[0]

    def denoise(
        self,
        x: Tensor,
        t: Tensor,
        image_embeds: Tensor | Sequence[Tensor],
        pose: Tensor,
        bank: Sequence[KeyValue] | None,
        frames: int = 1,
        plain_rows: int = 0,
        motion: bool = True,
        attention: AttentionFunction = sdpa,
        hooks: Hooks | None = None,
        objects: Sequence[Tensor] | None = None,
        holds: Tensor | None = None,
        shallow: int = 0,
        deep: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """One denoising call on N = videos x frames rows, video after video.

        x [N, 9, h, w]: noisy latent 4 | scene latent 4 | mask 1, or [N, 4, h, w]: the noisy latent alone;
        t [N] or [1]: timestep; image_embeds [R, D] (zeros = unconditional), or what `project_image` made of them,
        once for all steps; pose [N, C0, h, w]: pose guider features; bank: what `project_bank` made of the
        ReferenceNet's tokens, or None; of R rows each serves N / R consecutive ones. The first `plain_rows` rows
        ignore the bank, as unconditional rows must; without `motion` the frames are independent of each other, as
        in the frame-wise training phases (A.2). attention: what all spatial and temporal self-attention calls,
        but for what `hooks`, called at the blocks, put in its place. objects: what the object guider made of each
        row's object; holds [N, 1, 1, 1]: 1 where the row has one, else 0. shallow, deep: see `trunk`. Returns the
        prediction [N, 4, h, w] and the deep features. Raises UserError when `frames` is more than the motion
        modules have positions for.
        """
        positions = self.cfg.motion.max_len if self.cfg.motion else frames
        if frames > positions:
            raise UserError(
                f"A window of {frames} frames is longer than the {positions} positions of the motion "
                f"modules; use windows of at most {positions} frames."
            )
        time = self.embed_time(t, x.dtype)
        cond = Conditions(
            time=time if hooks is None else hooks.time(time),
            image=self.project_image(image_embeds) if isinstance(image_embeds, Tensor) else image_embeds,
            frames=frames if motion else 1,
            bank=None if bank is None else [*[None] * (len(self.spatial_blocks()) - len(bank)), *bank],
            objects=None if objects is None or holds is None else (objects, holds),
            plain_rows=plain_rows,
            motion=motion,
            attention=attention,
            hooks=hooks,
        )
        h, _, deep = self.trunk(self.conv_in(x) + pose, cond, shallow, deep)
        h = normalised(h, self.conv_norm_out, cond.frames if self.cfg.joint_norm else 1)
        return self.conv_out(F.silu(h)), deep
