"""One model as data: the configs and weights of its parts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

Weights = dict[str, Tensor]

NETWORKS = ("denoising_unet", "reference_unet", "pose_guider")
OPTIONAL_NETWORKS = ("object_guider",)  # of Animate Anyone 2
LIBRARY_PARTS = ("vae", "image_encoder")
# Autoencoders of clips by the names that their configs have: ours, and CogVideoX's.
CLIP_CODEC, COGVIDEOX_VAE = "ClipCodec", "AutoencoderKLCogVideoX"
# Where a model's library parts come from when its files lack them.
HUB_PARTS = {
    "vae": "stabilityai/sd-vae-ft-mse",
    "image_encoder": "lambdalabs/sd-image-variations-diffusers, subfolder image_encoder",
}


@dataclass(frozen=True)
class Parts:
    """The parts of a kind of model: networks that it must have, those it may have, and those of libraries."""

    networks: tuple[str, ...]
    optional: tuple[str, ...]
    library: tuple[str, ...]

    @property
    def all(self) -> tuple[str, ...]:
        return (*self.networks, *self.optional, *self.library)


UNET_PARTS = Parts(NETWORKS, OPTIONAL_NETWORKS, LIBRARY_PARTS)
# Of AnimateAnywhere; a file of what was trained has no weights of `transformer` and `vae`, which its base brings.
DIT_PARTS = Parts(("transformer", "control", "reference", "prompt"), ("bml",), ("vae",))


@dataclass
class Checkpoint:
    """Configs and weights of each part: those of `UNET_PARTS`, or of `DIT_PARTS`, as far as they are present.

    `settings` are the defaults the weights were made for, such as {"size": [128, 128]}, and under
    "noise_scheduler_kwargs" the schedule, where it is not AnyCharV's.
    """

    configs: dict[str, dict[str, Any]] = field(default_factory=dict)
    weights: dict[str, Weights] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def is_dit(self) -> bool:
        """Whether it is a transformer's, and not a UNet's."""
        return "transformer" in self.configs

    @property
    def parts(self) -> Parts:
        """Those that a model of its kind has."""
        return DIT_PARTS if self.is_dit else UNET_PARTS
