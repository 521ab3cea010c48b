"""Autoencoders of other sizes than SD1.5's as ComfyUI VAEs."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.sd
import torch
from torch import Tensor, nn


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


def _is_not_about_weights(record: logging.LogRecord) -> bool:
    return "No VAE weights detected" not in record.getMessage()


class ModuleVAE(comfy.sd.VAE):
    """A ComfyUI VAE around a module of anycharv_core, which ComfyUI could not build from weights alone."""

    memory_used_decode: Callable[[Any, torch.dtype], float]

    def __init__(self, module: Any):
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
        self.first_stage_model = _FirstStage(module)
        self.device = comfy.model_management.vae_device()
        self.vae_dtype = torch.float32
        self.output_device = comfy.model_management.intermediate_device()
        self.patcher = comfy.model_patcher.CoreModelPatcher(
            self.first_stage_model,
            load_device=self.device,
            offload_device=comfy.model_management.vae_offload_device(),
        )
        self.model_size()
