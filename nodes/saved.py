"""MODELs that ComfyUI's Save Model has written: the denoising UNet with its guiders, as LoRAs and merges left it.

The other networks are not in the file. It names the checkpoint that the MODEL was loaded from, where they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..anycharv_core.checkpoints.checkpoint import Weights
from ..anycharv_core.checkpoints.state_dicts import read_weights
from ..anycharv_core.errors import UserError
from ..anycharv_core.foreign import read_header

ORIGIN = "anycharv_origin"  # the tensor with the bytes of the checkpoint's name
PREFIX = "model.diffusion_model."
# INSIDE: networks whose keys begin with their names; all else is of the denoising UNet, or of what stands for it.
MAIN, INSIDE = "denoising_unet", ("pose_guider", "object_guider", "control", "bml")


@dataclass(frozen=True)
class SavedModel:
    """origin: the checkpoint that it comes from, as AnyCharV Loader names it; weights: by network."""

    origin: str
    weights: dict[str, Weights]


def named(origin: str) -> dict[str, Tensor]:
    """What a file of a MODEL has beside the weights."""
    return {ORIGIN: torch.tensor(list(origin.encode()), dtype=torch.uint8)}


def origin_of(path: Path) -> str | None:
    """`SavedModel.origin` alone, which takes no time. Raises UserError where the file is damaged."""
    if path.suffix != ".safetensors" or not path.is_file() or ORIGIN not in read_header(path).shapes:
        return None
    try:
        with safe_open(path, "pt") as file:
            return bytes(file.get_tensor(ORIGIN).tolist()).decode()
    except (SafetensorError, OSError, TypeError, ValueError) as error:
        raise UserError(f"{path} does not say which checkpoint it comes from; save the MODEL again.") from error


def read_saved(path: Path) -> SavedModel | None:
    """None where the file is not one of Save Model's. Raises UserError where it is damaged."""
    origin = origin_of(path)
    if origin is None:
        return None
    held = read_weights(path)
    del held[ORIGIN]
    weights: dict[str, Weights] = {}
    for key, value in held.items():
        name = key.removeprefix(PREFIX)
        part = next((inside for inside in INSIDE if name.startswith(f"{inside}.")), MAIN)
        if name != key:
            weights.setdefault(part, {})[name.removeprefix(f"{part}.")] = value
    return SavedModel(origin, weights)
