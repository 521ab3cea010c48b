"""What a test needs that a machine may lack, found in one place and, where it is missing, said in one way.

Recordings of the official releases lie outside the repository: ANYCHARV_PARITY names their folder, which is
`shared/parity` beside the repository without it. Real videos lie beside that folder, in `clips`.

The reason of every skip is "needs ...", with what was missing after a colon: conftest counts them by what comes
before it.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import signal
from pathlib import Path
from types import ModuleType

import pytest
import torch
from comfyui_server import COMFYUI

PARITY = Path(os.environ.get("ANYCHARV_PARITY") or Path(__file__).parents[2] / "shared" / "parity").absolute()
CLIPS = PARITY.with_name("clips")

comfyui = pytest.mark.skipif(COMFYUI is None, reason="needs a ComfyUI (COMFYUI_PATH)")
no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
not_root = pytest.mark.skipif(os.geteuid() == 0, reason="needs a user who is not root")
patience = pytest.mark.skipif(not os.environ.get("ANYCHARV_SLOW"), reason="needs half a minute (ANYCHARV_SLOW)")
proc = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux: no /proc/self/status")
sigkill = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs POSIX: no SIGKILL")


def recorded(path: Path) -> pytest.MarkDecorator:
    """Skips a test that reads the recordings at `path` where there are none."""
    return pytest.mark.skipif(not path.exists(), reason=f"needs recorded data (ANYCHARV_PARITY): no {path}")


def installed(package: str, least: tuple[int, ...] = (0,), module: str | None = None) -> ModuleType:
    """Imports `module` of `package`, or skips the test that calls this where the package is not installed in
    version `least` or newer. A folder on the path that merely has its name does not count."""
    wanted = f"needs {package} {'.'.join(map(str, least))}" if any(least) else f"needs {package}"
    try:
        found = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(wanted, allow_module_level=True)
    if tuple(int(part) for part in found.split(".")[: len(least)]) < least:
        pytest.skip(f"{wanted}: {found} is installed", allow_module_level=True)
    return importlib.import_module(module or package)
