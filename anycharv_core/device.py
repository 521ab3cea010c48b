"""The device to run on, its name, and the memory it took."""

from __future__ import annotations

import math
import os
import platform
import sys
from contextlib import suppress
from pathlib import Path

import torch

from .errors import UserError


def pick_device(name: str | None) -> str:
    """`name`, or what is there: "cuda", else "cpu". Raises UserError where torch cannot use it."""
    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("torch finds no CUDA device; use --device cpu, or see 'anycharv doctor'.")
    if name == "mps" and not torch.backends.mps.is_available():
        raise UserError("torch finds no Apple GPU (mps); use --device cpu, or see 'anycharv doctor'.")
    return name


def has_bf16(device: str) -> bool:
    """Whether the device has instructions for bfloat16, without which it is slower than float32."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)() if device == "cpu" else {}
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16"))


def usable_cores() -> int:
    """The cores that this process may run on, where the system tells, else all."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def device_name(device: str) -> str:
    if device == "cuda":
        return f"cuda: {torch.cuda.get_device_name()}"
    return f"{device}: {platform.processor() or platform.machine()}, {usable_cores()} core(s)"


def free_memory(device: torch.device) -> float:
    """Bytes that could still be taken of the device's memory; infinite where the system does not tell."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    with suppress(OSError):
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if device.type == "cpu" and line.startswith("MemAvailable:"):
                return 1024 * int(line.split()[1])
    return math.inf


def peak_memory(device: str) -> dict[str, int]:
    """Most bytes held so far, by the process (where the system tells) and on the GPU (where one is used)."""
    peak: dict[str, int] = {}
    with suppress(ImportError):  # Windows has no such module
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        peak["process"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    if device == "cuda":
        peak["cuda"] = torch.cuda.max_memory_allocated()
    return peak
