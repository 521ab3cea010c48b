"""AnimateAnywhere's networks and objective in one module, as `Trainee` has those of UNets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from anycharv_core.checkpoints.dit_networks import DiTNetworks
from anycharv_core.models.schedule import add_noise
from training import anywhere
from training.config import Config, Objective
from training.objective import Batch, Draws, clip_generator
from training.perceptual import Perceptual
from training.trainee import Trainee

_ENCODED = ("latents", "pose", "picture", "reference", "free", "cameras", "frames", "hands")


class AnywhereTrainee(Trainee):
    """All networks of a model as a phase trains them; those that the phase does not train, but for the
    transformer, are not used in it either (section IV-A)."""

    def __init__(self, nets: DiTNetworks, config: Config, name: str):
        phase = config.phases[name]
        idle = {"control", "reference", "bml"} - set(phase.train)
        # What is not used takes no memory of a card.
        own = DiTNetworks(**(vars(nets) | dict.fromkeys(idle)))
        super().__init__(own, phase.objective, False, config.seed, name, config.schedule)
        self.used = frozenset(phase.train)
        self.image_scale = float(config.settings_of(phase)["image_scale"])
        self.scaling = float(nets.vae.config.scaling_factor)
        vgg = phase.objective.vgg
        self.perceptual = Perceptual(Path(vgg.file)) if vgg.weight and vgg.file else None

    @property
    def parts(self) -> DiTNetworks:
        """The networks as they are now."""
        names = ("transformer", "control", "reference", "prompt", "bml", "vae")
        found: dict[str, Any] = {name: self.aside.get(name, getattr(self, name, None)) for name in names}
        return DiTNetworks(**found)

    @property
    def encoders(self) -> tuple[nn.Module, ...]:
        return (self.vae,)

    @property
    def encoding(self) -> tuple[Any, ...]:
        return self.image_scale, self.perceptual is not None

    @property
    def trains_convolutions(self) -> bool:
        return False

    def set_aside(self) -> None:
        if self.perceptual is None:  # which decodes
            super().set_aside()

    def encode(self, batch: Batch) -> Batch:
        with torch.no_grad(), self.aside.on(batch["frames"].device):
            kept = self.perceptual is not None
            return anywhere.encode_batch(self.parts.vae, batch, self.image_scale, kept)

    def shown(self, batch: Batch, frame: int) -> dict[str, Tensor]:
        return {"reference": batch["reference"][0], "background": batch["background"][0]}

    def _model(self) -> anywhere.Model:
        return anywhere.Model(self.parts, self.used, self.scaling, self.image_scale)

    def _losses(self, batch: Batch, draws: Draws, cfg: Objective) -> dict[str, Tensor]:
        # The transformer takes the clips without conditions first.
        order = torch.argsort(draws.dropped, descending=True, stable=True)
        plain = int(draws.dropped.sum())
        encoded = {name: batch[name][order.to(batch[name].device)] for name in _ENCODED if name in batch}
        positions = batch["position"][order].tolist()
        on_device = order.to(draws.t.device)
        t, noise = draws.t[on_device], draws.noise[on_device]
        noisy, wanted = add_noise(encoded["latents"].float(), noise, t, self.schedule)
        model = self._model()
        generators = [clip_generator(self.seed, f"{self.purpose} places", each) for each in positions]
        blocks = anywhere.blocks_for(cfg.epipolar, len(model.nets.transformer.blocks()), generators[0])
        made = anywhere.predict(model, encoded, noisy, t, plain, blocks)
        latents = made.latents.float()
        losses = {"latent": (latents - wanted).square().mean(dim=(1, 2, 3, 4))}
        if cfg.epipolar.weight:
            ratio = 2 ** (len(model.nets.vae.config.block_out_channels) - 1)
            size = ratio * noisy.shape[-1], ratio * noisy.shape[-2]
            losses["epipolar"] = anywhere.epipolar_loss(
                model, made, encoded, t, plain, cfg.epipolar, generators, size
            )
        if self.perceptual is not None and cfg.vgg.weight:
            self.perceptual.to(t.device)
            losses["vgg"] = anywhere.vgg_loss(
                model.nets.vae, self.perceptual, latents, noisy, encoded, t, cfg.vgg, generators, self.schedule
            )
        weights = {"latent": 1.0, "epipolar": cfg.epipolar.weight, "vgg": cfg.vgg.weight}
        weighted = [weights[name] * each for name, each in losses.items()]
        return {"loss": torch.stack(weighted).sum(dim=0)} | losses

    def _guided(self, batch: Batch, guidance: float) -> Callable[[Tensor, Tensor], Tensor]:
        encoded = {name: batch[name] for name in _ENCODED if name in batch}
        return anywhere.guided(self._model(), encoded, guidance)

    def _pictures(self, latents: Tensor) -> Tensor:
        with torch.no_grad():
            return (anywhere.decode_clips(self.parts.vae, latents) / 2 + 0.5).clamp(0, 1)
