"""All that is done with the name embedded-anywhere."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from anycharv_core.cli import main
from anycharv_core.inference.pipeline import Pipeline
from anycharv_core.media.video_read import probe, read_frames
from anycharv_core.puppets.travel import JOURNEYS, sample_travel
from anycharv_core.systems.anywhere import ANYWHERE

NAME, FRAMES, SIZE = "embedded-anywhere", 24, 64


def test_the_name_is_a_model_of_journeys_without_a_base() -> None:
    pipe = Pipeline.from_pretrained(NAME)
    assert pipe.system is ANYWHERE and pipe.settings["world"] == "travel"
    task = sample_travel(0, FRAMES, SIZE)
    made = pipe(reference=task.reference, background=task.background, pose=task.pose, seed=1)
    assert made.frames.shape == task.truth.frames.shape


def test_a_task_of_the_bench_is_animated_by_command(tmp_path: Path) -> None:
    folder, out = tmp_path / "tasks", tmp_path / "result.mp4"
    given = ["--task", "travel", "--clips", "1", "--frames", str(FRAMES)]
    assert main(["bench", "puppets", *given, "--export", str(folder)]) == 0
    task = folder / "task_0000"
    inputs = ["--reference", str(task / "reference.png"), "--pose", str(task / "poses.json")]
    place = ["--background", str(task / "background.png")]
    assert main(["animate", "--model", NAME, *inputs, *place, "--out", str(out)]) == 0
    info = probe(out)
    assert (info.frames, info.width, info.height) == (FRAMES, SIZE, SIZE)


def test_it_is_scored_on_journeys(tmp_path: Path) -> None:
    given = ["--clips", "1", "--frames", "8", "--out", str(tmp_path)]
    assert main(["bench", "puppets", "--model", NAME, *given]) == 0
    report = json.loads((tmp_path / "puppets.json").read_text())
    assert report["setup"]["task"] == "travel" and report["setup"]["size"] == SIZE
    assert "pan choice" in report["methods"][f"{NAME}, 1 step, guidance 1"]


def test_the_demo_goes_on_a_journey_of_each_kind(tmp_path: Path) -> None:
    assert main(["demo-anywhere", "--clips", "2", "--out", str(tmp_path)]) == 0
    frames = np.stack(list(read_frames(tmp_path / "result.mp4")))
    assert frames.shape == (2 * FRAMES, 256, 5 * 256, 3)
    assert list(JOURNEYS)[:2] == ["follow", "dolly"]
    for number, kind in enumerate(("follow", "dolly")):
        task = sample_travel(number, FRAMES, SIZE, kind=kind)
        shown = frames[number * FRAMES :][:FRAMES].reshape(FRAMES, SIZE, 4, 5, SIZE, 4, 3).mean((2, 5))
        plate, truth = shown[:, :, 1], shown[:, :, 4]
        assert np.abs(plate - task.background).mean() < 4
        assert np.abs(truth - task.truth.frames).mean() < 4
        assert np.ptp(task.truth.cameras.T, axis=0).any()
