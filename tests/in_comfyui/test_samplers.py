"""Noise schedules, ComfyUI's own samplers, and videos in windows."""

from __future__ import annotations

from functools import cache
from typing import Any

import comfy.model_sampling
import comfy.samplers
import pytest
import torch
from comfy_extras.nodes_context_windows import ContextWindowsManualNode
from comfy_extras.nodes_custom_sampler import (
    BasicScheduler,
    CFGGuider,
    KSamplerSelect,
    RandomNoise,
    SamplerCustomAdvanced,
)
from comfy_pack import (
    animated,
    animation,
    conditioned,
    core,
    execute,
    first_configuration,
    ksampled,
    load,
    sampled,
)

import nodes

WAYS = [
    *((sampler, "simple") for sampler in comfy.samplers.SAMPLER_NAMES),
    *(("euler", scheduler) for scheduler in comfy.samplers.SCHEDULER_NAMES),
]


def test_schedule_is_zero_terminal_snr_on_linear_betas() -> None:
    sigmas = load()[0].get_model_object("model_sampling").sigmas
    power = core("anycharv_core.models.schedule").alphas_cumprod()[:-1]
    assert torch.allclose(sigmas[:-1], ((1 - power) / power).sqrt(), rtol=2e-3)
    assert sigmas[-1] > 1000


def test_animate_schedules_are_the_checkpoints() -> None:
    for name, zero_snr in (("embedded-animate", True), (first_configuration(), False)):
        sampling = load(name)[0].get_model_object("model_sampling")
        power = core("anycharv_core.models.schedule").alphas_cumprod(zero_snr)
        last = -1 if zero_snr else None
        assert torch.allclose(sampling.sigmas[:last], ((1 - power[:last]) / power[:last]).sqrt(), rtol=2e-3)
        assert (sampling.sigmas[-1] > 1000) == zero_snr
        is_v = isinstance(sampling, comfy.model_sampling.V_PREDICTION)
        assert is_v == zero_snr


def test_core_samplers_drive_it() -> None:
    parts = load()
    model, made = parts[0], conditioned(*parts)
    plain = ksampled(model, made, steps=8)
    ours = sampled(model, made, steps=8)
    # Another discretisation of the same equation, from the same noise.
    assert torch.corrcoef(torch.stack([plain.flatten(), ours.flatten()]))[0, 1] > 0.9
    (guider,) = CFGGuider.execute(model, made["positive"], made["negative"], 2.0).args
    (sigmas,) = BasicScheduler.execute(model, "sgm_uniform", 8, 1.0).args
    (noise,) = RandomNoise.execute(42).args
    (sampler,) = KSamplerSelect.execute("euler").args
    latent = SamplerCustomAdvanced.execute(noise, guider, sampler, sigmas, made["latent"]).args[0]
    assert torch.allclose(latent["samples"], plain, atol=1e-4)


@cache
def model_and_frame() -> tuple[Any, dict[str, Any]]:
    parts = load()
    return parts[0], conditioned(*parts, frames=1)


@pytest.mark.parametrize(("sampler", "scheduler"), WAYS)
def test_every_sampler_and_scheduler_of_comfyui_gives_latents(sampler: str, scheduler: str) -> None:
    model, made = model_and_frame()
    (latent,) = nodes.KSampler().sample(
        model, 42, 3, 2.0, sampler, scheduler, made["positive"], made["negative"], made["latent"]
    )
    result = latent["samples"]
    assert result.shape == made["latent"]["samples"].shape and result.isfinite().all() and result.std() > 0


def test_animate_core_samplers_drive_it() -> None:
    """Euler's method on leading timesteps is DDIM itself, and on others the same equation in other steps."""
    alike = {}
    ways = (("embedded-animate", "sgm_uniform", 0.9), (first_configuration(), "ddim_uniform", 0.999))
    for name, scheduler, least in ways:
        parts = load(name)
        made = animated(*parts, animation())
        both = [ksampled(parts[0], made, 10, scheduler=scheduler), sampled(parts[0], made, 10)]
        alike[name] = float(torch.corrcoef(torch.stack([one.flatten() for one in both]))[0, 1])
        assert alike[name] > least, alike


def test_core_context_windows_work() -> None:
    parts = load()
    width = parts[3].config["projection_dim"]
    for frames in (40, width):  # as many frames as the image embedding is wide: a shape match that is none
        made = conditioned(*parts, frames=frames)
        (windowed,) = ContextWindowsManualNode.execute(
            parts[0], 16, 4, "standard_static", 1, False, "pyramid", 0, False, causal_window_fix=False
        ).args
        result = ksampled(windowed, made, steps=1, cfg=1.0)
        assert result.shape == made["latent"]["samples"].shape and torch.isfinite(result).all()
    (long,) = execute("AnyCharVLongVideo", model=parts[0], length=16, overlap=4, fuse="ramp", layout="linear")
    ours = sampled(long, made, steps=1, cfg=1.0)
    # Windows reach the model with their own frames' conditions: each frame is near its unwindowed self.
    whole = sampled(parts[0], made, steps=1, cfg=1.0)
    assert torch.corrcoef(torch.stack([whole.flatten(), ours.flatten()]))[0, 1] > 0.95


def test_long_video_equals_the_samplers_own_windows() -> None:
    parts = load()
    made = conditioned(*parts, frames=30)
    (long,) = execute("AnyCharVLongVideo", model=parts[0], length=24, overlap=6, fuse="ramp", layout="linear")
    assert torch.allclose(sampled(long, made), sampled(parts[0], made), atol=1e-5)
    (looped,) = execute("AnyCharVLongVideo", model=parts[0], length=24, overlap=6, fuse="flat", layout="looped")
    official = sampled(parts[0], made, recipe="official")
    assert not torch.allclose(official, sampled(looped, made), atol=1e-3)  # another order of the noise
    for length, overlap in ((33, 6), (24, 24)):
        settings = {"length": length, "overlap": overlap, "fuse": "flat", "layout": "linear"}
        with pytest.raises(core("anycharv_core.errors").UserError):
            execute("AnyCharVLongVideo", model=parts[0], **settings)


def test_animate_in_windows() -> None:
    parts = load("embedded-animate")
    made = animated(*parts, animation(frames=30))
    (long,) = execute("AnyCharVLongVideo", model=parts[0], length=24, overlap=6, fuse="ramp", layout="linear")
    assert torch.allclose(sampled(long, made), sampled(parts[0], made), atol=1e-5)
    (windowed,) = ContextWindowsManualNode.execute(
        parts[0], 16, 4, "standard_static", 1, False, "pyramid", 0, False, causal_window_fix=False
    ).args
    result = ksampled(windowed, made)
    assert result.shape == made["latent"]["samples"].shape and torch.isfinite(result).all()
