"""The memory estimate against what a real step takes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import needs
import pytest
import torch
from conftest import CONFIGS

from anycharv_core.checkpoints.networks import Networks
from training.memory import GIB, estimate, peak_bytes, phase_memory

REPO = Path(__file__).parents[1]

# Resident memory of a process is its tensors only if freed ones go back to the system at once.
REAL = """
import sys, torch
sys.path.insert(0, sys.argv[1])
from conftest import CONFIGS
from anycharv_core.checkpoints.networks import untrained
from training.memory import _step
nets = untrained(CONFIGS)
for net in filter(None, vars(nets).values()):
    net.requires_grad_(False)
nets.denoising_unet.requires_grad_(True)
nets.denoising_unet.set_checkpointing(sys.argv[2] == "True")

def status(key):
    line = next(line for line in open("/proc/self/status") if line.startswith(key))
    return 1024 * int(line.split()[1])

_step(nets, CONFIGS, (16, 16), 4, 2, "fp32", True)().backward()
nets.denoising_unet.zero_grad()
step = _step(nets, CONFIGS, (64, 64), 4, 2, "fp32", True)
before = status("VmRSS")
step().backward()
print(status("VmHWM") - before)
"""


def choose(checkpointing: bool):
    def chosen(nets: Networks) -> None:
        nets.denoising_unet.requires_grad_(True)
        nets.denoising_unet.set_checkpointing(checkpointing)

    return chosen


@needs.proc
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_step_takes_what_was_reckoned(checkpointing: bool) -> None:
    reckoned = phase_memory(CONFIGS, (64, 64), 4, 2, choose(checkpointing), precision="fp32")
    environment = os.environ | {
        "MALLOC_MMAP_THRESHOLD_": "65536",
        "MALLOC_TRIM_THRESHOLD_": "0",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-c", REAL, str(REPO / "tests"), str(checkpointing)]
    done = subprocess.run(command, cwd=REPO, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) == pytest.approx(reckoned.activations + reckoned.gradients, rel=0.15)


def test_the_meter_counts_what_is_alive_at_once() -> None:
    x = torch.zeros(1000, requires_grad=True)

    def step() -> torch.Tensor:
        for _ in range(5):
            y = x * 2  # each dies when the next replaces it
        return (y * y).sum()

    # y, y * y, and on the way back gradients of the same size.
    assert 8000 <= peak_bytes(step) <= 24100


def test_what_is_kept_between_steps() -> None:
    memory = estimate(10**9, 4 * 10**9, "adamw8bit", ema=True, activations=GIB)
    assert memory.trained == memory.gradients == memory.average == memory.frozen == 4e9
    assert memory.optimizer == pytest.approx(2.03e9, rel=0.01)
    assert memory.total == pytest.approx(18.03e9 + GIB + memory.overhead, rel=0.01)
    assert "GiB" in str(memory)
