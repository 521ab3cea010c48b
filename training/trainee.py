"""The networks of a phase and its objective in one module, so that accelerate wraps what is trained as a whole."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from anycharv_core.checkpoints.checkpoint import LIBRARY_PARTS
from anycharv_core.checkpoints.networks import Networks
from anycharv_core.errors import UserError
from anycharv_core.inference.sampling import sample
from anycharv_core.models import DenoisingUNet, ObjectGuider, PoseGuider, ReferenceNet
from anycharv_core.models.dit import Trunk
from anycharv_core.models.dit_branches import ReferenceDiT
from anycharv_core.models.schedule import NoiseSchedule
from anycharv_core.models.unet import UNet
from anycharv_core.models.windows import Windows
from anycharv_core.systems import system_of
from training import distil, objective
from training.config import Distil, Objective, Phase
from training.frozen import Aside
from training.lora import add_lora
from training.networks import Nets
from training.objective import Batch, Draws, clip_generator

# What a phase's `train` may name: the part, and which of its parameters.
TRAINABLE = {
    "denoising_unet": ("denoising_unet", lambda name: True),
    "spatial": ("denoising_unet", lambda name: "motion_modules" not in name),
    "motion": ("denoising_unet", lambda name: "motion_modules" in name),
    "reference_unet": ("reference_unet", lambda name: True),
    "pose_guider": ("pose_guider", lambda name: True),
    "object_guider": ("object_guider", lambda name: True),
    "image_encoder": ("image_encoder", lambda name: True),
    "transformer": ("transformer", lambda name: True),
    "control": ("control", lambda name: True),
    "reference": ("reference", lambda name: True),
    "bml": ("bml", lambda name: True),
}

PARTS = tuple(field.name for field in fields(Networks))


class Trainee(nn.Module):
    """All networks of a model, the frozen ones among them, as eq. 2 and eq. 3 train them.

    `purpose` keeps the random draws of phases apart; `schedule` is that of sampling. The parts have the names that
    `Networks` gives them. `lesson`: distils the model in place of training it, from a teacher in whose place
    `copies` stand for the parts that are trained.
    """

    denoising_unet: DenoisingUNet
    reference_unet: ReferenceNet
    pose_guider: PoseGuider
    vae: Any
    image_encoder: Any
    object_guider: ObjectGuider | None

    def __init__(
        self,
        nets: Nets,
        cfg: Objective,
        motion: bool,
        seed: int,
        purpose: str,
        schedule: NoiseSchedule = NoiseSchedule(),
        lesson: Distil | None = None,
        copies: Mapping[str, nn.Module] | None = None,
    ):
        super().__init__()
        for name, net in vars(nets).items():
            self.add_module(name, net)
        self.lesson, self.copies, self.aside = lesson, nn.ModuleDict(copies), Aside()
        self.cfg, self.motion, self.seed, self.purpose, self.schedule = cfg, motion, seed, purpose, schedule

    @property
    def nets(self) -> Networks:
        """The networks as they are now: spreading a training may put others in place of the first."""
        parts: dict[str, Any] = {
            name: self.aside[name] if name in self.aside else getattr(self, name) for name in PARTS
        }
        return Networks(**parts)

    @property
    def teacher(self) -> Networks:
        """The networks of which the student's trained parts are copies."""
        return Networks(**(vars(self.nets) | dict(self.copies.items())))

    def set_aside(self) -> None:
        """Keeps the VAE and the image encoder, where frozen, on the CPU, whence validation fetches them: for a
        training on encodings, which has no other use for them."""
        for part in LIBRARY_PARTS:
            own = getattr(self, part, None)
            if own is not None and not any(p.requires_grad for p in own.parameters()):
                self.aside[part] = own.to("cpu")
                delattr(self, part)

    @property
    def encoders(self) -> tuple[nn.Module, ...]:
        """What `encode` runs, whose weights decide about encodings."""
        return self.vae, self.image_encoder

    @property
    def encoding(self) -> tuple[Any, ...]:
        """What else decides about encodings, as JSON can hold it."""
        return ("object_input",) if self.cfg.object_input else ()

    @property
    def same_kernels(self) -> bool:
        """Whether every step on as many clips without reference runs the same kernels."""
        return self.lesson is None

    @property
    def trains_convolutions(self) -> bool:
        return self.denoising_unet.conv_in.weight.requires_grad

    def shown(self, batch: Batch, frame: int) -> dict[str, Tensor]:
        """What a sheet shows of the first clip of a batch at a frame, beside pose and truth, by its titles."""
        pictures = {"reference": batch["reference"][0]}
        if system_of(self.denoising_unet.cfg).reads_scene:
            mask = batch["mask"][0, frame]
            cut = batch["frames"][0, frame] * (mask < 128)[..., None]
            pictures["scene"] = batch["scene"][0, frame] if "scene" in batch else cut
        return pictures

    def forward(self, batch: Batch, task: str = "loss", **options: Any) -> Any:
        """Everything goes through here, because a wrapped module gathers its parameters only for this.

        batch: B clips from a dataset or their `encode_batch` encodings, with int64 `position` [B]. task:
        "loss" -> {"loss": scalar to minimise, more to log}, the means over the clips; "pose" -> the same problem
        as tensors and the number of its clips without reference, and "solve" -> its "loss"; "held_out" -> float
        [B, T], the plain loss at `timesteps`, of a student at the steps that hold them; "sample" -> float
        [B, F, 3, H, W] in 0..1, the clips made by DDIM.
        """
        if "latents" not in batch:
            batch = batch | self.encode(batch)
        tasks: dict[str, Callable[..., Any]] = {
            "loss": self._loss,
            "pose": self._pose,
            "solve": self._solve,
            "held_out": self._held_out,
            "sample": self._sample,
        }
        return tasks[task](batch, **options)

    def encode(self, batch: Batch) -> Batch:
        """The batch's encodings (`objective.encode_batch`), without gradient."""
        with torch.no_grad(), self.aside.on(batch["frames"].device):
            return objective.encode_batch(self.nets, batch, self.cfg.object_input)

    def _loss(self, batch: Batch) -> dict[str, Tensor]:
        return _means(self._losses(batch, self._draws(batch), self.cfg))

    def _pose(self, batch: Batch) -> tuple[Batch, int]:
        return objective.pose_problem(_tensors(batch), self._draws(batch), self.cfg, self.schedule)

    def _solve(self, problem: Batch, plain: int) -> dict[str, Tensor]:
        return _means(objective.solve(self.nets, problem, plain, self.cfg, self.motion, self.schedule))

    def _draws(self, batch: Batch) -> Draws:
        generators = [clip_generator(self.seed, self.purpose, p) for p in batch["position"].tolist()]
        latents = batch["latents"]
        return objective.draw(self.cfg, generators, latents.shape[1:], latents.device)

    def _losses(self, batch: Batch, draws: Draws, cfg: Objective) -> dict[str, Tensor]:
        encoded = _tensors(batch)
        if self.lesson is None:
            return objective.loss(self.nets, encoded, draws, cfg, self.motion, self.schedule)
        lesson, nets, teacher = self.lesson, self.nets, self.teacher
        return distil.loss(nets, teacher, encoded, draws, cfg, lesson, self.motion, self.schedule)

    def _held_out(self, batch: Batch, timesteps: tuple[int, ...]) -> Tensor:
        latents, plain = batch["latents"], Objective()
        generators = [clip_generator(self.seed, "held-out", p) for p in batch["position"].tolist()]
        draws = objective.draw(plain, generators, latents.shape[1:], latents.device)
        losses = []
        for t in timesteps:
            at = replace(draws, t=torch.full_like(draws.t, t))
            losses.append(self._losses(batch, at, plain)["loss"])
        return torch.stack(losses, dim=1)

    def _sample(self, batch: Batch, steps: int, guidance: float) -> Tensor:
        shape = batch["latents"].shape
        generators = [clip_generator(self.seed, "sampled", p) for p in batch["position"].tolist()]
        noise = objective.draw(Objective(), generators, shape[1:], batch["latents"].device).noise
        predicted = self._guided(batch, guidance)

        def denoise(x: Tensor, t: int, _: object) -> Tensor:
            at = torch.full((shape[0],), t, device=x.device)
            return predicted(x.unflatten(0, shape[:2]), at).flatten(0, 1)

        rows = shape[0] * shape[1]
        everything = Windows((tuple(range(rows)),), ((1.0,) * rows,))
        latents = sample(denoise, noise.flatten(0, 1), steps, everything, self.schedule)
        with self.aside.on(latents.device):
            return self._pictures(latents.unflatten(0, shape[:2]))

    def _guided(self, batch: Batch, guidance: float) -> Callable[[Tensor, Tensor], Tensor]:
        return objective.guided(self.nets, _tensors(batch), guidance, self.motion)

    def _pictures(self, latents: Tensor) -> Tensor:
        """Latents [B, T, c, h, w] -> pictures [B, F, 3, H, W] in 0..1."""
        return objective.decode(self.nets.vae, latents.flatten(0, 1)).unflatten(0, latents.shape[:2])


def _means(losses: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.mean() for name, value in losses.items()}


def _tensors(batch: Batch) -> Batch:
    """The encodings of a batch, without the counters that came with it and the pictures they were made of."""
    known = ("latents", "scene", "mask", "character", "order", "reference", "picture", "embeds")
    drawn = ("pose", "depth", "objects", "holds")
    return {name: batch[name] for name in (*known, *drawn) if name in batch}


def choose_trained(nets: Nets, phase: Phase) -> None:
    """Turns gradients on for what `phase.train` names, or for its LoRA alone, and off for the rest.

    Raises UserError where nothing is left to train.
    """
    for net in vars(nets).values():
        if net is not None:
            net.requires_grad_(False)
    for name in phase.train:
        part, chosen = TRAINABLE[name]
        net = getattr(nets, part, None)
        # What never gets a gradient has no optimizer state, without which FSDP cannot go on from a checkpoint.
        if net is None:
            raise UserError(f"'train' names {name}, which these networks do not have; leave it out.")
        modules: Sequence[nn.Module] = ()
        if isinstance(net, (UNet, ReferenceDiT)):
            modules = net.idle_modules()
        elif isinstance(net, PoseGuider):
            modules = net.idle_modules(phase.motion)
        idle = {parameter for module in modules for parameter in module.parameters()}
        for key, parameter in net.named_parameters():
            if chosen(key) and parameter not in idle:
                parameter.requires_grad_(True)
    if phase.lora is not None:
        assert isinstance(nets, Networks)  # the config's check saw to it
        add_lora(nets.denoising_unet, phase.lora, phase.motion)
    if not any(True for _ in trained_parameters(nets)):
        raise UserError("'train' names nothing that these networks have; let it list what the phase trains.")
    for net in vars(nets).values():
        if isinstance(net, UNet):
            net.set_checkpointing(phase.checkpointing)
        elif isinstance(net, Trunk):
            net.checkpointing = phase.checkpointing


def copied(nets: Networks, phase: Phase) -> dict[str, nn.Module]:
    """Copies of the parts that the phase trains, by name, frozen, as a teacher keeps them; none for a LoRA, whose
    teacher is the network without it."""
    parts = dict.fromkeys(TRAINABLE[name][0] for name in phase.train)
    return {part: copy.deepcopy(getattr(nets, part)).requires_grad_(False) for part in parts}


def trained_parameters(nets: Nets) -> Iterator[tuple[str, nn.Parameter]]:
    """`<part>.<name>` and parameter of all that is trained, in the order of the state dict."""
    for part, net in vars(nets).items():
        for name, parameter in net.named_parameters() if net is not None else ():
            if parameter.requires_grad:
                yield f"{part}.{name}", parameter
