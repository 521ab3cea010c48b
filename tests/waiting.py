"""Waiting for other processes, as long as a busy machine may need."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable

PATIENCE = 600.0  # seconds after which what a test waits for counts as hung


def until(condition: Callable[[], object], process: subprocess.Popen) -> None:
    """Waits until `condition` holds; `process`, which is to bring that about, must not end before."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert process.poll() is None, "the process ended too early"
        assert time.monotonic() < end, "the process hangs"
        time.sleep(0.005)
