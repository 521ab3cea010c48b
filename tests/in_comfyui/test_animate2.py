"""Animate Anyone 2 in ComfyUI: what nodes make is what the core pipeline makes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from comfy_pack import core, execute, load, picture, sampled, second_system
from test_replace import replaced

import nodes

SIZE, STEPS = 64, 2


@pytest.fixture(scope="module")
def name() -> str:
    return second_system()


@pytest.fixture(scope="module")
def parts(name: str) -> tuple[Any, ...]:
    return load(name, "fp32")


@pytest.fixture(scope="module")
def pipe(name: str) -> Any:
    return core("anycharv_core.inference.pipeline").Pipeline.from_pretrained(
        core("nodes.loader").checkpoint_path(name)
    )


def task(frames: int = 4, seed: int = 3, size: int = SIZE) -> Any:
    return core("anycharv_core.puppets.interaction").sample_interaction(seed, frames, size)


def given(act: Any) -> dict[str, torch.Tensor]:
    """What a task gives AnyCharV Conditioning."""
    grey = torch.from_numpy(act.depth.astype(np.float32))[..., None].expand(-1, -1, -1, 3) / 65535
    return {
        "scene": picture(act.driving.frames),
        "mask": picture(act.mask),
        "pose": picture(act.pose),
        "objects": picture(act.objects),
        "depth": grey,
    }


def conditioned(parts: tuple[Any, ...], act: Any, **inputs: Any) -> dict[str, Any]:
    model, net, vae, clip_vision = parts
    (reference,) = execute(
        "AnyCharVReferenceEncode",
        reference_net=net,
        vae=vae,
        clip_vision=clip_vision,
        image=picture(act.reference[None, ..., :3]),
        mask=picture(act.reference[None, ..., 3]),
    )
    settings = {"width": SIZE, "height": SIZE, "recipe": "default", **given(act), **inputs}
    names = ("positive", "negative", "latent", "canvas", "width", "height", "mask")
    made = execute("AnyCharVConditioning", model=model, reference=reference, vae=vae, **settings)
    return dict(zip(names, made, strict=True))


def expected(pipe: Any, act: Any, recipe: str = "default", canvas: str = "frame", **changes: Any) -> torch.Tensor:
    inputs = {"scene": act.driving.frames, "mask": act.mask, "objects": act.objects, "depth": act.depth}
    made = pipe(
        act.reference,
        pose=act.pose,
        **inputs | changes,
        steps=STEPS,
        guidance_scale=2.0,
        seed=42,
        size=(SIZE, SIZE),
        recipe=recipe,
        canvas=canvas,
    )
    return made.latents


def apart(parts: tuple[Any, ...], made: torch.Tensor, core: torch.Tensor) -> float:
    ours = parts[0].model.process_latent_in(made)
    return float((ours - core).abs().max() / core.abs().max())


@pytest.mark.parametrize("without", [(), ("objects",), ("depth",), ("objects", "depth")])
def test_nodes_equal_core(parts: tuple[Any, ...], pipe: Any, without: tuple[str, ...]) -> None:
    act = task()
    nothing = dict.fromkeys(without)
    made = sampled(parts[0], conditioned(parts, act, **nothing), STEPS)
    assert apart(parts, made, expected(pipe, act, **nothing)) <= 1e-4
    if without:
        assert apart(parts, made, expected(pipe, act)) > 1e-3


@pytest.mark.parametrize(
    ("recipe", "canvas"), [("default", "frame"), ("default", "person"), ("official", "frame")]
)
def test_windows_begin_with_the_last_frame_of_the_one_before(
    parts: tuple[Any, ...], pipe: Any, recipe: str, canvas: str
) -> None:
    act = task(20)
    made = conditioned(parts, act, recipe=recipe, canvas=canvas)
    latents = sampled(parts[0], made, STEPS, recipe=recipe)
    core = expected(pipe, act, recipe, canvas)
    assert apart(parts, latents, core) <= 1e-4
    (windowed,) = execute("AnyCharVLongVideo", model=parts[0], length=16, overlap=4, fuse="ramp", layout="linear")
    fused = sampled(windowed, made, STEPS, recipe=recipe)
    assert apart(parts, fused, core) > 1e-3
    if recipe == "default":
        assert apart(parts, fused, expected(pipe, act, "overlapping", canvas)) <= 1e-4


def test_whole_job_equals_core(parts: tuple[Any, ...], pipe: Any) -> None:
    """In turn by one backend and the other, where cfg 1 evaluates one conditioning alone."""
    act, backend = task(18), core("nodes.backend")
    inputs = {"scene": act.driving.frames, "mask": act.mask, "objects": act.objects, "depth": act.depth}
    settings = {"pose": act.poses(), "steps": STEPS, "seed": 1, "size": (SIZE, SIZE)}
    ours = core("anycharv_core.inference.pipeline").Pipeline(backend.ComfyBackend(*parts))
    for scale in (1.0, 2.0):
        made = [each(act.reference, **inputs, **settings, guidance_scale=scale).frames for each in (ours, pipe)]
        assert np.abs(made[0].astype(int) - made[1]).max() <= 1


def test_mask_is_what_is_pasted_by(parts: tuple[Any, ...]) -> None:
    act = task()
    made = conditioned(parts, act)
    masks, finish = (core(f"anycharv_core.{name}") for name in ("media.masks", "inference.finish"))
    coarse, wide = masks.block_masks(act.mask, 5, 3) > 0, made["mask"].numpy() > 0
    pasted = np.stack([finish.paste_weights(255 * each.astype(np.uint8), 0.15) for each in coarse])
    assert (wide >= coarse).all() and wide.sum() > coarse.sum() and (pasted[wide] == 1).all()
    (decoded,) = nodes.VAEDecode().decode(parts[2], {"samples": sampled(parts[0], made, 1)})
    scene = picture(act.driving.frames)
    (shown,) = execute(
        "AnyCharVComposite", generated=decoded, original=scene, feather=1, mask=made["mask"], canvas=made["canvas"]
    )
    changed = (shown != scene).any(-1)
    assert changed.any() and not changed[torch.from_numpy(pasted == 0)].any()


def test_one_node_does_the_whole_job(parts: tuple[Any, ...], pipe: Any) -> None:
    clip = execute("AnyCharVPuppetClip", seed=3, frames=4, size=96, task="interaction")
    act = task(4, size=96)
    assert torch.equal(clip[2], picture(act.mask)) and torch.equal(clip[7], picture(act.objects))
    settings = dict(zip(("model", "reference_net", "vae", "clip_vision"), parts, strict=True)) | {"crf": 0}
    made = replaced(clip[0], clip, clip[2], **settings, objects=clip[7], depth=clip[8])
    plain = replaced(clip[0], clip, clip[2], **settings)
    read = core("anycharv_core.media.video_read").read_frames
    frames, other = (np.stack(list(read(each))) for each in (made, plain))
    assert frames.shape == act.driving.frames.shape and not np.array_equal(frames, other)


def test_what_was_prepared_beside_the_masks_is_taken(parts: tuple[Any, ...], tmp_path: Path) -> None:
    clip = execute("AnyCharVPuppetClip", seed=3, frames=4, size=96, task="interaction")
    act = task(4, size=96)
    write = core("anycharv_core.media.video_write").write_masks
    for name, masks in (("mask", act.mask), ("box", act.mask), ("objects", act.objects)):
        write(tmp_path / f"{name}.mkv", masks)
    person = core("anycharv_core.jobs.prepared").PreparedPerson(1, act.poses(), tmp_path)
    networks = dict(zip(("model", "reference_net", "vae", "clip_vision"), parts, strict=True)) | {"crf": 0}
    read = core("anycharv_core.media.video_read").read_frames
    made, wired, without = (
        np.stack(list(read(replaced(clip[0], clip, mask, **networks, **given))))
        for mask, given in (
            (None, {"pose": None, "prepared": [person]}),
            (clip[2], {"objects": clip[7]}),
            (clip[2], {}),
        )
    )
    assert np.array_equal(made, wired) and not np.array_equal(made, without)


def test_structured_depth_is_the_cores() -> None:
    act = task()
    inputs = given(act)
    (made,) = execute("AnyCharVStructuredDepth", depth=inputs["depth"], pose=inputs["pose"], near="white")
    wanted = core("anycharv_core.media.depth").structured_depth(act.depth, act.pose)
    assert np.array_equal((made[..., 0] * 255).round().numpy().astype(np.uint8), wanted)
    (larger,) = execute(
        "AnyCharVStructuredDepth",
        depth=inputs["depth"].repeat_interleave(2, 1).repeat_interleave(2, 2),
        pose=inputs["pose"],
        near="white",
    )
    assert torch.equal(larger, made)
    (turned,) = execute("AnyCharVStructuredDepth", depth=1 - inputs["depth"], pose=inputs["pose"], near="black")
    assert (turned - made).abs().max() <= 1 / 255


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"objects": torch.ones(4, SIZE, SIZE)}, "objects cover the person to replace in frame 0"),
        ({"objects": torch.zeros(3, SIZE, SIZE)}, "4 frames but objects has 3"),
        ({"objects": torch.zeros(4, SIZE, 2 * SIZE)}, "objects is .* but the scene is"),
        ({"depth": torch.zeros(3, SIZE, SIZE, 3)}, "4 frames but depth has 3"),
        ({"depth": torch.zeros(4, SIZE, 2 * SIZE, 3)}, "depth is .* but the scene is"),
        ({"depth": torch.rand(4, SIZE, SIZE, 3)}, "depth is in colours"),
        ({"pose": torch.zeros(4, SIZE, SIZE, 3)}, "Frame 0 has depth but no skeleton"),
    ],
)
def test_bad_input_is_said_in_a_sentence(
    parts: tuple[Any, ...], change: dict[str, torch.Tensor], message: str
) -> None:
    with pytest.raises(core("anycharv_core.errors").UserError, match=message):
        conditioned(parts, task(), **change)


def test_models_of_other_systems_take_neither(parts: tuple[Any, ...]) -> None:
    act, others = task(), load()
    plain = conditioned(others, act, objects=None, depth=None)
    with pytest.raises(core("anycharv_core.errors").UserError, match="made for a model of another kind"):
        sampled(parts[0], plain, STEPS)
    for other in ("objects", "depth"):
        with pytest.raises(core("anycharv_core.errors").UserError, match="of AnyCharV reads no"):
            conditioned(others, act, **{other: None})


def test_structured_depth_names_what_does_not_fit() -> None:
    error = core("anycharv_core.errors").UserError
    for depth, message in (
        (torch.zeros(3, SIZE, SIZE, 3), "4 frames but depth has 3"),
        (torch.zeros(4, SIZE, 2 * SIZE, 3), "give both of one video"),
        (torch.zeros(4, SIZE, SIZE, 3), "no skeleton in any frame"),
    ):
        with pytest.raises(error, match=message):
            execute("AnyCharVStructuredDepth", depth=depth, pose=torch.zeros(4, SIZE, SIZE, 3), near="white")
