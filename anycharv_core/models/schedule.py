"""The noise schedule and DDIM: what the weights predict, and at which timesteps they are asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, Literal, cast, get_args

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from .fields import Fields

SCHEDULER = "noise_scheduler_kwargs"  # where a model's settings hold its schedule
TRAIN_STEPS = 1000
BETAS = 0.00085, 0.012
SNR_SHIFT = "snr_shift_scale"
EPSILON: Final = "epsilon"
V: Final = "v_prediction"
SAMPLE: Final = "sample"
Prediction = Literal["epsilon", "v_prediction", "sample"]

# Settings of the scheduler that these schedules have no other value for.
FIXED_SETTINGS = {
    "beta_end": BETAS[1],
    "beta_start": BETAS[0],
    "clip_sample": False,
    "num_train_timesteps": TRAIN_STEPS,
    "set_alpha_to_one": True,
    "thresholding": False,
    "trained_betas": None,
}


@dataclass(frozen=True)
class NoiseSchedule:
    """What the weights predict, and at which timesteps they are asked.

    prediction: v, the noise (epsilon), or the clean latents (sample), which a network can predict that is too
    narrow to tell the noise of all it sees (Li and He 2025, "Back to Basics: Let Denoising Generative Models
    Denoise"); zero_snr: t = 999 is noise alone; leading: the timesteps are multiples of 1000 // steps plus
    `offset`, in place of trailing ones, which end at 999; scaled: CogVideoX's, of which not the betas but their
    roots are linear. The defaults are those of AnyCharV and of Animate Anyone's second configuration.
    """

    prediction: Prediction = V
    zero_snr: bool = True
    leading: bool = False
    offset: int = 1
    scaled: bool = False

    @classmethod
    def from_dict(cls, settings: Any) -> NoiseSchedule:
        """Reads `noise_scheduler_kwargs`, with diffusers' defaults. Raises UserError for other schedulers."""
        given = Fields(settings, SCHEDULER)
        scaled = given.has(SNR_SHIFT)  # which CogVideoX's schedulers alone have
        given.check_fixed(FIXED_SETTINGS | {"beta_schedule": _betas(scaled), SNR_SHIFT: 1.0})
        prediction = cast(Prediction, given.choice("prediction_type", get_args(Prediction), EPSILON))
        spacing = given.choice("timestep_spacing", ("leading", "trailing"), "leading")
        zero_snr = given.flag("rescale_betas_zero_snr", False)
        if zero_snr and prediction == EPSILON:
            raise UserError(
                "The noise scheduler asks for epsilon with zero SNR, which cannot be sampled: use v_prediction "
                "for it."
            )
        offset = given.number("steps_offset", 0, above=-1, below=TRAIN_STEPS)
        if offset != int(offset):
            raise UserError(f"{SCHEDULER} has steps_offset={offset}, but it must be a whole number.")
        return cls(prediction, zero_snr, spacing == "leading", int(offset), scaled)

    def to_dict(self) -> dict[str, Any]:
        """`noise_scheduler_kwargs` of this schedule."""
        return {
            "beta_start": BETAS[0],
            "beta_end": BETAS[1],
            "beta_schedule": _betas(self.scaled),
            "clip_sample": False,
            "steps_offset": self.offset,
            "prediction_type": self.prediction,
            "rescale_betas_zero_snr": self.zero_snr,
            "timestep_spacing": "leading" if self.leading else "trailing",
            **({SNR_SHIFT: 1.0} if self.scaled else {}),
        }


def _betas(scaled: bool) -> str:
    return "scaled_linear" if scaled else "linear"


def schedule_of(settings: Mapping[str, Any]) -> NoiseSchedule:
    """The schedule of a model with these settings; without one of their own, AnyCharV's."""
    return NoiseSchedule.from_dict(settings[SCHEDULER]) if SCHEDULER in settings else NoiseSchedule()


@lru_cache
def alphas_cumprod(zero_snr: bool = True, scaled: bool = False) -> Tensor:
    """Cumulative signal power [1000] of linear betas in float32, rescaled to zero terminal SNR or as they are.

    Lin et al., "Common Diffusion Noise Schedules and Sample Steps are Flawed", algorithm 1; the last
    entry is then exactly 0. Rounded through float32 betas as the release's scheduler is. scaled: of CogVideoX's
    betas, of which the power itself is rescaled, in float64.
    """
    if scaled:
        first, last = (beta**0.5 for beta in BETAS)
        roots = torch.linspace(first, last, TRAIN_STEPS, dtype=torch.float64)
        root = (1 - roots**2).cumprod(0).sqrt()
        return _rescaled(root) if zero_snr else root**2
    betas = torch.linspace(*BETAS, TRAIN_STEPS, dtype=torch.float32)
    if not zero_snr:
        return (1 - betas).cumprod(0)
    power = _rescaled((1 - betas).cumprod(0).sqrt())
    alphas = torch.cat([power[:1], power[1:] / power[:-1]])
    return (1 - (1 - alphas)).cumprod(0)


def _rescaled(root: Tensor) -> Tensor:
    """Signal power of these roots of it, moved so that the first stays and the last becomes 0."""
    first, last = root[0].clone(), root[-1].clone()
    return ((root - last) * (first / (first - last))) ** 2


def add_noise(
    clean: Tensor, noise: Tensor, t: Tensor, schedule: NoiseSchedule = NoiseSchedule()
) -> tuple[Tensor, Tensor]:
    """Noisy latents at timesteps t [N] and what is to be predicted of them, both shaped as `clean` [N, ...]."""
    powers = alphas_cumprod(schedule.zero_snr, schedule.scaled).to(clean.device)
    power = powers[t].reshape(-1, *[1] * (clean.ndim - 1))
    signal, sigma = power.sqrt().float(), (1 - power).sqrt().float()
    given = {EPSILON: noise, SAMPLE: clean}
    wanted = given[schedule.prediction] if schedule.prediction in given else signal * noise - sigma * clean
    return signal * clean + sigma * noise, wanted


def ddim_timesteps(steps: int, schedule: NoiseSchedule = NoiseSchedule()) -> list[tuple[int, int]]:
    """(t, previous t) pairs, the largest t first; the previous t is negative at the last step.

    As in diffusers, with which the released model is used: previous t = t - 1000 // steps, off by one
    against the next t where `steps` does not divide 1000, and NumPy's arange, whose stride is rounded so
    that some halves fall to the other side.
    """
    if schedule.leading:
        # Within the table, which an offset would leave where the steps are a thousand.
        starts = [min(i * (TRAIN_STEPS // steps) + schedule.offset, TRAIN_STEPS - 1) for i in range(steps)]
        return [(t, t - TRAIN_STEPS // steps) for t in reversed(starts)]
    ends = np.arange(TRAIN_STEPS, 0, -TRAIN_STEPS / steps)[:steps].round().astype(int)
    return [(t, t - TRAIN_STEPS // steps) for t in (ends - 1).tolist()]


def ddim_step(
    prediction: Tensor, x: Tensor, t: int, t_prev: int, schedule: NoiseSchedule = NoiseSchedule()
) -> Tensor:
    """One deterministic DDIM update (eta 0) of latents x from the prediction."""
    power = alphas_cumprod(schedule.zero_snr, schedule.scaled)
    now = power[t]
    before = power[t_prev] if t_prev >= 0 else torch.ones(())
    if schedule.prediction == EPSILON:
        noise = prediction
        clean = (x - (1 - now).sqrt() * noise) / now.sqrt()
    elif schedule.prediction == SAMPLE:
        clean = prediction
        noise = (x - now.sqrt() * clean) / (1 - now).sqrt()
    else:
        clean = now.sqrt() * x - (1 - now).sqrt() * prediction
        noise = now.sqrt() * prediction + (1 - now).sqrt() * x
    return before.sqrt() * clean + (1 - before).sqrt() * noise
