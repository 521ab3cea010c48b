"""What ComfyUI's own tools for models do to ours: the table in the Loader's help page, row by row."""

from __future__ import annotations

import importlib
import logging
from functools import cache
from typing import Any

import comfy.samplers
import pytest
import torch
from comfy.ldm.modules.attention import optimized_attention
from comfy_api.torch_helpers import set_torch_compile_wrapper
from comfy_pack import PACK, animated, animation, conditioned, execute, ksampled, load, sampled
from torch import Tensor
from torch._dynamo.utils import counters

STEPS, CFG = 4, 2.0
SHRINK = {
    "block_number": 2,
    "start_percent": 0.0,
    "end_percent": 0.9,
    "downscale_after_skip": True,
    "downscale_method": "bicubic",
    "upscale_method": "bicubic",
}
ALWAYS = {"start_percent": 0.0, "end_percent": 1.0}
EASY = ALWAYS | {"verbose": False}
# Module and node, settings that change the result, and those that leave it as it is.
TOOLS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "freelunch.FreeU": ({"b1": 1.2, "b2": 1.4, "s1": 0.9, "s2": 0.2}, {"b1": 1, "b2": 1, "s1": 1, "s2": 1}),
    "freelunch.FreeU_V2": ({"b1": 1.3, "b2": 1.4, "s1": 0.9, "s2": 0.2}, {"b1": 1, "b2": 1, "s1": 1, "s2": 1}),
    "hypertile.HyperTile": (
        {"tile_size": 32, "swap_size": 1, "max_depth": 0, "scale_depth": False},
        {"tile_size": 512, "swap_size": 1, "max_depth": 0, "scale_depth": False},
    ),
    "tomesd.TomePatchModel": ({"ratio": 0.5}, {"ratio": 0.0}),
    "model_downscale.PatchModelAddDownscale": (
        SHRINK | {"downscale_factor": 2.0},
        SHRINK | {"downscale_factor": 1.0},
    ),
    "pag.PerturbedAttentionGuidance": ({"scale": 3.0}, {"scale": 0.0}),
    "sag.SelfAttentionGuidance": ({"scale": 0.5, "blur_sigma": 2.0}, {"scale": 0.0, "blur_sigma": 2.0}),
    "nag.NAGuidance": (
        {"nag_scale": 5.0, "nag_alpha": 0.5, "nag_tau": 1.5},
        {"nag_scale": 5.0, "nag_alpha": 0.0, "nag_tau": 1.5},
    ),
    "attention_multiply.UNetSelfAttentionMultiply": (
        {"q": 1.2, "k": 1.0, "v": 1.0, "out": 1.0},
        {"q": 1.0, "k": 1.0, "v": 1.0, "out": 1.0},
    ),
    # Over one token, queries and keys cancel out.
    "attention_multiply.UNetCrossAttentionMultiply": (
        {"q": 1.0, "k": 1.0, "v": 1.5, "out": 1.0},
        {"q": 3.0, "k": 3.0, "v": 1.0, "out": 1.0},
    ),
    # Its temporal layers go by the names of Stable Video Diffusion.
    "attention_multiply.UNetTemporalAttentionMultiply": (
        {"self_structural": 1.2, "self_temporal": 1.0, "cross_structural": 1.2, "cross_temporal": 1.0},
        {"self_structural": 1.0, "self_temporal": 3.0, "cross_structural": 1.0, "cross_temporal": 3.0},
    ),
    "easycache.EasyCacheNode": (EASY | {"reuse_threshold": 1.0}, EASY | {"reuse_threshold": 0.0}),
    "fresca.FreSca": (
        {"scale_low": 1.0, "scale_high": 1.5, "freq_cutoff": 4},
        {"scale_low": 1.0, "scale_high": 1.0, "freq_cutoff": 4},
    ),
    "lumina2.RenormCFG": ({"cfg_trunc": 0.0, "renorm_cfg": 0.0}, {"cfg_trunc": 1e9, "renorm_cfg": 0.0}),
    "model_advanced.RescaleCFG": ({"multiplier": 0.7}, {"multiplier": 0.0}),
    "cfg.CFGNorm": ({"strength": 1.0}, {"strength": 0.0, "pre_cfg": True}),
    "custom_sampler.CFGOverride": (ALWAYS | {"cfg": 4.0}, ALWAYS | {"cfg": CFG}),
    "video_model.VideoLinearCFGGuidance": ({"min_cfg": 1.0}, {"min_cfg": CFG}),
    "video_model.VideoTriangleCFGGuidance": ({"min_cfg": 1.0}, {"min_cfg": CFG}),
}
# Of these there is nothing to set.
WITHOUT_SETTINGS = ("cfg.CFGZeroStar", "mahiro.Mahiro", "tcfg.TCFG")
# What the model was trained to predict, and schedules of others.
SAMPLINGS: dict[str, dict[str, Any]] = {
    "model_advanced.ModelSamplingDiscrete": {"sampling": "v_prediction", "zsnr": True},
    "model_advanced.ModelSamplingContinuousEDM": {
        "sampling": "v_prediction",
        "sigma_max": 120.0,
        "sigma_min": 0.002,
    },
    "model_advanced.ModelSamplingContinuousV": {"sampling": "v_prediction", "sigma_max": 500.0, "sigma_min": 0.03},
}


def test_help_lists_every_tool() -> None:
    for page in (PACK / "web/docs/AnyCharVLoader.md", PACK / "web/docs/AnyCharVLoader/zh.md"):
        named = " ".join(line.split("|")[1] for line in page.read_text("utf-8").splitlines() if line[:1] == "|")
        others = ("ModelAttentionBackend", "TorchCompileModel", "SkipLayerGuidanceDiT", "LazyCache")
        for tool in (*TOOLS, *WITHOUT_SETTINGS, *SAMPLINGS, "apg.APG", *others):
            assert tool.rpartition(".")[2].removesuffix("Node") in named, tool


def patched(model: Any, tool: str, settings: dict[str, Any]) -> Any:
    """MODEL as the core's node gives it."""
    module, _, name = tool.partition(".")
    node = getattr(importlib.import_module(f"comfy_extras.nodes_{module}"), name)
    return (node.execute if hasattr(node, "execute") else node().patch)(model=model, **settings)[0]


@cache
def model_and_video(frames: int = 3) -> tuple[Any, dict[str, Any]]:
    parts = load()
    return parts[0], conditioned(*parts, frames=frames)


@cache
def untouched(steps: int = STEPS) -> Tensor:
    return sampled(*model_and_video(), steps=steps)


@pytest.mark.parametrize("tool", TOOLS)
def test_tool_does_what_it_is_set_to(tool: str) -> None:
    model, made = model_and_video()
    changing, neutral = TOOLS[tool]
    result = sampled(patched(model, tool, changing), made, steps=STEPS)
    off = (result - untouched()).abs()
    assert off.max() > 1e-3 and off.mean() < 0.5 * untouched().std()
    same = sampled(patched(model, tool, neutral), made, steps=STEPS)
    assert torch.allclose(same, untouched(), atol=1e-4)


@pytest.mark.parametrize("tool", WITHOUT_SETTINGS)
def test_tool_without_settings_changes_the_guidance(tool: str) -> None:
    model, made = model_and_video()
    off = (sampled(patched(model, tool, {}), made, steps=STEPS) - untouched()).abs()
    assert off.max() > 1e-3 and off.mean() < 0.5 * untouched().std()


def test_projected_guidance_comes_on_top_of_the_usual_one() -> None:
    model, made = model_and_video()
    neutral = {"eta": 1.0, "norm_threshold": 0.0, "momentum": 0.0}
    stronger = sampled(model, made, STEPS, CFG + 1)
    assert torch.allclose(sampled(patched(model, "apg.APG", neutral), made, STEPS, CFG), stronger, atol=1e-4)
    settings = {"eta": 0.0, "norm_threshold": 1.0, "momentum": 0.0}
    off = (sampled(patched(model, "apg.APG", settings), made, STEPS, CFG) - stronger).abs()
    assert off.max() > 1e-3 and off.mean() < 0.5 * untouched().std()


@pytest.mark.parametrize("tool", SAMPLINGS)
def test_schedules_of_comfyui(tool: str) -> None:
    model, made = model_and_video()
    scheduled = patched(model, tool, SAMPLINGS[tool])
    result = ksampled(scheduled, made, STEPS)
    alike = torch.allclose(result, ksampled(model, made, STEPS), atol=1e-4)
    assert result.isfinite().all() and alike == (tool == "model_advanced.ModelSamplingDiscrete")


def test_attention_backend_is_the_chosen_one() -> None:
    model, made = model_and_video()
    chosen = patched(model, "model_advanced.ModelAttentionBackend", {"attention": "pytorch attention"})
    assert torch.allclose(sampled(chosen, made, steps=STEPS), untouched(), atol=1e-4)
    asked = []
    options = chosen.model_options["transformer_options"]
    backend = options["optimized_attention_override"]

    def counting(*args: Any, **kwargs: Any) -> Tensor:
        asked.append(kwargs["transformer_options"]["block"])
        return backend(*args, **kwargs)

    options["optimized_attention_override"] = counting
    sampled(chosen, made, steps=1)
    assert {("input", 1), ("middle", 0), ("output", 2)} <= set(asked)


def test_compiler_sees_the_network_whole() -> None:
    """Traced as TorchCompileModel has it, with the machine code left out, which takes minutes to make."""
    model, made = model_and_video()
    chosen = patched(model, "model_advanced.ModelAttentionBackend", {"attention": "pytorch attention"})
    traced = chosen.clone(disable_dynamic=True)
    set_torch_compile_wrapper(model=traced, backend="eager", options={})
    counters.clear()
    assert torch.equal(sampled(traced, made, steps=2), sampled(chosen, made, steps=2))
    assert counters["stats"]["unique_graphs"] <= 2


def test_tools_that_cannot_help() -> None:
    model, made = model_and_video()
    layers = {"double_layers": "7, 8, 9", "single_layers": "7, 8, 9", "start_percent": 0.0, "end_percent": 1.0}
    skipping = patched(model, "slg.SkipLayerGuidanceDiT", layers | {"scale": 3.0})
    assert torch.allclose(sampled(skipping, made, steps=STEPS), untouched(), atol=1e-4)
    # LazyCache keeps what a step took off the noisy latents, whose noise is not the next step's.
    lazy = patched(model, "easycache.LazyCacheNode", EASY | {"reuse_threshold": 0.5, "start_percent": 0.15})
    assert sampled(lazy, made, steps=8).std() > 1.5 * untouched(8).std()
    # It compares one picture's norm with another's, and a video has many.
    one_picture = patched(model, "lumina2.RenormCFG", {"cfg_trunc": 1e9, "renorm_cfg": 1.0})
    with pytest.raises(RuntimeError, match="more than one value is ambiguous"):
        sampled(one_picture, made, steps=1)


def test_patches_that_change_nothing_leave_every_bit() -> None:
    model, made = model_and_video()
    network = model.model.diffusion_model
    blocks: list[tuple[str, int]] = []
    kinds: list[tuple[str, list[int]]] = []

    def attention(q: Tensor, k: Tensor, v: Tensor, extra: dict[str, Any]) -> Tensor:
        rows = len(made["latent"]["samples"])
        assert len(q) == rows * len(extra["cond_or_uncond"])
        assert q.shape[-1] == extra["n_heads"] * extra["dim_head"]
        kinds.append(("longer" if k.shape[1] > q.shape[1] else "own", extra["cond_or_uncond"]))
        return optimized_attention(q, k, v, extra["n_heads"])

    def entered(h: Tensor, options: dict[str, Any]) -> Tensor:
        blocks.append(options["block"])
        return h

    def joined(h: Tensor, skip: Tensor, options: dict[str, Any]) -> tuple[Tensor, Tensor]:
        blocks.append(options["block"])
        return h, skip

    def middle(told: dict[str, Any]) -> dict[str, Any]:
        blocks.append(told["transformer_options"]["block"])
        assert told["emb"].shape[-1] == 4 * network.cfg.block_out_channels[0]
        return told

    patches = model.clone()
    patches.set_model_input_block_patch(entered)
    patches.set_model_input_block_patch_after_skip(lambda h, options: h)
    patches.set_model_middle_block_after_patch(middle)
    patches.set_model_output_block_patch(joined)
    patches.set_model_emb_patch(lambda embedding, channels, options: embedding)
    patches.set_model_patch(lambda x, extra: x, "middle_patch")
    patches.set_model_attn1_patch(lambda q, k, v, extra: (q, k, v))
    patches.set_model_attn1_output_patch(lambda x, extra: x)
    patches.set_model_attn2_output_patch(lambda x, extra: x)
    for half, count in (("input", 6), ("middle", 1), ("output", 6)):
        for number in range(count):
            patches.set_model_attn1_replace(attention, half, number)
    assert torch.equal(sampled(patches, made, steps=1), untouched(1))
    # One layer and a downsampler a level, and on the way up two layers.
    levels = len(network.cfg.block_out_channels)
    assert blocks[: 4 * levels + 1] == [
        *(("input", number) for number in range(2 * levels)),
        ("middle", 0),
        *(("output", number) for number in range(2 * levels)),
    ]
    # The unconditional rows come first, and without the reference's keys.
    assert kinds[:2] == [("own", [1]), ("longer", [0])]

    # Cross-attention in full, token by token, is what it is beforehand.
    patches.set_model_attn2_patch(lambda q, k, v, extra: (q, k, v))
    assert torch.allclose(sampled(patches, made, steps=1), untouched(1), atol=1e-5)
    doubled = patches.clone()
    doubled.set_model_attn2_patch(lambda q, k, v, extra: (q, k, 2 * v))
    assert not torch.allclose(sampled(doubled, made, steps=1), untouched(1), atol=1e-3)


def test_guidance_may_evaluate_the_negative_alone() -> None:
    """It is then ComfyUI's conditioning 0, and still the one that ignores the reference."""
    model, made = model_and_video()
    apart = []

    def compare(args: dict[str, Any]) -> Tensor:
        alone = comfy.samplers.calc_cond_batch(
            args["model"], [args["uncond"]], args["input"], args["sigma"], args["model_options"]
        )
        apart.append(float((alone[0] - args["uncond_denoised"]).abs().max()))
        return args["denoised"]

    watched = model.clone()
    watched.set_model_sampler_post_cfg_function(compare)
    sampled(watched, made, steps=2)
    assert len(apart) == 2 and max(apart) < 1e-4


def test_easy_cache_skips_steps_of_the_network(caplog: pytest.LogCaptureFixture) -> None:
    model, made = model_and_video()
    with caplog.at_level(logging.INFO):
        result = sampled(patched(model, "easycache.EasyCacheNode", EASY | {"reuse_threshold": 0.5}), made, steps=8)
    assert "EasyCache - skipped" in caplog.text and "skipped 0/" not in caplog.text
    assert torch.corrcoef(torch.stack([result.flatten(), untouched(8).flatten()]))[0, 1] > 0.95


def test_tools_work_in_windows() -> None:
    model, made = model_and_video(frames=10)
    (long,) = execute("AnyCharVLongVideo", model=model, length=6, overlap=2, fuse="ramp", layout="linear")
    plain = sampled(long, made, steps=1)
    for tool in ("freelunch.FreeU_V2", "hypertile.HyperTile", "pag.PerturbedAttentionGuidance"):
        result = sampled(patched(long, tool, TOOLS[tool][0]), made, steps=1)
        assert result.isfinite().all() and not torch.allclose(result, plain, atol=1e-3)
    # It keeps the attention of the last window alone.
    tool = "sag.SelfAttentionGuidance"
    with pytest.raises(RuntimeError, match="is invalid for input of size"):
        sampled(patched(long, tool, TOOLS[tool][0]), made, steps=1)


def test_tools_work_for_animate_anyone() -> None:
    parts = load("embedded-animate")
    made = animated(*parts, animation(frames=3))
    plain = sampled(parts[0], made, steps=2)
    for tool in ("freelunch.FreeU_V2", "sag.SelfAttentionGuidance", "tomesd.TomePatchModel"):
        result = sampled(patched(parts[0], tool, TOOLS[tool][0]), made, steps=2)
        assert result.isfinite().all() and not torch.allclose(result, plain, atol=1e-3)
