"""What a training step costs beside its arithmetic, and how that is kept small and measured."""

from __future__ import annotations

import ctypes
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from anycharv_core.device import peak_memory
from anycharv_core.models.hooks import AttentionFunction
from anycharv_core.models.layers import sdpa

# glibc's mallopt: never a mapping of its own for a large block, and nothing given back to the system.
M_MMAP_MAX, M_TRIM_THRESHOLD = -4, -1


def keep_freed_memory() -> None:
    """Lets this process keep the memory that tensors leave: on many machines fresh pages cost more than the
    arithmetic on them, and every step would ask for gigabytes. Does nothing where the C library is not glibc."""
    if sys.platform != "linux":
        return
    mallopt: Callable[[int, int], int] | None = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)


def attention_for(device: torch.device) -> AttentionFunction:
    """The attention that is fastest forwards and backwards: PyTorch's, but on a processor in bfloat16, where its
    way back takes three to seven times as long as that of two matrix products (256 to 640 tokens)."""
    in_bf16 = device.type == "cpu" and torch.is_autocast_enabled("cpu")
    return matmul_attention if in_bf16 else sdpa


def matmul_attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Attention as an `AttentionFunction`, written out; its weights [N, heads, L, T] take memory."""
    q, k, v = (rearrange(x, "n l (h d) -> n h l d", h=heads) for x in (q, k, v))
    weights = (q * q.shape[-1] ** -0.5 @ k.transpose(-1, -2)).softmax(-1)
    return rearrange(weights @ v, "n h l d -> n l (h d)")


class Meter:
    """Images per second, the share of the time spent waiting for data, and the most memory held, since it was last
    read."""

    def __init__(self, device: torch.device):
        self._device = device
        self._start()

    def _start(self) -> None:
        self._since, self._waited, self._images = time.monotonic(), 0.0, 0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Whatever is done inside counts as waiting for data."""
        began = time.monotonic()
        yield
        self._waited += time.monotonic() - began

    def count(self, batch: dict[str, Tensor]) -> None:
        """Counts the frames of a batch [B, F, ...], encoded or not, or its rows where it has none."""
        rows = batch.get("frames", batch.get("latents", batch["position"]))
        self._images += rows.shape[0] * (rows.shape[1] if rows.ndim > 2 else 1)

    def read(self) -> dict[str, Any]:
        """images_per_second, of this process; data_wait in 0..1; peak_memory_gib. Starts again."""
        spent = max(time.monotonic() - self._since, 1e-9)
        peak = peak_memory(self._device.type)
        held = peak.get("cuda", peak.get("process", 0))
        found = {
            "images_per_second": self._images / spent,
            "data_wait": self._waited / spent,
            "peak_memory_gib": held / 2**30,
        }
        self._start()
        return found


def channels_last(module: nn.Module) -> None:
    """Lays the weights of convolutions out as these are fastest; one over time has no such layout."""
    for weight in module.parameters():
        if weight.ndim == 4:
            weight.data = weight.data.contiguous(memory_format=torch.channels_last)
