"""Animate Anyone's recipe `official` against what the release made of the same weights."""

from __future__ import annotations

import json

import needs
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_animate import V1
from tiny_animate import inputs as inputs

from anycharv_core import Pipeline, UserError
from anycharv_core.models.schedule import NoiseSchedule, alphas_cumprod, ddim_step, ddim_timesteps
from anycharv_core.models.windows import closed_loop_windows

MOORE = needs.PARITY / "moore"
recorded = needs.recorded(MOORE)
CASES = sorted(path.name for path in (MOORE / "public" / "cases").glob("*"))


@pytest.fixture(scope="module")
def release() -> Pipeline:
    return Pipeline.from_pretrained(MOORE / "public" / "models" / "m0")


@recorded
@pytest.mark.parametrize("name", CASES)
def test_latents_equal_the_release(release: Pipeline, name: str) -> None:
    case = json.loads((MOORE / "public" / "cases" / name / "case.json").read_text())
    golden = load_file(MOORE / "public" / "cases" / name / "golden.safetensors")
    given = np.load(MOORE / "public" / case["inputs"])
    out = release(
        given["ref"],
        pose=given["pose"],
        size=(case["width"], case["height"]),
        steps=case["num_inference_steps"],
        guidance_scale=case["guidance_scale"],
        noise=golden["noise"][0].movedim(0, 1),
        recipe="official",
    )
    assert (out.latents - golden["final_latents"][0].movedim(0, 1)).abs().max() <= 2e-4
    pixels = golden["video_uint8_thwc_every4"].numpy().astype(int)
    assert np.abs(out.frames[::4].astype(int) - pixels).max() <= 1


@recorded
@pytest.mark.parametrize("version", ["v1", "v2"])
def test_schedules_are_those_of_the_release(version: str) -> None:
    table = json.loads((MOORE / "scheduler.json").read_text())[version]
    schedule = NoiseSchedule.from_dict(table["kwargs"])
    assert schedule == (V1 if version == "v1" else NoiseSchedule())
    np.testing.assert_allclose(alphas_cumprod(schedule.zero_snr), table["alphas_cumprod"], atol=1e-6)
    for steps, rows in table["steps"].items():
        pairs = zip(rows["timesteps"], rows["prev_timestep"], strict=True)
        assert ddim_timesteps(int(steps), schedule) == list(pairs)


@recorded
def test_windows_are_those_of_the_release() -> None:
    for case in json.loads((MOORE / "context_windows.json").read_text()):
        if (case["context_stride"], case["step"]) == (1, 0):
            sizes = case["context_size"], case["context_overlap"]
            windows = closed_loop_windows(case["num_frames"], True, *sizes)
            assert [list(window) for window in windows.indices] == case["windows"]


def test_epsilon_leads_back_to_the_clean_latents() -> None:
    clean, noise = torch.randn(2, 3, 4, 5)
    x = alphas_cumprod(False)[991].sqrt() * clean + (1 - alphas_cumprod(False)[991]).sqrt() * noise
    for t, t_prev in ddim_timesteps(100, V1):
        x = ddim_step(noise, x, t, t_prev, V1)
    torch.testing.assert_close(x, clean, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "change", [{"beta_schedule": "scaled_linear"}, {"prediction_type": "velocity"}, {"clip_sample": True}]
)
def test_other_schedulers_are_refused(change: dict) -> None:
    with pytest.raises(UserError, match=next(iter(change))):
        NoiseSchedule.from_dict(NoiseSchedule().to_dict() | change)
