"""Ways to sample faster: each is exact where it changes nothing, costs what it should, and can be resumed."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from anycharv_core import Pipeline, UserError
from anycharv_core.inference import shortcuts as module
from anycharv_core.inference.latents import Latents
from anycharv_core.inference.phases import Phases
from anycharv_core.inference.plan import Prepared
from anycharv_core.inference.sampling import Sampled, sample_video, to_the_end
from anycharv_core.inference.shortcuts import FAST, NONE, DeepCache, Shortcuts
from anycharv_core.jobs.sampling import SamplingOptions
from anycharv_core.jobs.work import work
from anycharv_core.media.frames import FrameStore, Source
from anycharv_core.models.schedule import NoiseSchedule, add_noise, alphas_cumprod, ddim_step
from anycharv_core.models.solvers import DDIM, DPM, clean_latents, dpm_step, timesteps_of
from anycharv_core.models.windows import linear_windows

SIZE, FRAMES, STEPS = 16, 3, 4


@pytest.fixture(scope="module")
def pipe(tiny_model: Path) -> Pipeline:
    return Pipeline.from_pretrained(tiny_model)


def clip(frames: int = FRAMES) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "reference": rng.integers(256, size=(SIZE, SIZE, 3), dtype=np.uint8),
        "scene": rng.integers(256, size=(frames, SIZE, SIZE, 3), dtype=np.uint8),
        "mask": np.full((frames, SIZE, SIZE), 255, np.uint8),
        "pose": rng.integers(256, size=(frames, SIZE, SIZE, 3), dtype=np.uint8),
    }


def latents_of(pipe: Pipeline, shortcuts: Shortcuts, frames: int = FRAMES, **more: object) -> torch.Tensor:
    return pipe(**clip(frames), steps=STEPS, canvas="frame", shortcuts=shortcuts, **more).latents


def test_an_interval_that_covers_everything_is_full_guidance(pipe: Pipeline) -> None:
    full = latents_of(pipe, NONE)
    assert torch.equal(full, latents_of(pipe, Shortcuts(guidance_interval=(0.0, 1.0))))
    assert not torch.equal(full, latents_of(pipe, Shortcuts(guidance_interval=(0.0, 0.6))))


def test_an_interval_that_covers_nothing_is_no_guidance(pipe: Pipeline) -> None:
    unguided = latents_of(pipe, NONE, guidance_scale=1.0)
    torch.testing.assert_close(unguided, latents_of(pipe, Shortcuts(guidance_interval=(0.0, 0.0))))


@pytest.mark.parametrize("frames", [2, 26])
def test_a_cache_renewed_at_every_step_is_none(pipe: Pipeline, frames: int) -> None:
    full = latents_of(pipe, NONE, frames)
    assert torch.equal(full, latents_of(pipe, Shortcuts(deep_cache=1), frames))
    cached = latents_of(pipe, Shortcuts(deep_cache=2), frames)
    assert not torch.equal(full, cached)
    assert (full - cached).abs().mean() < full.abs().mean()


def test_features_that_are_still_right_change_nothing(pipe: Pipeline) -> None:
    unet = pipe.backend.networks.denoising_unet
    cfg = unet.cfg
    torch.manual_seed(0)
    x, pose = torch.randn(4, cfg.in_channels, 6, 8), torch.randn(4, cfg.block_out_channels[0], 6, 8)
    call = {"x": x, "t": torch.tensor([500]), "image_embeds": torch.randn(1, cfg.cross_attention_dim)}
    blocks = sum(len(stage.resnets) for stage in unet.up_blocks)
    with torch.inference_mode():
        for shallow in range(1, blocks + 1):
            settings = {**call, "pose": pose, "bank": None, "frames": 2, "shallow": shallow}
            whole, deep = unet.denoise(**settings)
            assert torch.equal(whole, unet(**call, pose=pose, bank=None, frames=2))
            again, same = unet.denoise(**settings, deep=deep)
            assert torch.equal(whole, again) and same is deep


def test_windows_whose_features_have_no_place_are_computed_whole(
    pipe: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = latents_of(pipe, Shortcuts(deep_cache=2), 26)
    monkeypatch.setattr(module, "HELD", 0)
    assert torch.equal(cached, latents_of(pipe, Shortcuts(deep_cache=2), 26)), "features come back from the file"
    monkeypatch.setattr(module, "MOST", 0)
    assert torch.equal(latents_of(pipe, NONE, 26), latents_of(pipe, Shortcuts(deep_cache=2), 26))


def test_a_cache_keeps_windows_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    features = [torch.randn(4, 3, 2, 2).to(torch.bfloat16) for _ in range(3)]
    monkeypatch.setattr(module, "HELD", features[0].nbytes)
    cache, windows = DeepCache(FrameStore()), [(0, 1), (1, 2), (2, 3)]
    for window, each in zip(windows, features, strict=True):
        assert cache.take(window) is None
        cache.keep(window, each)
    cache.keep(windows[1], features[0])
    for window, each in zip(windows, (features[0], features[0], features[2]), strict=True):
        assert torch.equal(cache.take(window), each)


@pytest.mark.parametrize(
    "schedule",
    [NoiseSchedule(), NoiseSchedule("sample"), NoiseSchedule("epsilon", zero_snr=False, leading=True)],
    ids=lambda schedule: schedule.prediction,
)
def test_the_first_order_is_ddim(schedule: NoiseSchedule) -> None:
    torch.manual_seed(0)
    prediction, x = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    for t, t_next in timesteps_of(DPM, 7, schedule):
        clean = clean_latents(prediction, x, t, schedule)
        expected = ddim_step(prediction, x, t, t_next, schedule)
        torch.testing.assert_close(dpm_step(clean, x, t, t_next, schedule), expected, atol=1e-5, rtol=1e-5)


def test_the_second_order_is_finite_at_both_ends() -> None:
    schedule, ones = NoiseSchedule(), torch.ones(1, 1, 1, 1)
    assert alphas_cumprod()[999] == 0
    for t, t_next, t_before in ((499, 249, 999), (249, -1, 499)):
        without = dpm_step(ones, ones, t, t_next, schedule)
        with_it = dpm_step(ones, ones, t, t_next, schedule, (0 * ones, t_before))
        assert torch.equal(without, with_it)


def test_it_takes_fewer_steps_than_ddim_where_the_answer_is_known() -> None:
    """The data are a mixture of Gaussians, of which the best prediction is known."""
    x = torch.randn(300, 1, 1, 1, generator=torch.Generator().manual_seed(0))
    mean, spread = torch.tensor([-1.5, -0.2, 0.9, 1.4]), torch.tensor([0.05, 0.2, 0.1, 0.3])

    def best(x: torch.Tensor, t: int, _: object) -> torch.Tensor:
        power = alphas_cumprod()[t]
        signal, variance = power.sqrt(), power * spread**2 + 1 - power
        distance = x - signal * mean
        belongs = torch.softmax(-(distance**2) / (2 * variance) - variance.log() / 2, dim=-1)
        clean = (belongs * (mean + signal * spread**2 / variance * distance)).sum(-1, keepdim=True)
        return add_noise(clean, (x - signal * clean) / (1 - power).sqrt(), torch.full((len(x),), t))[1]

    def run(steps: int, solver: str) -> torch.Tensor:
        way = Shortcuts(solver=solver)
        latents = Latents.begun([x], parts=way.parts)
        windows = linear_windows(len(x), len(x))
        to_the_end(sample_video(best, latents, steps, windows, NoiseSchedule(), x.device, shortcuts=way))
        return latents.whole()

    truth = run(100, DPM)
    error = {
        (solver, steps): float((run(steps, solver) - truth).square().mean().sqrt())
        for solver in (DDIM, DPM)
        for steps in (10, 20)
    }
    assert error[DPM, 10] < 0.8 * error[DDIM, 10]
    assert error[DPM, 20] < 0.6 * error[DDIM, 20]


def test_what_each_costs(pipe: Pipeline) -> None:
    def flops(shortcuts: Shortcuts) -> int:
        with FlopCounterMode(display=False) as counter:
            latents_of(pipe, shortcuts)
        return counter.get_total_flops()

    full, quarter = flops(NONE), flops(Shortcuts(guidance_interval=(0.9, 1.0)))
    cached = flops(Shortcuts(deep_cache=2))
    assert quarter < 0.75 * full
    assert cached < 0.85 * full
    assert flops(Shortcuts(guidance_interval=(0.9, 1.0), deep_cache=2)) < min(quarter, cached)


def test_nothing_is_looked_up_that_an_earlier_step_did_not_leave() -> None:
    shortcuts = Shortcuts(guidance_interval=(0.4, 1.0), deep_cache=3)
    # Timesteps of 10 trailing steps: guidance ends behind the sixth one, t = 499.
    assert shortcuts.whole(10, NoiseSchedule()) == [s in (0, 3, 6, 9) for s in range(10)]
    shortcuts = Shortcuts(guidance_interval=(0.55, 1.0), deep_cache=3)
    assert shortcuts.whole(10, NoiseSchedule()) == [s in (0, 3, 5, 6, 9) for s in range(10)]


@pytest.mark.parametrize("way", [Shortcuts(deep_cache=3), Shortcuts(solver=DPM), FAST])
def test_a_stopped_run_goes_on_to_the_same_bytes(pipe: Pipeline, way: Shortcuts, tmp_path: Path) -> None:
    def run(stop_after: int) -> torch.Tensor:
        with work(tmp_path / "out.mp4", {"way": str(way)}, fresh=False) as state:

            def progress(done: int, total: int) -> None:
                if done == stop_after:
                    raise KeyboardInterrupt

            made = prepared(pipe)
            latents = state.latents(0, made.shape, pipe.noise(made, 1), way.parts)
            to_the_end(pipe.sample(made, latents, 8, 3.0, Phases(), progress, way))
            return latents.whole()

    expected = run(0)
    for stop in (1, 3, 5, 7, 8):
        try:
            run(stop)
        except KeyboardInterrupt:
            continue
    assert torch.equal(run(0), expected)


def test_finished_latents_are_taken_up_where_windows_reached_frames_with_nobody(
    pipe: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As ComfyUI's context windows do, which also denoise frames that are then put back."""
    given = clip(48)
    given["mask"][4:] = 0
    made, everything, denoise = prepared(pipe, given), linear_windows(48), pipe.backend.denoise

    def with_own_windows(*inputs: Any) -> Sampled:
        *rest, how = inputs
        return denoise(*rest, replace(how, windows=everything))

    monkeypatch.setattr(pipe.backend, "denoise", with_own_windows)

    def run(rounds: int) -> None:
        with work(tmp_path / "out.mp4", {}, fresh=False) as state:
            latents = state.latents(0, made.shape, pipe.noise(made, 1))
            assert latents.rounds == rounds
            to_the_end(pipe.sample(made, latents, 2, 3.0, Phases()))
            found.append(latents.whole())
            raise KeyboardInterrupt

    found: list[torch.Tensor] = []
    for rounds in (0, 5):
        with pytest.raises(KeyboardInterrupt):
            run(rounds)
    assert torch.equal(*found) and "torn" not in caplog.text
    scene = made.video.scene
    assert scene is not None and np.array_equal(found[1][-1], scene[47])


def prepared(pipe: Pipeline, given: dict[str, np.ndarray] | None = None) -> Prepared:
    given = given or clip(2)
    plan = pipe.plan(pipe.system.recipe("default"), (SIZE, SIZE), (SIZE, SIZE), None)
    streams = {
        name: Source(name, given[name], channels) for name, channels in (("scene", 3), ("mask", None), ("pose", 3))
    }
    return pipe.prepare(plan, given["reference"], **streams)


BAD = {
    "interval": ({"guidance_interval": (0.8, 0.2)}, "guidance interval is 0.8 to 0.2"),
    "levels": ({"guidance_interval": (0.0, math.nan)}, "guidance interval is 0 to nan"),
    "cache": ({"deep_cache": 0}, "deep cache is 0"),
    "solver": ({"solver": "euler"}, "no solver 'euler'"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_makes_no_sense_is_one_sentence(name: str) -> None:
    given, sentence = BAD[name]
    with pytest.raises(UserError, match=sentence) as error:
        Shortcuts(**given)
    assert "\n" not in str(error.value)


def test_the_official_recipe_takes_none(pipe: Pipeline) -> None:
    with pytest.raises(UserError, match="recipe 'official' computes all as the release does"):
        latents_of(pipe, FAST, recipe="official")


def test_fast_is_the_best_combination_and_single_options_go_before_it(pipe: Pipeline) -> None:
    assert SamplingOptions(fast=True).shortcuts == FAST
    assert SamplingOptions(fast=True, deep_cache=1).shortcuts == Shortcuts(FAST.guidance_interval, 1, FAST.solver)
    assert SamplingOptions().shortcuts == NONE
    asked, _ = SamplingOptions().sampling(pipe)
    assert SamplingOptions(fast=True).sampling(pipe)[0] < asked
    assert SamplingOptions(fast=True, steps=7).sampling(pipe)[0] == 7
    assert SamplingOptions(fast=True, steps=1).sampling(pipe)[0] == 1
