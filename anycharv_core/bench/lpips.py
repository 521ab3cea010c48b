"""LPIPS 0.1 with AlexNet (Zhang et al. 2018), without torchvision, whose wheels fit one build of torch only.

Two sets of weights make it: AlexNet's, trained on ImageNet, which the user brings, and five linear heads, which
the package torchmetrics carries.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import UserError
from ..media.imaging import to_unit

FILE = "alexnet-owt-7be5be79.pth"
_HEADS = Path("functional/image/lpips_models/alex.pth")
# The number of each convolution in torchvision's `features`, its stride and padding, and whether the picture is
# brought down before it.
_LAYERS = ((0, 4, 2, False), (3, 1, 2, True), (6, 1, 1, True), (8, 1, 1, False), (10, 1, 1, False))
_CHANNELS = (64, 192, 384, 256, 256)
# ImageNet's mean and deviation for pictures in -1..1.
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
_SMALLEST = 32  # pixels a side: below it nothing is left for the last layers


class Lpips:
    """The perceptual distance of pictures: 0 = equal; larger is further apart.

    weights: torchvision's AlexNet file. Raises UserError where it is not that.
    """

    def __init__(self, weights: Path, device: str = "cpu"):
        installed = find_spec("torchmetrics")
        if installed is None or not installed.submodule_search_locations:
            raise UserError("LPIPS needs torchmetrics; install it, or leave out --lpips-weights.")
        root = Path(installed.submodule_search_locations[0])
        heads = _load(root / _HEADS)
        backbone = _load(weights)
        try:
            self._convolutions = [
                tuple(backbone[f"features.{number}.{kind}"].float().to(device) for kind in ("weight", "bias"))
                for number, *_ in _LAYERS
            ]
            fits = [len(weight) for weight, _ in self._convolutions] == list(_CHANNELS)
        except (KeyError, TypeError, AttributeError):
            fits = False
        if not fits:
            raise UserError(f"{weights} does not hold torchvision's AlexNet; give its file {FILE}.")
        self._heads = [heads[f"lin{i}.model.1.weight"].float().to(device) for i in range(len(_LAYERS))]
        self._shift, self._scale = (torch.tensor(v, device=device)[:, None, None] for v in (_SHIFT, _SCALE))

    @torch.inference_mode()
    def __call__(self, made: np.ndarray, truth: np.ndarray) -> np.ndarray:
        """uint8 [N, H, W, 3] each -> float64 [N]. Raises UserError for pictures under 32 pixels a side."""
        if min(made.shape[1:3]) < _SMALLEST:
            raise UserError(
                f"LPIPS needs pictures of {_SMALLEST} pixels a side, and these are {made.shape[2]}x"
                f"{made.shape[1]}; give larger pictures, or leave out --lpips-weights."
            )
        total = torch.zeros(len(made), dtype=torch.float64)
        pairs = zip(self._features(made), self._features(truth), self._heads, strict=True)
        for a, b, head in pairs:
            total += F.conv2d((a - b) ** 2, head).mean(dim=(1, 2, 3)).double().cpu()
        return total.numpy()

    def _features(self, pictures: np.ndarray) -> list[Tensor]:
        """Each layer's activations [N, c, h, w], of length 1 over the channels."""
        x = (2 * to_unit(pictures).to(self._shift.device) - 1 - self._shift) / self._scale
        found = []
        for (_, stride, padding, smaller), (weight, bias) in zip(_LAYERS, self._convolutions, strict=True):
            if smaller:
                x = F.max_pool2d(x, 3, 2)
            x = F.relu(F.conv2d(x, weight, bias, stride, padding))
            found.append(x / (x.square().sum(dim=1, keepdim=True).sqrt() + 1e-10))
        return found


def load_lpips(weights: Path | None, device: str) -> Lpips | str:
    """The metric, or why it is not measured. Raises UserError for a file that is not AlexNet's."""
    if weights is None:
        return f"give --lpips-weights, torchvision's file {FILE}"
    if find_spec("torchmetrics") is None:
        return "the package torchmetrics, which holds the linear weights of LPIPS, is not installed"
    return Lpips(weights, device)


def _load(path: Path) -> dict[str, Any]:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises whatever its unpickler, zip or file reader raises
        raise UserError(f"{path} is not a file of weights that can be read; give a complete {FILE}.") from error
