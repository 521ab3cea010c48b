"""The device to run on, and how much of it is this process's."""

import os
import subprocess
import sys

import pytest

from anycharv_core.device import usable_cores

CHILD = """
import os
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
import torch
from anycharv_core.device import usable_cores
print(usable_cores(), torch.get_num_threads())
"""


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs Linux: no sched_setaffinity")
def test_no_more_threads_than_cores_that_may_be_used() -> None:
    asked = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
    environment = {name: value for name, value in os.environ.items() if name not in asked}
    done = subprocess.run(
        [sys.executable, "-c", CHILD], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout.split() == ["1", "1"]
    assert 1 <= usable_cores() <= (os.cpu_count() or 1)
