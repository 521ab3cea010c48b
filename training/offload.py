"""AdamW whose state lies in main memory: on the card there is only the part that is being used."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

CHUNK = 2**24  # parameters that are updated at a time: 128 MiB of averages


class OffloadedAdamW(torch.optim.AdamW):
    """torch's fused AdamW, a few parameters at a time, whose averages come to the card and go again.

    The results are AdamW's to the bit. Every step moves 16 bytes per parameter over the bus, which a long step of
    many portions hides. (ZeRO-Offload, Ren et al. 2021, computes on the CPU, which takes many cores.)
    """

    def __init__(self, parameters: Iterable[nn.Parameter], **options: Any):
        super().__init__(parameters, **options, fused=True)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]  # no loss is given
        groups = self.param_groups
        try:
            for group in groups:
                for chunk in _chunks(group["params"]):
                    self.param_groups = [group | {"params": chunk}]
                    self._move(chunk, None)
                    super().step()
                    self._move(chunk, torch.device("cpu"))
        finally:
            self.param_groups = groups

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        for group in self.param_groups:
            self._move(group["params"], torch.device("cpu"))

    def _move(self, parameters: list[Tensor], device: torch.device | None) -> None:
        """Their state, to the device or else to where each parameter is."""
        for p in parameters:
            for name, value in self.state.get(p, {}).items():
                self.state[p][name] = value.to(p.device if device is None else device)


def _chunks(parameters: list[Tensor]) -> Iterator[list[Tensor]]:
    chunk: list[Tensor] = []
    for p in parameters:
        if chunk and sum(each.numel() for each in chunk) + p.numel() > CHUNK:
            yield chunk
            chunk = []
        chunk.append(p)
    if chunk:
        yield chunk
