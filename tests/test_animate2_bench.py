"""PuppetBench's interactions: exact truths, pairs that differ in one thing, and scores that know the blind."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_animate2

from anycharv_core.bench.exchange import export
from anycharv_core.bench.interaction import PROBES, asked, choice, growth, joint_error, probe
from anycharv_core.bench.puppets import measure, of_model, references, tasks_of
from anycharv_core.bench.tasks import INTERACTION, KINDS, Setup, Task
from anycharv_core.inference.pipeline import Pipeline
from anycharv_core.media.masks import block_masks
from anycharv_core.puppets.interaction import (
    Interaction,
    contact_region,
    grown_task,
    object_pair,
    order_pair,
    outline_pair,
    sample_interaction,
)

FRAMES, SIZE = 2, 48
SEEDS = range(4)  # one of each act


@pytest.fixture(scope="module", params=SEEDS)
def task(request: pytest.FixtureRequest) -> Interaction:
    return sample_interaction(request.param, FRAMES, SIZE, flow=True)


def given(task: Interaction) -> tuple[np.ndarray, ...]:
    """All that a system is shown, the scene being cut by the mask."""
    hidden = block_masks(task.mask, 1, 1) > 0
    return (task.driving.frames * ~hidden[..., None], task.mask, task.pose, task.reference)


def test_another_character_does_the_same_with_the_same_thing(task: Interaction) -> None:
    assert task.truth.parts is not None and task.driving.parts is not None
    assert np.array_equal(task.truth.keypoints, task.driving.keypoints)
    outside = (task.driving.mask == 0) & (task.truth.mask == 0)
    assert np.array_equal(task.truth.frames[outside], task.driving.frames[outside])
    assert task.truth.parts.objects.any() == task.objects.any()
    assert (task.mask[task.driving.mask == 0] == 0).all()
    if task.objects.any():
        assert (task.emptied != task.truth.frames).any()
        touching = contact_region(task.truth.parts)
        assert touching.any() and touching.sum() < task.truth.mask.astype(bool).sum() * 3
    else:
        assert np.array_equal(task.emptied, task.truth.frames)


@pytest.mark.parametrize("seed", SEEDS)
def test_pairs_differ_in_one_thing_alone(seed: int) -> None:
    one, two = order_pair(seed, FRAMES, SIZE)
    assert all(map(np.array_equal, given(one), given(two)))
    assert not one.objects.any() and not np.array_equal(one.depth, two.depth)
    one, two = object_pair(seed, FRAMES, SIZE)
    assert all(map(np.array_equal, given(one), given(two))) and np.array_equal(one.objects, two.objects)
    assert np.array_equal(one.depth, two.depth) and (one.truth.frames != two.truth.frames).any()
    assert (one.mask[one.objects > 0] == 255).all()
    one, two = outline_pair(seed, FRAMES, SIZE)
    assert np.array_equal(one.truth.frames, two.truth.frames) and not np.array_equal(one.mask, two.mask)
    assert np.array_equal(one.depth, two.depth)
    larger = grown_task(seed, FRAMES, SIZE)
    assert (larger.truth.mask[larger.box == 0] > 0).any()
    assert not np.array_equal(larger.poses().people[0], larger.driving.poses().people[0])


def test_who_sees_nothing_of_it_is_right_half_the_time() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (FRAMES, SIZE, SIZE, 3), np.uint8)
    for seed in SEEDS:
        scores = probe(lambda task: noise, asked(seed, FRAMES, SIZE))
        assert scores["order choice"] in (0.5,) or np.isnan(scores["order choice"])
        assert scores["object choice"] == 0.5 and scores["leak"] == 0


def test_the_truth_is_always_right() -> None:
    scores = probe(lambda task: task.truth.frames, asked(0, FRAMES, SIZE))
    assert scores == {"order choice": 1, "object choice": 1, "leak": 0, "growth": 1}
    assert set(PROBES) == {*scores, "joint error"}
    one, two = object_pair(0, FRAMES, SIZE)
    assert choice(two.truth.frames, one.truth.frames, one, two) == 0
    assert growth(lambda task: task.driving.frames, grown_task(0, FRAMES, SIZE)) == 0


def test_joints_are_compared_with_what_lies_between() -> None:
    frames = np.zeros((18, 8, 8, 3), np.uint8)
    frames[16:] = 30  # a jump where the second window begins
    still, region = np.zeros((17, 8, 8, 2), np.float32), np.ones((18, 8, 8), bool)
    assert joint_error(frames, still, region) == 30
    assert joint_error(frames[::-1], still, region) == pytest.approx(-30 / 16)
    assert "no joint" in str(joint_error(frames[:16], still[:15], region[:16]))


def test_a_model_is_given_what_it_reads_and_every_score_is_there(tmp_path: Path) -> None:
    pipe = Pipeline.from_pretrained(tiny_animate2.make(tmp_path / "model"))
    assert tasks_of(pipe)[0] == INTERACTION
    setup = Setup(1, FRAMES, SIZE, INTERACTION)
    methods = references(INTERACTION) | {
        "model": of_model(pipe, 1, 1.0),
        "theirs": lambda task: task.given.driving.frames,
    }
    report, _ = measure(methods, setup, "none here", elsewhere=["theirs"])
    scores = report["methods"]["model"]
    assert {f"{region} PSNR" for region in KINDS[INTERACTION].regions} <= set(scores) and set(PROBES) <= set(
        scores
    )
    assert report["methods"]["truth"]["object choice"]["mean"] == 1
    assert "not exported" in report["methods"]["theirs"]["leak"]["not measured"]
    with_all, without = (
        of_model(pipe, 1, 1.0)(Task(0, each, KINDS[INTERACTION]))
        for each in (sample_interaction(2, FRAMES, SIZE), _empty(sample_interaction(2, FRAMES, SIZE)))
    )
    assert not np.array_equal(with_all, without)


def test_depth_twins_get_one_answer_where_depth_is_not_given(tmp_path: Path) -> None:
    pipe = Pipeline.from_pretrained(tiny_animate2.make(tmp_path / "model"))
    one, two = order_pair(0, FRAMES, SIZE)

    def latents(task: Interaction, **extras: np.ndarray) -> np.ndarray:
        given = {"scene": task.driving.frames, "mask": task.mask, "pose": task.poses()}
        return pipe(task.reference, **given, **extras, steps=1).latents.numpy()

    assert np.array_equal(latents(one), latents(two))
    assert not np.array_equal(latents(one, depth=one.depth), latents(two, depth=two.depth))


def _empty(task: Interaction) -> Interaction:
    assert task.acted.parts is not None
    parts = replace(task.acted.parts, objects=np.zeros_like(task.acted.parts.objects))
    return replace(task, acted=replace(task.acted, parts=parts))


def test_tasks_are_exported_with_objects_and_depth(tmp_path: Path) -> None:
    export(tmp_path / "tasks", Setup(1, FRAMES, SIZE, INTERACTION))
    assert json.loads((tmp_path / "tasks" / "bench.json").read_text())["task"] == INTERACTION
    for name in ("objects", "depth", "masks", "driving"):
        assert len(list((tmp_path / "tasks" / "task_0000" / name).glob("*.png"))) == FRAMES
