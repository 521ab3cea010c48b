"""Where the preprocessors' weights lie: named, embedded, or in ComfyUI's models folder."""

from __future__ import annotations

from pathlib import Path

from ..checkpoints.places import models_folder
from ..errors import UserError

EMBEDDED = "embedded"
WEIGHTS = Path(__file__).parents[1] / "weights"
DETECTOR, WHOLE_BODY = "yolox_l.onnx", "dw-ll_ucoco_384.onnx"


def pose_files(name: str | None) -> tuple[Path, Path]:
    """Detector and whole-body pose net: in folder `name`, the "embedded" ones, or those of ComfyUI (None).

    Raises UserError where there are none.
    """
    if name == EMBEDDED:
        return WEIGHTS / "puppet_detector.onnx", WEIGHTS / "puppet_pose.onnx"
    folder = Path(name).expanduser() if name else models_folder() / "detection"
    files = folder / DETECTOR, folder / WHOLE_BODY
    for file in files:
        if not file.is_file():
            raise UserError(
                f"{file} is not there: fetch it with 'anycharv download pose', name the folder that holds it, or "
                f"use '{EMBEDDED}', which knows puppets only."
            )
    return files


def segmenter_name(name: str | None) -> str:
    """The SAM2 video model `name` (folder or hub id), the "embedded" one, or the one in ComfyUI's models/sam2.

    Raises UserError where none is named and none is there.
    """
    if name == EMBEDDED:
        return str(WEIGHTS / "puppet_segmenter")
    if name:
        return name
    folder = models_folder() / "sam2"
    found = sorted(path.parent for path in folder.glob("*/config.json"))
    if not found:
        raise UserError(
            f"{folder} holds no SAM 2 video model: fetch one with 'anycharv download sam2', name its folder, give "
            "masks, "
            f"or use '{EMBEDDED}', which knows puppets only."
        )
    return str(found[-1])
