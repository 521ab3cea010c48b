"""ComfyUI's page in a browser, for tests and pictures (tests/browser.mjs).

Needs node, playwright-core (NODE_PATH, or PLAYWRIGHT_CORE as a folder with node_modules) and Chromium (CHROMIUM,
or from the PATH).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import two_wires
from comfyui_server import COMFYUI, REPO, Server

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
RESOLVE = (
    "const { join, resolve } = require('path');"
    "require('module').createRequire(join(resolve(process.env.PLAYWRIGHT_CORE ?? '.'), 'any.js'))"
    ".resolve('playwright-core')"
)


def lacking() -> str | None:
    """What is missing for it on this machine."""
    if COMFYUI is None:
        return "needs a ComfyUI (COMFYUI_PATH)"
    if CHROMIUM is None:
        return "needs Chromium (CHROMIUM, or in the PATH)"
    if shutil.which("node") is None:
        return "needs node in the PATH"
    if subprocess.run(["node", "-e", RESOLVE], capture_output=True, check=False).returncode:
        return "needs playwright-core: npm install it in a folder and name that in PLAYWRIGHT_CORE"
    return None


def visit(server: Server, workflows: Path, screenshots: Path, *names: str) -> dict[str, Any]:
    """What the page showed: of the blueprints with wires in them, and of `workflows` where names of some are
    given, as browser.mjs has them. Screenshots go to a folder."""
    screenshots.mkdir(parents=True, exist_ok=True)
    (workflows / "wired").mkdir()
    for name in two_wires.BLUEPRINTS if names else two_wires.BLUEPRINTS[:1]:
        text = json.dumps(two_wires.wired(name))
        (workflows / "wired" / f"{name}.json").write_text(text, encoding="utf-8")
    two_wires.write_inputs(server.base / "input")
    script, folders = str(REPO / "tests/browser.mjs"), (str(workflows), str(screenshots))
    done = subprocess.run(
        ["node", script, str(server.port), *folders, *names],
        env=os.environ | {"CHROMIUM": str(CHROMIUM)},
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    seen: dict[str, Any] = json.loads(done.stdout)
    assert "failure" not in seen, f"{seen['failure']}; see {screenshots}/failure.png"
    return seen
