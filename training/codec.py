"""The two phases that are the embedded model's own: its PatchCodec's latents, and its decoder."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from anycharv_core.media.imaging import to_unit
from anycharv_core.models import PatchCodec
from training.data.samples import Samples, loader
from training.objective import Batch, clip_generator

NOISE = 0.3  # of the latents' root mean square, at most: what a sampler leaves behind
SCENE = 0.2  # weight of pixels outside the character
EDGES = 0.5  # weight of differences between neighbouring pixels


def fit_codec(codec: PatchCodec, data: Samples, clips: int, seed: int, workers: int) -> None:
    """Fits the latents to `clips` clips in closed form, patches of characters counting ten times those of
    scenes."""
    batch = next(iter(loader(data, seed, 0, clips, clips, workers=workers)))
    pixels = to_unit(batch["frames"].flatten(0, 1)) * 2 - 1
    character = batch["character"].flatten(0, 1)[:, None].float() / 255
    side = codec.analysis.stride[0]
    codec.fit(pixels, 0.1 + 0.9 * torch.nn.functional.max_pool2d(character, side))


class DecoderTrainee(nn.Module):
    """The picture back from latents, clean or slightly noisy; only the refinement is trained."""

    def __init__(self, codec: PatchCodec, seed: int, purpose: str):
        super().__init__()
        self.vae = codec.requires_grad_(False)
        codec.refinement.requires_grad_(True)
        self.seed, self.purpose = seed, purpose

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Weighted L1 distance of pixels and of their differences, with noise of a random strength."""
        clips, frames = batch["frames"].shape[:2]
        pixels = to_unit(batch["frames"].flatten(0, 1)) * 2 - 1
        with torch.no_grad():
            latents = self.vae.encode(pixels).latent_dist.mean.float()
        noise = torch.cat([self._noise(p, frames, latents.shape[1:]) for p in batch["position"].tolist()])
        error = self.vae.decode(latents + noise.to(latents)).sample.float() - pixels
        character = batch["character"].flatten(0, 1)[:, None].float() / 255
        weight = (SCENE + (1 - SCENE) * character).unflatten(0, (clips, frames))
        weight = (weight / weight.mean((1, 2, 3, 4), keepdim=True)).flatten(0, 1)
        inside = (error.abs() * weight).mean()
        across = (error.diff(dim=-1).abs() * weight[..., 1:]).mean()
        down = (error.diff(dim=-2).abs() * weight[..., 1:, :]).mean()
        return {"loss": inside + EDGES * (across + down), "pixels": inside}

    def _noise(self, position: int, frames: int, shape: torch.Size) -> Tensor:
        generator = clip_generator(self.seed, self.purpose, position)
        strength = NOISE * torch.rand(frames, 1, 1, 1, generator=generator)
        return strength * torch.randn(frames, *shape, generator=generator)
