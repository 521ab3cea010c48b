"""Two processes train what one does with the same global batch."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
from pathlib import Path

import pytest
import torch
from tiny_training import recipe, write

from training.train import main

FORK = multiprocessing.get_context("forkserver")
FORK.set_forkserver_preload(["training.train"])


def process(config: Path, out: Path, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    torch.set_num_threads(1)
    os._exit(main([str(config), "--out", str(out), "--cpu"]))


def train(config: Path, out: Path, world: int) -> list[dict[str, float]]:
    """The log of a training by `world` processes that talk over gloo."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(world)}
    shared = meeting | {"LOCAL_WORLD_SIZE": str(world), "ACCELERATE_USE_CPU": "true"} if world > 1 else {}
    own = [shared | {"RANK": str(r), "LOCAL_RANK": str(r)} if shared else {} for r in range(world)]
    started = [FORK.Process(target=process, args=(config, out, environment)) for environment in own]
    for each in started:
        each.start()
    for each in started:
        each.join(120)
    assert [each.exitcode for each in started] == [0] * world
    return [json.loads(line) for line in (out / "compose" / "log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # Half of the clips go without reference, so that in some steps a process has no gradient for its network.
    changes = recipe(batch=4, lr=1e-3, steps=5, validate={"every": 5, "clips": 3, "sheet": 1, "steps": 1})
    changes["objective"]["drop"] = 0.5
    return write(tmp_path_factory.mktemp("config"), changes)


def test_two_processes_log_the_losses_of_one(config: Path, tmp_path: Path) -> None:
    one, two = (train(config, tmp_path / str(world), world) for world in (1, 2))
    assert [row["step"] for row in one] == [row["step"] for row in two]
    for alone, shared in zip(one, two, strict=True):
        assert alone.keys() == shared.keys()
        for key in alone.keys() - {"seconds"}:
            # Adam turns a rounding of the gradient into a part of its step.
            assert shared[key] == pytest.approx(alone[key], rel=1e-4), (alone["step"], key)
