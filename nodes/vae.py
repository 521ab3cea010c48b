"""Autoencoders of other sizes than SD1.5's as ComfyUI VAEs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.sd
import torch
from torch import Tensor, nn

from ..anycharv_core.models.slots import COMPRESSION, FRAMES

ALIVE = 5  # of the outermost layers' results, at once: reckoned, not measured


class _FirstStage(nn.Module):
    """A module with diffusers' AutoencoderKL interface, with the one ComfyUI's VAE calls."""

    def __init__(self, module: Any):
        super().__init__()
        self.module = module

    def encode(self, pixels: Tensor) -> Tensor:
        mean: Tensor = self.module.encode(pixels).latent_dist.mean
        return mean

    def decode(self, latents: Tensor) -> Tensor:
        sample: Tensor = self.module.decode(latents).sample
        return sample


class _Clips(_FirstStage):
    """As `_FirstStage`, of clips [1, c, T, h, w], with what ComfyUI calls where memory is short: the module's own
    tiles, which cut pictures and never the time, in which a clip of 8k frames would not fit together again."""

    def encode_tiled(self, pixels: Tensor, **_: Any) -> Tensor:
        with self._tiled():
            return self.encode(pixels)

    def decode_tiled(self, latents: Tensor, **_: Any) -> Tensor:
        with self._tiled():
            return self.decode(latents)

    @contextmanager
    def _tiled(self) -> Iterator[None]:
        if not hasattr(self.module, "enable_tiling"):
            yield
            return
        self.module.enable_tiling()
        try:
            yield
        finally:
            self.module.disable_tiling()


def _is_not_about_weights(record: logging.LogRecord) -> bool:
    return "No VAE weights detected" not in record.getMessage()


class ModuleVAE(comfy.sd.VAE):
    """A ComfyUI VAE around a module of anycharv_core, which ComfyUI could not build from weights alone."""

    memory_used_decode: Callable[[Any, torch.dtype], float]

    def __init__(self, module: Any, stage: type[_FirstStage] = _FirstStage):
        # Without weights the base class sets its defaults, which is all this needs, and warns that it did no more.
        root = logging.getLogger()
        root.addFilter(_is_not_about_weights)
        try:
            super().__init__(sd={})
        finally:
            root.removeFilter(_is_not_about_weights)
        ratio = 2 ** (len(module.config.block_out_channels) - 1)
        self.latent_channels = module.config.latent_channels
        self.downscale_ratio = self.upscale_ratio = ratio
        decoded = self.memory_used_decode
        self.memory_used_decode = lambda shape, dtype: decoded(shape, dtype) * ratio**2 / 64
        self.first_stage_model = stage(module)
        self.device = comfy.model_management.vae_device()
        self.vae_dtype = torch.float32
        self.output_device = comfy.model_management.intermediate_device()
        self.patcher = comfy.model_patcher.CoreModelPatcher(
            self.first_stage_model,
            load_device=self.device,
            offload_device=comfy.model_management.vae_offload_device(),
        )
        self.model_size()


class ClipVAE(ModuleVAE):
    """A ComfyUI VAE around a module with the interface of diffusers' AutoencoderKLCogVideoX, which takes clips of
    4k or 4k + 1 frames. It moves eight frames at a time through its layers."""

    def __init__(self, module: Any):
        place = comfy.model_management.vae_device()
        dtype = comfy.model_management.vae_dtype(place, [torch.bfloat16, torch.float32])
        super().__init__(module.to(dtype), _Clips)
        self.vae_dtype = dtype
        self.latent_dim, self.handles_tiling = 3, True
        ratio, width = self.downscale_ratio, module.config.block_out_channels[0]
        self.downscale_ratio = (lambda frames: -(-frames // COMPRESSION), ratio, ratio)
        self.upscale_ratio = (_frames_of, ratio, ratio)

        def taken(frames: int, pixels: int, dtype: torch.dtype) -> float:
            alive = ALIVE * width * min(frames, FRAMES + 1) * pixels
            return alive * comfy.model_management.dtype_size(dtype)

        self.memory_used_encode = lambda shape, dtype: taken(shape[2], shape[3] * shape[4], dtype)
        self.memory_used_decode = lambda shape, dtype: taken(
            _frames_of(shape[2]), shape[3] * shape[4] * ratio**2, dtype
        )


def _frames_of(latents: int) -> int:
    """The frames that are decoded from so many latents of a clip."""
    return COMPRESSION * latents - latents % 2 * (COMPRESSION - 1)
