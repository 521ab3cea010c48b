"""The shipped models: what they are, and what they do with characters they have never seen."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from anycharv_core import Pipeline
from anycharv_core.bench.interaction import choice
from anycharv_core.bench.metrics import psnr
from anycharv_core.bench.puppets import of_model
from anycharv_core.bench.tasks import BOLD_SWAP, INTERACTION, KINDS, TRAVEL, Setup, Task, tasks
from anycharv_core.bench.travel import TRAVEL_BASELINES, paired, twins
from anycharv_core.checkpoints.places import EMBEDDED
from anycharv_core.jobs.demo import TOUCHING, _examples, run
from anycharv_core.media.imaging import resample
from anycharv_core.media.video_read import probe, read_frames
from anycharv_core.puppets.interaction import (
    INTERACTION_BASELINES,
    Interaction,
    object_pair,
    order_pair,
    sample_interaction,
)
from anycharv_core.puppets.task import ANIMATION_BASELINES, BASELINES, sample_bold_animation, sample_bold_swap
from anycharv_core.puppets.travel import Travel, sample_travel
from anycharv_core.systems import read_checkpoint
from anycharv_core.systems.animate_anyone import ANIMATE_ANYONE
from anycharv_core.systems.animate_anyone_2 import ANIMATE_ANYONE_2
from anycharv_core.systems.anywhere import ANYWHERE

CONFIGS = Path(__file__).parents[1] / "training" / "configs"
CONFIG, ANYWHERE_CONFIG = CONFIGS / "embedded_bold.yaml", CONFIGS / "embedded_anywhere.yaml"


def test_it_is_small_and_made_by_the_config_in_the_repo() -> None:
    assert EMBEDDED["embedded"].stat().st_size <= 40e6
    config, shipped = yaml.safe_load(CONFIG.read_text()), read_checkpoint("embedded")
    assert shipped.configs == config["networks"] and shipped.settings == config["settings"]
    record = json.loads((EMBEDDED["embedded"].parent / "training.json").read_text())
    assert record["config"]["networks"] == config["networks"]
    assert {"compose", "boost", "motion"} <= set(record["log"])


def test_it_beats_copying_and_erasing_on_unseen_characters() -> None:
    pipe = Pipeline.from_pretrained("embedded")
    model = of_model(pipe, pipe.settings["steps"], pipe.settings["guidance_scale"])
    asked = list(tasks(Setup.of(BOLD_SWAP, 8, 2, None), flow=False))

    def score(method: Callable[[Task], np.ndarray]) -> float:
        given = [task.given for task in asked]
        return float(
            np.mean([psnr(method(t), g.truth.frames, g.region) for t, g in zip(asked, given, strict=True)])
        )

    made = score(model)
    for name, baseline in BASELINES.items():
        assert made > score(lambda task, baseline=baseline: baseline(task.given)) + 1, name


def test_the_animating_one_animates() -> None:
    assert EMBEDDED["embedded-animate"].stat().st_size <= 40e6
    pipe = Pipeline.from_pretrained("embedded-animate")
    assert pipe.system is ANIMATE_ANYONE and {"size", "steps", "guidance_scale"} <= set(pipe.settings)


def test_the_one_that_keeps_hold_of_things_reads_them() -> None:
    assert EMBEDDED["embedded-animate2"].stat().st_size <= 40e6
    pipe = Pipeline.from_pretrained("embedded-animate2")
    assert pipe.system is ANIMATE_ANYONE_2 and pipe.backend.extras == {"objects", "depth"}
    assert pipe.settings["world"] == "acts" and {"size", "steps", "guidance_scale"} <= set(pipe.settings)


@pytest.mark.parametrize(
    ("name", "pair", "seeds"),
    [("depth", order_pair, range(4)), ("objects", object_pair, range(3))],
    ids=["depth", "objects"],
)
def test_it_chooses_by_what_it_is_shown_and_blindly_without(name: str, pair: Callable, seeds: range) -> None:
    pipe = Pipeline.from_pretrained("embedded-animate2")
    model = of_model(pipe, pipe.settings["steps"], pipe.settings["guidance_scale"])
    pairs = [pair(seed, 1, 128) for seed in seeds]

    def chosen() -> list[float]:
        answers = [[model(Task(0, task, KINDS[INTERACTION])) for task in tasks] for tasks in pairs]
        return [choice(*made, *tasks) for made, tasks in zip(answers, pairs, strict=True)]

    assert np.mean(chosen()) > 0.7
    pipe.backend.extras -= {name}
    assert chosen() == [0.5] * len(pairs)


def test_the_one_that_walks_through_places_needs_no_base() -> None:
    assert EMBEDDED["embedded-anywhere"].stat().st_size <= 40e6
    config, shipped = yaml.safe_load(ANYWHERE_CONFIG.read_text()), read_checkpoint("embedded-anywhere")
    assert shipped.configs == config["networks"] | {"prompt": {}}
    assert config["settings"].items() <= shipped.settings.items()
    assert Pipeline.from_pretrained("embedded-anywhere").system is ANYWHERE


def test_the_camera_follows_the_walk() -> None:
    pipe = Pipeline.from_pretrained("embedded-anywhere")
    model = of_model(pipe, pipe.settings["steps"], pipe.settings["guidance_scale"])

    def answer(travel: Travel) -> np.ndarray:
        return model(Task(0, travel, KINDS[TRAVEL]))

    chosen = [paired(answer, twins(seed, 24, 64))["pan choice"] for seed in range(6)]
    assert np.mean(chosen) > 0.5  # what a model comes to that does not read the camera off the poses


def _first_interaction(number: int, frames: int, size: int) -> Interaction:
    return sample_interaction(TOUCHING[number], frames, size)


def test_the_demo_shows_a_limb_in_front_and_behind() -> None:
    *touching, one, other, _ = (task.given for task in _examples(Setup.of(INTERACTION, 5, 2, 48)))
    assert len(touching) == 2 and touching[0].objects.any()
    assert np.array_equal(one.pose, other.pose) and np.array_equal(one.mask, other.mask)
    assert not np.array_equal(one.depth, other.depth) and not np.array_equal(one.truth.frames, other.truth.frames)


@pytest.mark.parametrize(
    ("model", "sample", "side", "columns", "baselines"),
    [
        ("embedded", sample_bold_swap, 256, 5, BASELINES),
        ("embedded-animate", sample_bold_animation, 80, 4, ANIMATION_BASELINES),
        ("embedded-animate2", _first_interaction, 128, 5, INTERACTION_BASELINES),
        ("embedded-anywhere", partial(sample_travel, kind="follow"), 64, 5, TRAVEL_BASELINES),
    ],
    ids=["demo", "demo-animate", "demo-animate2", "demo-anywhere"],
)
def test_the_demo_leaves_a_video_a_sheet_and_a_report(
    tmp_path: Path, model: str, sample: Callable, side: int, columns: int, baselines: dict
) -> None:
    folder, done = tmp_path / "new" / "demo", []
    report = run(folder, 1, model, lambda *progress: done.append(progress))
    assert done == [(1, 1)]
    assert {path.name for path in folder.iterdir()} == {"report.json", "result.mp4", "sheet.png"}
    info = probe(folder / "result.mp4")
    assert (info.frames, info.width, info.height) == (24, columns * 256, 256)
    task, whole = sample(0, 24, side), (0, 0, side, side)
    for frame, truth in zip(read_frames(folder / "result.mp4"), task.truth.frames, strict=True):
        first, last = frame[:, :256].astype(int), frame[:, -256:].astype(int)
        assert np.abs(first - resample(task.reference[..., :3], whole, (256, 256))).mean() < 4
        assert np.abs(last - resample(truth, whole, (256, 256))).mean() < 4
    with Image.open(folder / "sheet.png") as sheet:
        assert np.asarray(sheet).std() > 20
    assert json.loads((folder / "report.json").read_text()) == report
    assert set(report["mean_region_psnr_db"]) == {"result", *baselines}
    assert report["mean_region_psnr_db"]["result"] == pytest.approx(report["region_psnr_db"][0]["result"])
