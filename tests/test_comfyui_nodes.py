"""The nodes inside a real ComfyUI, in its own Python (tests/comfyui_checks.py)."""

from __future__ import annotations

import ast
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import needs
import pytest
from comfyui_server import COMFYUI, PYTHON

REPO = Path(__file__).parents[1]
SCRIPT = Path(__file__).with_name("comfyui_checks.py")
RECORDED = needs.PARITY / "public"
NEEDS_PARITY = ("official_recipe_equals_core", "animate_official_recipe_equals_core")
CHECKS = [
    node.name.removeprefix("check_")
    for node in ast.parse(SCRIPT.read_text()).body
    if isinstance(node, ast.FunctionDef) and node.name.startswith("check_")
]
pytestmark = [pytest.mark.comfyui, needs.comfyui]


@pytest.fixture(scope="module")
def results() -> dict[str, dict[str, Any]]:
    """What each check gave."""
    names = [name for name in CHECKS if RECORDED.is_dir() or name not in NEEDS_PARITY]
    command = [str(PYTHON), str(SCRIPT), str(REPO), str(RECORDED), *names]
    done = subprocess.run(
        command, cwd=COMFYUI, capture_output=True, text=True, env=os.environ | {"PYTHONUNBUFFERED": "1"}
    )
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"check"')]
    assert len(rows) == len(names), done.stderr[-3000:]
    return {row["check"]: row for row in rows}


@pytest.mark.parametrize("name", CHECKS)
def test_inside_comfyui(results: dict[str, dict[str, Any]], name: str) -> None:
    if name not in results:
        pytest.skip(f"needs recorded data (ANYCHARV_PARITY): no {RECORDED}")
    assert results[name]["error"] is None, results[name]["error"]
