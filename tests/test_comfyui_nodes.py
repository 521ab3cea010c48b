"""The nodes inside a real ComfyUI: the tests in in_comfyui/, which pytest runs in ComfyUI's own Python."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import needs
import pytest
from comfyui_server import COMFYUI, PYTHON

FOLDER = Path(__file__).with_name("in_comfyui")
# Where `make test-comfyui` puts pytest for a ComfyUI whose Python has none.
PYTEST = Path(sys.prefix) / "pytest-for-comfyui"
TESTS = [
    f"{path.name}::{node.name}"
    for path in sorted(FOLDER.glob("test_*.py"))
    for node in ast.parse(path.read_text(encoding="utf-8")).body
    if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
]
pytestmark = [pytest.mark.comfyui, needs.comfyui]

Outcomes = dict[str, list[ElementTree.Element]]


@pytest.fixture(scope="module")
def outcomes(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Outcomes:
    """What pytest reports of each chosen test: one entry, or one for every parameter."""
    chosen = [item.callspec.params["name"] for item in request.session.items if item.path == Path(__file__)]
    report = tmp_path_factory.mktemp("in_comfyui") / "report.xml"
    command = [str(PYTHON), "-m", "pytest", "-p", "no:cacheprovider", f"--confcutdir={FOLDER}", "--tb=short"]
    command += [f"--junitxml={report}", *(str(FOLDER / name) for name in chosen)]
    environment = os.environ | {
        "PYTHONPATH": str(PYTEST) if PYTEST.is_dir() else "",
        "ANYCHARV_PARITY": str(needs.PARITY),
    }
    done = subprocess.run(command, cwd=COMFYUI, capture_output=True, text=True, env=environment)
    assert report.is_file(), f"pytest did not run in {PYTHON}: {done.stdout[-3000:]}{done.stderr[-3000:]}"
    found: Outcomes = {name: [] for name in chosen}
    for case in ElementTree.parse(report).iter("testcase"):
        module = case.attrib["classname"].rpartition(".")[2]
        found[f"{module}.py::{case.attrib['name'].partition('[')[0]}"].append(case)
    return found


@pytest.mark.parametrize("name", TESTS)
def test_inside_comfyui(outcomes: Outcomes, name: str) -> None:
    assert outcomes[name], f"pytest reported nothing of {name}"
    for case in outcomes[name]:
        for problem in (*case.iter("failure"), *case.iter("error")):
            pytest.fail(f"{case.attrib['name']}: {problem.text}", pytrace=False)
    for skipped in outcomes[name][0].iter("skipped"):
        pytest.skip(skipped.attrib["message"])
