"""State dicts on disk: tensors in .safetensors files and pickles, read safely and checked."""

from __future__ import annotations

import os
import pickle
import re
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..errors import UserError
from ..files import atomic_path, write_error
from ..foreign import check_file, read_header, read_json
from ..models.fields import Fields
from .checkpoint import Weights


def read_weights(path: Path) -> Weights:
    """All tensors of one .safetensors, .bin or .pth file (pickles with weights_only=True).

    Raises UserError when the file is torn, is no state dict, or holds NaN or infinite values.
    """
    weights = _loaded(path, "fetch it again")
    if not isinstance(weights, dict) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in weights.items()
    ):
        raise UserError(f"{path} is not a plain state dict of tensors; save it as one.")
    _check_finite(path, weights)
    return weights


def read_training_weights(path: Path) -> Weights:
    """The tensors of one file; those of a training checkpoint are taken out of its `state_dict`.

    Pickles are read with weights_only=True. Raises UserError when the file is torn, or holds code, NaN, or no
    tensors.
    """
    loaded = _loaded(path, "give the .safetensors version of it")
    loaded = loaded.get("state_dict", loaded) if isinstance(loaded, Mapping) else {}
    loaded = loaded if isinstance(loaded, Mapping) else {}
    # Beside the tensors AnimateDiff files keep a step number or a config.
    weights = {str(key).removeprefix("module."): v for key, v in loaded.items() if isinstance(v, Tensor)}
    if not weights:
        raise UserError(f"{path} holds no weights: it is not a state dict; give a file of weights.")
    _check_finite(path, weights)
    return weights


def read_shards(index: Path) -> Weights:
    """The weights of all files that an index.json beside them lists, as diffusers writes large models.

    Raises UserError where one of them is missing or does not hold what the index says.
    """
    places = Fields(Fields(read_json(index), str(index)).section("weight_map").config, str(index))
    weights: Weights = {}
    for name in sorted({places.text(key) for key in places.config}):
        if Path(name).name != name or Path(name).suffix != ".safetensors":
            raise UserError(f"{index} names '{name}', which is no .safetensors file beside it: fetch it again.")
        weights |= read_weights(index.with_name(name))
    if lacking := [key for key in places.config if key not in weights]:
        raise UserError(f"{index} lists '{lacking[0]}', which none of its files has: fetch them again.")
    return weights


# torch.load raises all of these for pickles that are damaged in one place or another.
_TORN = (
    *(SafetensorError, OSError, EOFError, RuntimeError, ValueError, TypeError, LookupError, ArithmeticError),
    *(AttributeError, AssertionError, MemoryError, pickle.UnpicklingError, struct.error, zipfile.BadZipFile),
)


def _loaded(path: Path, remedy: str) -> Any:
    check_file(path)
    try:
        if path.suffix == ".safetensors":
            read_header(path)
            return load_file(path)
        if zipfile.is_zipfile(path):
            _check_uncompressed(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except _TORN as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path} is torn or not a weights file ({reason}): {remedy}.") from None


def _check_uncompressed(path: Path) -> None:
    """Raises ValueError where a pickle would be larger in memory than on disk: torch never compresses."""
    with zipfile.ZipFile(path) as file:
        if any(member.compress_type != zipfile.ZIP_STORED for member in file.infolist()):
            raise ValueError("it is compressed")


def _check_finite(path: Path, weights: Weights) -> None:
    for key, value in weights.items():
        # A few stored bytes can stand for any number of values.
        if value.is_quantized or value.layout != torch.strided or value.nbytes > value.untyped_storage().nbytes():
            raise UserError(f"{path} does not hold all values of '{key}': save it again as plain tensors.")
        # torch has no isfinite for numbers of 8 bits.
        wide = value.float() if value.element_size() == 1 else value
        if value.is_floating_point() and not torch.isfinite(wide).all():
            raise UserError(
                f"{path} holds NaN or infinite values in '{key}': the file is damaged; fetch it again."
            )


def save_safetensors(tensors: Weights, path: Path, metadata: dict[str, str]) -> None:
    """Writes one .safetensors file, atomically. Raises UserError where it cannot be written."""
    with atomic_path(path) as tmp:
        try:
            save_file(tensors, tmp, metadata)
        except SafetensorError as error:
            # Its only word on a full disk is the number in the message.
            number = int((re.search(r"os error (\d+)", str(error)) or [0, 0])[1])
            raise write_error(path, OSError(number, os.strerror(number) if number else str(error))) from None


def save_pickle(tensors: Weights, path: Path) -> None:
    """Writes one .pth file of plain tensors, atomically. Raises UserError where it cannot be written."""
    with atomic_path(path) as tmp:
        try:
            torch.save(tensors, tmp)
        except RuntimeError as error:
            # All that a full disk is to it is a position in the file that it did not expect.
            raise write_error(path, OSError(0, str(error).splitlines()[0])) from None


def stored(key: str, value: Tensor, dtype: torch.dtype | None) -> Tensor:
    """A weight as it goes into a file of that dtype; None = as it is."""
    # Positional encodings stay float32: they are a table, not weights, and the release keeps them so.
    keep = dtype is None or key.endswith(".pe") or not value.is_floating_point()
    return (value if keep else value.to(dtype)).contiguous()
