"""PuppetBench's journeys: choices between twins, what the baselines come to, and files for other systems."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_anywhere
import torch
from PIL import Image

from anycharv_core.bench.attention import MASSES
from anycharv_core.bench.exchange import export, of_folder, read_setup
from anycharv_core.bench.metrics import psnr
from anycharv_core.bench.puppets import TRUTH, look_of, measure, of_model, references, tasks_of
from anycharv_core.bench.tasks import KINDS, TRAVEL, Setup, Task
from anycharv_core.bench.travel import OWN, PAIRED, own, paired, still_plate, twins, warped_plate
from anycharv_core.checkpoints.cogvideox import without_base
from anycharv_core.checkpoints.single_file import write_single
from anycharv_core.cli import main
from anycharv_core.inference.anywhere import AnywhereBackend
from anycharv_core.inference.pipeline import Pipeline
from anycharv_core.jobs.demo import run as run_demo
from anycharv_core.puppets.travel import Travel, sample_travel

FRAMES, SIZE = 9, 64


def test_who_does_not_read_the_camera_off_the_poses_is_right_half_the_time() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (FRAMES, SIZE, SIZE, 3), np.uint8)

    def shadows(travel: Travel) -> np.ndarray:
        """The right characters and shadows on a camera at rest."""
        bare = (travel.truth.frames == travel.truth.background).all(-1, keepdims=True)
        return np.where(bare, travel.background, travel.truth.frames)

    def passing(travel: Travel) -> np.ndarray:
        """A plate that slides by, however the person moves."""
        return np.stack([np.roll(travel.background, 2 * frame, axis=1) for frame in range(FRAMES)])

    for seed in range(3):
        assert paired(lambda task: shadows(task), twins(seed, FRAMES, SIZE))["pan choice"] == 0.5
    for seed in range(6):
        pairs = twins(seed, FRAMES, SIZE)
        for blind in (lambda task: noise, still_plate, passing):
            assert paired(blind, pairs) == dict.fromkeys(PAIRED, 0.5), (seed, blind)


def test_the_truth_and_the_true_cameras_are_always_right() -> None:
    for seed in range(3):
        pairs = twins(seed, FRAMES, SIZE)
        assert paired(lambda task: task.truth.frames, pairs) == dict.fromkeys(PAIRED, 1.0)
        assert paired(warped_plate, pairs) == dict.fromkeys(PAIRED, 1.0)


@pytest.mark.parametrize("kind", ("follow", "truck"))
def test_a_plate_that_moves_scores_higher_than_one_that_does_not(kind: str) -> None:
    for seed in range(2):
        travel = sample_travel(seed, 24, SIZE, kind=kind)
        still, warped, truth = (
            own(travel, made) for made in (still_plate(travel), warped_plate(travel), travel.truth.frames)
        )
        assert still["moving PSNR"] + 1 < warped["moving PSNR"] < truth["moving PSNR"]
        assert still["flow error"] > 2 * warped["flow error"]
        assert truth["flow error"] < 0.4


def test_a_camera_at_rest_has_no_motion_to_score() -> None:
    travel = sample_travel(0, FRAMES, SIZE, kind="static")
    assert np.isnan(list(own(travel, travel.truth.frames).values())).all()


def test_every_score_is_reported_and_pairs_are_for_models_alone() -> None:
    setup = Setup(3, FRAMES, SIZE, TRAVEL)
    report, rows = measure(
        references(TRAVEL) | {"theirs": still_plate_of}, setup, "none here", elsewhere=["theirs"]
    )
    scores = report["methods"]
    wanted = {f"{region} PSNR" for region in KINDS[TRAVEL].regions} | set(PAIRED) | set(OWN) | set(MASSES)
    assert all(wanted <= set(each) for each in scores.values())
    assert scores[TRUTH]["pan choice"]["mean"] == 1 and scores["still plate"]["pan choice"]["mean"] == 0.5
    assert "not exported" in scores["theirs"]["zoom choice"]["not measured"]
    assert len(rows) == 3


def test_a_model_is_given_its_background_and_looked_into(tmp_path: Path) -> None:
    model = tmp_path / "anywhere.safetensors"
    write_single(tiny_anywhere.checkpoint(), model, torch.float32)
    pipe = Pipeline.from_pretrained(model)
    assert tasks_of(pipe) == (TRAVEL,)
    look = look_of(pipe)
    assert look is not None
    moving = next(n for n in range(6) if sample_travel(n, 16, 32).kind == "follow")
    task = Task(moving, sample_travel(moving, 16, 32), KINDS[TRAVEL])
    longer = Task(moving, sample_travel(moving, 17, 32), KINDS[TRAVEL])
    for scores in map(look, (task, longer)):
        assert 0 < scores["tail mass"] < 1 and 0 < scores["band mass"] < 1
    report, _ = measure({"model": of_model(pipe, 1, 1.0)}, Setup(1, 8, 32, TRAVEL), "none", looks={"model": look})
    assert report["methods"]["model"]["pan choice"]["clips"] == 1
    assert set(MASSES) <= set(report["methods"]["model"])
    given = sample_travel(moving, 8, 32)
    one, other = (
        Task(moving, replace(given, background=picture), KINDS[TRAVEL])
        for picture in (given.background, given.background[::-1].copy())
    )
    run = of_model(pipe, 1, 1.0)
    assert not np.array_equal(run(one), run(other))


def test_a_model_is_scored_beside_its_base_and_with_the_ceiling_of_whole_clips(tmp_path: Path) -> None:
    whole, tied = tiny_anywhere.checkpoint(), tmp_path / "tied.safetensors"
    write_single(without_base(whole), tied, torch.float32)
    options = ["--clips", "1", "--frames", str(FRAMES), "--size", "32", "--steps", "1", "--cfg", "1"]
    base, out = tiny_anywhere.write_base(whole, tmp_path / "base"), tmp_path / "out"
    given = ["--model", str(tied), "--base", str(base), *options, "--out", str(out)]
    assert main(["bench", "puppets", *given]) == 0
    scores = json.loads((out / "puppets.json").read_text())["methods"]
    pipe, truth = Pipeline.from_pretrained(tied, base=base), sample_travel(0, FRAMES, 32).truth
    assert isinstance(pipe.backend, AnywhereBackend)
    seen = pipe.backend.decode(pipe.backend.encode_clip(truth.frames))
    expected = psnr(seen, truth.frames, np.ones(truth.mask.shape, bool))
    assert scores["the model's autoencoder"]["frame PSNR"]["mean"] == pytest.approx(expected)
    assert scores["tied, 1 step, guidance 1"].keys() >= MASSES.keys()


@pytest.mark.parametrize("frames", [7, 10])
def test_frames_that_are_no_clip_are_one_sentence(
    frames: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "anywhere.safetensors"
    write_single(tiny_anywhere.checkpoint(), model, torch.float32)
    options = ["--model", str(model), "--clips", "1", "--frames", str(frames), "--size", "32"]
    assert main(["bench", "puppets", *options, "--out", str(tmp_path / "out")]) == 2
    assert f"A clip of {frames} frames can't be made" in capsys.readouterr().err.splitlines()[-1]


def test_the_sheet_of_a_demo_shows_where_a_journey_leads(tmp_path: Path) -> None:
    model = tmp_path / "anywhere.safetensors"
    checkpoint = tiny_anywhere.checkpoint()
    checkpoint.settings |= {"steps": 1, "guidance_scale": 1.0, "world": "travel"}
    write_single(checkpoint, model, torch.float32)
    report = run_demo(tmp_path / "demo", 1, str(model))
    task = sample_travel(0, 24, SIZE, kind="follow")
    still = psnr(still_plate(task), task.truth.frames, np.ones(task.region.shape, bool))
    assert report["task"] == TRAVEL and report["mean_region_psnr_db"]["still plate"] == pytest.approx(
        still, abs=0.01
    )
    with Image.open(tmp_path / "demo" / "sheet.png") as sheet:
        assert 11 * 256 < sheet.width < 12 * 256  # reference and background; pose, result and truth three times


def still_plate_of(task) -> np.ndarray:
    return still_plate(task.given)


def test_tasks_are_exported_and_what_comes_back_is_scored(tmp_path: Path) -> None:
    folder = tmp_path / "tasks"
    export(folder, Setup(1, 4, 48, TRAVEL))
    assert json.loads((folder / "bench.json").read_text())["task"] == TRAVEL
    task = folder / "task_0000"
    with Image.open(task / "background.png") as plate, Image.open(task / "reference.png") as reference:
        assert plate.size == (48, 48) and reference.mode == "RGBA"
        (task / "frames").mkdir()
        for t in range(4):
            plate.save(task / "frames" / f"{t:06d}.png")
    assert read_setup(folder) == Setup(1, 4, 48, TRAVEL)
    of_folder(folder)
    assert main(["bench", "puppets", "--score", str(folder), "--out", str(tmp_path / "out")]) == 0
    scores = json.loads((tmp_path / "out" / "puppets.json").read_text())["methods"]
    assert scores["tasks"]["background PSNR"] == scores["still plate"]["background PSNR"]
