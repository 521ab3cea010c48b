"""Noise schedule, DDIM and windows, from their definitions."""

import json
from itertools import pairwise

import needs
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from anycharv_core.inference.sampling import sample
from anycharv_core.models.schedule import NoiseSchedule, add_noise, alphas_cumprod, ddim_step, ddim_timesteps
from anycharv_core.models.windows import Windows, closed_loop_windows, linear_windows

recorded = needs.recorded(needs.PARITY)


def test_schedule_is_the_rescaled_linear_one() -> None:
    root = np.sqrt(np.cumprod(1 - np.linspace(0.00085, 0.012, 1000)))
    expected = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
    np.testing.assert_allclose(alphas_cumprod().numpy(), expected, atol=2e-6)
    assert alphas_cumprod()[-1] == 0


def test_trailing_timesteps_keep_the_offset_of_the_release() -> None:
    assert ddim_timesteps(3) == [(999, 666), (666, 333), (332, -1)]
    assert ddim_timesteps(1) == [(999, -1)]
    assert ddim_timesteps(48)[3] == (936, 916)


@recorded
def test_tables_equal_the_recorded_ones() -> None:
    table = json.loads((needs.PARITY / "scheduler.json").read_text())
    np.testing.assert_allclose(alphas_cumprod().numpy(), table["alphas_cumprod"], atol=1e-6)
    for steps, row in table["steps"].items():
        pairs = list(zip(row["timesteps"], row["prev_timestep"], strict=True))
        assert ddim_timesteps(int(steps)) == pairs
    for case in json.loads((needs.PARITY / "context_windows.json").read_text()):
        if (case["context_stride"], case["step"], case["closed_loop"]) == (1, 0, True):
            sizes = case["context_size"], case["context_overlap"]
            windows = closed_loop_windows(case["num_frames"], True, *sizes)
            assert [list(window) for window in windows.indices] == case["windows"]


@pytest.mark.parametrize("steps", [1, 3, 7, 10])
def test_the_true_v_leads_back_towards_the_clean_latents(steps: int) -> None:
    clean, noise = torch.randn(2, 4, 3, 3), torch.randn(2, 4, 3, 3)

    def at(t: int) -> tuple[torch.Tensor, torch.Tensor]:
        return add_noise(clean, noise, torch.tensor([t, t]))

    assert torch.equal(at(999)[0], noise)
    for t, t_prev in ddim_timesteps(steps):
        noisy, v = at(t)
        expected = at(t_prev)[0] if t_prev >= 0 else clean
        torch.testing.assert_close(ddim_step(v, noisy, t, t_prev), expected, atol=1e-5, rtol=1e-5)


@given(frames=st.integers(1, 300), size=st.integers(2, 32), data=st.data())
def test_linear_windows_cover_evenly(frames: int, size: int, data: st.DataObject) -> None:
    overlap = data.draw(st.integers(0, size - 1))
    windows = linear_windows(frames, size, overlap)
    starts = [index[0] for index in windows.indices]
    assert {f for index in windows.indices for f in index} == set(range(frames))
    for index, weight in zip(windows.indices, windows.weights, strict=True):
        assert index == tuple(range(index[0], index[0] + min(size, frames)))
        assert len(weight) == len(index) and min(weight) > 0
    for before, after in pairwise(starts):
        assert overlap <= before + size - after < size
    gaps = np.diff(starts)
    assert gaps.size == 0 or gaps.max() - gaps.min() <= 1


@given(frames=st.integers(1, 200))
def test_closed_loop_windows_cover_every_frame(frames: int) -> None:
    windows = closed_loop_windows(frames, average=True)
    assert {f for index in windows.indices for f in index} == set(range(frames))


def test_windows_are_averaged_or_summed() -> None:
    noise = torch.randn(3, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    indices, weights = ((0, 1), (1, 2)), ((1.0, 3.0), (1.0, 1.0))

    def run(average: bool, values: tuple[float, float]) -> torch.Tensor:
        calls = iter(values)
        windows = Windows(indices, weights, average)
        return sample(lambda x, t, index: torch.full_like(x, next(calls)), noise, 1, windows, NoiseSchedule())

    # At t = 999 the signal is 0, so one step returns minus the fused prediction.
    assert run(True, (2.0, 6.0))[:, 0, 0, 0].tolist() == [-2.0, -3.0, -6.0]
    assert run(False, (2.0, 6.0))[:, 0, 0, 0].tolist() == [-2.0, -12.0, -6.0]


def test_progress_counts_every_call_and_can_stop() -> None:
    seen = []
    noise = torch.zeros(30, 1, 1, 1)
    sample(
        lambda x, t, i: x,
        noise,
        2,
        linear_windows(30),
        NoiseSchedule(),
        lambda done, total: seen.append((done, total)),
    )
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sample(lambda x, t, i: x, noise, 2, linear_windows(30), NoiseSchedule(), stop)


COGVIDEOX = {
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
    "snr_shift_scale": 1.0,
    "clip_sample": False,
}


@pytest.mark.parametrize("prediction", ["v_prediction", "sample"])
def test_cogvideox_schedule_and_steps_are_diffusers(prediction: str) -> None:
    from diffusers import CogVideoXDDIMScheduler

    settings = COGVIDEOX | {"prediction_type": prediction}
    schedule, oracle = NoiseSchedule.from_dict(settings), CogVideoXDDIMScheduler(**settings)
    assert NoiseSchedule.from_dict(schedule.to_dict()) == schedule
    assert schedule == NoiseSchedule(prediction, offset=0, scaled=True)
    alphas = alphas_cumprod(schedule.zero_snr, schedule.scaled)
    assert alphas.dtype == torch.float64
    assert (alphas - oracle.alphas_cumprod).abs().max() <= 1e-7
    assert alphas[-1] == 0
    x, v = torch.randn(2, 1, 4, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    oracle.set_timesteps(7)
    assert [t for t, _ in ddim_timesteps(7, schedule)] == oracle.timesteps.tolist()
    for t, t_prev in ddim_timesteps(7, schedule):
        assert (ddim_step(v, x, t, t_prev, schedule) - oracle.step(v, t, x).prev_sample).abs().max() <= 1e-5
    t = torch.tensor([321])
    noisy, wanted = add_noise(x, v, t, schedule)
    assert noisy.dtype == wanted.dtype == torch.float32
    assert (noisy - oracle.add_noise(x, v, t)).abs().max() <= 1e-6
    truth = x if prediction == "sample" else oracle.get_velocity(x, v, t)
    assert (wanted - truth).abs().max() <= 1e-6
