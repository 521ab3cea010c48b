"""Sampling over temporal windows, which are fused at every step, or sampled one after another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..models.schedule import NoiseSchedule, ddim_step
from ..models.solvers import DDIM, clean_latents, dpm_step, timesteps_of
from ..models.windows import Windows
from .latents import Latents
from .shortcuts import NONE, Shortcuts

Denoise = Callable[[Tensor, int, Sequence[int]], Tensor]
"""(latents [w, c, h, w], timestep, frame indices [w]) -> guided prediction of the same shape."""
Progress = Callable[[int, int], None]
"""(denoising calls done, in all); what it raises stops the sampling."""


@dataclass(frozen=True)
class Sampling:
    """How the latents of a video are sampled: what `Pipeline.sample` decides for a backend."""

    steps: int
    guidance_scale: float
    windows: Windows
    progress: Progress | None = None
    shortcuts: Shortcuts = NONE


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
    shortcuts: Shortcuts = NONE,
) -> None:
    """The latents of a whole video go from the step that they are at to the last of `steps`.

    At every step the windows' predictions are fused frame by frame (paper A.2, "temporally aggregated"); a frame
    that lies in no window stays as it is. `device` is where `denoise` takes and gives tensors, of which only a
    window's, and what its neighbours are still waiting for, are there at a time.
    """
    last = np.full(len(latents), -1)  # the last window that each frame lies in
    for number, index in enumerate(windows.indices):
        last[list(index)] = number
    unseen = np.flatnonzero(last < 0).tolist()
    calls = len(windows.indices)
    times = timesteps_of(shortcuts.solver, steps, schedule)
    whole = [*shortcuts.whole(steps, schedule), True]
    for step, (t, _) in enumerate(times):
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
            frames = [index[place] for place in done]
            earlier = latents.take(frames, part=1).to(device) if step and frames and latents.parts > 1 else None
            latents.put(frames, *_after(shortcuts.solver, prediction, x[done], times, step, schedule, earlier))
            waiting = [place for place, frame in enumerate(index) if last[frame] > number]
            fused |= {index[place]: (total[place], mass[place]) for place in waiting}
            if progress is not None:
                progress(step * calls + number + 1, steps * calls)
        for frame in unseen:
            latents.put([frame], latents.take([frame]))
        latents.advance(resumable=whole[step + 1])


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
    shortcuts: Shortcuts = NONE,
) -> None:
    """Sampling of the latents of a whole video, window after window (Animate Anyone 2, section 4.1).

    A window gets what those before it made of its first frames, which stay as they are. `latents.steps` counts
    windows here, from the first that is not finished; a frame in no window stays as it is.
    """
    settled = set[int]()  # frames that `latents` holds the same of before and after the window
    finished = {frame for index in windows.indices[: latents.steps] for frame in index}
    calls = len(windows.indices) * steps
    times = timesteps_of(shortcuts.solver, steps, schedule)
    for number, index in enumerate(windows.indices):
        if number < latents.steps:
            continue
        carried = next((place for place, frame in enumerate(index) if frame not in finished), len(index))
        x = latents.take(index).to(device)
        known = x[:carried].clone()
        earlier = None
        for step, (t, _) in enumerate(times):
            prediction = denoise(x, t, index, known).to(x.dtype)
            x, *cleaned = _after(shortcuts.solver, prediction, x, times, step, schedule, earlier)
            earlier = cleaned[0] if cleaned else None
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


def sample_as(
    how: Sampling,
    denoise: Callable[..., Tensor],
    latents: Latents,
    schedule: NoiseSchedule,
    device: torch.device,
) -> None:
    """`sample_video`, or with chained windows `sample_chained`, whose `denoise` gets one argument more."""
    sampler = sample_chained if how.windows.chained else sample_video
    sampler(denoise, latents, how.steps, how.windows, schedule, device, how.progress, how.shortcuts)


def _after(
    solver: str,
    prediction: Tensor,
    x: Tensor,
    times: Sequence[tuple[int, int]],
    step: int,
    schedule: NoiseSchedule,
    earlier: Tensor | None,
) -> tuple[Tensor, ...]:
    """What latents x are after a step, part by part; earlier: the second part after the step before, if any."""
    t, t_next = times[step]
    if solver == DDIM:
        return (ddim_step(prediction, x, t, t_next, schedule),)
    clean = clean_latents(prediction, x, t, schedule)
    before = None if earlier is None else (earlier, times[step - 1][0])
    return dpm_step(clean, x, t, t_next, schedule, before), clean
