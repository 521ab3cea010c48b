"""A run of Replace Character that is interrupted in a real ComfyUI goes on where it was, to the same frames."""

from __future__ import annotations

from typing import Any

import needs
import numpy as np
import pytest
from comfyui_server import ExecutionFailed, Server, shared_server, small_prompt

from anycharv_core.media.video_read import read_frames

STEPS = 12

pytestmark = [pytest.mark.comfyui, needs.comfyui]


def prompt(**inputs: Any) -> dict[str, Any]:
    nodes = {name: node for name, node in small_prompt(frames=8).items() if name in ("1", "2")}
    given = {"model": ["1", 0], "reference_net": ["1", 1], "vae": ["1", 2], "clip_vision": ["1", 3]}
    given |= {"video": ["2", 0], "reference": ["2", 4], "mask": ["2", 2], "pose": ["2", 3]}
    settings = {"cfg": 1.0, "seed": 42, "width": 0, "height": 0, "recipe": "default", "crf": 0}
    save = {"video": ["whole", 0], "filename_prefix": "whole", "format": "auto", "format.codec": "auto"}
    return nodes | {
        "whole": {"class_type": "AnyCharVReplaceCharacter", "inputs": given | settings | inputs},
        "save": {"class_type": "SaveVideo", "inputs": save},
    }


def frames(server: Server, outputs: dict[str, Any]) -> np.ndarray:
    (path,) = server.files(outputs, "save")
    return np.stack(list(read_frames(path)))


def interrupted(server: Server) -> int:
    """Interrupts a run after its third step, and returns of how many. On a machine that finishes before the
    interrupt arrives, it tries a longer one."""
    events = server.events()
    next(events)
    for steps in (STEPS, 4 * STEPS, 16 * STEPS, 64 * STEPS):
        begun = server.queue(prompt(steps=steps))
        for event in events:
            data = event["data"]
            ended = event["type"] == "execution_success" and data["prompt_id"] == begun
            if ended or (event["type"] == "progress" and data["max"] == steps and data["value"] > 2):
                break
        server.interrupt()
        try:
            server.wait(begun)
        except ExecutionFailed as failed:
            assert failed.kind == "execution_interrupted"
            return steps
    raise AssertionError("no run was long enough to be interrupted")


def test_interrupted_run_goes_on() -> None:
    server = shared_server()
    steps = interrupted(server)
    left = server.base / "output" / "anycharv_unfinished"
    assert list(left.glob("*/state.json"))
    before = server.log().count("Going on after round")
    resumed = frames(server, server.run(prompt(steps=steps)))
    assert server.log().count("Going on after round") == before + 1
    assert not left.exists()
    assert np.array_equal(resumed, frames(server, server.run(prompt(steps=steps, resume=False))))
