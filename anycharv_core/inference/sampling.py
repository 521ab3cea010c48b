"""Sampling over temporal windows, which are fused at every step, or sampled one after another."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..models.schedule import NoiseSchedule, ddim_step
from ..models.solvers import DDIM, clean_latents, dpm_step, timesteps_of
from ..models.windows import Windows, rounds_of
from .latents import Latents
from .shortcuts import NONE, Shortcuts

Denoise = Callable[[Tensor, int, Sequence[int]], Tensor]
"""(latents [w, c, h, w], timestep, frame indices [w]) -> guided prediction of the same shape."""
Progress = Callable[[int, int], None]
"""(denoising calls done, in all); what it raises stops the sampling."""
Sampled = Iterator[int]
"""Samples while it is read: after every round it gives how many of the first frames are finished."""


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
    to_the_end(sample_video(denoise, latents, steps, windows, schedule, noise.device, progress))
    return latents.whole().to(noise.device)


def to_the_end(sampled: Sampled) -> None:
    """Samples to the end."""
    for _ in sampled:
        pass


def sample_video(
    denoise: Denoise,
    latents: Latents,
    steps: int,
    windows: Windows,
    schedule: NoiseSchedule,
    device: torch.device,
    progress: Progress | None = None,
    shortcuts: Shortcuts = NONE,
) -> Sampled:
    """The latents of a whole video go from the round that they are at to the end.

    At every step the windows' predictions are fused frame by frame (paper A.2, "temporally aggregated"); a frame
    that lies in no window stays as it is. The order is that of `rounds_of`; with a deep cache, which is not kept,
    windows take every step together, or there would be no round to go on from. `device` is where `denoise` takes
    and gives tensors, of which only a window's are there at a time.
    """
    last = np.full(len(latents), -1)  # the last window that each frame lies in
    mass = np.zeros(len(latents), np.float32)
    masses = []  # what each window and those before it weigh in its frames
    for number, (index, weight) in enumerate(zip(windows.indices, windows.weights, strict=True)):
        frames = list(index)
        last[frames] = number
        mass[frames] += np.asarray(weight, np.float32)
        masses.append(mass[frames])
    times = timesteps_of(shortcuts.solver, steps, schedule)
    whole = [*shortcuts.whole(steps, schedule), True]
    cached, count = not all(whole), len(windows.indices)
    begins = [min(index) for index in windows.indices]

    def advance(step: int, number: int) -> None:
        """One window takes one step."""
        index, t = windows.indices[number], times[step][0]
        x, before, *seemed = (part.to(device) for part in latents.take_parts(index))
        share, weighed = (
            torch.as_tensor(each, device=device, dtype=x.dtype).reshape(-1, 1, 1, 1)
            for each in (windows.weights[number], masses[number])
        )
        sums = before + share * denoise(x, t, index).to(x.dtype)
        done = [place for place, frame in enumerate(index) if last[frame] == number]
        waiting = [place for place, frame in enumerate(index) if last[frame] > number]
        prediction = sums[done] / weighed[done] if windows.average else sums[done]
        earlier = seemed[0][done] if step and seemed else None
        now, *clean = _after(shortcuts.solver, prediction, x[done], times, step, schedule, earlier)
        latents.put([index[place] for place in done], now, torch.zeros_like(now), *clean)
        latents.put([index[place] for place in waiting], *(part[waiting] for part in (x, sums, *seemed)))

    apart = count if cached else windows.apart
    calls = 0
    for number, taken in enumerate(rounds_of(count, steps, apart), 1):
        calls += len(taken)
        if number <= latents.rounds:
            continue
        for call, (step, window) in enumerate(taken, calls - len(taken) + 1):
            advance(step, window)
            if progress is not None:
                progress(call, steps * count)
        following, within = divmod(number, count)
        latents.advance(resumable=not cached or (within == 0 and whole[following]))
        left = begins[max(0, number - apart * (steps - 1)) :]
        yield min(left, default=len(latents))


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
) -> Sampled:
    """Sampling of the latents of a whole video, window after window (Animate Anyone 2, section 4.1).

    A window gets what those before it made of its first frames, which stay as they are. A round is a window here;
    a frame in no window stays as it is.
    """
    finished = {frame for index in windows.indices[: latents.rounds] for frame in index}
    calls = len(windows.indices) * steps
    times = timesteps_of(shortcuts.solver, steps, schedule)
    for number, index in enumerate(windows.indices):
        if number < latents.rounds:
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
        latents.put(list(made), x[list(made.values())])
        latents.advance()
        finished |= made.keys()
        left = (frame for later in windows.indices[number + 1 :] for frame in later if frame not in finished)
        yield next(left, len(latents))


def sample_as(
    how: Sampling,
    denoise: Callable[..., Tensor],
    latents: Latents,
    schedule: NoiseSchedule,
    device: torch.device,
) -> Sampled:
    """`sample_video`, or with chained windows `sample_chained`, whose `denoise` gets one argument more."""
    sampler = sample_chained if how.windows.chained else sample_video
    return sampler(denoise, latents, how.steps, how.windows, schedule, device, how.progress, how.shortcuts)


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
