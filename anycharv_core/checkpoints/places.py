"""Where models lie: those shipped with this package, and ComfyUI's."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from ..errors import UserError

_WEIGHTS = Path(__file__).parents[1] / "weights"
# The models shipped with this package, by the names that stand for them: one of each system, for puppets.
EMBEDDED = {
    "embedded": _WEIGHTS / "embedded.safetensors",
    "embedded-animate": _WEIGHTS / "embedded_animate.safetensors",
    "embedded-animate2": _WEIGHTS / "embedded_animate2.safetensors",
    "embedded-anywhere": _WEIGHTS / "embedded_anywhere.safetensors",
}
DEFAULT_MODELS = Path("~/comfy/ComfyUI/models/anycharv")


def models_folder(named: Path | None = None) -> Path:
    """`named`, or else `comfyui_models`.

    Raises UserError asking for --to or COMFYUI_PATH if there is none.
    """
    folder = comfyui_models() if named is None else named.expanduser()
    if folder is None:
        raise UserError(
            "No ComfyUI was found to put models into: name a folder with --to DIR, or set COMFYUI_PATH to your "
            "ComfyUI."
        )
    return folder


def comfyui_models() -> Path | None:
    """ComfyUI's models folder, the first of `places` that is there; None where none is."""
    return next((folder for _, folder in places() if folder.is_dir()), None)


def places() -> Iterator[tuple[str, Path]]:
    """Where ComfyUI's models folder may be, what says so first: the parent of $ANYCHARV_MODELS if that is a folder
    called anycharv, $COMFYUI_PATH, the ComfyUI whose custom_nodes this package lies in, ~/comfy/ComfyUI."""
    models = Path(os.environ.get("ANYCHARV_MODELS", "")).expanduser()
    if models.name == DEFAULT_MODELS.name:
        yield "$ANYCHARV_MODELS", models.parent
    if comfyui := os.environ.get("COMFYUI_PATH"):
        yield "$COMFYUI_PATH", Path(comfyui).expanduser() / "models"
    package = Path(__file__).resolve().parents[2]
    if package.parent.name == "custom_nodes":
        yield "around this pack", package.parents[1] / "models"
    yield "the usual place", DEFAULT_MODELS.expanduser().parent
