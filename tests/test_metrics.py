"""Metrics on pictures whose scores are known."""

import numpy as np
import pytest

from anycharv_core.bench.metrics import gradient_energy, psnr, ssim, warp_error
from anycharv_core.puppets.task import BASELINES, sample_swap

rng = np.random.default_rng(0)
TRUTH = rng.integers(256, size=(2, 24, 24, 3), dtype=np.uint8)
ALL = np.ones((2, 24, 24), bool)


def test_psnr_of_a_known_error_and_only_in_the_region() -> None:
    made = np.full_like(TRUTH, 100)
    truth = made.copy()
    truth[:, :12] += 10
    assert psnr(made, truth, ALL) == pytest.approx(10 * np.log10(255**2 / 50))
    region = ALL.copy()
    region[:, 12:] = False
    assert psnr(made, truth, region) == pytest.approx(10 * np.log10(255**2 / 100))


def test_ssim_is_one_for_equals_and_falls_with_noise() -> None:
    assert ssim(TRUTH, TRUTH, ALL) == pytest.approx(1)
    noisy = np.clip(TRUTH.astype(int) + rng.integers(-60, 60, TRUTH.shape), 0, 255).astype(np.uint8)
    assert 0 < ssim(noisy, TRUTH, ALL) < 0.99


def test_gradient_energy_tells_blur_from_noise() -> None:
    flat = np.full_like(TRUTH, 128)
    assert gradient_energy(TRUTH, TRUTH, ALL) == pytest.approx(1)
    assert gradient_energy(flat, TRUTH, ALL) == 0


def test_warp_error_follows_the_flow() -> None:
    frames = np.stack([TRUTH[0], np.roll(TRUTH[0], 3, axis=1)])
    flow = np.zeros((1, 24, 24, 2), np.float32)
    still = warp_error(frames, flow, ALL)
    flow[..., 0] = 3
    region = ALL.copy()
    region[:, :, 20:] = False
    assert warp_error(frames, flow, region) == 0 < still


def test_baselines_differ_from_the_truth_and_from_each_other() -> None:
    swap = sample_swap(0, 2, 48)
    made = [baseline(swap) for baseline in BASELINES.values()]
    assert np.array_equal(made[0], swap.driving.frames)
    for index, frames in enumerate(made):
        assert psnr(frames, swap.truth.frames, swap.region) < 30
        assert all(not np.array_equal(frames, other) for other in made[:index])
        assert np.array_equal(frames[swap.box == 0], swap.driving.frames[swap.box == 0])
