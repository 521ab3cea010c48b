"""What tests of training share: short runs, untrained networks, random clips and their gradients."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from tiny_training import recipe, write

from training import networks
from training.config import Objective, Phase
from training.config_file import parse
from training.train import main
from training.trainee import Trainee, choose_trained, trained_parameters

CONFIGS = Path(__file__).parents[1] / "training" / "configs"
ALL = ("denoising_unet", "reference_unet", "pose_guider")


@pytest.fixture(autouse=True)
def own_precision() -> Iterator[None]:
    """A precision of the test's own, which accelerate fixes for a whole process."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def train(tmp_path: Path, name: str = "run", *options: str, **phase: Any) -> Path:
    """The folder of the phase trained by the tiny recipe, changed by `phase`."""
    config = write(tmp_path / f"{name}.config", recipe(**phase))
    assert main([str(config), "--out", str(tmp_path / name), "--cpu", *options]) == 0
    return tmp_path / name / "compose"


def log(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def fresh(train: tuple[str, ...] = ALL, config: dict[str, Any] | None = None, **phase: Any) -> networks.Networks:
    """Untrained tiny networks whose every part has a say in the result, with gradients for `train`."""
    nets, _ = networks.build(parse(config or recipe()), [], lambda line: None)
    generator = torch.Generator().manual_seed(1)
    for net in filter(None, vars(nets).values()):
        for p in net.parameters():
            if not p.any():
                p.data = 0.1 * torch.randn(p.shape, generator=generator)
    choose_trained(nets, Phase(train=train, **phase))
    return nets


def clips(count: int, frames: int = 2, **more: Any) -> dict[str, torch.Tensor]:
    """Random uint8 clips with positions, as a loader gives them."""
    rng = np.random.default_rng(0)
    shapes = {"frames": (frames, 16, 16, 3), "pose": (frames, 16, 16, 3), "reference": (16, 16, 3)}
    batch = {n: torch.from_numpy(rng.integers(0, 256, (count, *s), dtype=np.uint8)) for n, s in shapes.items()}
    for name in ("mask", "character"):
        batch[name] = torch.zeros(count, frames, 16, 16, dtype=torch.uint8)
        batch[name][..., 4:12, 4:10] = 255
    return batch | {"position": torch.arange(count)} | more


def gradients(nets: networks.Networks, batch: dict[str, torch.Tensor], cfg: Objective, motion: bool) -> dict:
    Trainee(nets, cfg, motion, 0, "test")(batch)["loss"].backward()
    return {name: p.grad for name, p in trained_parameters(nets)}
