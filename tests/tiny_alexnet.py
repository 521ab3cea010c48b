"""A stand-in for the AlexNet that LPIPS is of."""

from __future__ import annotations

from pathlib import Path

import torch


def alexnet(path: Path) -> Path:
    """A file in the layout of torchvision's AlexNet, with random convolutions."""
    generator = torch.Generator().manual_seed(0)
    layers = {0: (64, 3, 11), 3: (192, 64, 5), 6: (384, 192, 3), 8: (256, 384, 3), 10: (256, 256, 3)}
    weights = {"classifier.6.bias": torch.zeros(1000)}
    for number, (out, into, side) in layers.items():
        drawn = torch.randn((out, into, side, side), generator=generator)
        weights[f"features.{number}.weight"] = drawn / (into**0.5 * side)
        weights[f"features.{number}.bias"] = torch.zeros(out)
    torch.save(weights, path)
    return path
