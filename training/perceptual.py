"""How far apart pictures are to VGG16, hands counting twice (AnimateAnywhere, equation 6)."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from anycharv_core.checkpoints.state_dicts import read_weights
from anycharv_core.errors import UserError

FILE = "vgg16-397923af.pth"
# The numbers of the convolutions in torchvision's `features`, pooled between the groups, whose last ones are read:
# relu1_2, 2_2, 3_3 and 4_3.
_GROUPS = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21))
_CHANNELS = (64, 128, 256, 512)
# ImageNet's mean and deviation for pictures in 0..1.
_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Perceptual:
    """The distance, with gradient for the first picture. weights: torchvision's VGG16 file, .pth or .safetensors.

    Raises UserError where it is not that.
    """

    def __init__(self, weights: Path):
        found = read_weights(weights)
        names = [[f"features.{number}" for number in group] for group in _GROUPS]
        wanted = [f"{name}.{kind}" for group in names for name in group for kind in ("weight", "bias")]
        if missing := [name for name in wanted if name not in found]:
            raise UserError(
                f"{weights} does not hold torchvision's VGG16 ({missing[0]} is missing); give its file {FILE}."
            )
        self._groups = [
            [(found[f"{name}.weight"].float(), found[f"{name}.bias"].float()) for name in group] for group in names
        ]
        if [len(group[-1][0]) for group in self._groups] != list(_CHANNELS):
            raise UserError(f"{weights} holds a network of another size; give torchvision's file {FILE}.")
        self._mean, self._deviation = (torch.tensor(v)[:, None, None] for v in (_MEAN, _DEVIATION))

    def to(self, device: torch.device) -> None:
        """Moves the weights."""
        self._groups = [[(w.to(device), b.to(device)) for w, b in group] for group in self._groups]
        self._mean, self._deviation = self._mean.to(device), self._deviation.to(device)

    def __call__(self, made: Tensor, truth: Tensor, hands: Tensor) -> Tensor:
        """Distances float [N] of pictures [N, 3, H, W] in 0..1: mean absolute differences of features of length 1
        at every place, weighted there by 1 + the share of it that hands, [N, 1, H, W] in 0..1, cover."""
        total = torch.zeros(len(made), device=made.device)
        with torch.no_grad():
            wanted = self._features(truth)
        for a, b in zip(self._features(made), wanted, strict=True):
            weight = 1 + F.interpolate(hands, a.shape[-2:], mode="area")
            total = total + (weight * (a - b).abs()).mean(dim=(1, 2, 3))
        return total / len(_GROUPS)

    def _features(self, pictures: Tensor) -> list[Tensor]:
        x, found = (pictures - self._mean) / self._deviation, []
        for i, group in enumerate(self._groups):
            if i:
                x = F.max_pool2d(x, 2)
            for weight, bias in group:
                x = F.relu(F.conv2d(x, weight, bias, padding=1))
            found.append(F.normalize(x, dim=1))
        return found
