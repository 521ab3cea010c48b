"""A moving average of the trained parameters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Ema:
    """average <- decay * average + (1 - decay) * parameter after every step, in float32."""

    def __init__(self, parameters: Sequence[nn.Parameter], decay: float):
        self.parameters, self.decay = list(parameters), decay
        self.average = [p.detach().clone() for p in self.parameters]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """After step number `step`, counted from 0."""
        # A short memory at first, so that the average does not carry the random start along.
        pace = 1 - min(self.decay, step / (step + 10))
        torch._foreach_lerp_(self.average, [p.detach() for p in self.parameters], pace)

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """The networks hold their averages meanwhile."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for average, parameter in zip(self.average, self.parameters, strict=True):
            kept = parameter.detach().clone()
            parameter.copy_(average)
            average.copy_(kept)

    def state_dict(self) -> dict[str, Tensor]:
        return {str(number): average for number, average in enumerate(self.average)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for number, average in enumerate(self.average):
            average.copy_(state[str(number)])
