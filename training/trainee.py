"""The networks of a phase and its objective in one module, so that accelerate wraps what is trained as a whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn

from anycharv_core.checkpoints.networks import Networks
from anycharv_core.errors import UserError
from anycharv_core.inference.sampling import sample
from anycharv_core.models import DenoisingUNet, ObjectGuider, PoseGuider, ReferenceNet
from anycharv_core.models.guidance import guide, is_guided
from anycharv_core.models.schedule import NoiseSchedule
from anycharv_core.models.unet import UNet
from anycharv_core.models.windows import Windows
from training import objective
from training.config import Objective, Phase
from training.lora import add_lora
from training.objective import Batch, clip_generator

# What a phase's `train` may name: the part, and which of its parameters.
TRAINABLE = {
    "denoising_unet": ("denoising_unet", lambda name: True),
    "spatial": ("denoising_unet", lambda name: "motion_modules" not in name),
    "motion": ("denoising_unet", lambda name: "motion_modules" in name),
    "reference_unet": ("reference_unet", lambda name: True),
    "pose_guider": ("pose_guider", lambda name: True),
    "image_encoder": ("image_encoder", lambda name: True),
}


class Trainee(nn.Module):
    """All networks of a model, the frozen ones among them, as eq. 2 and eq. 3 train them.

    `purpose` keeps the random draws of phases apart; `schedule` is that of sampling. The parts have the names that
    `Networks` gives them.
    """

    denoising_unet: DenoisingUNet
    reference_unet: ReferenceNet
    pose_guider: PoseGuider
    vae: Any
    image_encoder: Any
    object_guider: ObjectGuider | None

    def __init__(
        self,
        nets: Networks,
        cfg: Objective,
        motion: bool,
        seed: int,
        purpose: str,
        schedule: NoiseSchedule = NoiseSchedule(),
    ):
        super().__init__()
        for name, net in vars(nets).items():
            self.add_module(name, net)
        self.cfg, self.motion, self.seed, self.purpose, self.schedule = cfg, motion, seed, purpose, schedule

    @property
    def nets(self) -> Networks:
        """The networks as they are now: spreading a training may put others in place of the first."""
        return Networks(**{field.name: getattr(self, field.name) for field in fields(Networks)})

    def forward(self, batch: Batch, task: str = "loss", **options: Any) -> Any:
        """Everything goes through here, because a wrapped module gathers its parameters only for this.

        batch: B clips from a dataset or their `encode_batch` encodings, with int64 `position` [B]. task:
        "loss" -> {"loss": scalar to minimise, more to log}, the means over the clips; "held_out" -> float
        [B, T], the plain loss at `timesteps`; "sample" -> float [B, F, 3, H, W] in 0..1, the clips made by DDIM.
        """
        if "latents" not in batch:
            batch = batch | self.encode(batch)
        tasks: dict[str, Callable[..., Any]] = {
            "loss": self._loss,
            "held_out": self._held_out,
            "sample": self._sample,
        }
        return tasks[task](batch, **options)

    def encode(self, batch: Batch) -> Batch:
        """The batch's encodings (`objective.encode_batch`), without gradient."""
        with torch.no_grad():
            return objective.encode_batch(self.nets, batch)

    def _loss(self, batch: Batch) -> dict[str, Tensor]:
        generators = [clip_generator(self.seed, self.purpose, p) for p in batch["position"].tolist()]
        latents = batch["latents"]
        draws = objective.draw(self.cfg, generators, latents.shape[1:], latents.device)
        losses = objective.loss(self.nets, _tensors(batch), draws, self.cfg, self.motion, self.schedule)
        return {name: value.mean() for name, value in losses.items()}

    def _held_out(self, batch: Batch, timesteps: tuple[int, ...]) -> Tensor:
        latents, plain = batch["latents"], Objective()
        generators = [clip_generator(self.seed, "held-out", p) for p in batch["position"].tolist()]
        draws = objective.draw(plain, generators, latents.shape[1:], latents.device)
        losses = []
        for t in timesteps:
            at = objective.Draws(torch.full_like(draws.t, t), draws.noise, draws.dropped)
            found = objective.loss(self.nets, _tensors(batch), at, plain, self.motion, self.schedule)
            losses.append(found["loss"])
        return torch.stack(losses, dim=1)

    def _sample(self, batch: Batch, steps: int, guidance: float) -> Tensor:
        shape = batch["latents"].shape
        generators = [clip_generator(self.seed, "sampled", p) for p in batch["position"].tolist()]
        noise = objective.draw(Objective(), generators, shape[1:], batch["latents"].device).noise
        batch = _tensors(batch)
        guided = is_guided(guidance)
        if guided:
            batch = {name: value.repeat(2, *[1] * (value.ndim - 1)) for name, value in batch.items()}

        def denoise(x: Tensor, t: int, _: object) -> Tensor:
            x = x.unflatten(0, shape[:2])
            if not guided:
                at = torch.full((len(x),), t, device=x.device)
                return objective.predict(self.nets, batch, x, at, 0, self.motion).float().flatten(0, 1)
            at = torch.full((2 * len(x),), t, device=x.device)
            both = objective.predict(self.nets, batch, torch.cat([x, x]), at, len(x), self.motion).float()
            return guide(both, guidance).flatten(0, 1)

        rows = shape[0] * shape[1]
        everything = Windows((tuple(range(rows)),), ((1.0,) * rows,))
        latents = sample(denoise, noise.flatten(0, 1), steps, everything, self.schedule)
        return objective.decode(self.vae, latents).unflatten(0, shape[:2])


def _tensors(batch: Batch) -> Batch:
    """The encodings of a batch, without the counters that came with it and the pictures they were made of."""
    known = ("latents", "scene", "mask", "character", "reference", "picture", "embeds", "pose")
    return {name: batch[name] for name in known if name in batch}


def choose_trained(nets: Networks, phase: Phase) -> None:
    """Turns gradients on for what `phase.train` names, or for its LoRA alone, and off for the rest.

    Raises UserError where nothing is left to train.
    """
    for net in vars(nets).values():
        if net is not None:
            net.requires_grad_(False)
    for name in phase.train:
        part, chosen = TRAINABLE[name]
        net = getattr(nets, part)
        # What never gets a gradient has no optimizer state, without which FSDP cannot go on from a checkpoint.
        modules = net.idle_modules() if isinstance(net, UNet) else ()
        idle = {parameter for module in modules for parameter in module.parameters()}
        for key, parameter in net.named_parameters():
            if chosen(key) and parameter not in idle:
                parameter.requires_grad_(True)
    if phase.lora is not None:
        add_lora(nets.denoising_unet, phase.lora, phase.motion)
    if not any(True for _ in trained_parameters(nets)):
        raise UserError("'train' names nothing that these networks have; let it list what the phase trains.")
    for net in vars(nets).values():
        if isinstance(net, UNet):
            net.set_checkpointing(phase.checkpointing)


def trained_parameters(nets: Networks) -> Iterator[tuple[str, nn.Parameter]]:
    """`<part>.<name>` and parameter of all that is trained, in the order of the state dict."""
    for part, net in vars(nets).items():
        for name, parameter in net.named_parameters() if net is not None else ():
            if parameter.requires_grad:
                yield f"{part}.{name}", parameter
