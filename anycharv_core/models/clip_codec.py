"""A small autoencoder of clips, a PatchCodec in space-time, with the interface of AutoencoderKLCogVideoX."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from .fields import Fields
from .patch_codec import fit_linear, refining_layers
from .slots import COMPRESSION


@dataclass(frozen=True)
class ClipCodecConfig:
    """As a `PatchCodecConfig`, and the names by which others ask an AutoencoderKLCogVideoX."""

    latent_channels: int
    block_out_channels: tuple[int, ...]
    scaling_factor: float = 1.0
    temporal_compression_ratio: int = COMPRESSION
    invert_scale_latents: bool = False


class ClipCodec(nn.Module):
    """Every f x f patch of four frames becomes one latent pixel: its leading principal components.

    A first frame alone, which a clip of 4k + 1 frames has, is taken four times. Frames and latents are those of
    CogVideoX's VAE: an odd number of latents gives back one frame of the first. The decoder adds to the linear
    inverse, frame by frame, what a few convolutions guess of the rest.
    """

    def __init__(self, config: ClipCodecConfig):
        super().__init__()
        self.config = config
        side = 2 ** (len(config.block_out_channels) - 1)
        patch = COMPRESSION, side, side
        self.analysis = nn.Conv3d(3, config.latent_channels, patch, stride=patch)
        self.synthesis = nn.ConvTranspose3d(config.latent_channels, 3, patch, stride=patch)
        widths = config.block_out_channels[::-1]
        self.spread = nn.Conv3d(config.latent_channels, COMPRESSION * widths[0], 3, padding=1)
        self.refinement = nn.Sequential(*refining_layers(widths))

    @classmethod
    def from_config(cls, config: Any) -> ClipCodec:
        """An untrained codec of this config. Raises UserError where a setting is missing or not of its kind."""
        given = Fields(config, "The ClipCodec's config.json")
        given.check_fixed({"temporal_compression_ratio": COMPRESSION, "invert_scale_latents": False})
        widths, scaling = given.wholes("block_out_channels"), given.number("scaling_factor", 1.0, above=0)
        return cls(ClipCodecConfig(given.whole("latent_channels"), widths, scaling))

    def encode(self, pixels: Tensor) -> SimpleNamespace:
        """pixels [B, 3, F, H, W] in -1..1, F = 4k or 4k + 1 -> an object whose `latent_dist` has `mean` and
        `mode()`, [B, c, T, H / f, W / f]."""
        mean = self.analysis(_in_fours(pixels))
        return SimpleNamespace(latent_dist=SimpleNamespace(mean=mean, mode=lambda: mean))

    def decode(self, latents: Tensor) -> SimpleNamespace:
        """latents [B, c, T, h, w] -> an object with `sample` [B, 3, F, f h, f w]; F = 4 T, for odd T 4 T - 3."""
        spread = rearrange(self.spread(latents), "b (a c) t h w -> (b t a) c h w", a=COMPRESSION)
        refined = self.refinement(spread).unflatten(0, (len(latents), -1)).movedim(1, 2)
        sample = self.synthesis(latents) + refined
        return SimpleNamespace(sample=sample[:, :, (latents.shape[2] % 2) * (COMPRESSION - 1) :])

    @torch.no_grad()
    def fit(self, pixels: Tensor, weight: Tensor) -> None:
        """Principal components of the patches of pixels [B, 3, F, H, W], each weighted by [B, 1, T, h, w], as
        `PatchCodec.fit` has them."""
        _, side, _ = self.analysis.stride
        pattern = "b c (t a) (h y) (w x) -> (b t h w) (c a y x)"
        patches = rearrange(_in_fours(pixels), pattern, a=COMPRESSION, y=side, x=side)
        fit_linear(self.analysis, self.synthesis, patches, weight)


def _in_fours(pixels: Tensor) -> Tensor:
    """Frames [B, 3, F, H, W] with the first, where it is one more than whole fours, four times."""
    if pixels.shape[2] % COMPRESSION == 0:
        return pixels
    return torch.cat([pixels[:, :, :1].expand(-1, -1, COMPRESSION - 1, -1, -1), pixels], dim=2)
