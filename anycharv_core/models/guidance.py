"""Classifier-free guidance (Ho and Salimans 2022), as the sampler, the nodes and the trainer have it."""

from __future__ import annotations

from torch import Tensor


def is_guided(scale: float) -> bool:
    """Whether a guidance scale asks for the unconditional prediction too, which at 1 and below has no weight."""
    return scale > 1


def guide(prediction: Tensor, scale: float) -> Tensor:
    """Predictions [2 N, ...], the unconditional half first -> the guided one [N, ...]."""
    unconditional, conditional = prediction.chunk(2)
    return unconditional + scale * (conditional - unconditional)
