"""What a training keeps of networks that it does not change: less than their float32 weights on the card."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

# What autocast rounds the weights of these layers to at every step.
NARROW = {"bf16": torch.bfloat16, "fp16": torch.float16}
_ROUNDED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def narrow_frozen(net: nn.Module, precision: str) -> None:
    """Rounds frozen convolutions and linear layers to the `precision` in which autocast computes with them anyway:
    half the memory, no rounding at every step, and the same results to the bit. Norms, which autocast may compute
    in float32, stay as they are, as everything does in "fp32"."""
    if precision not in NARROW:
        return
    for module in net.modules():
        if isinstance(module, _ROUNDED) and not any(p.requires_grad for p in module.parameters()):
            module.to(NARROW[precision])


class Aside(dict[str, nn.Module]):
    """Networks that are not the module's own, so that nothing moves or saves them: they wait on the CPU."""

    @contextmanager
    def on(self, device: torch.device) -> Iterator[None]:
        """They are on the device meanwhile."""
        for net in self.values():
            net.to(device)
        try:
            yield
        finally:
            for net in self.values():
                net.to("cpu")
