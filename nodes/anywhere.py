"""AnimateAnywhere's transformer as a ComfyUI MODEL, built from ComfyUI's operations: latents are 5D, of a clip."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import comfy.conds
import comfy.latent_formats
import comfy.supported_models_base
import torch
from comfy.ldm.modules.attention import optimized_attention
from torch import Tensor

from ..anycharv_core.errors import UserError
from ..anycharv_core.models.config import DiTConfig
from ..anycharv_core.models.dit import DiT, grid_of
from ..anycharv_core.models.dit_branches import ControlDiT, ReferenceDiT
from ..anycharv_core.models.dit_layers import MotionLearner, rope_of
from ..anycharv_core.models.layers import KeyValue
from ..anycharv_core.models.schedule import NoiseSchedule
from ..anycharv_core.models.slots import COMPRESSION
from ..anycharv_core.systems import System
from ..anycharv_core.systems.anywhere import ANYWHERE
from .model import RUN, CalledByComfy, NativeModel, Run, sampling_settings


@dataclass(frozen=True, eq=False)
class ClipConditions:
    """What AnyCharV Conditioning hands to the model, beside the text; of the negative, only system and shape.

    shape: of the latents, (1, c, T, h, w); pose, place: what ControlNet and transformer see of skeletons and
    background, [T, c, h, w]; tokens: the ReferenceNet's, [1, rows, columns, D] per block.
    """

    system: System
    shape: tuple[int, ...]
    pose: Tensor | None = None
    place: Tensor | None = None
    tokens: Sequence[Tensor] = ()


class NativeDiT(CalledByComfy, DiT):
    """DiT with ControlNet and background motion learner inside."""

    def __init__(
        self,
        transformer: DiTConfig,
        blocks: int,
        rank: int | None,
        dtype: torch.dtype,
        device: torch.device,
        operations: Any,
    ):
        """blocks: of the ControlNet; rank: of the learner, None where the model has none."""
        super().__init__(transformer, operations, dtype=dtype, device=device)
        self.control = ControlDiT(transformer, blocks, operations, dtype=dtype, device=device)
        self.bml: MotionLearner | None = None
        if rank is not None:
            self.bml = MotionLearner(transformer, rank, operations, dtype=dtype, device=device)
        self.dtype = dtype

    def _predict(
        self,
        x: Tensor,
        timesteps: Tensor,
        context: Tensor,
        control: Any,
        options: dict[str, Any],
        *,
        clip: ClipConditions,
        pose: Tensor | None = None,
        place: Tensor | None = None,
        **_: Any,
    ) -> Tensor:
        """x [B, c, T, h, w]; context [B, n, text_dim]; pose, place [B, T, c, h, w], None without conditions.
        Returns the prediction [B, c, T, h, w]."""
        noisy = x.movedim(2, 1)
        rope = rope_of(self.cfg, grid_of(noisy), x.device)
        attention = partial(optimized_attention, transformer_options=options)
        bank: list[KeyValue] | None = None
        added: Iterable[Tensor] = ()
        if pose is not None:
            run: Run | None = options.get(RUN)
            bank = self.prepare(clip, noisy) if run is None else run.prepared(self, clip, noisy)
            drawn = torch.cat([noisy, pose], dim=2)
            added = self.control.features(drawn, timesteps, context, rope, attention)
        made: Tensor = self.trace(
            torch.cat([noisy, torch.zeros_like(noisy) if place is None else place], dim=2),
            timesteps,
            context,
            control=added,
            bank=bank,
            learner=self.bml,
            rope=rope,
            attention=attention,
        )[0]
        return made.movedim(1, 2)

    def prepare(self, clip: ClipConditions, like: Tensor) -> list[KeyValue]:
        """The bank, on the device and in the number format of `like`."""
        return self.project_bank([tokens.to(like.device, like.dtype) for tokens in clip.tokens], self.bml)


class NativeReferenceDiT(ReferenceDiT):
    """ReferenceDiT that knows the text it always reads, and the number format it computes in, which may not be
    that of its weights."""

    def __init__(
        self,
        cfg: DiTConfig,
        blocks: int,
        prompt: Tensor,
        dtype: torch.dtype,
        device: torch.device,
        operations: Any,
        compute_dtype: torch.dtype,
    ):
        super().__init__(cfg, blocks, operations, dtype=dtype, device=device)
        self.prompt, self.compute_dtype = prompt, compute_dtype


class AnywhereModel(NativeModel):
    """A model of AnimateAnywhere. prompt: the text that every clip has, [1, n, text_dim]."""

    system = ANYWHERE

    def __init__(self, config: AnywhereConfig, settings: dict[str, Any], device: torch.device, prompt: Tensor):
        super().__init__(config, settings, device, NativeDiT)
        self.prompt = prompt

    def extra_conds(self, **kwargs: Any) -> dict[str, Any]:
        """The negative has neither pose nor background nor bank: ComfyUI evaluates unlike conditions in turn, for
        which half the memory does."""
        clip: ClipConditions = self.checked(kwargs, kwargs["noise"].shape)
        given = {"pose": clip.pose, "place": clip.place}
        seen = {name: comfy.conds.CONDRegular(each[None]) for name, each in given.items() if each is not None}
        always = {"c_crossattn": comfy.conds.CONDRegular(kwargs["cross_attn"])}
        return seen | always | {"clip": comfy.conds.CONDConstant(clip)}

    def resize_cond_for_context_window(self, *_: Any, **__: Any) -> Any:
        raise UserError(
            f"{self.system.title} makes a whole clip at once: leave context windows out; for less memory make the "
            "clip shorter."
        )


class AnywhereConfig(comfy.supported_models_base.BASE):
    """What ComfyUI asks of a model's configuration; sizes come from the checkpoint."""

    unet_extra_config: dict[str, Any] = {}  # noqa: RUF012 (the base class's own style)
    memory_usage_factor = 1.0  # counted at 1360 x 768 and 48 frames: 3.5 GB beside the weights

    def __init__(
        self,
        transformer: DiTConfig,
        blocks: int,
        rank: int | None,
        schedule: NoiseSchedule,
        scaling_factor: float,
        ratio: int,
    ):
        super().__init__({"transformer": transformer, "blocks": blocks, "rank": rank})
        self.schedule = schedule
        self.sampling_settings = sampling_settings(schedule)
        self.latent_format = comfy.latent_formats.LatentFormat()
        self.latent_format.scale_factor = scaling_factor
        self.latent_format.latent_channels = transformer.out_channels
        self.latent_format.latent_dimensions = 3
        self.latent_format.spacial_downscale_ratio = ratio
        self.latent_format.temporal_downscale_ratio = COMPRESSION
