"""What `anycharv doctor` prints: what is installed, which weights are found, and what to do next."""

from __future__ import annotations

import importlib
import json
import os
import platform
import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from ..checkpoints.checkpoint import NETWORKS
from ..checkpoints.folders import FOLDERS
from ..checkpoints.places import DEFAULT_MODELS, EMBEDDED, places
from ..errors import UserError
from ..preprocess.models import pose_files, segmenter_name

_KINDS = ("python", "python-headless", "contrib-python", "contrib-python-headless")
OPENCV = tuple(f"opencv-{kind}" for kind in _KINDS)
ONNXRUNTIME = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-directml", "onnxruntime-silicon")
NEEDED = (
    *("numpy", "pillow", "diffusers", "transformers", "einops", "safetensors", "av", "scipy"),
    *("huggingface_hub", "tqdm"),
)
LIBGL = "pip uninstall opencv-python; pip install opencv-python-headless"


def examine(models: Iterable[Path] | None = None) -> int:
    """Prints the findings; returns 0 when everything needed works and 1 when something is missing.

    models: folders to look for weights in; None = $ANYCHARV_MODELS and ComfyUI's usual place.
    """
    todo = [*_python(), *_torch(), *_packages(), *_opencv()]
    _onnxruntime()
    todo += _weights(_places() if models is None else list(models))
    whole = _comfyui()
    print("\nWhat to do")
    if whole:
        done = "Nothing is missing: try 'anycharv demo', then 'anycharv generate --help'."
    else:
        done = "All packages are there: try 'anycharv demo'. Your own videos need DWPose and SAM 2, see above."
    for line in todo or [done]:
        print(f"  {line}")
    return 1 if todo else 0


def find_models(folder: Path) -> list[Path]:
    """Models in `folder` and directly below it: folders in AnyCharV's or Animate Anyone's layout, single files."""
    try:
        found = [folder, *sorted(folder.iterdir())] if folder.is_dir() else [folder]
    except OSError:
        return []
    return [path for path in found if is_model(path)]


def is_model(path: Path) -> bool:
    """Whether `path` is a folder with all three networks, or a single file that says it is a model."""
    if path.is_dir():
        return all((path / part / "config.json").is_file() for part in NETWORKS) or _is_published(path)
    return path.suffix == ".safetensors" and _header_format(path) == "anycharv"


def _is_published(folder: Path) -> bool:
    """Whether it holds Animate Anyone's layout, one file per network. Which of them load is not tried here."""
    return all(any(folder.glob(f"{part}.*")) for part in NETWORKS)


def _header_format(path: Path) -> str | None:
    """What a .safetensors file's own metadata calls its format; None where it cannot be read."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length)) if 0 < length < 10**8 else {}
        return header["__metadata__"]["format"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _places() -> list[Path]:
    named = os.environ.get("ANYCHARV_MODELS")
    below = [folder / DEFAULT_MODELS.name for _, folder in places()]
    return list(dict.fromkeys([*([Path(named).expanduser()] if named else []), *below]))


def _python() -> list[str]:
    from .. import __version__

    print(f"anycharv {__version__} on {platform.platform()}\n\nInstalled")
    _row("python", platform.python_version())
    return [] if sys.version_info >= (3, 10) else ["Install Python 3.10 or newer."]


def _torch() -> list[str]:
    try:
        import torch
    except (ImportError, OSError, RuntimeError) as error:  # what a broken CUDA library raises
        installed = _version("torch")
        _row("torch", f"{installed}, but it does not load: {_first_line(error)}" if installed else "missing")
        return ["Install torch for your machine: see https://pytorch.org/get-started/locally."]
    _row("torch", torch.__version__)
    for index in range(torch.cuda.device_count()):
        memory = torch.cuda.get_device_properties(index).total_memory
        _row(f"cuda:{index}", f"{torch.cuda.get_device_name(index)}, {memory >> 20} MiB")
    if torch.backends.mps.is_available():
        _row("mps", "Apple GPU")
    if not torch.cuda.is_available() and not torch.backends.mps.is_available():
        _row("GPU", "none that torch can use: everything runs on the CPU")
    return []


def _packages() -> list[str]:
    missing = []
    for name in NEEDED:
        installed = _version(name)
        _row(name, installed or "missing")
        if not installed:
            missing.append(name)
    return [f"Install what is missing: pip install {' '.join(missing)}"] if missing else []


def _opencv() -> list[str]:
    wheels = {name: version for name in OPENCV if (version := _version(name))}
    for name, version in wheels.items():
        _row(name, version)
    if len(wheels) > 1:
        print(f"  Warning: {' and '.join(wheels)} overwrite each other's files; keep one of them.")
    try:
        importlib.import_module("cv2")
    except ImportError as error:
        _row("opencv", f"does not load: {_first_line(error)}" if wheels else "missing")
        if not wheels:
            return ["Install OpenCV: pip install opencv-python-headless"]
        if "libGL" in str(error):
            return [f"OpenCV wants libGL, which this machine lacks: {LIBGL}"]
        return [f"OpenCV is damaged: pip uninstall {' '.join(wheels)}; pip install opencv-python-headless"]
    return []


def _onnxruntime() -> None:
    wheels = {name: version for name in ONNXRUNTIME if (version := _version(name))}
    for name, version in wheels.items():
        _row(name, version)
    if not wheels:
        _row("onnxruntime", "missing (only pose and mask detection need it)")
    if len(wheels) > 1:
        print(f"  Warning: {' and '.join(wheels)} overwrite each other's files; keep one of them.")


def _weights(places: list[Path]) -> list[str]:
    print("\nWeights")
    absent = [name for name, path in EMBEDDED.items() if not path.is_file()]
    for name in EMBEDDED:
        _row(name, "missing from this installation" if name in absent else "shipped with this package")
    found = []
    for place in places:
        models = find_models(place.expanduser())
        found += models
        for model in models:
            _row(str(model), _described(model))
        if not models:
            _row(str(place), "no model there" if place.expanduser().exists() else "not there")
    for model in found:
        lacking = [part for part, names in FOLDERS.items() if model.is_dir() and not _holds(model, names)]
        if lacking:
            options = " and ".join(f"--{part.replace('_', '-')}" for part in lacking)
            print(f"  Note: {model} has no {' and no '.join(lacking)}; pass {options} with it.")
    return [f"Reinstall this package: {', '.join(absent)} came with it."] if absent else []


def _described(model: Path) -> str:
    if model.is_file():
        return f"{model.stat().st_size / 1e6:.1f} MB"
    return "Animate Anyone's folder" if _is_published(model) else "AnyCharV's folder"


def _holds(folder: Path, names: Iterable[str]) -> bool:
    return any((folder / name).is_dir() for name in names)


def _comfyui() -> bool:
    """Prints where ComfyUI's models are; returns whether 'anycharv preprocess' finds all it needs among them."""
    whole = True
    print("\nComfyUI's models folder")
    for name, folder in places():
        _row(name, f"{folder}{'' if folder.is_dir() else ', which is not there'}")
    for name, find in (("DWPose", lambda: pose_files(None)[0].parent), ("SAM2", lambda: segmenter_name(None))):
        try:
            _row(name, str(find()))
        except UserError as error:
            _row(name, f"not found. {error}")
            whole = False
    return whole


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _row(name: str, text: str) -> None:
    print(f"  {name:<24} {text}")
