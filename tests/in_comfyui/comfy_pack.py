"""This pack inside a real ComfyUI, and what its tests there share. Importing this starts ComfyUI, on the CPU.

`make test-comfyui` runs these tests by test_comfyui_nodes.py; by hand, from ComfyUI's folder and with its Python:

    python -m pytest --confcutdir=PACK/tests/in_comfyui PACK/tests/in_comfyui
"""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any
from unittest.mock import patch

PACK = Path(__file__).parents[2]
PARITY = Path(os.environ.get("ANYCHARV_PARITY") or PACK.parent / "shared" / "parity")
sys.path.insert(0, str(Path.cwd()))

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()
with patch.object(sys, "argv", ["main.py", "--cpu"]):
    import comfy.cli_args

import folder_paths  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402

import nodes  # noqa: E402

BEFORE = set(sys.modules)
asyncio.run(nodes.load_custom_node(str(PACK)))
ADDED = set(sys.modules) - BEFORE
"""The modules that loading the pack imports on top of ComfyUI's own."""


def execute(node: str, **inputs: Any) -> tuple[Any, ...]:
    return nodes.NODE_CLASS_MAPPINGS[node].execute(**inputs).args


def core(module: str) -> Any:
    """A module of the pack, such as one of the anycharv_core that it uses."""
    return importlib.import_module(f"{str(PACK).replace('.', '_x_')}.{module}")


def load(checkpoint: str = "embedded", dtype: str = "auto") -> tuple[Any, ...]:
    return execute("AnyCharVLoader", checkpoint=checkpoint, dtype=dtype)


def conditioned(
    model: Any, net: Any, vae: Any, clip_vision: Any, frames: int = 6, **inputs: Any
) -> dict[str, Any]:
    """A puppet video, encoded for the model; inputs: of AnyCharV Conditioning, instead of the puppet's."""
    _, scene, mask, keypoints, picture, cut, *_ = execute("AnyCharVPuppetClip", seed=3, frames=frames, size=64)
    (reference,) = execute(
        "AnyCharVReferenceEncode",
        reference_net=net,
        vae=vae,
        clip_vision=clip_vision,
        image=picture,
        mask=cut,
    )
    (pose,) = execute("AnyCharVPoseDraw", keypoints=keypoints, width=256, height=256)
    positive, negative, latent, canvas, *_ = execute(
        "AnyCharVConditioning",
        model=model,
        reference=reference,
        vae=vae,
        **{"scene": scene, "mask": mask, "pose": pose, "width": 0, "height": 0, "recipe": "default", **inputs},
    )
    return {
        "positive": positive,
        "negative": negative,
        "latent": latent,
        "scene": scene,
        "mask": mask,
        "canvas": canvas,
    }


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
    first = schedule.NoiseSchedule("epsilon", zero_snr=False, leading=True)
    made.settings["noise_scheduler_kwargs"] = first.to_dict()
    systems.write_folder(made, models_folder() / "v1")
    return "v1"


def second_system() -> str:
    """A checkpoint of Animate Anyone 2, by the loader's name: embedded weights, with random ones for what they
    lack, such that nothing the model is given goes without effect."""
    systems, networks = core("anycharv_core.systems"), core("anycharv_core.checkpoints.networks")
    made = systems.read_checkpoint("embedded")
    unet = made.configs["denoising_unet"]
    unet |= {"reference_blocks": "mid_up", "object_blending": {"channels": 1, "kernel": 3, "bias": 0}}
    made.configs["pose_guider"]["depth_modulation"] = True
    made.configs["object_guider"] = {"latent_channels": 16, "block_out_channels": unet["block_out_channels"]}
    torch.manual_seed(0)
    fresh = networks.untrained(made.configs)
    for part in ("denoising_unet", "pose_guider", "object_guider"):
        new = {key: value for key, value in getattr(fresh, part).state_dict().items() if not key.endswith(".pe")}
        drawn = {key: value if value.any() else 0.1 * torch.randn(value.shape) for key, value in new.items()}
        made.weights[part] = drawn | {key: value.float() for key, value in made.weights.get(part, {}).items()}
    made.settings |= {"blocks": [5, 3], "world": "acts"}
    core("anycharv_core.checkpoints.single_file").write_single(made, models_folder() / "second.safetensors")
    return "second.safetensors"


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
    positive, negative, latent, canvas, *_ = execute(
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
    return {"positive": positive, "negative": negative, "latent": latent, "reference": reference, "canvas": canvas}


def models_folder() -> Path:
    """A new folder that the loader looks in."""
    folder = Path(tempfile.mkdtemp()) / "anycharv"
    folder.mkdir()
    folder_paths.add_model_folder_path("anycharv", str(folder))
    return folder


def picture(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array).float() / 255
