"""A whole model in one .safetensors file: keys `<part>.<name>`, configs and settings in the metadata."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from ..errors import UserError
from ..foreign import parse_json, read_header
from .checkpoint import NETWORKS, Checkpoint
from .recognise import identify
from .state_dicts import read_weights, save_safetensors, stored

FORMAT = "anycharv"


def read_single(path: Path) -> Checkpoint:
    """Reads what `write_single` wrote.

    Raises UserError naming the file when it is torn, holds NaN, or is another model's.
    """
    if path.suffix != ".safetensors":
        raise UserError(
            f"{path} is not a .safetensors file: give the folder that holds all of the model, or the one file "
            "that 'anycharv convert' makes of it."
        )
    header = read_header(path)
    if header.metadata.get("format") != FORMAT:
        raise UserError(
            f"{path} is {_described(list(header.shapes))}, not an AnyCharV model; give one made by 'anycharv "
            "convert'."
        )
    checkpoint = Checkpoint(
        configs=parse_json(header.metadata.get("configs", ""), f"The configs in {path}"),
        settings=parse_json(header.metadata.get("settings", "{}"), f"The settings in {path}"),
    )
    for key, value in read_weights(path).items():
        part, _, name = key.partition(".")
        checkpoint.weights.setdefault(part, {})[name] = value
    return checkpoint


def write_single(checkpoint: Checkpoint, path: str | Path, dtype: torch.dtype | None = None) -> None:
    """Writes one .safetensors file: keys `<part>.<name>`, configs in the metadata. Atomic.

    dtype None keeps each weight's own.
    """
    tensors = {
        f"{part}.{key}": stored(key, value, dtype)
        for part, weights in checkpoint.weights.items()
        for key, value in weights.items()
    }
    metadata = {
        "format": FORMAT,
        "configs": json.dumps(checkpoint.configs),
        "settings": json.dumps(checkpoint.settings),
    }
    save_safetensors(tensors, Path(path), metadata)


def _described(keys: list[str]) -> str:
    if any(key.startswith(tuple(f"{part}." for part in NETWORKS)) for key in keys):
        return "a file without AnyCharV metadata"
    return identify(keys)
