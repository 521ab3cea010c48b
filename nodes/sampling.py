"""AnyCharVSampler: the paper's sampler behind ComfyUI's guider, so that LoRAs, previews, interrupt and offload are
ComfyUI's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import comfy.conds
import comfy.model_management
import comfy.sample
import comfy.samplers
import latent_preview
import numpy as np
import torch
from comfy_api.latest import io
from torch import Tensor

from ..anycharv_core.inference.encode import EncodedVideo
from ..anycharv_core.inference.latents import Latents
from ..anycharv_core.inference.sampling import Sampling, sample_as, to_the_end
from ..anycharv_core.inference.shortcuts import DeepCache
from ..anycharv_core.models.guidance import is_guided
from ..anycharv_core.models.schedule import EPSILON, SAMPLE, NoiseSchedule, ddim_step, ddim_timesteps
from ..anycharv_core.models.solvers import timesteps_of
from ..anycharv_core.models.windows import Windows
from ..anycharv_core.systems.recipes import Recipe
from .model import DEEP, VIDEO, DeepStep, FrameNumbers, check_model
from .preview import Previewer
from .types import CATEGORY, cfg_input, recipe_input, seed_input, steps_input
from .windows import HANDLER, with_windows


class AnyCharVSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AnyCharVSampler",
            display_name="AnyCharV Sampler",
            category=CATEGORY,
            description="Samples with the paper's settings: DDIM on the checkpoint's own noise schedule and "
            "timesteps. Longer videos get overlapping windows, or for Animate Anyone 2 windows that begin with "
            "the last frame of the one before, unless the model brings its own; AnimateAnywhere's clips none.",
            search_aliases=["ksampler", "ddim", "denoise", "采样器"],
            inputs=[
                io.Model.Input("model", tooltip="From AnyCharV Loader; LoRAs and context windows are honoured."),
                io.Conditioning.Input("positive", tooltip="From AnyCharV Conditioning."),
                io.Conditioning.Input("negative", tooltip="From AnyCharV Conditioning."),
                io.Latent.Input("latent", tooltip="From AnyCharV Conditioning; sets frame count and size."),
                steps_input(),
                cfg_input(),
                seed_input(),
                recipe_input(
                    "'official' samples as the release does: windows in a loop, all frames weighing the same, "
                    "overlaps summed up to cfg 1, and its order of drawing noise."
                ),
            ],
            outputs=[io.Latent.Output()],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        positive: Any,
        negative: Any,
        latent: dict[str, Any],
        steps: int,
        cfg: float,
        seed: int,
        recipe: str,
    ) -> io.NodeOutput:
        check_model(model, clips=True)
        system = model.model.system
        chosen = system.recipe(recipe)
        noise = _noise(chosen, latent["samples"].shape, seed)
        whole = system.clips or HANDLER in model.model_options
        windows = None if whole else chosen.windows(len(noise), cfg)
        if windows is not None and windows.chained and len(windows.indices) > 1:
            sampled = run_chained(model, positive, negative, noise, steps, cfg, windows)
        else:
            sampled = run_sampler(model, positive, negative, noise, steps, cfg, windows, seed)
        return io.NodeOutput({**latent, "samples": sampled})


def _noise(recipe: Recipe, shape: Sequence[int], seed: int) -> Tensor:
    """What sampling begins with, for latents [F, c, h, w], or those of a clip, [1, c, T, h, w]."""
    generator = torch.Generator("cpu").manual_seed(seed)
    if len(shape) == 4:
        return torch.cat(list(recipe.noise(shape, generator)))
    # Drawn latent by latent, as the core does.
    batch, channels, count, *sides = shape
    drawn = torch.cat(list(recipe.noise((batch * count, channels, *sides), generator)))
    return drawn.unflatten(0, (batch, count)).movedim(2, 1)


def run_sampler(
    model: Any,
    positive: Any,
    negative: Any,
    noise: Tensor,
    steps: int,
    cfg: float,
    windows: Windows | None,
    seed: int = 0,
) -> Tensor:
    """Unscaled latents, [F, c, h, w] or [1, c, T, h, w], denoised from `noise` by DDIM on the model's own
    timesteps.

    windows: how to cut the video, or None for the model's own context windows.
    """
    frames = len(noise)
    coverage = torch.ones(frames)
    if windows is not None and len(windows.indices[0]) < frames:
        model = with_windows(model, lambda frames: windows, len(windows.indices[0]))
        coverage = torch.bincount(torch.tensor(windows.indices).flatten(), minlength=frames).float()
        # ComfyUI averages what windows predict for a frame; the release sums it.
        coverage = coverage.clamp(max=1) if windows.average else coverage
    schedule = model.model.schedule
    timesteps = [t for t, _ in ddim_timesteps(steps, schedule)]
    sigmas = torch.cat([model.get_model_object("model_sampling").sigmas[timesteps].cpu(), torch.zeros(1)])
    step = partial(_ddim, coverage=coverage.reshape(-1, 1, 1, 1), schedule=schedule)
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive, negative)
    guider.set_cfg(cfg if is_guided(cfg) else 1.0)
    return guider.sample(
        noise,
        torch.zeros_like(noise),
        _FromNoise(step),
        sigmas,
        callback=latent_preview.prepare_callback(model, steps),
        seed=seed,
    ).to(comfy.model_management.intermediate_device())


def run_chained(
    model: Any, positive: Any, negative: Any, noise: Tensor, steps: int, cfg: float, windows: Windows
) -> Tensor:
    """As `run_sampler`, where each window begins with what those before it have finished."""
    video, _ = (model.model.checked(each[0][1], noise.shape) for each in (positive, negative))
    scene, length = video.scene, len(windows.indices[0])
    first = replace(video, shape=(length, *video.shape[1:]), scene=scene[:length])
    ours, theirs = (
        [[token, options | {VIDEO: first}] for token, options in each] for each in (positive, negative)
    )
    latents = Latents.begun([noise])
    how = Sampling(steps, cfg, windows)
    sample_windows(model, ours, theirs, lambda frames: scene[list(frames)], latents, how)
    return model.model.process_latent_out(latents.whole())


def sample_windows(
    model: Any,
    positive: Any,
    negative: Any,
    rows: Callable[[Sequence[int]], Tensor | None],
    latents: Latents,
    how: Sampling,
) -> None:
    """Takes latents from the round they are at to those of the finished video, as `sample_video` does.

    ComfyUI sees one window after the other, so that no more than a window is in memory.

    positive, negative: the CONDITIONING of the first window, whose frames the others' take the place of; rows:
    what `scene_rows` gives of frames.
    """
    model = model.clone()
    model.model_options.pop(HANDLER, None)  # the windows are those of `how`
    schedule, shortcuts = model.model.schedule, how.shortcuts
    sigmas = model.get_model_object("model_sampling").sigmas.cpu()
    timesteps = [t for t, _ in timesteps_of(shortcuts.solver, how.steps, schedule)]
    whole_steps = dict(zip(timesteps, shortcuts.whole(how.steps, schedule), strict=True))
    deep = DeepStep(lambda: DeepCache(positive[0][1][VIDEO].pose.empty()))
    scale = how.guidance_scale if is_guided(how.guidance_scale) else 1.0
    previewer = Previewer(model)

    def run(guider: Any, extra: dict[str, Any]) -> None:
        device = guider.model_patcher.load_device
        whole = guider.conds
        if not all(whole_steps.values()):
            extra["model_options"]["transformer_options"][DEEP] = deep

        def predict(x: Tensor, t: int, frames: Sequence[int], known: Tensor | None = None) -> Tensor:
            comfy.model_management.throw_exception_if_processing_interrupted()
            conditions = window_conditions(rows(frames), frames, known)
            guider.conds = {
                name: [cond | {"model_conds": cond["model_conds"] | conditions} for cond in conds]
                for name, conds in whole.items()
            }
            guider.set_cfg(scale if shortcuts.guides(t) else 1.0)
            deep.whole = whole_steps[t]
            sigma = sigmas[t].to(device)
            x = x * (1 + sigma**2).sqrt()
            clean = guider(x, sigma.expand(len(x)), **extra)
            previewer.look(clean)
            return _prediction(x, clean, sigma, schedule)

        def report(done: int, total: int) -> None:
            previewer.report(done, total)
            if how.progress is not None:
                how.progress(done, total)

        to_the_end(sample_as(replace(how, progress=report), predict, latents, schedule, device))

    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive, negative)
    guider.set_cfg(scale)
    shown = torch.zeros(len(how.windows.indices[0]), *latents.shape[1:])
    guider.sample(shown, shown, _Running(run), torch.cat([sigmas[timesteps], torch.zeros(1)]), seed=0)


def scene_rows(video: EncodedVideo, frames: Sequence[int]) -> Tensor | None:
    """Latents and mask of the scene in these frames behind each other, or None where the model takes neither."""
    if video.scene is None or video.mask is None:
        return None
    rows = np.concatenate([store.take(frames) for store in (video.scene, video.mask)], axis=1)
    return torch.from_numpy(rows).to(comfy.model_management.intermediate_device())


def window_conditions(scene: Tensor | None, frames: Sequence[int], known: Tensor | None = None) -> dict[str, Any]:
    """What the conditions of a window have of their own. scene: as `scene_rows` gives it; known: finished latents
    of the first frames, of which nothing is to be changed."""
    if scene is not None and known is not None:
        scene[: len(known), :-1], scene[: len(known), -1:] = known.to(scene), 0
    placed = {} if scene is None else {"c_concat": comfy.conds.CONDNoiseShape(scene)}
    return placed | {"frame_numbers": FrameNumbers(torch.tensor(frames))}


class _Running(comfy.samplers.Sampler):
    """A sampler that lets `run` do it, with the guider and what its calls need besides."""

    def __init__(self, run: Callable[[Any, dict[str, Any]], None]):
        self._run = run

    def sample(
        self, model_wrap: Any, sigmas: Tensor, extra_args: dict[str, Any], callback: Any, noise: Tensor, *_: Any
    ) -> Tensor:
        self._run(model_wrap, extra_args)
        return noise


class _FromNoise(comfy.samplers.KSAMPLER):
    """Starts from noise of variance 1 + sigma^2, as the releases do, even where timesteps begin below 999."""

    def max_denoise(self, model_wrap: Any, sigmas: Tensor) -> bool:
        return True


def _ddim(
    model: Any,
    x: Tensor,
    sigmas: Tensor,
    extra_args: dict[str, Any],
    callback: Any,
    disable: bool,
    *,
    coverage: Tensor,
    schedule: NoiseSchedule,
) -> Tensor:
    """`inference.sampling.sample` on ComfyUI's terms: x is clean + sigma * noise, and a model call gives
    the clean latents. DDIM itself runs on variance-preserving latents, where zero SNR is noise alone.
    coverage [F, 1, 1, 1]: factor on each frame's prediction; 0 where no window has it, which stays noise."""
    coverage = coverage.to(x.device)
    x = x / (1 + sigmas[0] ** 2).sqrt()
    for i, (t, t_prev) in enumerate(ddim_timesteps(len(sigmas) - 1, schedule)):
        comfy.model_management.throw_exception_if_processing_interrupted()
        sigma, noisy = sigmas[i], x * (1 + sigmas[i] ** 2).sqrt()
        clean = model(noisy, sigma.expand(len(x)), **extra_args)
        clean = torch.where(coverage > 0, clean, 0.0)
        prediction = _prediction(noisy, clean, sigma, schedule)
        x = ddim_step(prediction * coverage, x, t, t_prev, schedule)
        callback({"i": i, "denoised": clean, "x": x, "sigma": sigma, "sigma_hat": sigma})
    return x


def _prediction(noisy: Tensor, clean: Tensor, sigma: Tensor, schedule: NoiseSchedule) -> Tensor:
    """What the network predicted where `noisy`, clean + sigma * noise, is `clean` in the end."""
    if schedule.prediction == SAMPLE:
        return clean
    if schedule.prediction == EPSILON:
        return (noisy - clean) / sigma
    scale = (1 + sigma**2).sqrt()
    return (noisy / scale - clean * scale) / sigma
