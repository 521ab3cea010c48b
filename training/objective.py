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


def read_reference(nets: Networks, pictures: Tensor) -> tuple[list[Tensor], Tensor]:
    """References uint8 [B, H, W, 3] -> (ReferenceNet tokens per block, image embeddings [B, D])."""
    unit = to_unit(pictures)
    embeds = nets.image_encoder(clip_batch(unit, nets.image_encoder.config.image_size)).image_embeds
    return nets.reference_unet(encode(nets.vae, unit), embeds), embeds


def scene_latents(vae: torch.nn.Module, frames: Tensor, mask: Tensor) -> Tensor:
    """Frames float [N, 3, H, W] in 0..1 with the masked area black -> latents (the scene of eq. 2)."""
    return encode(vae, frames * (mask < 128)[:, None])


def loss(
    nets: Networks, batch: dict[str, Tensor], scene: Tensor | None, cfg: Objective, generator: torch.Generator
) -> dict[str, Tensor]:
    """Weighted v-prediction error of one batch of clips (see training/data.py for its fields).

    scene: latents [B, F, c, h, w] of the generated driving clip (eq. 3), or None for the batch's own
    frames with the mask cut out (eq. 2).
    """
    clips, frames = batch["frames"].shape[:2]
    flat = {key: batch[key].flatten(0, 1) for key in ("frames", "pose", "character", "mask")}
    unit = to_unit(flat["frames"])
    target = encode(nets.vae, unit)
    scene = scene_latents(nets.vae, unit, flat["mask"]) if scene is None else scene.flatten(0, 1)
    mask = latent_mask(flat["mask"], target.shape[-2:])

    t = torch.randint(TRAIN_STEPS, (clips,), generator=generator, device=target.device)
    t[torch.rand(clips, generator=generator, device=t.device) < cfg.terminal] = TRAIN_STEPS - 1
    t = t.repeat_interleave(frames)
    noise = torch.randn(target.shape, generator=generator, device=target.device)
    noisy, v = add_noise(target, noise, t)

    tokens, embeds = read_reference(nets, batch["reference"])
    # The first clips of a batch are as random as any others, and their rows are one slice.
    dropped = round(cfg.drop * clips)
    embeds = torch.cat([torch.zeros_like(embeds[:dropped]), embeds[dropped:]])
    prediction = nets.denoising_unet(
        torch.cat([noisy, scene, mask], dim=1),
        t,
        embeds.repeat_interleave(frames, dim=0),
        nets.pose_guider(to_unit(flat["pose"])),
        nets.denoising_unet.project_bank([x[dropped:] for x in tokens]),
        frames=frames,
        plain_rows=dropped * frames,
    )
    character = F.adaptive_max_pool2d(flat["character"][:, None].float() / 255, target.shape[-2:])
    weight = torch.maximum(character, cfg.outside + (cfg.inside - cfg.outside) * (mask > 0))
    error = (prediction.float() - v).square()
    return {
        "loss": (error * weight).mean() / weight.mean(),
        "character": (error * character).mean() / character.mean().clamp_min(1e-3),
    }
