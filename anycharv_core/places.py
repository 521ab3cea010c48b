"""Where ComfyUI keeps its models on this machine."""

from __future__ import annotations

import os
from pathlib import Path

from .errors import UserError

DEFAULT_MODELS = Path("~/comfy/ComfyUI/models/anycharv")


def models_folder(named: Path | None = None) -> Path:
    """`named`, or else ComfyUI's models folder.

    Looked for in this order: the parent of $ANYCHARV_MODELS if that is a folder called anycharv, $COMFYUI_PATH,
    the ComfyUI whose custom_nodes this package lies in, ~/comfy/ComfyUI.

    Raises UserError asking for COMFYUI_PATH or --to if there is none.
    """
    if named is not None:
        return named.expanduser()
    candidates = [DEFAULT_MODELS.expanduser().parent]
    package = Path(__file__).resolve().parents[1]
    if package.parent.name == "custom_nodes":
        candidates.insert(0, package.parents[1] / "models")
    if comfyui := os.environ.get("COMFYUI_PATH"):
        candidates.insert(0, Path(comfyui).expanduser() / "models")
    models = Path(os.environ.get("ANYCHARV_MODELS", "")).expanduser()
    if models.name == DEFAULT_MODELS.name:
        candidates.insert(0, models.parent)
    for folder in candidates:
        if folder.is_dir():
            return folder
    raise UserError(
        "No ComfyUI models folder was found: set COMFYUI_PATH to your ComfyUI, or name a folder yourself, which "
        "'anycharv download' takes as --to DIR."
    )
