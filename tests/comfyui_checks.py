"""Checks that run inside ComfyUI's own Python, for test_comfyui_nodes.py.

    COMFYUI_PYTHON comfyui_checks.py PACK PARITY CHECK...

prints one line of JSON per check, {"check": name, "error": traceback or null, "value": what it returned}.
The working directory is ComfyUI's.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import json
import sys
import tempfile
import traceback
from fractions import Fraction
from pathlib import Path
from typing import Any
from unittest.mock import patch

PACK, PARITY = Path(sys.argv[1]), Path(sys.argv[2])
CHECKS = sys.argv[3:]
sys.path.insert(0, str(Path.cwd()))
sys.argv = ["main.py", "--cpu"]

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.context_windows  # noqa: E402
import comfy.model_management  # noqa: E402
import folder_paths  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

import nodes  # noqa: E402

torch.set_grad_enabled(False)


def execute(node: str, **inputs: Any) -> tuple[Any, ...]:
    return nodes.NODE_CLASS_MAPPINGS[node].execute(**inputs).args


def core(module: str) -> Any:
    """A module of the anycharv_core that the pack itself uses."""
    return importlib.import_module(f"{str(PACK).replace('.', '_x_')}.{module}")


def load(checkpoint: str = "embedded", dtype: str = "auto") -> tuple[Any, ...]:
    return execute("AnyCharVLoader", checkpoint=checkpoint, dtype=dtype)


def conditioned(model: Any, net: Any, vae: Any, clip_vision: Any, frames: int = 6, **sizes: int) -> dict[str, Any]:
    """A puppet clip, encoded for the model."""
    _, scene, mask, keypoints, picture, cut, _ = execute("AnyCharVPuppetClip", seed=3, frames=frames, size=64)
    (reference,) = execute(
        "AnyCharVReferenceEncode",
        reference_net=net,
        vae=vae,
        clip_vision=clip_vision,
        image=picture,
        mask=cut,
    )
    (pose,) = execute("AnyCharVPoseDraw", keypoints=keypoints, width=256, height=256)
    positive, negative, latent = execute(
        "AnyCharVConditioning",
        model=model,
        reference=reference,
        vae=vae,
        scene=scene,
        mask=mask,
        pose=pose,
        **{"width": 0, "height": 0, **sizes},
        recipe="default",
    )
    return {"positive": positive, "negative": negative, "latent": latent, "scene": scene, "mask": mask}


def sampled(model: Any, made: dict[str, Any], steps: int = 2, cfg: float = 2.0, **more: Any) -> torch.Tensor:
    (latent,) = execute(
        "AnyCharVSampler",
        model=model,
        positive=made["positive"],
        negative=made["negative"],
        latent=made["latent"],
        steps=steps,
        cfg=cfg,
        seed=42,
        **{"recipe": "default", **more},
    )
    return latent["samples"]


def ksampled(
    model: Any, made: dict[str, Any], steps: int = 2, cfg: float = 2.0, scheduler: str = "sgm_uniform"
) -> torch.Tensor:
    (latent,) = nodes.KSampler().sample(
        model, 42, steps, cfg, "euler", scheduler, made["positive"], made["negative"], made["latent"]
    )
    return latent["samples"]


def recorded_cases(folder: Path) -> dict[str, tuple[dict[str, Any], Any]]:
    """Settings and inputs by the case's name."""
    read = {path.parent.name: json.loads(path.read_text()) for path in sorted(folder.glob("cases/*/case.json"))}
    return {name: (case, np.load(folder / case["inputs"])) for name, case in read.items()}


def first_configuration() -> str:
    """A checkpoint in Animate Anyone's first configuration, by the loader's name: embedded weights, used for what
    they were not trained for, in the published layout."""
    systems, schedule = core("anycharv_core.systems"), core("anycharv_core.models.schedule")
    made = systems.read_checkpoint("embedded-animate")
    unet, weights = made.configs["denoising_unet"], made.weights["denoising_unet"]
    unet |= {"use_inflated_groupnorm": False, "motion_module_mid_block": False}
    unet["motion_module_kwargs"]["temporal_position_encoding_max_len"] = 24
    made.weights["denoising_unet"] = {
        key: value[:, :24].clone() if key.endswith(".pe") else value
        for key, value in weights.items()
        if not key.startswith("mid_block.motion_modules.")
    }
    made.settings["noise_scheduler_kwargs"] = schedule.NoiseSchedule(True, False, True).to_dict()
    systems.write_folder(made, models_folder() / "v1")
    return "v1"


def animation(frames: int = 6, size: int = 64) -> Any:
    return core("anycharv_core.puppets.task").sample_animation(3, frames, size)


def animated(
    model: Any, net: Any, vae: Any, clip_vision: Any, task: Any, recipe: str = "default", **scene: torch.Tensor
) -> dict[str, Any]:
    """A puppet's picture and its motion, encoded for a model of Animate Anyone."""
    (reference,) = execute(
        "AnyCharVReferenceEncode",
        reference_net=net,
        vae=vae,
        clip_vision=clip_vision,
        image=picture(task.reference[None]),
        **({"mask": picture(task.cutout[None])} if scene else {}),
    )
    positive, negative, latent = execute(
        "AnyCharVConditioning",
        model=model,
        reference=reference,
        vae=vae,
        pose=picture(task.pose),
        width=0,
        height=0,
        recipe=recipe,
        **scene,
    )
    return {"positive": positive, "negative": negative, "latent": latent, "reference": reference}


def models_folder() -> Path:
    """A new folder that the loader looks in."""
    folder = Path(tempfile.mkdtemp()) / "anycharv"
    folder.mkdir()
    folder_paths.add_model_folder_path("anycharv", str(folder))
    return folder


def picture(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array).float() / 255


def check_schedule_is_zero_terminal_snr_on_linear_betas() -> None:
    sigmas = load()[0].get_model_object("model_sampling").sigmas
    power = core("anycharv_core.models.schedule").alphas_cumprod()[:-1]
    assert torch.allclose(sigmas[:-1], ((1 - power) / power).sqrt(), rtol=2e-3)
    assert sigmas[-1] > 1000


def check_official_recipe_equals_core() -> dict[str, float]:
    """On every recorded case: nodes against the core pipeline."""
    (models_folder() / "m0").symlink_to(PARITY / "models" / "m0")
    model, net, vae, clip_vision = load("m0")
    pipe = core("anycharv_core.inference.pipeline").Pipeline.from_pretrained(PARITY / "models" / "m0")
    worst = {}
    for name, (case, inputs) in recorded_cases(PARITY).items():
        (reference,) = execute(
            "AnyCharVReferenceEncode",
            reference_net=net,
            vae=vae,
            clip_vision=clip_vision,
            image=picture(inputs["ref"][None]),
        )
        positive, negative, latent = execute(
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
    return worst


def check_core_samplers_drive_it() -> float:
    from comfy_extras.nodes_custom_sampler import (
        BasicScheduler,
        CFGGuider,
        KSamplerSelect,
        RandomNoise,
        SamplerCustomAdvanced,
    )

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
    return float((plain - ours).abs().mean())


def check_guidance_tells_the_conditionings_apart() -> None:
    parts = load()
    model, made = parts[0], conditioned(*parts)
    by_scale = [sampled(model, made, cfg=cfg) for cfg in (1.0, 2.0, 4.0)]
    assert not torch.allclose(by_scale[0], by_scale[1], atol=1e-3)
    assert not torch.allclose(by_scale[1], by_scale[2], atol=1e-3)
    pipe = core("anycharv_core.inference.pipeline").Pipeline.from_pretrained("embedded")
    swap = core("anycharv_core.puppets.task").sample_swap(3, 6, 64)
    expected = pipe(
        swap.reference, swap.driving.frames, swap.driving.mask, swap.pose, steps=2, guidance_scale=2.0, seed=42
    )
    assert torch.allclose(model.model.process_latent_in(by_scale[1]), expected.latents, atol=1e-3)


def check_animate_official_recipe_equals_core() -> dict[str, float]:
    """Animate Anyone's second configuration on every recorded case, with the release's random weights."""
    folder = PARITY.parent / "moore" / "public"
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
        positive, negative, latent = execute(
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
    return worst


def check_animate_equals_core_in_both_configurations() -> dict[str, float]:
    """Also where windows overlap: v1 normalises the frames of one window, and never two rows of cfg, together."""
    task, worst = animation(frames=30), {}
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
    return worst


def check_animate_schedules_are_the_checkpoints() -> None:
    for name, zero_snr in (("embedded-animate", True), (first_configuration(), False)):
        sampling = load(name)[0].get_model_object("model_sampling")
        power = core("anycharv_core.models.schedule").alphas_cumprod(zero_snr)
        last = -1 if zero_snr else None
        assert torch.allclose(sampling.sigmas[:last], ((1 - power[:last]) / power[:last]).sqrt(), rtol=2e-3)
        assert (sampling.sigmas[-1] > 1000) == zero_snr
        is_v = isinstance(sampling, importlib.import_module("comfy.model_sampling").V_PREDICTION)
        assert is_v == zero_snr


def check_animate_core_samplers_drive_it() -> dict[str, float]:
    """Euler's method on leading timesteps is DDIM itself, and on others the same equation in other steps."""
    alike = {}
    ways = (("embedded-animate", "sgm_uniform", 0.9), (first_configuration(), "ddim_uniform", 0.999))
    for name, scheduler, least in ways:
        parts = load(name)
        made = animated(*parts, animation())
        both = [ksampled(parts[0], made, 10, scheduler=scheduler), sampled(parts[0], made, 10)]
        alike[name] = float(torch.corrcoef(torch.stack([one.flatten() for one in both]))[0, 1])
        assert alike[name] > least, alike
    return alike


def check_animate_in_windows() -> None:
    from comfy_extras.nodes_context_windows import ContextWindowsManualNode

    parts = load("embedded-animate")
    made = animated(*parts, animation(frames=30))
    (long,) = execute("AnyCharVLongVideo", model=parts[0], length=24, overlap=6, fuse="ramp", layout="linear")
    assert torch.allclose(sampled(long, made), sampled(parts[0], made), atol=1e-5)
    (windowed,) = ContextWindowsManualNode.execute(
        parts[0], 16, 4, "standard_static", 1, False, "pyramid", 0, False, causal_window_fix=False
    ).args
    result = ksampled(windowed, made)
    assert result.shape == made["latent"]["samples"].shape and torch.isfinite(result).all()


def check_animate_before_a_scene_equals_core() -> int:
    """The character on the colour that is taken out again, as nodes and as the pipeline do it."""
    parts, task = load("embedded-animate"), animation(size=96)
    scene = np.random.default_rng(0).integers(256, size=task.truth.frames.shape, dtype=np.uint8)
    made = animated(*parts, task, scene=picture(scene))
    (decoded,) = nodes.VAEDecode().decode(parts[2], {"samples": sampled(parts[0], made)})
    (ours,) = execute(
        "AnyCharVComposite", generated=decoded, original=picture(scene), feather=8, reference=made["reference"]
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
            size=(64, 64),
            reference_mask=task.cutout,
        )
        .frames
    )
    levels = (ours * 255).round().numpy().astype(int)
    worst = int(np.abs(levels - expected).max())
    assert worst <= 1, worst
    untouched = (levels == scene).all(axis=-1)
    assert torch.equal(ours[torch.from_numpy(untouched)], picture(scene)[torch.from_numpy(untouched)])
    return worst


def check_pose_retarget_moves_to_the_character() -> None:
    rescale = core("anycharv_core.preprocess.rescale").rescale
    task = animation()
    poses = core("anycharv_core.puppets.task").sample_swap(5, 4, 96).driving.poses()
    character = task.truth.poses()[0]
    for place, keep in (("the character's", True), ("the character's, stretched", False)):
        (moved,) = execute("AnyCharVPoseRetarget", keypoints=poses, reference=character, place=place)
        assert moved == rescale(poses, character, keep)
    (kept,) = execute("AnyCharVPoseRetarget", keypoints=poses, reference=character)
    assert kept != moved


def check_half_precision_is_near_full() -> dict[str, float]:
    made, differences = {}, {}
    for dtype in ("fp32", "fp16", "bf16"):
        parts = load(dtype=dtype)
        made[dtype] = sampled(parts[0], conditioned(*parts))
        expected = core("anycharv_core.jobs.replace").DTYPES[dtype]
        assert parts[0].model.diffusion_model.conv_in.weight.dtype == expected
        differences[dtype] = float((made[dtype] - made["fp32"]).abs().mean() / made["fp32"].abs().mean())
    assert differences["fp16"] < 1e-2 and differences["bf16"] < 5e-2, differences
    return differences


def check_core_context_windows_work() -> None:
    from comfy_extras.nodes_context_windows import ContextWindowsManualNode

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


def check_long_video_equals_the_samplers_own_windows() -> None:
    parts = load()
    made = conditioned(*parts, frames=30)
    (long,) = execute("AnyCharVLongVideo", model=parts[0], length=24, overlap=6, fuse="ramp", layout="linear")
    assert torch.allclose(sampled(long, made), sampled(parts[0], made), atol=1e-5)
    (looped,) = execute("AnyCharVLongVideo", model=parts[0], length=24, overlap=6, fuse="flat", layout="looped")
    official = sampled(parts[0], made, recipe="official")
    assert not torch.allclose(official, sampled(looped, made), atol=1e-3)  # another order of the noise
    for length, overlap in ((33, 6), (24, 24)):
        try:
            settings = {"length": length, "overlap": overlap, "fuse": "flat", "layout": "linear"}
            execute("AnyCharVLongVideo", model=parts[0], **settings)
        except core("anycharv_core.errors").UserError:
            continue
        raise AssertionError((length, overlap))


def check_lora_changes_the_output() -> list[float]:
    parts, animate = load(), load("embedded-animate")
    return [_lora_change(parts[0], conditioned(*parts)), _lora_change(animate[0], animated(*animate, animation()))]


def _lora_change(model: Any, made: dict[str, Any]) -> float:
    torch.manual_seed(0)
    lora = {}
    for key, value in model.model.diffusion_model.state_dict().items():
        if "attentions" in key and key.endswith(("to_q.weight", "to_out.0.weight")):
            name = "lora_unet_" + key.removesuffix(".weight").replace(".", "_")
            lora[f"{name}.lora_down.weight"] = torch.randn(4, value.shape[1])
            lora[f"{name}.lora_up.weight"] = torch.randn(value.shape[0], 4) * 0.2
            lora[f"{name}.alpha"] = torch.tensor(4.0)
    folder = Path(tempfile.mkdtemp())
    save_file(lora, folder / "rank4.safetensors")
    folder_paths.add_model_folder_path("loras", str(folder))
    (with_lora,) = nodes.LoraLoaderModelOnly().load_lora_model_only(model, "rank4.safetensors", 1.0)
    assert len(with_lora.patches) == len(lora) // 3
    before, changed = sampled(model, made), sampled(with_lora, made)
    assert (before - changed).abs().max() > 0.05
    assert torch.equal(before, sampled(model, made))
    return float((before - changed).abs().mean())


def check_streamed_weights_give_the_same_output() -> None:
    """Half of the layers, then all of them, streamed as with --lowvram and --novram on a card.

    ComfyUI does not take those beside --cpu, so what they do to the networks is done to them here.
    """
    parts = load()
    model, net = parts[:2]
    whole = sampled(model, conditioned(*parts))
    for share in (0.5, 0.0):
        comfy.model_management.unload_all_models()
        for patcher in (model, net):
            patcher.load(patcher.load_device, lowvram_model_memory=max(1, int(patcher.model_size() * share)))
        # Left to itself, ComfyUI would load models this small in full.
        with patch.object(comfy.model_management, "load_models_gpu"):
            assert torch.equal(whole, sampled(model, conditioned(*parts)))
        for patcher in (model, net):
            assert any(getattr(m, "comfy_cast_weights", False) for m in patcher.model.modules())


def check_composite_keeps_the_original_bit_for_bit() -> None:
    torch.manual_seed(0)
    feather = core("anycharv_core.media.masks").feather
    original = torch.rand(3, 45, 70, 3)
    mask = torch.zeros(3, 45, 70)
    mask[0, 10:20, 10:30] = 1
    mask[2, :, :5] = 1
    for generated in (torch.rand(3, 45, 70, 3), torch.rand(3, 48, 72, 3), torch.rand(3, 28, 40, 3)):
        (result,) = execute("AnyCharVComposite", generated=generated, original=original, mask=mask, feather=3)
        for frame in range(3):
            outside = torch.from_numpy(feather((mask[frame] * 255).byte().numpy(), 3, 3)) == 0
            assert torch.equal(result[frame][outside], original[frame][outside])
        assert not torch.equal(result[0], original[0])
        assert torch.equal(result[1], original[1])
    (hard,) = execute("AnyCharVComposite", generated=original * 0, original=original, mask=mask, feather=0)
    assert torch.equal(hard == 0, (mask == 1)[..., None].expand_as(hard))


def check_composite_undoes_what_conditioning_did() -> None:
    """A picture sent to the working size and back lies where it lay."""
    pipeline, recipes = core("nodes.backend"), core("anycharv_core.systems.anycharv")
    composite = core("nodes.composite")
    recipe = recipes.RECIPES["default"]

    class Pipe:
        settings, multiple = {"size": [64, 64]}, 4

    for source in ((540, 960), (1920, 1080), (854, 480), (64, 64), (333, 517)):
        for asked in ((0, 0), (512, 512), (256, 512)):
            size = pipeline.node_size(Pipe, "default", source, asked)
            canvas = recipe.canvas(source, source, size, Pipe.multiple)
            assert composite.original_canvas(source, canvas.padded).inner == canvas.inner, (source, asked)


def check_whole_job_equals_core_where_nobody_is() -> float:
    """A clip whose person leaves: windows without anybody are not sampled, and their frames are the clip's."""
    pipeline, swap = core("nodes.backend"), core("anycharv_core.puppets.task").sample_swap(4, 50, 64)
    masks = swap.box.copy()
    masks[9:] = 0
    inputs = (swap.reference, swap.driving.frames, masks, swap.pose)
    settings = {"steps": 2, "guidance_scale": 2.0, "seed": 1, "size": (64, 64)}
    ours = pipeline.ComfyPipeline(*load())(*inputs, **settings)
    expected = core("anycharv_core.inference.pipeline").Pipeline.from_pretrained("embedded")(*inputs, **settings)
    assert np.array_equal(ours.frames[9:], swap.driving.frames[9:])
    assert np.abs(ours.frames.astype(int) - expected.frames).max() <= 1
    return float((ours.latents - expected.latents).abs().max())


def check_box_mask_and_fallbacks() -> None:
    mask = torch.zeros(4, 40, 60)
    mask[1, 10:20, 20:30] = 1
    box = {"x": 20, "y": 10, "width": 10, "height": 10}
    image = torch.zeros(4, 40, 60, 3)
    settings = {"padding": 0.0, "smooth": 0, "min_size": 0}

    def made(region: Any, if_absent: str = "keep the frame", **more: Any) -> torch.Tensor:
        return execute("AnyCharVBoxMask", region=region, if_absent=if_absent, **settings | more)[0]

    kept = made(mask)
    assert kept[1, 6:24, 16:34].all() and kept.sum() == 18 * 18
    assert torch.equal(made(box, image=image), kept[1:2].expand(4, -1, -1))
    assert torch.equal(made([[], [box, box], [], []], image=image), kept)
    held = made(mask, "hold the last box")
    assert torch.equal(held, kept[1:2].expand(4, -1, -1))
    assert made(mask, "whole frame")[0].all()
    grown = made(mask, min_size=30)
    assert grown[1].sum() == 900


def check_load_images_empty_mask_stands_for_none() -> None:
    _, net, vae, clip_vision = load()
    image = torch.rand(1, 90, 50, 3, generator=torch.Generator().manual_seed(0))
    settings = {"reference_net": net, "vae": vae, "clip_vision": clip_vision, "image": image}
    (plain,) = execute("AnyCharVReferenceEncode", **settings)
    for mask in (torch.ones(1, 64, 64), torch.zeros(1, 64, 64)):
        (masked,) = execute("AnyCharVReferenceEncode", **settings, mask=mask)
        assert plain.mask is masked.mask is None
    half = torch.ones(1, 64, 64)
    half[:, 32:] = 0
    try:
        execute("AnyCharVReferenceEncode", **settings, mask=half)
    except core("anycharv_core.errors").UserError as error:
        assert "64x64" in str(error) and "50x90" in str(error)
    else:
        raise AssertionError("a mask of another size was taken")


def check_mask_augment_is_seeded_and_covers() -> None:
    mask = torch.zeros(2, 60, 60)
    mask[:, 20:40, 25:35] = 1
    (first,) = execute("AnyCharVMaskAugment", mask=mask, strength=1.0, seed=5)
    (again,) = execute("AnyCharVMaskAugment", mask=mask, strength=1.0, seed=5)
    (other,) = execute("AnyCharVMaskAugment", mask=mask, strength=1.0, seed=6)
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert (first >= mask).all() and first.sum() > mask.sum()


def check_mask_augment_makes_blocks() -> None:
    mask = torch.zeros(1, 60, 60)
    mask[0, 20:40, 20:40] = torch.eye(20)
    (blocks,) = execute("AnyCharVMaskAugment", mask=mask, strength=1.0, seed=5, kind="blocks", blocks=10)
    (box,) = execute("AnyCharVMaskAugment", mask=mask, strength=1.0, seed=5, kind="blocks", blocks=1)
    expected = torch.zeros(1, 60, 60)
    for step in range(20, 40, 2):
        expected[0, step : step + 2, step : step + 2] = 1
    assert torch.equal(blocks, expected)
    assert box.sum() == 400 and box[0, 20:40, 20:40].all()


def check_boxes_are_sorted_by_person() -> None:
    def box(x: int, **more: Any) -> dict[str, Any]:
        return {"x": x, "y": 1, "width": 2, "height": 3, **more}

    def corners(x: int) -> tuple[int, ...]:
        return x, 1, x + 2, 4

    by_person = core("nodes.segment").boxes_by_person
    labelled = [[box(5, label="1"), box(9, label="3")], [box(8, label="3")], []]
    assert by_person(labelled, 3) == [[corners(5), None, None], [corners(9), corners(8), None]]
    # Detectors label everybody alike.
    detected = [[box(5, label="person"), box(9, label="person")], [box(8, label="person")]]
    assert by_person(detected, 2) == [[corners(5), corners(8)], [corners(9), None]]
    assert by_person([box(5), box(6)], 2) == [[corners(5), corners(6)]]
    assert by_person(box(5), 1) == [[corners(5)]]
    for wrong, words in (
        ([[], []], "no box in any frame"),
        ([[box(5)]], "has 2 frames but boxes has 1"),
        (None, "boxes is NoneType"),
        ([["left"], []], "A box must have x"),
    ):
        try:
            by_person(wrong, 2)
        except core("anycharv_core.errors").UserError as error:
            assert words in str(error), error
        else:
            raise AssertionError(wrong)


def check_preprocessors_are_dropped_after_the_run() -> None:
    """Neither onnxruntime's sessions nor SAM 2's weights stay, once for both smoothings and the mask."""
    if not (core("anycharv_core.preprocess.models").WEIGHTS / "puppet_pose.onnx").is_file():
        return
    kinds = (core("anycharv_core.preprocess.dwpose").DWPose, core("anycharv_core.preprocess.segment").Segmenter)
    _, scene, *_ = execute("AnyCharVPuppetClip", seed=3, frames=2, size=128)
    for smoothing in (0.0, 0.5):
        poses, drawn = execute("AnyCharVDWPose", images=scene, model="embedded", smoothing=smoothing, fps=24.0)
        assert len(poses) == 2 and drawn.shape == scene.shape
    boxes = [[{"x": 30, "y": 10, "width": 60, "height": 100}]] * 2
    (mask,) = execute("AnyCharVSegment", images=scene, boxes=boxes, model="embedded")
    assert mask.shape == scene.shape[:3] and set(mask.unique().tolist()) <= {0.0, 1.0}
    gc.collect()
    assert [kept for kept in gc.get_objects() if isinstance(kept, kinds)] == []


def check_pose_draw_takes_both_flavours() -> None:
    body = [v for i in range(18) for v in (10.0 + i, 20.0 + 2 * i, 1.0)]
    other = [v for i in range(18) for v in (60.0 + i, 20.0 + 2 * i, 0.9)]
    frame = {"canvas_width": 100, "canvas_height": 80}
    dwpose = {
        "pose_keypoints_2d": body,
        "face_keypoints_2d": None,
        "hand_left_keypoints_2d": None,
        "hand_right_keypoints_2d": None,
    }
    sdpose = {
        "pose_keypoints_2d": other,
        "face_keypoints_2d": [0.0] * 210,
        "hand_left_keypoints_2d": [0.0] * 63,
        "hand_right_keypoints_2d": [0.0] * 63,
        "foot_keypoints_2d": [0.0] * 18,
    }
    draw_pose = core("anycharv_core.media.pose").draw_pose
    keypoints = [{**frame, "people": [dwpose, sdpose]}, {**frame, "people": []}]
    (drawn,) = execute("AnyCharVPoseDraw", keypoints=keypoints, width=0, height=0)
    assert torch.equal((drawn * 255).byte()[0], torch.from_numpy(draw_pose(keypoints[0])))
    assert not drawn[1].any()
    mask = torch.zeros(1, 80, 100)
    mask[:, :, 55:] = 1
    (alone,) = execute("AnyCharVPoseDraw", keypoints=keypoints, person=mask, width=0, height=0)
    expected = draw_pose({**frame, "people": [sdpose]})
    assert torch.equal((alone * 255).byte()[0], torch.from_numpy(expected))


def check_replace_character_keeps_times_and_audio() -> None:
    import av

    video = core("anycharv_core.media.video_write")
    from comfy_api.latest import InputImpl

    _, scene, mask, keypoints, reference, cut, _ = execute("AnyCharVPuppetClip", seed=5, frames=8, size=96)
    folder = Path(tempfile.mkdtemp())
    sound = folder / "sound.mp4"
    with av.open(str(sound), "w") as container:
        stream = container.add_stream("aac", rate=44100, layout="mono")
        tone = np.sin(np.arange(44100) * 0.05, dtype=np.float32)[None]
        for start in range(0, 44100 - 1024, 1024):
            frame = av.AudioFrame.from_ndarray(tone[:, start : start + 1024], "fltp", "mono")
            frame.sample_rate, frame.pts = 44100, start
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    ticks = [0, 1001, 2002, 4004, 5005, 6006, 7007, 8008]  # one frame was dropped
    clip = folder / "clip.mp4"
    with video.VideoWriter(clip, 96, 96, ticks, Fraction(1, 30000), audio_from=sound) as writer:
        for frame in scene:
            writer.write((frame * 255).byte().numpy())
    mask[3] = 0
    parts = dict(zip(("model", "reference_net", "vae", "clip_vision"), load(), strict=True))
    (result,) = execute(
        "AnyCharVReplaceCharacter",
        **parts,
        video=InputImpl.VideoFromFile(str(clip)),
        reference=reference,
        mask=mask,
        pose=keypoints,
        reference_mask=cut,
        steps=1,
        cfg=1.0,
        seed=1,
        width=0,
        height=0,
        recipe="default",
    )
    path = result.get_stream_source()
    before, after = video.probe(clip), video.probe(path)
    assert [t * before.time_base for t in before.timestamps] == [t * after.time_base for t in after.timestamps]
    assert (after.width, after.height, after.frames) == (96, 96, 8)

    def packets(name: str) -> list[bytes]:
        with av.open(str(name)) as container:
            return [bytes(p) for p in container.demux(audio=0) if p.size]

    assert packets(str(clip)) == packets(path) != []
    frames = [np.stack(list(video.read_frames(str(p)))).astype(int) for p in (clip, path)]
    changed = np.abs(frames[0] - frames[1]).mean(axis=(1, 2, 3))
    # Without a mask only the encoder touches a frame.
    assert 1.5 * changed[3] < np.delete(changed, 3).min(), changed


def main() -> None:
    asyncio.run(nodes.load_custom_node(str(PACK)))
    for name in CHECKS:
        error = value = None
        try:
            value = globals()[f"check_{name}"]()
        except Exception:  # reported as this check's failure, and the others still run
            error = traceback.format_exc()
        print(json.dumps({"check": name, "error": error, "value": value}), flush=True)


if __name__ == "__main__":
    main()
