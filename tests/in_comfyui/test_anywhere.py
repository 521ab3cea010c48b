"""AnimateAnywhere in ComfyUI: what nodes make is what the core pipeline makes."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import comfy.context_windows
import comfy.sd
import folder_paths
import numpy as np
import pytest
import torch
from comfy_execution.graph_utils import ExecutionBlocker
from comfy_pack import PACK, core, execute, ksampled, load, models_folder, picture, sampled

import nodes

STEPS = 2
NAME, CLEAN = "anywhere.safetensors", "anywhere_clean.safetensors"
WHOLE, BASE = "whole", "tiny-cogvideox"


@pytest.fixture(scope="module")
def models() -> Path:
    """Files of what was trained, one to predict clean latents, their base under models/diffusers, and a folder of
    the first with it."""
    folder = models_folder()
    with patch.object(sys, "path", [*sys.path, str(PACK), str(PACK / "tests")]):
        import tiny_anywhere

        made = tiny_anywhere.checkpoint()
        bases = folder.parent / "diffusers"
        tiny_anywhere.write_base(made, bases / BASE)
    checkpoint = core("anycharv_core.checkpoints.checkpoint").Checkpoint(made.configs, made.weights, made.settings)
    scheduler = "noise_scheduler_kwargs"
    clean = {**made.settings, scheduler: made.settings[scheduler] | {"prediction_type": "sample"}}
    for name, each in ((NAME, checkpoint), (CLEAN, replace(checkpoint, settings=clean))):
        trained = core("anycharv_core.checkpoints.cogvideox").without_base(each)
        core("anycharv_core.checkpoints.single_file").write_single(trained, folder / name)
    core("anycharv_core.systems").write_folder(checkpoint, folder / WHOLE)
    folder_paths.add_model_folder_path("diffusers", str(bases))
    return folder


@pytest.fixture(scope="module")
def parts(models: Path) -> tuple[Any, ...]:
    return execute("AnyCharVLoader", checkpoint=NAME, dtype="fp32", base=BASE)


@pytest.fixture(scope="module")
def pipe(models: Path) -> Any:
    pipeline = core("anycharv_core.inference.pipeline").Pipeline
    return pipeline.from_pretrained(models / NAME, base=models.parent / "diffusers" / BASE)


def given(frames: int = 8, size: tuple[int, int] = (32, 32)) -> dict[str, np.ndarray]:
    """Pictures of noise: nothing they hold goes without effect."""
    rng, (width, height) = np.random.default_rng(0), size
    return {
        "reference": rng.integers(0, 256, (32, 32, 4), np.uint8),
        "background": rng.integers(0, 256, (24, 40, 3), np.uint8),
        "pose": rng.integers(0, 256, (frames, height, width, 3), np.uint8),
    }


def conditioned(parts: tuple[Any, ...], inputs: dict[str, Any], **changes: Any) -> dict[str, Any]:
    model, net, vae, _ = parts
    character = inputs["reference"][None]
    (reference,) = execute(
        "AnyCharVReferenceEncode",
        reference_net=net,
        vae=vae,
        image=picture(character[..., :3]),
        mask=picture(character[..., 3]),
    )
    height, width = inputs["pose"].shape[1:3]
    settings = {"width": width, "height": height, "recipe": "default"} | {
        name: picture(inputs[name] if name == "pose" else inputs[name][None]) for name in ("pose", "background")
    }
    made = execute("AnyCharVConditioning", model=model, reference=reference, vae=vae, **settings | changes)
    return dict(zip(("positive", "negative", "latent", "canvas", "width", "height", "mask"), made, strict=True))


def expected(pipe: Any, inputs: dict[str, Any], scale: float = 2.0) -> Any:
    size = inputs["pose"].shape[2:0:-1]
    return pipe(**inputs, steps=STEPS, guidance_scale=scale, seed=42, size=size)


def apart(parts: tuple[Any, ...], made: torch.Tensor, core: torch.Tensor) -> float:
    ours = parts[0].model.process_latent_in(made)[0].movedim(0, 1)
    return float((ours - core).abs().max() / core.abs().max())


@pytest.mark.parametrize("size", [(32, 32), (48, 32), (32, 64)])
@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_nodes_equal_core(parts: tuple[Any, ...], pipe: Any, scale: float, size: tuple[int, int]) -> None:
    inputs = given(8, size)
    made = conditioned(parts, inputs)
    latents = sampled(parts[0], made, STEPS, scale)
    assert latents.shape == made["latent"]["samples"].shape
    core = expected(pipe, inputs, scale)
    assert apart(parts, latents, core.latents) <= 1e-4
    assert apart(parts, latents, expected(pipe, inputs, 3.0).latents) > 1e-3
    (decoded,) = nodes.VAEDecode().decode(parts[2], {"samples": latents})
    assert decoded.shape == core.frames.shape
    assert np.abs((decoded.numpy() * 255).round() - core.frames).max() <= 1
    (tiled,) = nodes.VAEDecodeTiled().decode(parts[2], {"samples": latents}, 64, 16)
    assert torch.equal(tiled, decoded)


def test_clean_latents_may_be_what_is_predicted(models: Path, parts: tuple[Any, ...]) -> None:
    """By our sampler and, as far as its Euler is that DDIM, by core's."""
    own = execute("AnyCharVLoader", checkpoint=CLEAN, dtype="fp32", base=BASE)
    inputs = given()
    made = conditioned(own, inputs)
    latents = sampled(own[0], made, STEPS)
    pipeline = core("anycharv_core.inference.pipeline").Pipeline
    wanted = expected(pipeline.from_pretrained(models / CLEAN, base=models.parent / "diffusers" / BASE), inputs)
    assert apart(own, latents, wanted.latents) <= 1e-4
    assert apart(own, sampled(parts[0], conditioned(parts, inputs), STEPS), wanted.latents) > 1e-3
    assert ksampled(own[0], made, 4).isfinite().all()


def test_whole_job_equals_core(parts: tuple[Any, ...], pipe: Any) -> None:
    backend = core("nodes.clips").ClipBackend(*parts[:3])
    ours = core("anycharv_core.inference.pipeline").Pipeline(backend)
    made = expected(ours, given())
    wanted = expected(pipe, given())
    assert (made.latents - wanted.latents).abs().max() <= 1e-4 * wanted.latents.abs().max()
    assert np.abs(made.frames.astype(int) - wanted.frames).max() <= 1


@pytest.mark.parametrize("change", ["reference", "background", "pose"])
def test_every_input_decides(parts: tuple[Any, ...], change: str) -> None:
    inputs = given()
    first, second = (
        sampled(parts[0], conditioned(parts, each), STEPS)
        for each in (
            inputs,
            inputs | {change: inputs[change] ^ np.uint8([255] * 3 + [0])[: inputs[change].shape[-1]]},
        )
    )
    assert (first - second).abs().max() > 1e-3


def test_the_negative_has_no_conditions(parts: tuple[Any, ...]) -> None:
    inputs = given()
    other = inputs | {name: 255 - inputs[name] for name in ("reference", "background", "pose")}
    made = [conditioned(parts, each) for each in (inputs, other)]
    first, second = (sampled(parts[0], each | {"positive": each["negative"]}, STEPS, 1.0) for each in made)
    assert torch.equal(first, second)
    assert (first - sampled(parts[0], made[0], STEPS, 1.0)).abs().max() > 1e-3


@pytest.mark.parametrize("frames", [1, 12])
def test_poses_are_repeated_to_whole_slots(
    parts: tuple[Any, ...], pipe: Any, frames: int, caplog: pytest.LogCaptureFixture
) -> None:
    inputs = given(frames)
    made = sampled(parts[0], conditioned(parts, inputs), STEPS)
    missing = -frames % 8
    assert f"is repeated until there are {frames + missing}" in caplog.text
    inputs["pose"] = np.concatenate([inputs["pose"], inputs["pose"][-1:].repeat(missing, 0)])
    assert apart(parts, made, expected(pipe, inputs).latents) <= 1e-4


def test_core_nodes_take_it(parts: tuple[Any, ...]) -> None:
    """KSampler, whose Euler on trailing timesteps is this DDIM, and the VAE both ways."""
    model, made = parts[0], conditioned(parts, given())
    latents = ksampled(model, made, 4)
    assert latents.shape == made["latent"]["samples"].shape and latents.isfinite().all()
    assert torch.equal(latents, ksampled(model, made, 4))
    clip = picture(given()["pose"])
    encoded = nodes.VAEEncode().encode(parts[2], clip)[0]["samples"]
    assert encoded.shape == latents.shape
    assert torch.equal(nodes.VAEEncodeTiled().encode(parts[2], clip, 64, 16)[0]["samples"], encoded)


def test_loras_patch_it(parts: tuple[Any, ...]) -> None:
    """The bank is of the patched weights, too, and nothing of a run is kept for the next."""
    made = conditioned(parts, given())
    plain = sampled(parts[0], made, STEPS)
    for part in ("transformer_blocks.0", "control.transformer_blocks.0"):
        key = f"diffusion_model.{part}.attn1.to_v"
        weight = parts[0].model.get_parameter(f"{key}.weight")
        lora = {f"{key}.lora_up.weight": torch.ones(len(weight), 1), f"{key}.lora_down.weight": weight[:1].clone()}
        patched, _ = comfy.sd.load_lora_for_models(parts[0], None, lora, 1.0, 0.0)
        assert (sampled(patched, made, STEPS) - plain).abs().max() > 1e-3
    assert torch.equal(sampled(parts[0], made, STEPS), plain)


def test_a_folder_of_its_parts_is_loaded(models: Path, parts: tuple[Any, ...]) -> None:
    names = core("nodes.loader").checkpoint_names()
    assert {NAME, WHOLE} <= set(names)
    assert not [each for each in names if each.startswith(f"{WHOLE}/")]
    whole = load(WHOLE, "fp32")
    made, same = (sampled(each[0], conditioned(each, given()), STEPS) for each in (parts, whole))
    assert torch.equal(made, same)


def test_a_saved_model_is_read_again(models: Path, parts: tuple[Any, ...]) -> None:
    key, target = "diffusion_model.proj_out.bias", models / "saved.safetensors"
    old = {name: value.clone() for name, value in parts[0].model.diffusion_model.state_dict().items()}
    merged = parts[0].clone()
    merged.add_patches({key: (torch.ones(parts[0].model.get_parameter(key).shape),)})
    comfy.sd.save_checkpoint(str(target), merged)
    again = execute("AnyCharVLoader", checkpoint=target.name, dtype="fp32", base=BASE)
    target.unlink()
    new = again[0].model.diffusion_model.state_dict()
    assert old.keys() == new.keys()
    changed = [name for name, value in old.items() if not torch.equal(value, new[name])]
    assert changed == ["proj_out.bias"]
    assert again[0].model.origin == NAME


def test_the_example_of_a_journey_is_the_cores() -> None:
    clip = execute("AnyCharVPuppetClip", seed=11, frames=8, size=64, task="travel")
    task = core("anycharv_core.puppets.travel").sample_travel(11, 8, 64)
    reference, truth = task.reference[None], task.truth
    shown = {1: truth.frames, 2: truth.mask, 4: reference[..., :3], 5: reference[..., 3], 6: truth.frames}
    for place, frames in (shown | {9: task.background[None]}).items():
        assert torch.equal(clip[place], picture(frames)), place
    assert clip[3] == list(task.poses().keypoints())
    assert not execute("AnyCharVPuppetClip", seed=11, frames=1, size=64)[9].any()


def test_it_has_no_image_encoder(parts: tuple[Any, ...]) -> None:
    assert isinstance(parts[3], ExecutionBlocker)
    assert "leave clip_vision of AnyCharV Reference Encode unwired" in parts[3].message


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"background": None}, "There is no background"),
        ({"scene": torch.zeros(8, 32, 32, 3)}, "puts nobody into a scene"),
        ({"objects": torch.zeros(8, 32, 32)}, "of AnimateAnywhere reads no objects"),
        ({"canvas": "person"}, "can't follow a person here"),
    ],
)
def test_bad_input_is_said_in_a_sentence(
    parts: tuple[Any, ...], change: dict[str, torch.Tensor], message: str
) -> None:
    with pytest.raises(core("anycharv_core.errors").UserError, match=message):
        conditioned(parts, given(), **change)


def test_context_windows_are_refused(parts: tuple[Any, ...]) -> None:
    error, made = core("anycharv_core.errors").UserError, conditioned(parts, given(16))
    windows = comfy.context_windows
    handler = windows.IndexListContextHandler(
        windows.get_matching_context_schedule("standard_static"),
        windows.get_matching_fuse_method("flat"),
        context_length=2,
        context_overlap=0,
        dim=2,
    )
    model = parts[0].clone()
    model.model_options["context_handler"] = handler
    for sampler in (sampled, ksampled):
        with pytest.raises(error, match="AnimateAnywhere makes a whole clip at once: leave context windows out"):
            sampler(model, made, STEPS)


def test_nodes_that_cannot_take_it_say_so(parts: tuple[Any, ...]) -> None:
    model, error = parts[0], core("anycharv_core.errors").UserError
    with pytest.raises(error, match="MODEL is one of AnimateAnywhere, which makes a whole clip at once"):
        execute("AnyCharVLongVideo", model=model, length=16, overlap=4, fuse="ramp", layout="linear")
    with pytest.raises(error, match="MODEL is one of AnimateAnywhere, which makes a whole clip at once"):
        core("nodes.backend").ComfyBackend(*parts)


def test_parts_of_other_systems_are_told_apart(parts: tuple[Any, ...]) -> None:
    error, others = core("anycharv_core.errors").UserError, load()
    with pytest.raises(error, match="REFERENCE_NET is of another system"):
        conditioned((parts[0], others[1], *parts[2:]), given())
    with pytest.raises(error, match="wire in the model's own VAE"):
        conditioned((*parts[:2], others[2], None), given())
    with pytest.raises(error, match="takes no background picture"):
        conditioned(others, given())
    with pytest.raises(error, match="reads the reference through an image encoder, too"):
        conditioned(others, given(), background=None, scene=torch.rand(8, 32, 32, 3), mask=torch.ones(8, 32, 32))


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ("none", "in ComfyUI base, under advanced, of AnyCharV Loader"),
        ("../secret", "There is no base '../secret'"),
    ],
)
def test_a_base_that_is_missing_is_said(models: Path, base: str, message: str) -> None:
    with pytest.raises(core("anycharv_core.errors").UserError, match=message):
        execute("AnyCharVLoader", checkpoint=NAME, dtype="fp32", base=base)
