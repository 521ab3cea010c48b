"""Animate Anyone (arXiv 2311.17117): animates the character of a picture. Weights: Moore-AnimateAnyone's.

Their layout on disk has one file per network.
The denoising UNet is that of Stable Diffusion 1.5 with its motion modules in a file of their own, and the settings
that tell the two published configurations apart lie outside the weights.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..checkpoints.check import check_unet
from ..checkpoints.checkpoint import LIBRARY_PARTS, Checkpoint, Weights
from ..checkpoints.folders import write_parts, write_settings
from ..checkpoints.recognise import identify, motion_weights
from ..checkpoints.state_dicts import read_training_weights, read_weights, save_pickle, stored
from ..errors import UserError
from ..files import atomic_path
from ..foreign import read_json
from ..media.canvas import Canvas, nearest_multiple, working_size
from ..media.imaging import Size
from ..models import DenoisingUNet, UNetConfig
from ..models.fields import Fields
from ..models.guidance import is_guided
from ..models.schedule import EPSILON, SCHEDULER, NoiseSchedule, V
from ..models.windows import closed_loop_windows
from . import anycharv
from .recipes import canvas_of_pose, canvas_of_scene, letterbox
from .system import Layout, System

FILES = ("denoising_unet", "reference_unet", "motion_module", "pose_guider")
SUFFIXES = (".safetensors", ".pth", ".ckpt", ".pt", ".bin")
# AnimateDiff's files under the names they are published by.
ANIMATEDIFF = ("mm_sd_v15_v2", "v3_sd15_mm", "mm_sd_v15", "mm_sd_v14")
BASE = "stable-diffusion-v1-5"
INFERENCE = "inference.json"
ADDITIONS = "unet_additional_kwargs"
# The defaults of the release's scripts/pose2vid.py.
STEPS, GUIDANCE_SCALE, SIZE = 30, 3.5, (512, 784)
SETTINGS = {"size": list(SIZE), "steps": STEPS, "guidance_scale": GUIDANCE_SCALE}

# What SD 1.5's unet/config.json says, for weights that come without it.
SD15: dict[str, Any] = {
    "act_fn": "silu",
    "attention_head_dim": 8,
    "block_out_channels": [320, 640, 1280, 1280],
    "center_input_sample": False,
    "cross_attention_dim": 768,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 4,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-5,
    "norm_num_groups": 32,
    "out_channels": 4,
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
}


def _recognises(folder: Path) -> bool:
    """Whether the folder holds one of the layout's files."""
    return any(_find(folder, name) for name in FILES)


def _read(folder: Path) -> Checkpoint:
    """Configs, weights and settings of the three networks in a folder of the published layout.

    Settings come from inference.json; without one they are those of the configuration that the motion file is of.
    Raises UserError naming a file that is missing, or that does not belong to the others.
    """
    paths = {name: _find(folder, name) for name in FILES}
    for name in ("denoising_unet", "reference_unet", "pose_guider"):
        if paths[name] is None:
            raise UserError(
                f"{folder} has no {name}.pth: it is not a complete Animate Anyone folder; put the file there."
            )
    weights = {name: read_weights(path) for name, path in paths.items() if path and name != "motion_module"}
    base = _base_config(folder, weights["denoising_unet"])
    additions, scheduler = _inference(folder / INFERENCE)
    if additions is None or Fields(additions, INFERENCE).flag("use_motion_module", False):
        motion_file = paths["motion_module"] or _find(folder, *ANIMATEDIFF)
        if motion_file is None:
            raise UserError(
                f"{folder} has no motion_module.pth, without which the video would flicker: put the motion file "
                "of these weights, or AnimateDiff's for SD 1.5, beside denoising_unet.pth."
            )
        motion = motion_weights(read_training_weights(motion_file), motion_file)
        additions = _fitting(additions, motion, motion_file)
        weights["denoising_unet"] = motion | weights["denoising_unet"]
        cfg = UNetConfig.from_dict(base | additions, f"{INFERENCE} in {folder}")
        check_unet(cfg, weights["denoising_unet"], f"{INFERENCE} in {folder}")
        _check_motion(cfg, motion, motion_file)
    if scheduler is None:
        v1 = not additions["use_inflated_groupnorm"]
        scheduler = NoiseSchedule(EPSILON if v1 else V, zero_snr=not v1, leading=v1).to_dict()
    channels = {"in_channels": weights["denoising_unet"]["conv_in.weight"].shape[1]}
    configs = {
        "denoising_unet": base | additions | channels,
        "reference_unet": base,
        "pose_guider": _guider_config(weights["pose_guider"], folder),
    }
    return Checkpoint(configs, weights, {**SETTINGS, SCHEDULER: scheduler})


def _write(checkpoint: Checkpoint, folder: Path, dtype: torch.dtype | None) -> None:
    """Writes what `_read` reads; settings for which the layout has no place go into settings.json."""
    configs, settings = checkpoint.configs, checkpoint.settings
    config = folder / BASE / "unet" / "config.json"
    config.parent.mkdir(parents=True, exist_ok=True)
    base, denoising = configs["reference_unet"], configs["denoising_unet"]
    files: dict[str, Weights] = {name: {} for name in FILES}
    for part, tensors in checkpoint.weights.items():
        for key, value in tensors.items():
            name = "motion_module" if ".motion_modules." in key else part
            if name in files:
                files[name][key] = stored(key, value, dtype)
    for name, tensors in files.items():
        if tensors:
            save_pickle(tensors, folder / f"{name}.pth")
    # Those that a base config happens to share are still part of the settings.
    always = motion_additions(mid=False, positions=0)
    inference = {
        ADDITIONS: {k: v for k, v in denoising.items() if k in always or k not in base or base[k] != v},
        SCHEDULER: settings.get(SCHEDULER, NoiseSchedule().to_dict()),
        "pose_guider": configs["pose_guider"],
    }
    for path, content in ((config, base), (folder / INFERENCE, inference)):
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    write_parts(checkpoint, LIBRARY_PARTS, folder, dtype)
    rest = {name: value for name, value in settings.items() if name != SCHEDULER}
    write_settings({} if rest == SETTINGS else rest, folder)


def _find(folder: Path, *names: str) -> Path | None:
    candidates = (folder / (name + suffix) for name in names for suffix in SUFFIXES)
    return next((path for path in candidates if path.is_file()), None)


def _base_config(folder: Path, denoising: Weights) -> dict[str, Any]:
    """SD 1.5's unet/config.json; it may be left out beside weights of the real size."""
    entrance = denoising.get("conv_in.weight")
    if entrance is None or entrance.ndim != 4:
        raise UserError(
            f"denoising_unet.pth in {folder} is {identify(list(denoising))}, not a denoising UNet; put Animate "
            "Anyone's there."
        )
    places = (folder / BASE / "unet" / "config.json", folder / "unet" / "config.json")
    found = next((path for path in (*places, *folder.glob("*/unet/config.json")) if path.is_file()), None)
    if found is None and len(entrance) != SD15["block_out_channels"][0]:
        raise UserError(f"{folder} has no {BASE}/unet/config.json, and its UNet is not of SD 1.5's size: add it.")
    return dict(Fields(read_json(found), str(found)).config) if found else SD15


def _inference(path: Path) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """`unet_additional_kwargs` and `noise_scheduler_kwargs` of inference.json, None where it has none."""
    content = read_json(path) if path.is_file() else {}
    given: dict[str, Any] = content if isinstance(content, dict) else {ADDITIONS: ()}
    additions, scheduler = given.get(ADDITIONS), given.get(SCHEDULER)
    if not all(isinstance(section, dict | None) for section in (additions, scheduler)):
        raise UserError(
            f"{path} does not hold {ADDITIONS} and {SCHEDULER} as the release's settings do: repair it, or "
            "delete it and let the motion file decide."
        )
    # Absent means joint normalisation, as in the release.
    return None if additions is None else {"use_inflated_groupnorm": False, **additions}, scheduler


def _fitting(additions: Mapping[str, Any] | None, motion: Weights, path: Path) -> dict[str, Any]:
    """`unet_additional_kwargs` for this motion file: those given, checked against it, or without any its own."""
    mid = any(key.startswith("mid_block.") for key in motion)
    codes = (value for key, value in motion.items() if key.endswith(".pe") and value.ndim == 3)
    positions = next((code.shape[1] for code in codes), None)
    if positions is None:
        raise UserError(
            f"{path} has no positional encodings ('pos_encoder.pe'): it is not a complete motion file; fetch it "
            "again."
        )
    if additions is None:
        return motion_additions(mid, positions)
    given = Fields(additions, INFERENCE)
    asked_mid = given.flag("motion_module_mid_block", False)
    asked = given.section("motion_module_kwargs").whole("temporal_position_encoding_max_len")
    if positions != asked or (mid and not asked_mid):
        raise UserError(
            f"{path} has motion modules for {positions} frames, {_with(mid)} the mid block, but {INFERENCE} is "
            f"set for {asked} frames, {_with(asked_mid)} it: give the motion file that belongs to these settings."
        )
    # AnimateDiff v3 has no modules there; untrained ones, as the release then has, add nothing.
    return {**additions, "motion_module_mid_block": mid}


def _with(there: bool) -> str:
    return "with" if there else "without"


def motion_additions(mid: bool, positions: int) -> dict[str, Any]:
    """The release's `unet_additional_kwargs` for motion modules of so many positions, in the mid block or not."""
    return {
        # Files of 24 positions are of the first configuration, which normalises the frames of a window jointly.
        "use_inflated_groupnorm": mid or positions > 24,
        "unet_use_cross_frame_attention": False,
        "unet_use_temporal_attention": False,
        "use_motion_module": True,
        "motion_module_resolutions": [1, 2, 4, 8],
        "motion_module_mid_block": mid,
        "motion_module_decoder_only": False,
        "motion_module_type": "Vanilla",
        "motion_module_kwargs": {
            "num_attention_heads": 8,
            "num_transformer_block": 1,
            "attention_block_types": ["Temporal_Self", "Temporal_Self"],
            "temporal_position_encoding": True,
            "temporal_position_encoding_max_len": positions,
            "temporal_attention_dim_div": 1,
        },
    }


def _check_motion(cfg: UNetConfig, motion: Weights, path: Path) -> None:
    """Raises UserError naming the file where its modules are not those of this UNet."""
    with torch.device("meta"):
        expected = {k: v for k, v in DenoisingUNet(cfg).state_dict().items() if ".motion_modules." in k}
    for key in [*expected, *motion]:
        here, there = motion.get(key), expected.get(key)
        if here is None or there is None or here.shape != there.shape:
            unlike = "an unknown" if there is None else "another size of"
            what = "no" if here is None else unlike
            raise UserError(
                f"{path} is the motion file of another architecture (it has {what} '{key}'): give Animate "
                "Anyone's own, or AnimateDiff's for SD 1.5."
            )


def _guider_config(weights: Weights, folder: Path) -> dict[str, Any]:
    try:
        if any(value.ndim != (4 if key.endswith("weight") else 1) for key, value in weights.items()):
            raise KeyError("convolution")
        widths = [len(weights["conv_in.weight"])]
        while (key := f"blocks.{2 * len(widths) - 1}.weight") in weights:
            widths.append(len(weights[key]))
        return {
            "conditioning_embedding_channels": len(weights["conv_out.weight"]),
            "conditioning_channels": weights["conv_in.weight"].shape[1],
            "block_out_channels": widths,
        }
    except KeyError as missing:
        raise UserError(
            f"pose_guider.pth in {folder} is not a pose guider: it has no {missing}; put the one of these weights "
            "there."
        ) from None


def _official_canvas(scene: Size | None, pose: Size, size: Size | None, multiple: int) -> Canvas:
    # The release rounds down without a word, and then fails to put reference and video side by side.
    _check_multiple(size or pose, multiple)
    return canvas_of_pose(scene, pose, size, multiple)


def _default_canvas(scene: Size | None, pose: Size, size: Size | None, multiple: int) -> Canvas:
    if size:
        _check_multiple(size, multiple)
    return canvas_of_scene(scene, pose, size, multiple)


def _check_multiple(size: Size, multiple: int) -> None:
    if any(side % multiple for side in size):
        width, height = nearest_multiple(size, multiple)
        raise UserError(f"The size {size[0]}x{size[1]} is not divisible by {multiple}; use {width}x{height}, say.")


# The reference brings the background with it, so there is nothing to paste back into, and its edges go on where
# its proportions leave the canvas open.
RECIPES = {
    "official": replace(
        anycharv.RECIPES["official"],
        canvas=_official_canvas,
        working_size=lambda area, shown, multiple: (area[0], area[1]),
        windows=lambda frames, guidance: closed_loop_windows(frames, is_guided(guidance), overlap=4),
    ),
    "default": replace(
        anycharv.RECIPES["default"],
        canvas=_default_canvas,
        working_size=lambda area, shown, multiple: nearest_multiple(working_size(area, shown, multiple), multiple),
        reference=lambda picture, canvas: canvas.pad(letterbox(picture, canvas.inner, "edge"), "edge"),
        clip_view=lambda picture: letterbox(picture, (max(picture.shape[:2]),) * 2, "edge"),
        paste_back=False,
    ),
}

ANIMATE_ANYONE = System(
    name="animate_anyone",
    title="Animate Anyone",
    command="animate",
    purpose="animates the character of a picture and replaces nobody",
    reads_scene=False,
    steps=STEPS,
    guidance_scale=GUIDANCE_SCALE,
    recipes=RECIPES,
    layout=Layout(
        _recognises,
        _read,
        _write,
    ),
)
