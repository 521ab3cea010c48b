"""What the networks are trained to do: eq. 2 (composition) and eq. 3 (self-boosting) of the paper."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from anycharv_core.checkpoint import Networks
from anycharv_core.imaging import clip_batch, latent_mask, to_unit
from anycharv_core.sampling import TRAIN_STEPS, add_noise


@dataclass(frozen=True)
class Objective:
    """`drop`: share of clips trained without reference, for guidance. `terminal`: share of clips at pure
    noise, where sampling starts. `outside`, `inside`: loss weights of the scene and of the masked area
    around the character, whose own weight is 1."""

    drop: float = 0.1
    terminal: float = 0.1
    outside: float = 0.1
    inside: float = 0.5


def encode(vae: torch.nn.Module, unit: Tensor) -> Tensor:
    """Pictures float [N, 3, H, W] in 0..1 -> scaled mean latents [N, c, h, w], without gradient."""
    with torch.no_grad():
        return vae.encode(unit * 2 - 1).latent_dist.mean.float() * vae.config.scaling_factor


def decode(vae: torch.nn.Module, latents: Tensor) -> Tensor:
    """Scaled latents [N, c, h, w] -> pictures float [N, 3, H, W] in 0..1, without gradient."""
    with torch.no_grad():
        return (vae.decode(latents / vae.config.scaling_factor).sample.float() / 2 + 0.5).clamp(0, 1)


@dataclass(frozen=True)
class Example:
    """A batch of B clips as the networks take it, N = B x F rows; nothing in it needs a gradient.

    latents, scene: [N, c, h, w]; mask, character: [N, 1, h, w] in 0..1; pose: uint8 [N, H, W, 3];
    reference: latents [B, c, h, w]; clip_pixels: CLIP's input [B, 3, S, S]; frames = F.
    """

    latents: Tensor
    scene: Tensor
    mask: Tensor
    character: Tensor
    pose: Tensor
    reference: Tensor
    clip_pixels: Tensor
    frames: int


def prepare(
    nets: Networks, batch: dict[str, Tensor], scene: Tensor | None = None, reference: str = "reference"
) -> Example:
    """Encodes a batch of PuppetClips (training/data.py).

    scene: latents [B, F, c, h, w] of the generated driving clip (eq. 3), or None for the batch's own
    frames with the mask cut out, black (eq. 2). `reference` names the batch's picture to read.
    """
    frames = batch["frames"].shape[1]
    unit = to_unit(batch["frames"].flatten(0, 1))
    masks = batch["mask"].flatten(0, 1)
    latents = encode(nets.vae, unit)
    size = latents.shape[-2:]
    own = encode(nets.vae, unit * (masks < 128)[:, None]) if scene is None else scene.flatten(0, 1)
    picture = to_unit(batch[reference])
    character = batch["character"].flatten(0, 1)[:, None].float() / 255
    return Example(
        latents=latents,
        scene=own,
        mask=latent_mask(masks, size),
        character=F.adaptive_max_pool2d(character, size),
        pose=batch["pose"].flatten(0, 1),
        reference=encode(nets.vae, picture),
        clip_pixels=clip_batch(picture, nets.image_encoder.config.image_size),
        frames=frames,
    )


def read_reference(nets: Networks, example: Example) -> tuple[list[Tensor], Tensor]:
    """ReferenceNet tokens per block and image embeddings [B, D]."""
    embeds = nets.image_encoder(example.clip_pixels).image_embeds
    return nets.reference_unet(example.reference, embeds), embeds


def loss(
    nets: Networks, example: Example, cfg: Objective, motion: bool, generator: torch.Generator
) -> dict[str, Tensor]:
    """Weighted v-prediction error (eq. 2 or 3, after the example's scene); frame-wise without `motion`."""
    target, frames = example.latents, example.frames
    clips = len(target) // frames
    t = torch.randint(TRAIN_STEPS, (clips,), generator=generator, device=target.device)
    t[torch.rand(clips, generator=generator, device=t.device) < cfg.terminal] = TRAIN_STEPS - 1
    t = t.repeat_interleave(frames)
    noise = torch.randn(target.shape, generator=generator, device=target.device)
    noisy, v = add_noise(target, noise, t)

    tokens, embeds = read_reference(nets, example)
    # The first clips of a batch are as random as any others, and their rows are one slice.
    dropped = int((torch.rand(clips, generator=generator, device=t.device) < cfg.drop).sum())
    embeds = torch.cat([torch.zeros_like(embeds[:dropped]), embeds[dropped:]])
    prediction = nets.denoising_unet(
        torch.cat([noisy, example.scene, example.mask], dim=1),
        t,
        embeds.repeat_interleave(frames, dim=0),
        nets.pose_guider(to_unit(example.pose)),
        nets.denoising_unet.project_bank([x[dropped:] for x in tokens]),
        frames=frames,
        plain_rows=dropped * frames,
        motion=motion,
    )
    inside = cfg.outside + (cfg.inside - cfg.outside) * (example.mask > 0)
    weight = torch.maximum(example.character, inside)
    error = (prediction.float() - v).square()
    return {
        "loss": (error * weight).mean() / weight.mean(),
        "character": (error * example.character).mean() / example.character.mean().clamp_min(1e-3),
    }
