"""An ablation: variants of a recipe, how each is trained and shown its tasks, and what is expected of them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from anycharv_core.bench.puppets import Look, Method
from anycharv_core.files import atomic_folder, atomic_path
from anycharv_core.foreign import read_yaml
from training import train
from training.config import CACHE
from training.config_file import read_config
from training.networks import WEIGHTS


@dataclass(frozen=True)
class Study:
    """What `training.ablate` runs.

    hypothesis: what is expected, said before anything is trained; config, short: the recipe and what makes it
    shorter; task, size: what is scored; metrics: what is told of each; compared: the ones that the hypothesis is
    about; variants: the paper's number of each, where it has one, under the title `column`, the first being the
    paper's recipe; train(variant, seed, out, config, changes) trains one and gives its model, method(variant,
    model) runs it, and look(variant, model), where there is one, says where it attends; frames: of a clip, where
    none are asked for.
    """

    hypothesis: str
    config: Path
    short: tuple[str, ...]
    task: str
    size: int
    metrics: tuple[str, ...]
    compared: tuple[str, ...]
    variants: Mapping[str, float | None]
    column: str
    train: Callable[[str, int, Path, Path, Sequence[str]], Path]
    method: Callable[[str, Path], Method]
    look: Callable[[str, Path], Look | None] = lambda name, model: None
    frames: int = 1


def write_variant(config: Path, target: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """The config in `target`, changed as `--set` cannot."""
    raw: dict[str, Any] = read_yaml(config)
    change(raw)
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(target) as temporary:
        temporary.write_text(yaml.safe_dump(raw, sort_keys=False), encoding="utf-8")
    return target


def train_phases(config: Path, folder: Path, changes: Sequence[str], phases: Sequence[str]) -> None:
    """Trains phases of a config into a folder, on the processor. Raises SystemExit where the trainer gives up, and
    KeyboardInterrupt where it was stopped, which it takes for its own end alone."""
    recipe = read_config(config, changes)
    arguments = [str(config), "--out", str(folder), "--cpu"]
    for change in changes:
        arguments += ["--set", change]
    for phase in phases:
        code = train.main([*arguments, "--phase", phase])
        if code:
            raise SystemExit(code)
        if recipe.phases[phase].task != "pairs" and not (folder / phase / WEIGHTS).exists():
            raise KeyboardInterrupt
    # Encoded clips, gigabytes of them, that no later phase of the folder reads. Of a shared cache the link goes.
    cache = folder / CACHE
    cache.unlink() if cache.is_symlink() else shutil.rmtree(cache, ignore_errors=True)


def share_phases(trained: Path, folder: Path, phases: Sequence[str]) -> None:
    """Copies finished phases of one folder to another that lacks them, each whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    for phase in phases:
        if not (folder / phase).exists():
            with atomic_folder(folder / phase) as temporary:
                shutil.copytree(trained / phase, temporary, dirs_exist_ok=True)


def share_cache(place: Path, folder: Path) -> None:
    """Lets a folder read the encoded clips of `place` and add to them, for recipes that differ in neither data nor
    encoders."""
    folder.mkdir(parents=True, exist_ok=True)
    (place / CACHE).mkdir(exist_ok=True)
    if not (folder / CACHE).exists():
        (folder / CACHE).symlink_to((place / CACHE).resolve(), target_is_directory=True)


def slug(name: str) -> str:
    """A variant's name as a folder's."""
    return "".join(c if c.isalnum() else "_" for c in name.lower()).strip("_").replace("___", "_")
