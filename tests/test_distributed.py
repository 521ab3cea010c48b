"""Two processes train what one does with the same global batch."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import needs
import pytest
import yaml
from tiny_training import recipe, write
from waiting import PATIENCE

from training.train import main

# What a log says of the machine.
MEASURED = {"seconds", "images_per_second", "data_wait", "peak_memory_gib"}

FORK = multiprocessing.get_context("forkserver")
FORK.set_forkserver_preload(["training.train"])
FSDP2 = Path(__file__).parents[1] / "training" / "configs" / "accelerate" / "fsdp2.yaml"


def process(config: Path, out: Path, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    os._exit(main([str(config), "--out", str(out), "--cpu"]))


def sharing_process(config: Path, out: Path, environment: dict[str, str]) -> None:
    """As `process`, with weights shared by FSDP2 after fsdp2.yaml: accelerate knows that of cards only, and so is
    told that these are some."""
    from accelerate import PartialState
    from accelerate.utils import DistributedType

    settings = yaml.safe_load(FSDP2.read_text())["fsdp_config"]
    names = {key: key.upper().replace("_LAYER_CLS_", "_CLS_") for key in settings}
    os.environ.update({names[key]: str(value) for key, value in settings.items()})
    os.environ.update(environment | {"ACCELERATE_USE_FSDP": "true"})
    PartialState(cpu=True)
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    process(config, out, {})


def train(config: Path, out: Path, world: int, run: Callable[..., None] = process) -> list[dict[str, float]]:
    """The log of a training by `world` processes that talk over gloo."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(world)}
    shared = meeting | {"LOCAL_WORLD_SIZE": str(world), "ACCELERATE_USE_CPU": "true"} if world > 1 else {}
    own = [shared | {"RANK": str(r), "LOCAL_RANK": str(r)} if shared else {} for r in range(world)]
    started = [FORK.Process(target=run, args=(config, out, environment)) for environment in own]
    for each in started:
        each.start()
    for each in started:
        each.join(PATIENCE)
        each.kill()
    assert [each.exitcode for each in started] == [0] * world
    return [json.loads(line) for line in (out / "compose" / "log.jsonl").read_text().splitlines()]


def dropping(**phase: Any) -> dict[str, Any]:
    """Half of the clips go without reference, so that in some steps a process has no gradient for its network."""
    validate = {"every": 5, "clips": 3, "sheet": 1, "steps": 1}
    changes = recipe(batch=4, lr=1e-3, steps=5, validate=validate, **phase)
    changes["objective"]["drop"] = 0.5
    return changes


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("config"), dropping())


def test_two_processes_log_the_losses_of_one(config: Path, tmp_path: Path) -> None:
    one, two = (train(config, tmp_path / str(world), world) for world in (1, 2))
    assert [row["step"] for row in one] == [row["step"] for row in two]
    for alone, shared in zip(one, two, strict=True):
        assert alone.keys() == shared.keys()
        for key in alone.keys() - MEASURED:
            # Adam turns a rounding of the gradient into a part of its step.
            assert shared[key] == pytest.approx(alone[key], rel=1e-4), (alone["step"], key)


@needs.patience
def test_two_processes_that_share_the_weights_log_the_losses_of_one(tmp_path: Path) -> None:
    config = write(tmp_path / "config", dropping(ema=0, motion=True))
    alone = train(config, tmp_path / "alone", 1)
    shared = train(config, tmp_path / "shared", 2, sharing_process)
    assert [row["loss"] for row in shared if "loss" in row] == pytest.approx(
        [row["loss"] for row in alone if "loss" in row], rel=1e-4
    )


def no_card(config: Path, out: Path, said: Path) -> None:
    os.environ.update({"RANK": "0", "WORLD_SIZE": "2"})
    sys.stderr = said.open("w", buffering=1)
    os._exit(main([str(config), "--out", str(out)]))


@needs.no_gpu
def test_processes_that_do_not_find_each_other_stop(config: Path, tmp_path: Path) -> None:
    alone = FORK.Process(target=no_card, args=(config, tmp_path / "out", tmp_path / "said"))
    alone.start()
    alone.join(PATIENCE)
    assert alone.exitcode == 2 and not (tmp_path / "out").exists()
    said = (tmp_path / "said").read_text()
    assert said.startswith("training: 2 processes were launched, but accelerate finds no graphics cards")
