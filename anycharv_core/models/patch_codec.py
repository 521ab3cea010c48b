"""A small autoencoder with the interface of diffusers' AutoencoderKL: linear encoder, trained decoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .fields import Fields


@dataclass(frozen=True)
class PatchCodecConfig:
    """`block_out_channels`: widths of the decoder from the picture's resolution to the latents', each half
    the one before, as in an AutoencoderKL."""

    latent_channels: int
    block_out_channels: tuple[int, ...]
    scaling_factor: float = 1.0


class PatchCodec(nn.Module):
    """Every f x f patch of the picture becomes one latent pixel: its leading principal components.

    What the encoder of an AutoencoderKL must be trained for hours to keep of a small picture, this keeps
    after seconds; at 64 x 64 pixels characters are only a few latent pixels wide. The decoder adds to the
    linear inverse what a few convolutions guess of the rest, and of noise left in the latents.
    """

    def __init__(self, config: PatchCodecConfig):
        super().__init__()
        self.config = config
        side = 2 ** (len(config.block_out_channels) - 1)
        self.analysis = nn.Conv2d(3, config.latent_channels, side, stride=side)
        self.synthesis = nn.ConvTranspose2d(config.latent_channels, 3, side, stride=side)
        widths = config.block_out_channels[::-1]
        first = nn.Conv2d(config.latent_channels, widths[0], 3, padding=1)
        self.refinement = nn.Sequential(first, *refining_layers(widths))

    @classmethod
    def from_config(cls, config: Any) -> PatchCodec:
        """An untrained codec of this config. Raises UserError where a setting is missing or not of its kind."""
        given = Fields(config, "The PatchCodec's config.json")
        widths, scaling = given.wholes("block_out_channels"), given.number("scaling_factor", 1.0, above=0)
        return cls(PatchCodecConfig(given.whole("latent_channels"), widths, scaling))

    def encode(self, pixels: Tensor) -> SimpleNamespace:
        """pixels [N, 3, H, W] in -1..1 -> an object with `latent_dist.mean` [N, c, H / f, W / f]."""
        return SimpleNamespace(latent_dist=SimpleNamespace(mean=self.analysis(pixels)))

    def decode(self, latents: Tensor) -> SimpleNamespace:
        """latents [N, c, h, w] -> an object with `sample` [N, 3, f h, f w]."""
        return SimpleNamespace(sample=self.synthesis(latents) + self.refinement(latents))

    @torch.no_grad()
    def fit(self, pixels: Tensor, weight: Tensor) -> None:
        """Principal components of the patches of pixels [N, 3, H, W], each patch weighted by [N, 1, h, w].

        Each component is divided by the square root of its deviation: halfway between equal variances,
        which would make noise of detail, and equal pixel errors, which would drown it. The mean square
        of the latents is 1. The refinement is trained by the task "decoder", see training/codec.py.
        """
        side = self.analysis.stride[0]
        patches = F.unfold(pixels, side, stride=side).movedim(1, 2).flatten(0, 1)
        fit_linear(self.analysis, self.synthesis, patches, weight)


def fit_linear(
    analysis: nn.Conv2d | nn.Conv3d,
    synthesis: nn.ConvTranspose2d | nn.ConvTranspose3d,
    patches: Tensor,
    weight: Tensor,
) -> None:
    """Gives the two the principal components of patches [P, n], each weighted by one of the P values of `weight`,
    as `PatchCodec.fit` says."""
    patches = patches.double()
    share = weight.flatten()[:, None].double() / weight.sum()
    mean = (share * patches).sum(0)
    centred = patches - mean
    variance, axes = torch.linalg.eigh((share * centred).T @ centred)
    count = len(analysis.weight)
    axes, deviation = axes[:, -count:].flip(1), variance[-count:].flip(0).sqrt()
    gain = deviation.rsqrt() / deviation.mean().sqrt()
    forward = (axes * gain).T
    analysis.weight.copy_(forward.reshape(analysis.weight.shape))
    assert analysis.bias is not None and synthesis.bias is not None
    analysis.bias.copy_(-forward @ mean)
    synthesis.weight.copy_((axes / gain).T.reshape(synthesis.weight.shape))
    # The mean of a patch may differ from pixel to pixel, a bias may not.
    synthesis.bias.copy_(mean.reshape(3, -1).mean(1))


def refining_layers(widths: Sequence[int]) -> list[nn.Module]:
    """What makes a picture of features [N, widths[0], h, w], each further width at twice the resolution; black
    before training, whatever it is given."""
    layers: list[nn.Module] = []
    for width, finer in pairwise(widths):
        layers += [_Residual(width), nn.Conv2d(width, 4 * finer, 3, padding=1), nn.PixelShuffle(2)]
    last = nn.Conv2d(widths[-1], 3, 3, padding=1)
    for parameter in last.parameters():
        nn.init.zeros_(parameter)
    return [*layers, _Residual(widths[-1]), last]


class _Residual(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.silu(self.conv1(F.silu(x))))
