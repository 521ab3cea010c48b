"""Checkpoints of one phase: written beside, checked, renamed; the newest whole one is where a run goes on."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Collection
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from anycharv_core.errors import UserError
from anycharv_core.files import atomic_folder
from anycharv_core.foreign import read_json
from training.sections import build

MANIFEST = "manifest.json"
WRAPPED = "module."  # what DDP puts before every name


@dataclass(frozen=True)
class _File:
    bytes: int
    sha256: str


@dataclass(frozen=True)
class _Manifest:
    step: int
    files: dict[str, _File]


def keep_changing_only(accelerator: Accelerator, changing: Collection[str]) -> None:
    """Leaves frozen weights, which come from elsewhere, out of the states that `accelerator` saves and loads.

    changing: the names in the unwrapped module's state dict. FSDP and DeepSpeed save in their own ways, all of it.
    """

    def save(models: list[nn.Module], weights: list[dict[str, Tensor]], folder: str) -> None:
        for state in weights:
            for key in [key for key in state if key.removeprefix(WRAPPED) not in changing]:
                del state[key]

    def load(models: list[nn.Module], folder: str) -> None:
        # What is taken out of the list accelerate does not load; it would miss the frozen ones.
        while models:
            models.pop().load_state_dict(load_file(Path(folder) / "model.safetensors"), strict=False)

    accelerator.register_save_state_pre_hook(save)
    accelerator.register_load_state_pre_hook(load)


def save(accelerator: Accelerator, folder: Path, step: int, keep: int) -> None:
    """Saves the state after `step` steps in `folder`, then removes all but the newest `keep`.

    All processes must call it. Raises UserError, the older ones kept, when the disk is full.
    """
    target = folder / f"step-{step:08d}"
    with ExitStack() as stack:
        place: list[Any] = [None]  # what the main process chose, in all processes after the broadcast
        if accelerator.is_main_process:
            folder.mkdir(parents=True, exist_ok=True)
            if target.exists():  # a torn one, or `newest` would have gone on from it
                _remove(target)
            place = [str(stack.enter_context(atomic_folder(target)))]
        broadcast_object_list(place)
        try:
            accelerator.save_state(place[0])
        except (RuntimeError, SafetensorError) as error:
            # Neither torch nor safetensors raises OSError for a full disk.
            raise UserError(
                f"Cannot write {target} ({str(error).splitlines()[0]}): the disk seems full; free some space and "
                "run the same command again, which goes on from the checkpoint before."
            ) from error
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            _write_manifest(Path(place[0]), step)
    if accelerator.is_main_process:
        for _, old in _found(folder)[keep:]:
            _remove(old)
    accelerator.wait_for_everyone()


def newest(folder: Path, say: Callable[[str], None] = print) -> tuple[int, Path] | None:
    """Steps and folder of the newest whole checkpoint in `folder`; `say` hears of torn ones passed over."""
    for step, path in _found(folder):
        fault = _fault(path)
        if fault is None:
            return step, path
        say(f"{path} is torn ({fault}): going on from the one before it.")
    return None


def tidy(folder: Path) -> None:
    """Removes what a killed run left half written or half removed."""
    for pattern in (".writing-*", ".removing-*"):
        for path in folder.glob(pattern):
            shutil.rmtree(path)


def _remove(folder: Path) -> None:
    # Renamed first, so that one half removed is not taken for a torn one.
    shutil.rmtree(folder.rename(folder.with_name(f".removing-{folder.name}")))


def _found(folder: Path) -> list[tuple[int, Path]]:
    steps = ((path.name.removeprefix("step-"), path) for path in folder.glob("step-*"))
    return sorted(((int(step), path) for step, path in steps if step.isdecimal()), reverse=True)


def _write_manifest(folder: Path, step: int) -> None:
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            files[path.relative_to(folder).as_posix()] = {"bytes": path.stat().st_size, "sha256": _digest(path)}
            _flush(path)
    manifest = folder / MANIFEST
    manifest.write_text(json.dumps({"step": step, "files": files}, indent=2) + "\n", encoding="utf-8")
    _flush(manifest)


def _flush(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _fault(folder: Path) -> str | None:
    """What is wrong with a checkpoint, or None."""
    try:
        files = build(_Manifest, read_json(folder / MANIFEST), "").files
    except UserError:
        return f"it has no readable {MANIFEST}"
    for name, expected in files.items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != expected.bytes:
            return f"{name} is missing or has another size"
        if _digest(path) != expected.sha256:
            return f"{name} has another content"
    return None


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
