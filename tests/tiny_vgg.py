"""VGG16's convolutions with random weights, as torchvision's file holds them: as wide, or nothing would fit."""

from pathlib import Path

import torch

NUMBERS = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21)
WIDTHS = (64, 64, 128, 128, 256, 256, 256, 512, 512, 512)


def write_vgg(path: Path) -> Path:
    generator, before, weights = torch.Generator().manual_seed(0), 3, {}
    for number, width in zip(NUMBERS, WIDTHS, strict=True):
        weights[f"features.{number}.weight"] = torch.randn(width, before, 3, 3, generator=generator) * 0.1
        weights[f"features.{number}.bias"] = torch.zeros(width)
        before = width
    torch.save(weights, path)
    return path
