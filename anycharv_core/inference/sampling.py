"""DDIM over temporal windows."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from ..models.schedule import NoiseSchedule, ddim_step, ddim_timesteps
from ..models.windows import Windows
from .latents import Latents

Denoise = Callable[[Tensor, int, Sequence[int]], Tensor]
"""(latents [w, c, h, w], timestep, frame indices [w]) -> guided prediction of the same shape."""
Progress = Callable[[int, int], None]
"""(denoising calls done, in all); what it raises stops the sampling."""


def sample(
    denoise: Denoise,
    noise: Tensor,
    steps: int,
    windows: Windows,
    schedule: NoiseSchedule,
    progress: Progress | None = None,
) -> Tensor:
    """DDIM from `noise` float32 [F, c, h, w] to clean latents of the same shape, see `sample_video`."""
    latents = Latents.begun([noise])
    sample_video(denoise, latents, steps, windows, schedule, noise.device, progress)
    return latents.whole().to(noise.device)


def sample_video(
    denoise: Denoise,
    latents: Latents,
    steps: int,
    windows: Windows,
    schedule: NoiseSchedule,
    device: torch.device,
    progress: Progress | None = None,
) -> None:
    """DDIM of the latents of a whole video, from the step that they are at to the last of `steps`.

    At every step the windows' predictions are fused frame by frame (paper A.2, "temporally aggregated"); a frame
    that lies in no window stays as it is. `device` is where `denoise` takes and gives tensors, of which only a
    window's, and what its neighbours are still waiting for, are there at a time.
    """
    last = np.full(len(latents), -1)  # the last window that each frame lies in
    for number, index in enumerate(windows.indices):
        last[list(index)] = number
    unseen = np.flatnonzero(last < 0).tolist()
    calls = len(windows.indices)
    for step, (t, t_prev) in enumerate(ddim_timesteps(steps, schedule)):
        if step < latents.steps:
            continue
        fused: dict[int, tuple[Tensor, Tensor]] = {}
        for number, (index, weight) in enumerate(zip(windows.indices, windows.weights, strict=True)):
            x = latents.take(index).to(device)
            share = torch.tensor(weight, device=device, dtype=x.dtype).reshape(-1, 1, 1, 1)
            nothing = torch.zeros_like(x[0]), torch.zeros_like(share[0])
            sums = zip(*(fused.pop(frame, nothing) for frame in index), strict=True)
            before, mass = (torch.stack(each) for each in sums)
            total, mass = before + share * denoise(x, t, index).to(x.dtype), mass + share
            done = [place for place, frame in enumerate(index) if last[frame] == number]
            prediction = total[done] / mass[done] if windows.average else total[done]
            latents.put([index[place] for place in done], ddim_step(prediction, x[done], t, t_prev, schedule))
            waiting = [place for place, frame in enumerate(index) if last[frame] > number]
            fused |= {index[place]: (total[place], mass[place]) for place in waiting}
            if progress is not None:
                progress(step * calls + number + 1, steps * calls)
        for frame in unseen:
            latents.put([frame], latents.take([frame]))
        latents.advance()
