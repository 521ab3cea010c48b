"""The two phases that are the embedded model's own: the latents of its codec, and its decoder."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from anycharv_core.errors import UserError
from anycharv_core.media.imaging import to_unit
from anycharv_core.models import PatchCodec
from anycharv_core.models.clip_codec import ClipCodec
from training.data.samples import Samples, loader
from training.objective import Batch, clip_generator

Codec = PatchCodec | ClipCodec

NOISE = 0.3  # of the latents' root mean square, at most: what a sampler leaves behind
SCENE = 0.2  # weight of pixels outside the character
EDGES = 0.5  # weight of differences between neighbouring pixels


def check_codec(vae: nn.Module, phase: str) -> None:
    """Raises UserError where an autoencoder is none that the tasks "codec" and "decoder" train."""
    if not isinstance(vae, Codec):
        raise UserError(
            f"'phases.{phase}.task' is of the embedded models' own autoencoders, but this model has "
            f"{type(vae).__name__}: leave the phase out."
        )


def fit_codec(codec: Codec, data: Samples, clips: int, seed: int, workers: int) -> None:
    """Fits the latents to `clips` clips in closed form, patches of characters counting ten times those of
    scenes."""
    batch = next(iter(loader(data, seed, 0, clips, clips, workers=workers)))
    pixels, character = _as_read(codec, to_unit(batch["frames"].flatten(0, 1)) * 2 - 1, batch["character"])
    patch = codec.analysis.stride
    pool = torch.nn.functional.max_pool3d if len(patch) == 3 else torch.nn.functional.max_pool2d
    codec.fit(pixels, 0.1 + 0.9 * pool(character, patch))


def _as_read(codec: Codec, pixels: Tensor, character: Tensor) -> tuple[Tensor, Tensor]:
    """Pixels [B F, 3, H, W] and characters uint8 [B, F, H, W] as the codec takes pictures, [B F, c, H, W], or
    clips, [B, c, F, H, W], the characters in 0..1."""
    masks = character.float() / 255
    if isinstance(codec, ClipCodec):
        return pixels.unflatten(0, character.shape[:2]).movedim(2, 1), masks[:, None]
    return pixels, masks.flatten(0, 1)[:, None]


class DecoderTrainee(nn.Module):
    """The picture back from latents, clean or slightly noisy; only the refinement is trained."""

    def __init__(self, codec: Codec, seed: int, purpose: str):
        super().__init__()
        self.vae = codec.requires_grad_(False)
        codec.refinement.requires_grad_(True)
        if isinstance(codec, ClipCodec):
            codec.spread.requires_grad_(True)
        self.seed, self.purpose = seed, purpose

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Weighted L1 distance of pixels and of their differences, with noise of a random strength."""
        clips = len(batch["frames"])
        unit = to_unit(batch["frames"].flatten(0, 1)) * 2 - 1
        pixels, character = _as_read(self.vae, unit, batch["character"])
        with torch.no_grad():
            latents = self.vae.encode(pixels).latent_dist.mean.float()
        whole = isinstance(self.vae, ClipCodec)
        by_frame = latents.movedim(1, 2) if whole else latents.unflatten(0, (clips, -1))
        shape = by_frame.shape[1], by_frame.shape[2:]
        noise = torch.stack([self._noise(p, *shape) for p in batch["position"].tolist()])
        noise = noise.movedim(1, 2) if whole else noise.flatten(0, 1)
        error = self.vae.decode(latents + noise.to(latents)).sample.float() - pixels
        weight = (SCENE + (1 - SCENE) * character).unflatten(0, (clips, -1))
        weight = (weight / weight.mean(tuple(range(1, weight.ndim)), keepdim=True)).flatten(0, 1)
        inside = (error.abs() * weight).mean()
        across = (error.diff(dim=-1).abs() * weight[..., 1:]).mean()
        down = (error.diff(dim=-2).abs() * weight[..., 1:, :]).mean()
        return {"loss": inside + EDGES * (across + down), "pixels": inside}

    def _noise(self, position: int, frames: int, shape: torch.Size) -> Tensor:
        generator = clip_generator(self.seed, self.purpose, position)
        strength = NOISE * torch.rand(frames, 1, 1, 1, generator=generator)
        return strength * torch.randn(frames, *shape, generator=generator)
