"""Self-boosting pairs (paper 3.3): clips in which the first-stage model has put another character.

A pair is a puppet clip and the latents of its generated twin. The clip is a function of its index, so
only the latents are stored, in shards that an interrupted run finds again.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from anycharv_core.checkpoint import Networks
from anycharv_core.files import atomic_path
from anycharv_core.imaging import to_unit
from anycharv_core.sampling import Windows, sample
from training.data import PuppetClips, loader
from training.loop import Batch, Unfinished
from training.objective import decode, encode, prepare, read_reference


@dataclass(frozen=True)
class PairSettings:
    """`clips` of `frames`, made `batch` at a time by DDIM with `steps` and `guidance`."""

    clips: int
    frames: int
    batch: int
    steps: int
    guidance: float


@torch.no_grad()
def replace_character(
    nets: Networks, batch: Batch, settings: PairSettings, generator: torch.Generator
) -> Tensor:
    """The batch's clips with the partner in the place of their character -> float [N, 3, H, W] in 0..1.

    Pixels outside the mask are the clip's own, as in the finished product.
    """
    example = prepare(nets, batch, reference="partner")
    clips, frames = batch["frames"].shape[:2]
    pose = nets.pose_guider(to_unit(example.pose)).repeat(2, 1, 1, 1)
    tokens, embeds = read_reference(nets, example)
    bank = nets.denoising_unet.project_bank(tokens)
    embeds = embeds.repeat_interleave(frames, dim=0)
    embeds = torch.cat([torch.zeros_like(embeds), embeds])

    def denoise(x: Tensor, t: int, _: object) -> Tensor:
        rows = torch.cat([x, example.scene, example.mask], dim=1).repeat(2, 1, 1, 1)
        at = torch.full((1,), t, device=x.device)
        v = nets.denoising_unet(rows, at, embeds, pose, bank, frames, plain_rows=len(x), motion=False).float()
        plain, guided = v.chunk(2)
        return plain + settings.guidance * (guided - plain)

    # One noise for all frames of a clip keeps the frame-wise model from flickering.
    noise = torch.randn(clips, *example.scene.shape[1:], generator=generator, device=example.scene.device)
    noise = noise.repeat_interleave(frames, dim=0)
    everything = Windows((tuple(range(len(noise))),), ((1.0,) * len(noise),))
    made = decode(nets.vae, sample(denoise, noise, settings.steps, everything))
    inside = (batch["mask"].flatten(0, 1) >= 128)[:, None]
    own = to_unit(batch["frames"].flatten(0, 1))
    return torch.where(inside, _vary_sharpness(made, clips, generator), own)


def _vary_sharpness(pictures: Tensor, clips: int, generator: torch.Generator) -> Tensor:
    """Blurs or sharpens each clip at random: real driving clips are not as soft as generated ones."""
    amount = torch.rand(clips, 1, 1, 1, generator=generator, device=pictures.device) * 2 - 0.8
    amount = amount.repeat_interleave(len(pictures) // clips, dim=0)
    soft = F.avg_pool2d(F.pad(pictures, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    return (pictures + amount * (pictures - soft)).clamp(0, 1)


def make_pairs(
    nets: Networks, size: int, seed: int, settings: PairSettings, folder: Path, workers: int, deadline: float
) -> None:
    """Fills `folder` with shards of latents float16 [clips, F, c, h, w]; those there already are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    data = PuppetClips(size, settings.frames, seed, "fine", partner=True)
    batches = -(-settings.clips // settings.batch)
    first = len(list(folder.glob("*.safetensors")))
    device = next(nets.vae.parameters()).device
    precision = torch.autocast("cuda", torch.bfloat16, enabled=device.type == "cuda")
    for number, batch in enumerate(loader(data, settings.batch, first, batches, workers), start=first):
        generator = torch.Generator(device).manual_seed(seed * 1_000_003 + number)
        batch = {key: value.to(device) for key, value in batch.items()}
        with precision:
            pictures = replace_character(nets, batch, settings, generator)
            latents = encode(nets.vae, pictures)
        latents = latents.half().cpu().contiguous().unflatten(0, batch["frames"].shape[:2])
        with atomic_path(folder / f"{number:05d}.safetensors") as tmp:
            save_file({"latents": latents}, tmp)
        if number % 20 == 0:
            print(f"{folder.name}: batch {number + 1} of {batches}", flush=True)
        if time.monotonic() > deadline:
            raise Unfinished(f"{folder.name}: stopped after batch {number + 1} of {batches}; run again.")


def pair_batches(
    data: PuppetClips, folder: Path, clips: int, first: int, last: int, workers: int
) -> Iterator[Batch]:
    """Batches of the clips that have a generated twin, over and over, with its latents as "scene"."""
    shards = [load_file(path)["latents"] for path in sorted(folder.glob("*.safetensors"))]
    latents = torch.cat(shards)
    rounds = len(latents) // clips
    while first < last:
        start = first % rounds
        stop = min(rounds, start + last - first)
        for number, batch in enumerate(loader(data, clips, start, stop, workers), start=start):
            yield batch | {"scene": latents[number * clips : (number + 1) * clips].float()}
        first += stop - start
