"""Where the preprocessors' weights lie: named, embedded, or in ComfyUI's models folder."""

from __future__ import annotations

import re
from pathlib import Path

from ..checkpoints.places import comfyui_models
from ..errors import UserError

EMBEDDED = "embedded"
WEIGHTS = Path(__file__).parents[1] / "weights"
DETECTOR, WHOLE_BODY = "yolox_l.onnx", "dw-ll_ucoco_384.onnx"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")  # OWNER/NAME


def pose_files(name: str | None) -> tuple[Path, Path]:
    """Detector and whole-body pose net: in folder `name`, the "embedded" ones, or those of ComfyUI (None).

    Raises UserError where there are none.
    """
    if name == EMBEDDED:
        return WEIGHTS / "puppet_detector.onnx", WEIGHTS / "puppet_pose.onnx"
    folder = Path(name).expanduser() if name else _in_comfyui("detection", "DWPose", "pose", "--pose-model")
    files = folder / DETECTOR, folder / WHOLE_BODY
    for file in files:
        if not file.is_file():
            raise UserError(
                f"{file} is not there: fetch it with 'anycharv download pose', name the folder that holds it, or "
                f"use '{EMBEDDED}', which knows puppets only."
            )
    return files


def _in_comfyui(folder: str, what: str, fetched_as: str, option: str) -> Path:
    """Where ComfyUI keeps it. Raises UserError, saying how else to name it, where there is no ComfyUI."""
    models = comfyui_models()
    if models is None:
        raise UserError(
            f"No {what} is named, and no ComfyUI was found that could have it: fetch it with 'anycharv download "
            f"{fetched_as} --to models' and name its folder below models/{folder} with {option}, or give {option} "
            f"{EMBEDDED}, which knows puppets only."
        )
    return models / folder


def segmenter_name(name: str | None) -> str:
    """The SAM2 video model `name` (folder or hub id), the "embedded" one, or the one in ComfyUI's models/sam2.

    Raises UserError where none is there.
    """
    if name == EMBEDDED:
        return str(WEIGHTS / "puppet_segmenter")
    if name:
        folder = Path(name).expanduser()
        if folder.is_dir() and not (folder / "config.json").is_file():
            raise UserError(
                f"{name} has no config.json, so it is no SAM 2 video model: give its own folder, which 'anycharv "
                "download sam2' names."
            )
        if not folder.is_dir() and not _HUB_ID.fullmatch(name):
            raise UserError(
                f"{name} is not there: fetch it with 'anycharv download sam2', name the folder that holds it, or "
                f"use '{EMBEDDED}', which knows puppets only."
            )
        return name
    folder = _in_comfyui("sam2", "SAM 2", "sam2", "--segmenter")
    found = sorted(path.parent for path in folder.glob("*/config.json"))
    if not found:
        raise UserError(
            f"{folder} holds no SAM 2 video model: fetch one with 'anycharv download sam2', name its folder, give "
            f"masks, or use '{EMBEDDED}', which knows puppets only."
        )
    return str(found[-1])
