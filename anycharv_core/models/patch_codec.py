"""A linear autoencoder with the interface of diffusers' AutoencoderKL, fitted in closed form."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class PatchCodecConfig:
    """The length of `block_out_channels` says how often the picture is halved, as in an AutoencoderKL."""

    latent_channels: int
    block_out_channels: tuple[int, ...]
    scaling_factor: float = 1.0


class PatchCodec(nn.Module):
    """Every f x f patch of the picture becomes one latent pixel: its leading principal components.

    What an AutoencoderKL must be trained for hours to keep of a small picture, this keeps after seconds;
    at 64 x 64 pixels characters are only a few latent pixels wide.
    """

    def __init__(self, config: PatchCodecConfig):
        super().__init__()
        self.config = config
        side = 2 ** (len(config.block_out_channels) - 1)
        self.analysis = nn.Conv2d(3, config.latent_channels, side, stride=side)
        self.synthesis = nn.ConvTranspose2d(config.latent_channels, 3, side, stride=side)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> PatchCodec:
        keys = ("latent_channels", "block_out_channels", "scaling_factor")
        return cls(PatchCodecConfig(**{key: config[key] for key in keys if key in config}))

    def encode(self, pixels: Tensor) -> SimpleNamespace:
        """pixels [N, 3, H, W] in -1..1 -> an object with `latent_dist.mean` [N, c, H / f, W / f]."""
        return SimpleNamespace(latent_dist=SimpleNamespace(mean=self.analysis(pixels)))

    def decode(self, latents: Tensor) -> SimpleNamespace:
        """latents [N, c, h, w] -> an object with `sample` [N, 3, f h, f w]."""
        return SimpleNamespace(sample=self.synthesis(latents))

    @torch.no_grad()
    def fit(self, pixels: Tensor, weight: Tensor) -> None:
        """Principal components of the patches of pixels [N, 3, H, W], each patch weighted by [N, 1, h, w].

        Each component is divided by the square root of its deviation: halfway between equal variances,
        which would make noise of detail, and equal pixel errors, which would drown it. The mean square
        of the latents is 1.
        """
        side = self.analysis.stride[0]
        patches = nn.functional.unfold(pixels, side, stride=side).movedim(1, 2).flatten(0, 1).double()
        share = weight.flatten()[:, None].double() / weight.sum()
        mean = (share * patches).sum(0)
        centred = patches - mean
        variance, axes = torch.linalg.eigh((share * centred).T @ centred)
        count = self.config.latent_channels
        axes, deviation = axes[:, -count:].flip(1), variance[-count:].flip(0).sqrt()
        gain = deviation.rsqrt() / deviation.mean().sqrt()
        forward = (axes * gain).T
        self.analysis.weight.copy_(forward.reshape(self.analysis.weight.shape))
        self.analysis.bias.copy_(-forward @ mean)
        self.synthesis.weight.copy_((axes / gain).T.reshape(self.synthesis.weight.shape))
        # The mean of a patch may differ from pixel to pixel, a bias may not.
        self.synthesis.bias.copy_(mean.reshape(3, -1).mean(1))
