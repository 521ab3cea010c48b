"""AnimateAnywhere's networks in ComfyUI's hands."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import comfy.model_management
import numpy as np
import torch
from comfy.ldm.modules.attention import optimized_attention
from torch import Tensor

from ..anycharv_core.errors import UserError
from ..anycharv_core.inference.anywhere import clip_conditions, picture_scale
from ..anycharv_core.inference.encode import EncodedVideo
from ..anycharv_core.inference.latents import Latents
from ..anycharv_core.inference.plan import Prepared
from ..anycharv_core.inference.sampling import Sampled, Sampling
from ..anycharv_core.inference.shortcuts import NONE
from ..anycharv_core.media.imaging import to_levels
from ..anycharv_core.models.slots import FRAMES
from .anywhere import ClipConditions, NativeReferenceDiT
from .backend import ComfyBackend, check_vae
from .model import VIDEO, check_model
from .pictures import image_tensor
from .sampling import run_sampler


class ClipBackend:
    """The `Backend` of a MODEL, ReferenceNet and VAE of AnimateAnywhere, which ComfyUI loads and moves.

    Raises UserError where the VAE is not the model's.
    """

    def __init__(self, model: Any, net: Any, vae: Any):
        self.model, self.net, self.vae = model, net, vae
        self.multiple, self.latent_channels = check_vae(model, vae)
        self.settings, self.schedule = model.model.settings, model.model.schedule
        self.system = model.model.system
        self.extras: frozenset[str] = frozenset()
        self.device = comfy.model_management.intermediate_device()
        self._scale = picture_scale(self.settings, model.model.latent_format.scale_factor)

    def encode(self, pictures: np.ndarray) -> Tensor:
        return torch.cat([self.encode_clip(picture[None]) for picture in pictures])

    def encode_clip(self, frames: np.ndarray) -> Tensor:
        """Frames uint8 [F, H, W, 3] -> scaled mean latents float32 [T, c, h, w]."""
        comfy.model_management.throw_exception_if_processing_interrupted()
        latents: Tensor = self.model.model.process_latent_in(self.vae.encode(image_tensor(frames)).float())
        return latents[0].movedim(0, 1)

    def decode(self, latents: Tensor, rounded: bool = True, deep: bool = False) -> np.ndarray:
        comfy.model_management.throw_exception_if_processing_interrupted()
        decoded = self.vae.decode(self.model.model.process_latent_out(latents.movedim(0, 1)[None]))
        return to_levels(decoded[0], rounded, deep)

    def embed(self, picture: np.ndarray) -> Tensor:
        return torch.zeros(1, 0)

    def reference_tokens(self, latents: Tensor, image_embed: Tensor) -> list[Tensor]:
        comfy.model_management.load_models_gpu([self.net])
        network, device = self.net.model, self.net.load_device
        given = (latents, latents * self._scale, network.prompt)
        tokens = network(*(x.to(device, network.compute_dtype) for x in given), attention=optimized_attention)
        return [x.to(self.device) for x in tokens]

    def denoise(
        self,
        video: EncodedVideo,
        tokens: Sequence[Tensor],
        image_embed: Tensor,
        latents: Latents,
        how: Sampling,
    ) -> Sampled:
        if how.shortcuts != NONE:
            raise UserError(f"Fast modes of the core don't go with ComfyUI's {self.system.title}: leave them out.")
        noise = latents.whole().movedim(0, 1)[None]
        conditions = self._conditionings(video, tokens, tuple(noise.shape))
        sampled = run_sampler(self.model, *conditions, noise, how.steps, how.guidance_scale, None)
        latents.fill([self.model.model.process_latent_in(sampled)[0].movedim(0, 1)])
        return iter(())

    def conditioned(
        self, made: Prepared, tokens: Sequence[Tensor]
    ) -> tuple[list[Any], list[Any], tuple[int, ...]]:
        """Positive and negative CONDITIONING, and the shape of the latents."""
        count, channels, height, width = made.shape
        shape = 1, channels, count, height, width
        return *self._conditionings(made.video, tokens, shape), shape

    def _conditionings(
        self, video: EncodedVideo, tokens: Sequence[Tensor], shape: tuple[int, ...]
    ) -> tuple[list[Any], list[Any]]:
        pose, place = clip_conditions(self.encode_clip, video, shape[2], self._scale)
        text = self.model.model.prompt
        whole, nothing = (
            ClipConditions(self.system, shape, pose, place, tokens),
            ClipConditions(self.system, shape),
        )
        return [[text, {VIDEO: whole}]], [[text, {VIDEO: nothing}]]


def filled(poses: Tensor) -> Tensor:
    """Frames [F, H, W, C] with the last one repeated until slots of tokens are full."""
    missing = -len(poses) % FRAMES
    if not missing:
        return poses
    logging.warning(
        "AnyCharV: A clip has a multiple of %d frames; the last of the %d poses is repeated until there are %d.",
        FRAMES,
        len(poses),
        len(poses) + missing,
    )
    return torch.cat([poses, poses[-1:].repeat_interleave(missing, dim=0)])


def backend_of(model: Any, net: Any, vae: Any, clip_vision: Any = None) -> ComfyBackend | ClipBackend:
    """The backend for MODEL's system. Raises UserError as both do, and where the ReferenceNet is of another."""
    check_model(model, clips=True)
    clips = model.model.system.clips
    if isinstance(net.model, NativeReferenceDiT) != clips:
        raise UserError(
            "The reference's REFERENCE_NET is of another system than MODEL: wire both from the same AnyCharV "
            "Loader."
        )
    return ClipBackend(model, net, vae) if clips else ComfyBackend(model, net, vae, clip_vision)
