"""One model as data: the configs and weights of its parts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

Weights = dict[str, Tensor]

NETWORKS = ("denoising_unet", "reference_unet", "pose_guider")
OPTIONAL_NETWORKS = ("object_guider",)  # of Animate Anyone 2
LIBRARY_PARTS = ("vae", "image_encoder")
# Where a model's library parts come from when its files lack them.
HUB_PARTS = {
    "vae": "stabilityai/sd-vae-ft-mse",
    "image_encoder": "lambdalabs/sd-image-variations-diffusers, subfolder image_encoder",
}


@dataclass
class Checkpoint:
    """Configs and weights of each part: the three networks, and `object_guider`, `vae` and `image_encoder` where
    present.

    `settings` are the defaults the weights were made for, such as {"size": [128, 128]}, and under
    "noise_scheduler_kwargs" the schedule, where it is not AnyCharV's.
    """

    configs: dict[str, dict[str, Any]] = field(default_factory=dict)
    weights: dict[str, Weights] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
