"""Sampling by nodes gives what the core pipeline gives, on recorded cases and on the embedded models."""

from __future__ import annotations

import numpy as np
import torch
from comfy_pack import (
    PARITY,
    animated,
    animation,
    conditioned,
    core,
    execute,
    first_configuration,
    load,
    models_folder,
    picture,
    recorded_cases,
    sampled,
)
from conftest import needs_parity

import nodes


@needs_parity
def test_official_recipe_equals_core() -> None:
    """On every recorded case: nodes against the core pipeline."""
    (models_folder() / "m0").symlink_to(PARITY / "public" / "models" / "m0")
    model, net, vae, clip_vision = load("m0")
    pipe = core("anycharv_core.inference.pipeline").Pipeline.from_pretrained(PARITY / "public" / "models" / "m0")
    worst = {}
    for name, (case, inputs) in recorded_cases(PARITY / "public").items():
        (reference,) = execute(
            "AnyCharVReferenceEncode",
            reference_net=net,
            vae=vae,
            clip_vision=clip_vision,
            image=picture(inputs["ref"][None]),
        )
        positive, negative, latent, *_ = execute(
            "AnyCharVConditioning",
            model=model,
            reference=reference,
            vae=vae,
            scene=picture(inputs["tgt"]),
            mask=picture(inputs["mask"]),
            pose=picture(inputs["pose"]),
            width=0,
            height=0,
            recipe="official",
        )
        steps, cfg = case["num_inference_steps"], case["guidance_scale"]
        (made,) = execute(
            "AnyCharVSampler",
            model=model,
            positive=positive,
            negative=negative,
            latent=latent,
            steps=steps,
            cfg=cfg,
            seed=7,
            recipe="official",
        )
        expected = pipe(
            inputs["ref"],
            inputs["tgt"],
            inputs["mask"],
            inputs["pose"],
            steps=steps,
            guidance_scale=cfg,
            seed=7,
            recipe="official",
        ).latents
        worst[name] = float((model.model.process_latent_in(made["samples"]) - expected).abs().max())
        assert worst[name] <= 1e-3, worst


@needs_parity
def test_animate_official_recipe_equals_core() -> None:
    """Animate Anyone's second configuration on every recorded case, with the release's random weights."""
    folder = PARITY / "moore" / "public"
    (models_folder() / "moore").symlink_to(folder / "models" / "m0")
    assert "moore" in core("nodes.loader").checkpoint_names()
    model, net, vae, clip_vision = load("moore")
    pipe = core("anycharv_core.inference.pipeline").Pipeline.from_pretrained(folder / "models" / "m0")
    worst = {}
    for name, (case, inputs) in recorded_cases(folder).items():
        (reference,) = execute(
            "AnyCharVReferenceEncode",
            reference_net=net,
            vae=vae,
            clip_vision=clip_vision,
            image=picture(inputs["ref"][None]),
        )
        positive, negative, latent, *_ = execute(
            "AnyCharVConditioning",
            model=model,
            reference=reference,
            vae=vae,
            pose=picture(inputs["pose"]),
            width=case["width"],
            height=case["height"],
            recipe="official",
        )
        steps, cfg = case["num_inference_steps"], case["guidance_scale"]
        made = sampled(
            model, {"positive": positive, "negative": negative, "latent": latent}, steps, cfg, recipe="official"
        )
        expected = pipe(
            inputs["ref"],
            pose=inputs["pose"],
            size=(case["width"], case["height"]),
            steps=steps,
            guidance_scale=cfg,
            seed=42,
            recipe="official",
        ).latents
        worst[name] = float((model.model.process_latent_in(made) - expected).abs().max())
        assert worst[name] <= 1e-3, worst


def test_animate_equals_core_in_both_configurations() -> None:
    """Also where windows overlap: v1 normalises the frames of one window, and never two rows of cfg, together."""
    task, worst = animation(frames=30, size=80), {}
    for name in ("embedded-animate", first_configuration()):
        parts = load(name, "fp32")
        model = parts[0]
        place = name if name == "embedded-animate" else core("nodes.loader").checkpoint_path(name)
        pipe = core("anycharv_core.inference.pipeline").Pipeline.from_pretrained(place)
        assert model.model.diffusion_model.cfg.joint_norm == (name == "v1")
        for recipe, cfg in (("default", 3.5), ("official", 3.5), ("official", 1.0)):
            made = sampled(model, animated(*parts, task, recipe), cfg=cfg, recipe=recipe)
            expected = pipe(
                task.reference, pose=task.pose, steps=2, guidance_scale=cfg, seed=42, recipe=recipe
            ).latents
            ours = model.model.process_latent_in(made)
            difference = float((ours - expected).abs().max() / expected.abs().max())
            worst[f"{name} {recipe} {cfg}"] = difference
            assert difference <= 1e-3, worst


def test_animate_before_a_scene_equals_core() -> None:
    """The character on the colour that is taken out again, as nodes and as the pipeline do it."""
    parts, task = load("embedded-animate"), animation(size=80)
    scene = np.random.default_rng(0).integers(256, size=task.truth.frames.shape, dtype=np.uint8)
    made = animated(*parts, task, scene=picture(scene))
    (decoded,) = nodes.VAEDecode().decode(parts[2], {"samples": sampled(parts[0], made)})
    (ours,) = execute(
        "AnyCharVComposite",
        generated=decoded,
        original=picture(scene),
        feather=8,
        reference=made["reference"],
        canvas=made["canvas"],
    )
    expected = (
        core("anycharv_core.inference.pipeline")
        .Pipeline.from_pretrained("embedded-animate")(
            task.reference,
            scene,
            None,
            task.pose,
            steps=2,
            guidance_scale=2.0,
            seed=42,
            size=(80, 80),
            reference_mask=task.cutout,
        )
        .frames
    )
    levels = (ours * 255).round().numpy().astype(int)
    worst = int(np.abs(levels - expected).max())
    assert worst <= 1, worst
    untouched = (levels == scene).all(axis=-1)
    assert torch.equal(ours[torch.from_numpy(untouched)], picture(scene)[torch.from_numpy(untouched)])


def test_guidance_tells_the_conditionings_apart() -> None:
    parts = load()
    model, made = parts[0], conditioned(*parts, width=64, height=64)
    by_scale = [sampled(model, made, cfg=cfg) for cfg in (1.0, 2.0, 4.0)]
    assert not torch.allclose(by_scale[0], by_scale[1], atol=1e-3)
    assert not torch.allclose(by_scale[1], by_scale[2], atol=1e-3)
    pipe = core("anycharv_core.inference.pipeline").Pipeline.from_pretrained("embedded")
    swap = core("anycharv_core.puppets.task").sample_swap(3, 6, 64)
    expected = pipe(
        swap.reference,
        swap.driving.frames,
        swap.driving.mask,
        swap.pose,
        steps=2,
        guidance_scale=2.0,
        seed=42,
        canvas="frame",
    )
    assert torch.allclose(model.model.process_latent_in(by_scale[1]), expected.latents, atol=1e-3)


def test_whole_job_equals_core_where_nobody_is() -> None:
    """A clip whose person leaves: windows without anybody are not sampled, and their frames are the clip's."""
    pipeline, swap = core("nodes.backend"), core("anycharv_core.puppets.task").sample_swap(4, 50, 64)
    masks = swap.box.copy()
    masks[9:] = 0
    inputs = (swap.reference, swap.driving.frames, masks, swap.pose)
    settings = {"steps": 2, "guidance_scale": 2.0, "seed": 1, "size": (64, 64)}
    ours = core("anycharv_core.inference.pipeline").Pipeline(pipeline.ComfyBackend(*load()))(*inputs, **settings)
    expected = core("anycharv_core.inference.pipeline").Pipeline.from_pretrained("embedded")(*inputs, **settings)
    assert np.array_equal(ours.frames[9:], swap.driving.frames[9:])
    assert np.abs(ours.frames.astype(int) - expected.frames).max() <= 1


def test_fast_modes_equal_core() -> None:
    backend, swap = core("nodes.backend"), core("anycharv_core.puppets.task").sample_swap(4, 26, 64)
    pipeline = core("anycharv_core.inference.pipeline").Pipeline
    shortcuts = core("anycharv_core.inference.shortcuts").Shortcuts((0.3, 0.8), 2, "dpm++2m")
    inputs = (swap.reference, swap.driving.frames, swap.box, swap.pose)
    settings = {"steps": 6, "guidance_scale": 2.0, "seed": 1, "size": (64, 64), "shortcuts": shortcuts}
    ours = pipeline(backend.ComfyBackend(*load()))(*inputs, **settings)
    expected = pipeline.from_pretrained("embedded")(*inputs, **settings)
    assert np.abs(ours.frames.astype(int) - expected.frames).max() <= 1
