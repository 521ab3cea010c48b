"""From noise to clean latents in fewer steps than DDIM takes: DPM-Solver++(2M)."""

from __future__ import annotations

import math

from torch import Tensor

from .schedule import EPSILON, SAMPLE, NoiseSchedule, alphas_cumprod, ddim_timesteps

DDIM, DPM = "ddim", "dpm++2m"
SOLVERS = DDIM, DPM
CLEAN = -1  # the "timestep" behind the last one


def timesteps_of(solver: str, steps: int, schedule: NoiseSchedule) -> list[tuple[int, int]]:
    """(t, next t) pairs, the largest t first; the last next t is negative.

    DDIM's are the release's, whose next t is now and then one off. A solver that looks back needs the true one.
    """
    pairs = ddim_timesteps(steps, schedule)
    if solver == DDIM:
        return pairs
    times = [t for t, _ in pairs]
    return list(zip(times, [*times[1:], CLEAN], strict=True))


def clean_latents(prediction: Tensor, x: Tensor, t: int, schedule: NoiseSchedule) -> Tensor:
    """What latents x at timestep t become, as the prediction has it."""
    signal, sigma = signal_and_sigma(t, schedule)
    if schedule.prediction == SAMPLE:
        return prediction
    if schedule.prediction == EPSILON:
        return (x - sigma * prediction) / signal
    return signal * x - sigma * prediction


def dpm_step(
    clean: Tensor,
    x: Tensor,
    t: int,
    t_next: int,
    schedule: NoiseSchedule,
    before: tuple[Tensor, int] | None = None,
) -> Tensor:
    """One update of latents x from t to t_next (Lu et al., "DPM-Solver++", algorithm 2, in data prediction).

    clean: what `clean_latents` gives at t; before: what it gave a step earlier, and that step's t. The first step
    has none, and is DDIM's. At a log-SNR of -infinity, where t = 999 is noise alone, and of +infinity, the end,
    the second order has its limit: the first.
    """
    (signal, sigma), (signal_next, sigma_next) = (signal_and_sigma(at, schedule) for at in (t, t_next))
    if before is not None:
        earlier, t_earlier = before
        now, ahead, past = (_log_snr(at, schedule) for at in (t, t_next, t_earlier))
        if math.isfinite(ahead) and math.isfinite(past):
            clean = clean + (ahead - now) / (2 * (now - past)) * (clean - earlier)
    # sigma_next / sigma x - signal_next (e^-h - 1) clean, without the quotient of signals that h is the log of.
    kept = sigma_next / sigma
    return kept * x + (signal_next - kept * signal) * clean


def signal_and_sigma(t: int, schedule: NoiseSchedule) -> tuple[float, float]:
    """Factors of clean latents and of noise at a timestep; 1 and 0 at a negative one."""
    power = float(alphas_cumprod(schedule.zero_snr, schedule.scaled)[t]) if t >= 0 else 1.0
    return math.sqrt(power), math.sqrt(1 - power)


def _log_snr(t: int, schedule: NoiseSchedule) -> float:
    """Half of it, lambda in the paper."""
    signal, sigma = signal_and_sigma(t, schedule)
    if not signal:
        return -math.inf
    return math.log(signal / sigma) if sigma else math.inf
