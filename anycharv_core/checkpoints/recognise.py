"""Whose weights a file holds, by its keys."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..errors import UserError
from .checkpoint import Weights

# Key fragments by which a file of another model is recognised.
OTHER_MODELS = {
    "lora_": "a LoRA",
    ".lora.": "a LoRA",
    "blocks.0.attn_out.": "CogVideoX in ComfyUI's own names; give diffusers' files",
    "double_blocks.": "a Flux or HunyuanVideo model",
    "model.diffusion_model.input_blocks.": "a plain Stable Diffusion checkpoint",
    "first_stage_model.": "a plain Stable Diffusion checkpoint",
    "control_model.": "a ControlNet",
    "motion_modules.": "a motion module on its own",
}
UNKNOWN = "another model's file"


def identify(keys: Sequence[str]) -> str:
    """What a file with these keys probably is: a name for the user, UNKNOWN where nothing gives it away."""
    for fragment, name in OTHER_MODELS.items():
        if any(fragment in key for key in keys):
            return name
    return UNKNOWN


def motion_weights(weights: Weights, path: Path) -> Weights:
    """The motion modules of an AnimateDiff file, whose names are ours; whatever else it holds is left out.

    Raises UserError naming `path` for a motion LoRA, for diffusers' MotionAdapter names, and for other models.
    """
    motion = {key: value for key, value in weights.items() if ".motion_modules." in key}
    if any("lora" in key for key in motion):
        raise UserError(f"{path} is a motion LoRA, not a motion module: give mm_sd_v15_v2 or one like it.")
    if motion and not any(".temporal_transformer." in key for key in motion):
        raise UserError(
            f"{path} has diffusers' MotionAdapter names ('{next(iter(motion))}'): give the original AnimateDiff "
            "file, such as mm_sd_v15_v2.ckpt."
        )
    if not motion:
        raise UserError(
            f"{path} is no AnimateDiff motion file: none of its keys has '.motion_modules.'; give Animate "
            "Anyone's motion_module.pth or AnimateDiff's file for SD 1.5."
        )
    return motion
