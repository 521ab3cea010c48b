"""What the networks are trained to do: eq. 2 (composition) and eq. 3 (self-boosting) of the paper.

A denoising UNet that takes no scene is trained as Animate Anyone is: the same without scene and mask.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from anycharv_core.checkpoints.networks import Networks
from anycharv_core.inference.encode import frames_at_a_time
from anycharv_core.media.imaging import clip_batch, latent_mask, to_unit
from anycharv_core.models.guidance import guide, is_guided
from anycharv_core.models.hooks import AttentionFunction
from anycharv_core.models.schedule import EPSILON, SAMPLE, TRAIN_STEPS, NoiseSchedule, add_noise, alphas_cumprod
from anycharv_core.systems import system_of
from training.config import Objective
from training.speed import attention_for

Batch = dict[str, Tensor]
"""Clips from training/data/, or their encodings from `encode_batch`; the first dimension counts clips."""


def encode(vae: Any, unit: Tensor) -> Tensor:
    """Pictures float [N, 3, H, W] in 0..1 -> scaled mean latents [N, c, h, w], without gradient.

    A few pictures at a time (`encode.frames_at_a_time`), because the VAE takes gigabytes for a clip of large ones.
    """
    batches = unit.split(frames_at_a_time((unit.shape[3], unit.shape[2])))
    with torch.no_grad():
        means = [vae.encode(pictures * 2 - 1).latent_dist.mean.float() for pictures in batches]
    return torch.cat(means) * vae.config.scaling_factor


def decode(vae: Any, latents: Tensor) -> Tensor:
    """Scaled latents [N, c, h, w] -> pictures float [N, 3, H, W] in 0..1, as many at a time, without gradient."""
    ratio = 2 ** (len(vae.config.block_out_channels) - 1)
    batches = latents.split(frames_at_a_time((ratio * latents.shape[3], ratio * latents.shape[2])))
    with torch.no_grad():
        made = [vae.decode(batch / vae.config.scaling_factor).sample.float() for batch in batches]
    return (torch.cat(made) / 2 + 0.5).clamp(0, 1)


def encode_batch(nets: Networks, batch: Batch, object_input: bool = False) -> Batch:
    """Clips as the networks take them.

    The batch of B clips (uint8, see training/data/) becomes float latents and scene [B, F, c, h, w]; mask
    and character [B, F, 1, h, w] in 0..1; reference [B, c, h, w]; picture uint8 [B, H, W, 3], which CLIP
    sees, or `embeds` [B, D] where the image encoder is frozen; pose uint8 [B, F, H, W, 3]. The scene is the
    batch's own, a generated driving video (eq. 3), or else its frames with the mask cut out, black (eq. 2); there
    is none for a network that takes none. Animate Anyone 2's sees nothing of either inside the mask. Of objects
    there are objects [B, F, c, h, w], and holds [B, F], 1 where a frame has one; without an object guider, or with
    object_input, they are a part of the scene outside the mask instead (Animate Anyone 2, Table 4). depth, where
    the batch has it, stays uint8 [B, F, H, W]. order, likewise, is [B, F, 1, h, w] in 0..1.
    """
    clips, frames = batch["frames"].shape[:2]
    unit = to_unit(batch["frames"].flatten(0, 1))
    masks = batch["mask"].flatten(0, 1)
    held = batch["objects"].flatten(0, 1) > 127 if "objects" in batch else None
    object_input = object_input or nets.object_guider is None
    if held is not None and object_input:
        masks = masks * ~held
    latents = encode(nets.vae, unit)
    size = latents.shape[-2:]
    character = batch["character"].flatten(0, 1)[:, None].float() / 255
    picture = batch["reference"]
    seen = {"picture": picture}
    if not any(p.requires_grad for p in nets.image_encoder.parameters()):
        seen = {"embeds": embed(nets, picture)}
    by_clip = {
        "latents": latents,
        "mask": latent_mask(masks, size),
        "character": F.adaptive_max_pool2d(character, size),
    }
    if "order" in batch:
        order = to_unit(batch["order"].flatten(0, 1)[..., None])
        by_clip["order"] = F.adaptive_avg_pool2d(order, (size[0], size[1]))
    system = system_of(nets.denoising_unet.cfg)
    if system.reads_scene:
        outside = (masks < 128)[:, None]
        around = to_unit(batch["scene"].flatten(0, 1)) if "scene" in batch else unit * outside
        if held is not None and object_input:
            around = torch.where(held[:, None], unit, around)
        by_clip["scene"] = encode(nets.vae, around if system.blocks is None else around * outside)
    if held is not None and not object_input:
        by_clip["objects"] = encode(nets.vae, unit * held[:, None])
        by_clip["holds"] = held.flatten(1).any(dim=1).float()
    encoded = {name: rows.unflatten(0, (clips, frames)) for name, rows in by_clip.items()}
    drawn = {name: batch[name] for name in ("pose", "depth") if name in batch}
    return encoded | seen | {"reference": encode(nets.vae, to_unit(picture))} | drawn


def embed(nets: Networks, picture: Tensor) -> Tensor:
    """References uint8 [B, H, W, 3] -> image embeddings [B, D]."""
    trained = any(p.requires_grad for p in nets.image_encoder.parameters())
    with torch.set_grad_enabled(trained and torch.is_grad_enabled()):
        return nets.image_encoder(clip_batch(to_unit(picture), nets.image_encoder.config.image_size)).image_embeds


def read_reference(nets: Networks, encoded: Batch, attention: AttentionFunction) -> tuple[list[Tensor], Tensor]:
    """ReferenceNet tokens per block [B, T, C] and image embeddings [B, D]."""
    embeds = encoded["embeds"] if "embeds" in encoded else embed(nets, encoded["picture"])
    latents = encoded["reference"]
    return nets.reference_unet(latents, embeds, attention=attention), embeds


@dataclass(frozen=True)
class Draws:
    """What chance decides for B clips: timesteps int64 [B], noise [B, F, c, h, w], and who goes without
    reference, without objects and without depth, bool [B] each, on the CPU."""

    t: Tensor
    noise: Tensor
    dropped: Tensor
    emptied: Tensor
    flattened: Tensor


def clip_generator(seed: int, purpose: str, position: int) -> torch.Generator:
    """The CPU generator of the clip at `position` of the data; its numbers depend on nothing else."""
    words = np.random.SeedSequence([seed, zlib.crc32(purpose.encode()), position]).generate_state(2)
    return torch.Generator().manual_seed(int(words[0]) << 31 ^ int(words[1]))


def draw(cfg: Objective, generators: Sequence[torch.Generator], shape: torch.Size, device: torch.device) -> Draws:
    """Each clip's draws, in a fixed order whatever options are on; shape: [F, c, h, w] of one clip."""

    def one(generator: torch.Generator) -> tuple[int, Tensor, list[bool]]:
        step = int(torch.randint(TRAIN_STEPS, (), generator=generator))
        terminal, drop = torch.rand(2, generator=generator).tolist()
        own = torch.randn(shape, generator=generator)
        shared = torch.randn(1, shape[1], 1, 1, generator=generator)
        objects, depth = torch.rand(2, generator=generator).tolist()
        t = TRAIN_STEPS - 1 if terminal < cfg.terminal else step
        return (
            t,
            own + cfg.noise_offset * shared,
            [drop < cfg.drop, objects < cfg.drop_objects, depth < cfg.drop_depth],
        )

    # A card would wait for one thread to draw the noise of hundreds of clips.
    drawn = _drawers().map(one, generators) if device.type == "cuda" else map(one, generators)
    t, noise, without = zip(*drawn, strict=True)
    return Draws(torch.tensor(t, device=device), torch.stack(noise).to(device), *torch.tensor(without).unbind(1))


@lru_cache(maxsize=1)
def _drawers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor()


def loss(
    nets: Networks,
    encoded: Batch,
    draws: Draws,
    cfg: Objective,
    motion: bool,
    schedule: NoiseSchedule = NoiseSchedule(),
) -> dict[str, Tensor]:
    """Squared errors of each clip, float [B] (eq. 2 or 3, after the scene); frame-wise without `motion`.

    "loss" is weighted by `cfg` and divided by its clip's mean weight; "character" is the plain error there.
    """
    return solve(nets, *pose_problem(encoded, draws, cfg, schedule), cfg, motion, schedule)


def pose_problem(encoded: Batch, draws: Draws, cfg: Objective, schedule: NoiseSchedule) -> tuple[Batch, int]:
    """What the networks are shown of a batch and asked for, and how many of its clips, the first, go without their
    reference. Beside the encodings: `t` [B], `noisy` and `wanted` [B, F, c, h, w]."""
    # The network takes the clips without reference first.
    order = torch.argsort(draws.dropped, descending=True, stable=True).to(draws.t.device)
    plain = int(draws.dropped.sum())
    for name, gone in (("holds", draws.emptied), ("depth", draws.flattened)):
        if name in encoded and gone.any():
            value = encoded[name].clone()
            value[gone.to(value.device)] = 0
            encoded = encoded | {name: value}
    encoded = {name: value[order] for name, value in encoded.items()}
    t, noise = draws.t[order], draws.noise[order]
    noisy, wanted = add_noise(encoded["latents"].float(), noise, t, schedule)
    return encoded | {"t": t, "noisy": noisy, "wanted": wanted}, plain


def solve(
    nets: Networks, problem: Batch, plain: int, cfg: Objective, motion: bool, schedule: NoiseSchedule
) -> dict[str, Tensor]:
    """The errors [B], as `loss` gives them, of what `pose_problem` made."""
    prediction = predict(nets, shown(problem, cfg), problem["noisy"], problem["t"], plain, motion).float()
    return weighed(prediction, problem["wanted"], problem, problem["t"], cfg, schedule)


def shown(encoded: Batch, cfg: Objective) -> Batch:
    """What the networks see of a batch."""
    return encoded if cfg.mask_input else encoded | {"mask": torch.zeros_like(encoded["mask"])}


def weighed(
    prediction: Tensor, wanted: Tensor, encoded: Batch, t: Tensor, cfg: Objective, schedule: NoiseSchedule
) -> dict[str, Tensor]:
    """Squared errors [B] of predictions [B, F, c, h, w] at timesteps t [B], by name as `loss` gives them."""
    mask, character = encoded["mask"].float(), encoded["character"].float()
    inside = cfg.outside + (cfg.inside - cfg.outside) * (mask > 0)
    weight = torch.maximum(character, inside)
    if "order" in encoded:
        weight = weight + cfg.order * encoded["order"].float()
    error = (prediction - wanted).square()
    over = (1, 2, 3, 4)
    by_clip = (error * weight).mean(over) / weight.mean(over)
    return {
        "loss": by_clip * min_snr_weight(t, cfg.min_snr, schedule),
        "character": (error * character).mean(over) / character.mean(over).clamp_min(1e-3),
    }


def predict(
    nets: Networks,
    encoded: Batch,
    noisy: Tensor,
    t: Tensor,
    plain: int,
    motion: bool,
    attention: AttentionFunction | None = None,
) -> Tensor:
    """The prediction [B, F, c, h, w] for noisy latents of that shape at timesteps t [B]; the first `plain` clips
    are read without their reference. attention: None = the fastest."""
    return denoise(nets, read(nets, encoded, plain, attention), noisy, t, motion)


@dataclass(frozen=True)
class Read:
    """What the networks read of B clips of F frames before any timestep. scene [B F, c, h, w] and mask
    [B F, 1, h, w]; embeds [B, D]; the pose's features by frame; the bank of all but the first `plain` clips;
    nothing: a zero that the gradient goes through; held: what the denoising UNet is told of objects."""

    scene: Tensor | None
    mask: Tensor | None
    embeds: Tensor
    pose: Tensor
    bank: Any
    plain: int
    nothing: Tensor | int
    attention: AttentionFunction
    held: dict[str, Any]


def read(nets: Networks, encoded: Batch, plain: int, attention: AttentionFunction | None = None) -> Read:
    """The conditions of a batch, the first `plain` clips without their reference."""
    attention = attention or attention_for(encoded["reference"].device)
    tokens, embeds = read_reference(nets, encoded, attention)
    scene, mask = (encoded[name].flatten(0, 1) if name in encoded else None for name in ("scene", "mask"))
    return Read(
        scene,
        mask,
        torch.cat([torch.zeros_like(embeds[:plain]), embeds[plain:]]),
        _pose_features(nets, encoded, attention),
        nets.denoising_unet.project_bank([x[plain:] for x in tokens]),
        plain,
        # The sum of nothing: where processes share the weights of a ReferenceNet, the one whose videos all go
        # without it must still go back through it, or the others wait for it for ever.
        sum(token[:0].sum() for token in tokens),
        attention,
        _objects(nets, encoded),
    )


def denoise(nets: Networks, read: Read, noisy: Tensor, t: Tensor, motion: bool) -> Tensor:
    """The prediction for noisy latents [B, F, c, h, w] at timesteps t [B] under what was read of the clips."""
    clips, frames = noisy.shape[:2]
    rows = system_of(nets.denoising_unet.cfg).unet_input(noisy.flatten(0, 1), read.scene, read.mask)
    prediction = nets.denoising_unet(
        # On a CPU, GroupNorm's way back crashes on channels-last input that needs no gradient (torch 2.13).
        rows.contiguous(),
        t.repeat_interleave(frames),
        read.embeds.repeat_interleave(frames, dim=0),
        nets.pose_guider.of_videos(read.pose, frames if motion else 1),
        read.bank,
        frames=frames,
        plain_rows=read.plain * frames,
        motion=motion,
        attention=read.attention,
        **read.held,
    )
    return prediction.unflatten(0, (clips, frames)) + read.nothing


def guided(
    nets: Networks, encoded: Batch, guidance: float, motion: bool, attention: AttentionFunction | None = None
) -> Callable[[Tensor, Tensor], Tensor]:
    """(noisy [B, F, c, h, w], t [B]) -> the prediction with classifier-free guidance, float32. The batch is read
    here, once for all calls."""
    if not is_guided(guidance):
        alone = read(nets, encoded, 0, attention)
        return lambda noisy, t: denoise(nets, alone, noisy, t, motion).float()
    clips = len(encoded["latents"])
    twice = {name: value.repeat(2, *[1] * (value.ndim - 1)) for name, value in encoded.items()}
    both = read(nets, twice, clips, attention)
    return lambda noisy, t: guide(
        denoise(nets, both, torch.cat([noisy, noisy]), torch.cat([t, t]), motion).float(), guidance
    )


def _pose_features(nets: Networks, encoded: Batch, attention: AttentionFunction) -> Tensor:
    """What the pose guider makes of single frames' skeletons and depth, for `PoseGuider.of_videos` to finish."""
    pose = to_unit(encoded["pose"].flatten(0, 1)).contiguous()
    depth = encoded["depth"].flatten(0, 1)[:, None].to(pose) / 255 if "depth" in encoded else None
    return nets.pose_guider(pose, depth, None, attention)


def _objects(nets: Networks, encoded: Batch) -> dict[str, Any]:
    """The denoising UNet's arguments for a batch's objects.

    The guider runs even where there is none: processes that share its weights would wait for each other for ever.
    """
    if nets.object_guider is None:
        return {}
    frames = encoded["pose"].shape[1]
    if "objects" in encoded:
        rows, holds = encoded["objects"].flatten(0, 1), encoded["holds"].flatten()
    else:
        rows = torch.zeros_like(encoded["reference"]).repeat_interleave(frames, dim=0)
        holds = rows.new_zeros(len(rows))
    return {"objects": nets.object_guider(rows.contiguous()), "holds": holds.to(rows).reshape(-1, 1, 1, 1)}


def min_snr_weight(t: Tensor, gamma: float, schedule: NoiseSchedule = NoiseSchedule()) -> Tensor:
    """Hang et al.'s weight at timesteps t [B]: min(SNR, gamma) / SNR, for v min(SNR + 1, gamma) / (SNR + 1),
    for the clean latents min(SNR + 1, gamma).

    The other form in use for v, min(SNR, gamma) / (SNR + 1), is zero at the last timestep of a schedule of zero
    terminal SNR, so that a model would never learn the step at which sampling starts.
    """
    if not gamma:
        return torch.ones(len(t), device=t.device)
    signal = alphas_cumprod(schedule.zero_snr, schedule.scaled).to(t.device)[t].float()
    # SNR + 1 = 1 / (1 - signal power) for a schedule that keeps the variance.
    ratio = (signal if schedule.prediction == EPSILON else 1) / (1 - signal)
    return ratio.clamp_max(gamma) / (1 if schedule.prediction == SAMPLE else ratio)
