"""Noise schedule, DDIM and temporal windows: everything between the networks and the pipeline."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

TRAIN_STEPS = 1000
WINDOW, OVERLAP = 24, 6

Denoise = Callable[[Tensor, int, Sequence[int]], Tensor]
"""(latents [w, c, h, w], timestep, frame indices [w]) -> guided v-prediction of the same shape."""


@lru_cache
def alphas_cumprod(beta_start: float = 0.00085, beta_end: float = 0.012) -> Tensor:
    """Cumulative signal power float32 [1000] of linear betas rescaled to zero terminal SNR.

    Lin et al., "Common Diffusion Noise Schedules and Sample Steps are Flawed", algorithm 1; the last
    entry is exactly 0. Rounded through float32 betas as the release's scheduler is.
    """
    betas = torch.linspace(beta_start, beta_end, TRAIN_STEPS, dtype=torch.float32)
    root = (1 - betas).cumprod(0).sqrt()
    first, last = root[0].clone(), root[-1].clone()
    power = ((root - last) * (first / (first - last))) ** 2
    alphas = torch.cat([power[:1], power[1:] / power[:-1]])
    return (1 - (1 - alphas)).cumprod(0)


def add_noise(clean: Tensor, noise: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Noisy latents at timesteps t [N] and their v-prediction target, both shaped as `clean` [N, ...]."""
    power = alphas_cumprod().to(clean.device)[t].reshape(-1, *[1] * (clean.ndim - 1))
    signal, sigma = power.sqrt(), (1 - power).sqrt()
    return signal * clean + sigma * noise, signal * noise - sigma * clean


def ddim_timesteps(steps: int) -> list[tuple[int, int]]:
    """Trailing (t, previous t) pairs; the previous t is negative at the last step.

    As in diffusers, with which the released model is used: previous t = t - 1000 // steps, off by one
    against the next t where `steps` does not divide 1000, and NumPy's arange, whose stride is rounded so
    that some halves fall to the other side.
    """
    ends = np.arange(TRAIN_STEPS, 0, -TRAIN_STEPS / steps)[:steps].round().astype(int)
    return [(t, t - TRAIN_STEPS // steps) for t in (ends - 1).tolist()]


def ddim_step(v: Tensor, x: Tensor, t: int, t_prev: int) -> Tensor:
    """One deterministic DDIM update (eta 0) of latents x from the v-prediction."""
    power = alphas_cumprod()
    now = power[t]
    before = power[t_prev] if t_prev >= 0 else torch.ones(())
    clean = now.sqrt() * x - (1 - now).sqrt() * v
    noise = now.sqrt() * v + (1 - now).sqrt() * x
    return before.sqrt() * clean + (1 - before).sqrt() * noise


@dataclass(frozen=True)
class Windows:
    """Frame indices of each temporal window, the weight of each position, and whether to average."""

    indices: tuple[tuple[int, ...], ...]
    weights: tuple[tuple[float, ...], ...]
    average: bool = True


def closed_loop_windows(frames: int, average: bool, size: int = WINDOW, overlap: int = OVERLAP) -> Windows:
    """The release's windows: the last one wraps to the start of the clip, and all weigh the same."""
    if frames <= size:
        indices = (tuple(range(frames)),)
    else:
        starts = range(0, frames, size - overlap)
        indices = tuple(tuple(i % frames for i in range(s, s + size)) for s in starts)
    return Windows(indices, tuple((1.0,) * len(w) for w in indices), average)


def linear_windows(frames: int, size: int = WINDOW, overlap: int = OVERLAP) -> Windows:
    """Evenly spaced windows from the first frame to the last, overlapping by at least `overlap`.

    Inside an overlap each window's weight ramps linearly, so that one hands over to the next.
    """
    if frames <= size:
        return Windows((tuple(range(frames)),), ((1.0,) * frames,))
    count = -(-(frames - overlap) // (size - overlap))
    starts = [round(i * (frames - size) / (count - 1)) for i in range(count)]
    return Windows(tuple(tuple(range(s, s + size)) for s in starts), (window_ramp(size, overlap),) * count)


def window_ramp(size: int, overlap: int) -> tuple[float, ...]:
    """Weights of the `size` positions of a window: rising and falling over `overlap` frames at its ends."""
    return tuple(float(min(i + 1, size - i, overlap + 1)) for i in range(size))


def sample(
    denoise: Denoise,
    noise: Tensor,
    steps: int,
    windows: Windows,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """DDIM from `noise` float32 [F, c, h, w] to clean latents of the same shape.

    At every step the windows' predictions are fused frame by frame (paper A.2, "temporally aggregated").
    `progress(done, total)` counts denoising calls; an exception raised in it stops the sampling.
    """
    x, total, done = noise, steps * len(windows.indices), 0
    for t, t_prev in ddim_timesteps(steps):
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
        x = ddim_step(fused / mass if windows.average else fused, x, t, t_prev)
    return x
