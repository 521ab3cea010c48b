"""What AnimateAnywhere's networks are trained to do: equations 4 to 7 of the paper."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from anycharv_core.checkpoints.dit_networks import DiTNetworks
from anycharv_core.errors import UserError
from anycharv_core.media.cameras import Cameras, fundamental
from anycharv_core.media.imaging import to_unit
from anycharv_core.models.config import PATCH
from anycharv_core.models.dit import grid_of
from anycharv_core.models.dit_layers import MotionLearner
from anycharv_core.models.epipolar import background_tokens, epipolar_mask, seen_through, unwanted_attention
from anycharv_core.models.guidance import guide, is_guided
from anycharv_core.models.hooks import AttentionFunction
from anycharv_core.models.layers import KeyValue
from anycharv_core.models.schedule import NoiseSchedule
from anycharv_core.models.slots import layout
from anycharv_core.models.solvers import clean_latents
from training.config import Epipolar, Vgg
from training.objective import Batch
from training.perceptual import Perceptual
from training.speed import attention_for


def encode_clips(vae: Any, frames: Tensor) -> Tensor:
    """Clips uint8 [B, F, H, W, 3] -> mean latents [B, T, c, h, w], as they come, without gradient, one by one: the
    VAE takes gigabytes for each."""
    with torch.no_grad():
        means = [vae.encode(_pixels(clip)).latent_dist.mode().float() for clip in frames]
    return torch.cat(means).movedim(2, 1)


def decode_clips(vae: Any, latents: Tensor) -> Tensor:
    """Scaled latents [B, T, c, h, w] -> pictures float [B, F, 3, H, W] in -1..1, with gradient."""
    return vae.decode(latents.movedim(1, 2) / vae.config.scaling_factor).sample.float().movedim(1, 2)


def _pixels(clip: Tensor) -> Tensor:
    return (to_unit(clip) * 2 - 1).movedim(0, 1)[None]


def encode_batch(vae: Any, batch: Batch, image_scale: float, pictures: bool) -> Batch:
    """Clips as the networks take them.

    The batch of B clips (training/data/travel.py) becomes latents and pose [B, T, c, h, w]; picture, of the
    background, and reference, which is not scaled, [B, c, h, w]; free, uint8 [B, L], 1 for tokens in which the
    person never is; and its cameras, where it has some. pictures: whether frames and hands stay in it.
    Raises UserError for pictures that are no whole number of tokens.
    """
    frames = batch["frames"]
    height, width = frames.shape[2:4]
    unit = PATCH * 2 ** (len(vae.config.block_out_channels) - 1)
    if height % unit or width % unit:
        raise UserError(
            f"Clips of {width} x {height} pixels can't be cut into tokens of {unit}: give 'data.size', or the "
            f"shards' buckets, in multiples of {unit}."
        )
    latents = encode_clips(vae, frames)
    grid = grid_of(latents)
    slots = layout(frames.shape[1]).slots
    free = [background_tokens(mask > 0, slots, grid[1:]) for mask in batch["character"]]
    kept = ("cameras", "frames", "hands") if pictures else ("cameras",)
    return {
        "latents": latents * vae.config.scaling_factor,
        "pose": encode_clips(vae, batch["pose"]) * image_scale,
        "picture": encode_clips(vae, batch["background"][:, None])[:, 0] * image_scale,
        "reference": encode_clips(vae, batch["reference"][:, None])[:, 0],
        "free": torch.stack(free).byte(),
        **{name: batch[name] for name in kept if name in batch},
    }


@dataclass(frozen=True)
class Model:
    """The networks, and which of the transformer's companions a phase uses, by their names; the scales of
    latents."""

    nets: DiTNetworks
    used: Collection[str]
    scaling: float
    image_scale: float

    @property
    def learner(self) -> MotionLearner | None:
        return self.nets.bml if "bml" in self.used else None


@dataclass(frozen=True)
class Prediction:
    """What the schedule asks for, [B, T, c, h, w]; the inputs of some blocks, by their numbers; the bank that they
    read."""

    latents: Tensor
    hidden: dict[int, Tensor]
    bank: list[KeyValue] | None


def predict(
    model: Model,
    encoded: Batch,
    noisy: Tensor,
    t: Tensor,
    plain: int,
    blocks: Collection[int] = (),
    attention: AttentionFunction | None = None,
) -> Prediction:
    """The prediction for noisy latents [B, T, c, h, w] at timesteps t [B]; the first `plain` clips are read
    without reference, pose and background. attention: None = the fastest."""
    nets, text = model.nets, model.nets.prompt()
    attention = attention or attention_for(noisy.device)
    picture = F.pad(encoded["picture"][:, None], (0, 0, 0, 0, 0, 0, 0, noisy.shape[1] - 1))
    shown = (torch.arange(len(noisy), device=noisy.device) >= plain).to(picture).reshape(-1, 1, 1, 1, 1)
    # Where processes share weights, one whose clips all go without still runs what the others wait for.
    rows = slice(min(plain, len(noisy) - 1), None)
    nothing: Tensor | int = 0
    control: Sequence[Tensor] | Any = ()
    bank = None
    if "control" in model.used:
        drawn = torch.cat([noisy, encoded["pose"]], dim=2)[rows]
        control = nets.control.features(drawn, t[rows], text, attention=attention)
    if "reference" in model.used:
        own = encoded["reference"][rows]
        tokens = nets.reference(own * model.scaling, own * model.image_scale, text, attention)
        bank = nets.transformer.project_bank(tokens, model.learner)
    if plain == len(noisy):
        nothing = sum((each[:0].sum() for each in (*control, *(key for key, _ in bank or ()))), 0)
        control, bank = (), None
    latents, hidden = nets.transformer.trace(
        torch.cat([noisy, picture * shown], dim=2),
        t,
        text,
        control=control,
        bank=bank,
        learner=model.learner,
        plain_rows=plain,
        attention=attention,
        blocks=blocks,
    )
    return Prediction(latents + nothing, hidden, bank)


def guided(model: Model, encoded: Batch, guidance: float) -> Callable[[Tensor, Tensor], Tensor]:
    """(noisy [B, T, c, h, w], t [B]) -> the prediction with classifier-free guidance, float32."""
    if not is_guided(guidance):
        return lambda noisy, t: predict(model, encoded, noisy, t, 0).latents.float()
    clips = len(encoded["latents"])
    twice = {name: value.repeat(2, *[1] * (value.ndim - 1)) for name, value in encoded.items()}
    return lambda noisy, t: guide(
        predict(model, twice, torch.cat([noisy, noisy]), torch.cat([t, t]), clips).latents.float(), guidance
    )


def epipolar_loss(
    model: Model,
    made: Prediction,
    encoded: Batch,
    t: Tensor,
    plain: int,
    cfg: Epipolar,
    generators: Sequence[torch.Generator],
    size: tuple[int, int],
) -> Tensor:
    """Equation 4 of each clip, float [B], such that their mean is that over the clips that have cameras and are
    not read without pose; zeros where there is none.

    It is computed for `cfg.queries` random background tokens of each and scaled to all. size: of frames, (width,
    height); generators: one a clip.
    """
    grid = grid_of(encoded["latents"])
    losses = encoded["latents"].new_zeros(len(t))
    counted = [row for row in range(plain, len(t)) if _queried(encoded, row)]
    if not counted:
        return losses
    slots = seen_through(layout(_frames(encoded)).slots)
    cell = size[0] / grid[2], size[1] / grid[1]
    queries, near, whole = [], [], []
    for row in counted:
        free = encoded["free"][row].nonzero().flatten().cpu()
        chosen = _some(len(free), cfg.queries, generators[row])
        asked = free[chosen].to(t.device)
        lines = torch.from_numpy(fundamental(_cameras(encoded, row))).to(t.device)
        near.append(epipolar_mask(lines, asked, slots, grid[1:], cell, cfg.band))
        queries.append(asked)
        whole.append(len(free) / len(asked))
    count, picked = len(counted), torch.tensor(counted, device=t.device)
    by_block = []
    for block, hidden in made.hidden.items():
        bank = None if made.bank is None else [(k[picked - plain], v[picked - plain]) for k, v in made.bank]
        attention = model.nets.transformer.attention_map(
            block, hidden[picked], t[picked], torch.stack(queries), grid, bank=bank, learner=model.learner
        )
        unwanted = unwanted_attention(
            attention, torch.stack(near), len(slots), cfg.percentile, cfg.mask == "adaptive"
        )
        by_block.append(unwanted.mean(dim=1).sum(dim=-1))
    own = torch.stack(by_block).mean(dim=0) * torch.tensor(whole, device=t.device)
    return losses.index_put((picked,), own * len(t) / count)


def blocks_for(cfg: Epipolar, count: int, generator: torch.Generator) -> list[int]:
    """Of so many blocks those whose attention a step looks at."""
    if not cfg.weight:
        return []
    return sorted(torch.randperm(count, generator=generator)[: cfg.blocks or count].tolist())


def vgg_loss(
    vae: Any,
    perceptual: Perceptual,
    prediction: Tensor,
    noisy: Tensor,
    encoded: Batch,
    t: Tensor,
    cfg: Vgg,
    generators: Sequence[torch.Generator],
    schedule: NoiseSchedule,
) -> Tensor:
    """Equation 6 of each clip, float [B]; 0, without any decoding, where t is not below `cfg.below`.

    What the prediction says of the clean latents is decoded in a crop: on a hand in half of the clips.
    """
    losses = [prediction.new_zeros(()) for _ in t]
    for row in (t < cfg.below).nonzero().flatten().tolist():
        clean = clean_latents(prediction[row], noisy[row], int(t[row]), schedule)
        frames, hands = encoded["frames"][row], encoded["hands"][row]
        ratio = frames.shape[1] // clean.shape[-2]
        top, left, height, width = _crop(hands, clean.shape[-2:], ratio, cfg.crop, generators[row])
        inner = slice(top, top + height), slice(left, left + width)
        outer = tuple(slice(ratio * each.start, ratio * each.stop) for each in inner)
        made = decode_clips(vae, clean[None, :, :, inner[0], inner[1]])[0] / 2 + 0.5
        truth = to_unit(frames[:, outer[0], outer[1]])
        seen = hands[:, None, outer[0], outer[1]].float() / 255
        losses[row] = perceptual(made, truth, seen).mean()
    return torch.stack(losses)


def _crop(
    hands: Tensor, latent: torch.Size, ratio: int, side: int, generator: torch.Generator
) -> tuple[int, int, int, int]:
    """Top, left, height and width, in latent pixels, of a crop of hands uint8 [F, H, W] of a clip."""
    height, width = (min(side, each) for each in latent)
    room = torch.tensor((latent[0] - height, latent[1] - width))
    corner = (torch.rand(2, generator=generator) * (room + 1)).long()
    on_hand, which = torch.rand(2, generator=generator).tolist()
    places = hands.any(dim=0).nonzero()
    if on_hand < 0.5 and len(places):
        middle = places[int(which * len(places))].cpu() // ratio
        corner = middle - torch.tensor((height // 2, width // 2))
    top, left = torch.minimum(corner.clamp_min(0), room).tolist()
    return top, left, height, width


def _some(count: int, wanted: int, generator: torch.Generator) -> Tensor:
    """So many of `count` places, none twice where there are enough of them."""
    if count < wanted:
        return torch.randint(count, (wanted,), generator=generator)
    return torch.randperm(count, generator=generator)[:wanted]


def _queried(encoded: Batch, row: int) -> bool:
    """Whether a clip has cameras and background: one without has zeros for them."""
    return "cameras" in encoded and bool(encoded["cameras"][row].any()) and bool(encoded["free"][row].any())


def _cameras(encoded: Batch, row: int) -> Cameras:
    return Cameras.unpacked(encoded["cameras"][row].double().cpu().numpy())


def _frames(encoded: Batch) -> int:
    return int(encoded["cameras"].shape[1])
