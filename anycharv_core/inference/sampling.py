"""DDIM over temporal windows."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..models.schedule import NoiseSchedule, ddim_step, ddim_timesteps
from ..models.windows import Windows

Denoise = Callable[[Tensor, int, Sequence[int]], Tensor]
"""(latents [w, c, h, w], timestep, frame indices [w]) -> guided prediction of the same shape."""


def sample(
    denoise: Denoise,
    noise: Tensor,
    steps: int,
    windows: Windows,
    schedule: NoiseSchedule,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """DDIM from `noise` float32 [F, c, h, w] to clean latents of the same shape.

    At every step the windows' predictions are fused frame by frame (paper A.2, "temporally aggregated").
    `progress(done, total)` counts denoising calls; an exception raised in it stops the sampling.
    """
    x, total, done = noise, steps * len(windows.indices), 0
    for t, t_prev in ddim_timesteps(steps, schedule):
        fused = torch.zeros_like(x)
        mass = x.new_zeros(len(x), 1, 1, 1)
        for index, weight in zip(windows.indices, windows.weights, strict=True):
            rows = torch.tensor(index, device=x.device)
            share = torch.tensor(weight, device=x.device, dtype=x.dtype).reshape(-1, 1, 1, 1)
            fused.index_add_(0, rows, share * denoise(x[rows], t, index).to(x.dtype))
            mass.index_add_(0, rows, share)
            done += 1
            if progress is not None:
                progress(done, total)
        x = ddim_step(fused / mass if windows.average else fused, x, t, t_prev, schedule)
    return x
