"""What the codec's decoder is trained to do: the picture back from latents, clean or slightly noisy."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from anycharv_core.imaging import to_unit
from anycharv_core.models import PatchCodec

NOISE = 0.3  # of the latents' root mean square, at most: what a sampler leaves behind
SCENE = 0.2  # weight of pixels outside the character
EDGES = 0.5  # weight of differences between neighbouring pixels


@dataclass(frozen=True)
class Picture:
    """pixels [N, 3, H, W] in -1..1, latents [N, c, h, w], weight [N, 1, H, W]."""

    pixels: Tensor
    latents: Tensor
    weight: Tensor


def prepare(codec: PatchCodec, batch: dict[str, Tensor]) -> Picture:
    """Encodes a batch of PuppetClips (training/data.py)."""
    pixels = to_unit(batch["frames"].flatten(0, 1)) * 2 - 1
    character = batch["character"].flatten(0, 1)[:, None].float() / 255
    return Picture(pixels, codec.encode(pixels).latent_dist.mean, SCENE + (1 - SCENE) * character)


def loss(codec: PatchCodec, picture: Picture, generator: torch.Generator) -> dict[str, Tensor]:
    """Weighted L1 distance of pixels and of their differences, with noise of a random strength."""
    latents = picture.latents
    strength = NOISE * torch.rand(len(latents), 1, 1, 1, generator=generator, device=latents.device)
    noise = torch.randn(latents.shape, generator=generator, device=latents.device)
    error = codec.decode(latents + strength * noise).sample.float() - picture.pixels
    weight = picture.weight / picture.weight.mean()
    pixels = (error.abs() * weight).mean()
    across = (error.diff(dim=-1).abs() * weight[..., 1:]).mean()
    down = (error.diff(dim=-2).abs() * weight[..., 1:, :]).mean()
    return {"loss": pixels + EDGES * (across + down), "pixels": pixels}
