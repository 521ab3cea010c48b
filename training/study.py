"""An ablation: variants of a recipe, how each is trained and shown its tasks, and what is expected of them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from anycharv_core.bench.puppets import Look, Method
from anycharv_core.files import atomic_folder
from training import train


@dataclass(frozen=True)
class Study:
    """What `training.ablate` runs.

    hypothesis: what is expected, said before anything is trained; config, short: the recipe and what makes it
    shorter; task, size: what is scored; metrics: of which the first is compared; variants: the paper's
    number of each, where it has one, under the title `column`, the first being the paper's recipe; train(variant,
    seed, out, config, changes) trains one and gives its model, method(variant, model) runs it, and look(variant,
    model), where there is one, says where it attends; frames: of a clip, where none are asked for.
    """

    hypothesis: str
    config: Path
    short: tuple[str, ...]
    task: str
    size: int
    metrics: tuple[str, ...]
    variants: Mapping[str, float | None]
    column: str
    train: Callable[[str, int, Path, Path, Sequence[str]], Path]
    method: Callable[[str, Path], Method]
    look: Callable[[str, Path], Look | None] = lambda name, model: None
    frames: int = 1


def train_phases(config: Path, folder: Path, changes: Sequence[str], phases: Sequence[str]) -> None:
    """Trains phases of a config into a folder, on the processor. Raises SystemExit where the trainer gives up."""
    arguments = [str(config), "--out", str(folder), "--cpu"]
    for change in changes:
        arguments += ["--set", change]
    for phase in phases:
        code = train.main([*arguments, "--phase", phase])
        if code:
            raise SystemExit(code)
    # Encoded clips, gigabytes of them, that no later phase of the folder reads.
    shutil.rmtree(folder / "cache", ignore_errors=True)


def share_phases(trained: Path, folder: Path, phases: Sequence[str]) -> None:
    """Copies finished phases of one folder to another that lacks them, each whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    for phase in phases:
        if not (folder / phase).exists():
            with atomic_folder(folder / phase) as temporary:
                shutil.copytree(trained / phase, temporary, dirs_exist_ok=True)


def slug(name: str) -> str:
    """A variant's name as a folder's."""
    return "".join(c if c.isalnum() else "_" for c in name.lower()).strip("_").replace("___", "_")
