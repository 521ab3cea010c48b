"""DDIM over temporal windows, which are fused at every step, or sampled one after another."""

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


Chained = Callable[[Tensor, int, Sequence[int], Tensor], Tensor]
"""As `Denoise`, and (finished latents [k, c, h, w] of the first k of the frames, k >= 0)."""


def sample_chained(
    denoise: Chained,
    latents: Latents,
    steps: int,
    windows: Windows,
    schedule: NoiseSchedule,
    device: torch.device,
    progress: Progress | None = None,
) -> None:
    """DDIM of the latents of a whole video, window after window (Animate Anyone 2, section 4.1).

    A window gets what those before it made of its first frames, which stay as they are. `latents.steps` counts
    windows here, from the first that is not finished; a frame in no window stays as it is.
    """
    settled = set[int]()  # frames that `latents` holds the same of before and after the window
    finished = {frame for index in windows.indices[: latents.steps] for frame in index}
    calls = len(windows.indices) * steps
    for number, index in enumerate(windows.indices):
        if number < latents.steps:
            continue
        carried = next((place for place, frame in enumerate(index) if frame not in finished), len(index))
        x = latents.take(index).to(device)
        known = x[:carried].clone()
        for step, (t, t_prev) in enumerate(ddim_timesteps(steps, schedule)):
            x = ddim_step(denoise(x, t, index, known).to(x.dtype), x, t, t_prev, schedule)
            if progress is not None:
                progress(number * steps + step + 1, calls)
        # A frame that fills the window up comes a second time.
        made = {frame: place for place, frame in reversed(list(enumerate(index))) if frame not in finished}
        for frame in set(range(len(latents))) - settled - made.keys():
            latents.put([frame], latents.take([frame]))
        latents.put(list(made), x[list(made.values())])
        latents.advance()
        settled = set(range(len(latents))) - made.keys()
        finished |= made.keys()
