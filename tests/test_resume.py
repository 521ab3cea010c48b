"""Killed at any moment and started again, a training ends as if nothing had happened."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_training import recipe, write

from training import checkpoints
from training.train import main

KILLS = 20 if os.environ.get("ANYCHARV_SLOW") else 5
STEPS = 8
# A server that has imported everything once starts a child in milliseconds.
FORK = multiprocessing.get_context("forkserver")
FORK.set_forkserver_preload(["training.train"])


def train(config: Path, out: Path) -> int:
    return main([str(config), "--out", str(out), "--cpu"])


def child(config: Path, out: Path, flush_number: int, which: int) -> None:
    flush, flushes = os.fsync, itertools.count(1)
    states = out / "compose" / "checkpoints"

    def counted(fd: int) -> None:
        flush(fd)
        if list(states.glob(".writing-*")) and next(flushes) == flush_number:
            os.kill(os.getpid(), which)

    os.fsync = counted
    os._exit(train(config, out))


def start(
    config: Path, out: Path, flush_number: int = 0, which: int = signal.SIGKILL
) -> multiprocessing.process.BaseProcess:
    """A training in a process of its own. It sends itself the signal `which` as soon as it has flushed that many
    files of checkpoints to disk, unless `flush_number` is 0: in the middle of a checkpoint, however busy the
    machine is."""
    process = FORK.Process(target=child, args=(config, out, flush_number, which))
    process.start()
    return process


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "compose" / "weights.safetensors")


def assert_same(first: Path, second: Path) -> None:
    one, other = weights(first), weights(second)
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    changes = {"steps": STEPS, "save_every": 1, "accumulate": 2, "cache": {"variants": 2}, "warmup": 3}
    held_out = {"every": 4, "clips": 1, "sheet": 1, "steps": 1, "timesteps": [500]}
    return write(tmp_path_factory.mktemp("config"), recipe(**changes, validate=held_out, schedule="cosine"))


@pytest.fixture(scope="module")
def whole(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole")
    process = start(config, out)
    process.join()
    assert process.exitcode == 0
    return out


def test_killed_at_random_moments_it_ends_bit_equal(config: Path, whole: Path, tmp_path: Path) -> None:
    chance, torn_writes = random.Random(0), 0
    states = tmp_path / "compose" / "checkpoints"
    for number in range(KILLS):
        if number % 2 == 0:  # in the middle of a checkpoint
            process = start(config, tmp_path, chance.randint(1, 3))
            process.join()
        else:
            process = start(config, tmp_path)
            reached = (checkpoints.newest(states, lambda line: None) or (0,))[0] + chance.randint(0, 2)
            while process.is_alive() and not any(states.glob(f"step-{reached:08d}")) and reached:
                time.sleep(0.002)
            time.sleep(chance.uniform(0, 0.3))
            process.kill()
            process.join()
        torn_writes += bool(list(states.glob(".writing-*")))
        if process.exitcode == 0:
            break
    assert torn_writes, "no kill met a checkpoint being written"
    assert train(config, tmp_path) == 0
    assert_same(whole, tmp_path)
    assert not list(states.glob(".*"))
    rows = [json.loads(line) for line in (tmp_path / "compose" / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, STEPS + 1))


def test_a_time_limit_stops_and_the_same_command_goes_on(config: Path, whole: Path, tmp_path: Path) -> None:
    for _ in range(2):
        assert main([str(config), "--out", str(tmp_path), "--cpu", "--minutes", "0"]) == 0
    found = checkpoints.newest(tmp_path / "compose" / "checkpoints")
    assert found is None or found[0] < STEPS
    assert train(config, tmp_path) == 0
    assert_same(whole, tmp_path)


def test_ctrl_c_stops_after_the_step_and_the_same_command_goes_on(
    config: Path, whole: Path, tmp_path: Path
) -> None:
    process, states = start(config, tmp_path, 1, signal.SIGINT), tmp_path / "compose" / "checkpoints"
    process.join()
    assert process.exitcode == 0
    assert 1 <= checkpoints.newest(states)[0] < STEPS
    assert not list(states.glob(".*")) and not (tmp_path / "compose" / "weights.safetensors").exists()
    assert train(config, tmp_path) == 0
    assert_same(whole, tmp_path)


def test_a_torn_checkpoint_is_passed_over(config: Path, whole: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    (out / "compose" / "weights.safetensors").unlink()
    kept = sorted((out / "compose" / "checkpoints").glob("step-*"))
    assert [path.name for path in kept] == [f"step-{STEPS - 1:08d}", f"step-{STEPS:08d}"]
    spoiled = kept[-1] / "optimizer.bin"
    spoiled.write_bytes(spoiled.read_bytes()[:-1] + b"?")
    assert train(config, out) == 0
    said = capsys.readouterr().out
    assert "optimizer.bin has another content" in said and f"goes on from step {STEPS - 1}" in said
    assert_same(whole, out)
