"""Work spread over processes, and what becomes of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import needs
import pytest
from waiting import PATIENCE

PREPARING = """
import time
from training.prepare.parallel import run_all
work = run_all(time.sleep, [0, 0, 0, 3600, 3600, 3600], workers=2)
next(work)
print("at work", flush=True)
time.sleep(3600)
"""
TRAINING = """
import time
import torch
from training.data.samples import loader
clips = {(index, 0): {"x": torch.zeros(1)} for index in range(32)}
work = loader(clips, 0, 0, 32, 4, workers=1)
next(work)
print("at work", flush=True)
time.sleep(3600)
"""


@needs.sigkill
@pytest.mark.parametrize("script", [PREPARING, TRAINING], ids=["preparing", "training"])
def test_workers_end_with_a_parent_that_is_killed(script: str) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=Path(__file__).parents[1],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert parent.stdout.readline() == "at work\n"
        parent.kill()
        # The workers share its output, which therefore ends when the last of them does.
        assert parent.communicate(timeout=PATIENCE) == ("", None)
        assert parent.returncode == -signal.SIGKILL
    except subprocess.TimeoutExpired:
        os.killpg(parent.pid, signal.SIGKILL)
        pytest.fail("the workers outlive their parent")
