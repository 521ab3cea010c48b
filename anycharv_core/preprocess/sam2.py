"""SAM 2 video models, read from a folder or the Hugging Face hub; a config is checked before anything is built."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Iterator
from contextlib import contextmanager
from logging import CRITICAL
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from ..errors import UserError
from ..foreign import read_header, read_json

# What transformers and torch raise for settings that don't fit each other or the weights.
CONFIG_ERRORS = (
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    AttributeError,
    RuntimeError,
    AssertionError,
)
# More than twice the released models' sizes. What is not counted in weights can still fill the memory.
_LARGEST, _LARGEST_PICTURE, _LARGEST_KERNEL = 8192, 2048, 64
_PICTURE, _KERNEL = ("image_size", "feature_sizes", "feat_sizes"), ("kernel", "stride", "padding")
# Of these there is at least one tensor each, beyond the first few.
_LAYERS, _FEW = ("layers", "depth", "blocks"), 64


def load_model(model: Path | str) -> Any:
    """A `Sam2VideoModel` on the CPU, ready for use, from a folder or the Hugging Face hub.

    Raises UserError if there is none, or if it is damaged or another kind of model.
    """
    from transformers import Sam2VideoModel

    folder = Path(model).is_dir()
    with quiet_transformers():
        if folder:
            _check_folder(Path(model))
        try:
            read: Any = Sam2VideoModel.from_pretrained
            loaded, report = read(str(model), local_files_only=folder, output_loading_info=True)
        except (OSError, SafetensorError, *CONFIG_ERRORS) as error:
            problem = "is damaged" if folder else "is neither a folder nor to be had from the Hugging Face hub"
            raise unusable(model, problem) from error
    # transformers fills gaps with random weights; what it keeps twice (buffers) may rightly be stored once.
    if report["missing_keys"] & {name for name, _ in loaded.named_parameters()}:
        raise unusable(model, "holds another kind of model")
    return loaded.train(False)


def unusable(model: Path | str, problem: str) -> UserError:
    """The sentence for a model that cannot be used; the caller raises it."""
    return UserError(
        f"{model} {problem}; give the folder of a SAM 2 video model, which 'anycharv download sam2' fetches."
    )


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Without its progress bars and its table of missing weights, for which there is one sentence."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _check_folder(folder: Path) -> None:
    """Raises UserError where a folder holds no SAM 2 video model, or one larger than its own weights."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers import PretrainedConfig, Sam2VideoConfig, Sam2VideoModel

    config, weights = folder / "config.json", sorted(folder.glob("*.safetensors"))
    if not config.is_file() or not weights:
        raise unusable(folder, "lacks config.json or model.safetensors")
    settings = read_json(config)
    if not isinstance(settings, dict) or settings.get("model_type") != "sam2_video":
        raise unusable(folder, "holds another kind of model")
    try:
        shapes = [shape for file in weights for shape in read_header(file).shapes.values()]
    except UserError as error:
        raise unusable(folder, "is damaged") from error
    # What every kind of model has, such as names for classes, decides nothing here.
    known = _without(Sam2VideoConfig().to_dict(), set(PretrainedConfig().to_dict()))
    wrong = _wrong_setting(settings, known | {"prompt_every": 1}, len(shapes))
    if wrong:
        raise unusable(folder, f"has a config.json whose {wrong} cannot be")
    try:
        with torch.device("meta"):
            empty = Sam2VideoModel(Sam2VideoConfig.from_dict(settings))
    except (StrictDataclassError, *CONFIG_ERRORS) as error:
        raise unusable(folder, "has a config.json whose settings don't fit together") from error
    # A net that shares weights stores them once, but it does not share most of them.
    if sum(weight.numel() for weight in empty.parameters()) > 2 * sum(map(math.prod, shapes)):
        raise unusable(folder, "holds another kind of model")


def _without(settings: dict[str, Any], names: set[str]) -> dict[str, Any]:
    return {
        name: _without(value, names) if isinstance(value, dict) else value
        for name, value in settings.items()
        if name not in names
    }


def _wrong_setting(given: dict[str, Any], known: dict[str, Any], tensors: int) -> str | None:
    """The first setting, as "name (value)", of another type than in a config that is known to be good, or too
    large; None where all is well. Settings that are not known, or have no value there, are not looked at."""
    for name, example in known.items():
        value = given.get(name, example)
        if isinstance(example, dict) and isinstance(value, dict):
            inner = _wrong_setting(value, example, tensors)
            if inner:
                return f"{name}.{inner}"
        elif example is not None and not _is_alike(value, example, _limit(name, tensors)):
            return f"{name} ({reprlib.repr(value)})"
    return None


def _limit(name: str, tensors: int) -> int:
    if any(part in name for part in _PICTURE):
        return _LARGEST_PICTURE
    if any(part in name for part in _KERNEL):
        return _LARGEST_KERNEL
    return max(tensors, _FEW) if any(part in name for part in _LAYERS) else _LARGEST


def _is_alike(value: Any, example: Any, limit: int) -> bool:
    if isinstance(example, list):
        return isinstance(value, list) and len(value) <= _FEW and all(_is_number(v, limit) for v in _flat(value))
    if isinstance(example, (bool, str)):
        return type(value) is type(example)
    if isinstance(example, int):
        return type(value) is int and min(example, 0 if limit != _LARGEST_PICTURE else 1) <= value <= limit
    return isinstance(example, float) and type(value) in (int, float)


def _flat(values: list[Any]) -> Iterator[Any]:
    for value in values:
        yield from value if isinstance(value, list) else [value]


def _is_number(value: Any, limit: int) -> bool:
    return type(value) is int and 0 <= value <= limit
