"""PuppetBench: scores whose values are known, tasks that go out and frames that come back."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import ClassVar

import cv2
import needs
import numpy as np
import pytest
import torch
from PIL import Image
from tiny_alexnet import alexnet

from anycharv_core import Pipeline, UserError
from anycharv_core.bench import puppets
from anycharv_core.bench.drift import DRIFTS
from anycharv_core.bench.exchange import export, of_folder, read_setup
from anycharv_core.bench.lpips import Lpips, load_lpips
from anycharv_core.bench.metrics import _grey, _ssim_map, psnr
from anycharv_core.bench.puppets import measure, of_model, references, score
from anycharv_core.bench.report import markdown, summarise, write_report
from anycharv_core.bench.seam import SEAMS
from anycharv_core.bench.tasks import ANIMATION, BOLD_ANIMATION, BOLD_SWAP, KINDS, SWAP, Setup, tasks
from anycharv_core.cli import main
from anycharv_core.jobs.bench import PuppetJob, _model
from anycharv_core.jobs.inputs import mask_frames, open_skeletons, read_reference
from anycharv_core.media.canvas import Canvas, CanvasPath
from anycharv_core.media.masks import box_masks
from anycharv_core.media.sheet import GAP, PAPER, TITLE, sheet
from anycharv_core.media.video_read import read_frames
from anycharv_core.media.video_write import write_masks
from anycharv_core.puppets.task import pose_pictures
from anycharv_core.systems.animate_anyone import ANIMATE_ANYONE
from anycharv_core.systems.anycharv import ANYCHARV
from anycharv_core.systems.system import System

SETUP = Setup(clips=3, frames=3, size=48)
WHY = "no weights"


@pytest.fixture(scope="module", params=[SWAP, ANIMATION])
def task(request):
    return next(tasks(Setup(1, 4, 64, request.param)))


@pytest.fixture(scope="module")
def swap():
    return next(tasks(Setup(1, 4, 64))).given


def test_the_truth_scores_best(task) -> None:
    found = score(task, task.given.truth.frames, WHY)
    assert [found[f"{region} PSNR"] for region in task.kind.regions] == pytest.approx([148.1308] * 3)
    assert [found[name] for name in ("character SSIM", "identity", "sharpness")] == pytest.approx([1, 1, 1])
    assert found["character LPIPS"] == WHY
    assert [found[name] for name in DRIFTS] == [0, 0, 0]
    # What an animation shows is pasted nowhere.
    assert {name: found[name] for name in SEAMS if name in found} == (
        dict.fromkeys(SEAMS, 0) if task.kind is KINDS[SWAP] else {}
    )


def test_every_region_sees_its_own_errors(task) -> None:
    masks = task.kind.masks(task.given)
    assert masks.keys() == task.kind.regions.keys()
    for name, mask in masks.items():
        made = task.given.truth.frames.copy()
        made[mask] = np.where(made[mask] < 128, made[mask] + 10, made[mask] - 10)
        found = score(task, made, WHY)
        assert found[f"{name} PSNR"] == pytest.approx(20 * math.log10(25.5))
        for other in ("character", "background"):
            if not (masks[other] & mask).any():
                assert found[f"{other} PSNR"] == pytest.approx(148.1308)


def test_the_regions_are_what_they_are_said_to_be() -> None:
    swap, animation = (next(tasks(Setup(1, 3, 64, kind))).given for kind in (SWAP, ANIMATION))
    masks = KINDS[SWAP].masks(swap)
    assert np.array_equal(masks["character"], (swap.driving.mask > 0) | (swap.truth.mask > 0))
    assert np.array_equal(masks["background"], ~masks["character"] & (swap.box == 0))
    masks = KINDS[ANIMATION].masks(animation)
    assert np.array_equal(masks["character"], ~masks["background"]) and masks["frame"].all()
    # Whoever leaves the old character standing is marked down where no character should be.
    left = (animation.cutout > 0) & ~(animation.truth.mask > 0)
    assert left.any() and masks["character"][left].all()
    # What is background is the reference's, but for shadows, which darken.
    apart = animation.truth.frames.astype(int) - animation.reference
    changed = masks["background"] & (np.abs(apart).max(axis=-1) > 3)
    assert changed.mean() < 0.1


def test_identity_knows_colours_and_not_where_the_character_stands(swap) -> None:
    driver, truth = swap.driving.frames, swap.truth.frames
    other = puppets.identity(swap.truth, driver)
    assert other < 0.8
    swapped = truth[..., ::-1].copy()
    assert puppets.identity(swap.truth, swapped) < 0.8
    noisy = np.clip(truth + np.random.default_rng(0).normal(0, 3, truth.shape), 0, 255).astype(np.uint8)
    assert puppets.identity(swap.truth, noisy) > 0.9
    background = np.where((swap.truth.mask > 0)[..., None], truth, 0)
    assert puppets.identity(swap.truth, background) == pytest.approx(1)


def test_a_seam_at_the_box_and_a_drift_towards_the_end_are_seen() -> None:
    swap = next(tasks(Setup(1, 4, 64)))
    truth, box = swap.given.truth.frames, swap.given.box > 0
    brighter = np.where(box[..., None], np.minimum(truth, 215) + np.uint8(40), truth)
    found = score(swap, brighter, WHY)
    assert found["seam error"] > 10 and found["seam jump"] > 5
    assert found["colour drift"] < 1
    late = truth.copy()
    late[-1] = brighter[-1]
    assert score(swap, late, WHY)["colour drift"] > 5


def test_flicker_raises_the_warp_error_alone(task) -> None:
    truth = task.given.truth.frames
    made = truth.astype(int)
    made[::2] += 12
    made = np.clip(made, 0, 255).astype(np.uint8)
    steady, flickering = (score(task, frames, WHY)["warp error"] for frames in (truth, made))
    assert flickering > steady + 3
    one = next(tasks(Setup(1, 1, 48)))
    assert "2 or more" in score(one, one.given.truth.frames, WHY)["warp error"]


def test_our_ssim_is_that_of_torchmetrics_on_floats() -> None:
    functional = needs.installed("torchmetrics", module="torchmetrics.functional.image")
    rng = np.random.default_rng(0)
    a = rng.integers(256, size=(40, 37), dtype=np.uint8)
    b = np.clip(a + rng.normal(0, 30, a.shape), 0, 255).astype(np.uint8)
    ours = _ssim_map(*(_grey(np.repeat(x[..., None], 3, axis=2)) for x in (a, b)))
    as_float = [torch.as_tensor(x)[None, None].double() for x in (a, b)]
    _, theirs = functional.structural_similarity_index_measure(*as_float, data_range=255.0, return_full_image=True)
    np.testing.assert_allclose(ours, theirs[0, 0].numpy(), atol=1e-12)
    everywhere = np.ones(a.shape, bool)
    pictures = [np.repeat(x[..., None], 3, axis=2) for x in (a, b)]
    theirs = functional.peak_signal_noise_ratio(*as_float, data_range=255.0)
    assert psnr(*pictures, everywhere) == pytest.approx(float(theirs), abs=1e-5)


def test_intervals_are_those_of_resampled_means() -> None:
    rng = np.random.default_rng(1)
    values = rng.normal(10, 2, 400).tolist()
    found = summarise(values)
    assert found["mean"] == pytest.approx(np.mean(values)) and found["clips"] == 400
    # For a mean of many values the bootstrap is the normal interval.
    half = 1.96 * np.std(values) / 20
    assert found["high"] - found["mean"] == pytest.approx(half, rel=0.1)
    assert found["mean"] - found["low"] == pytest.approx(half, rel=0.1)
    assert summarise(values) == found
    assert summarise([3.0, 3.0, math.nan]) == {"mean": 3.0, "low": 3.0, "high": 3.0, "clips": 2}
    assert summarise([math.inf, math.inf])["low"] == math.inf
    assert summarise("why") == {"not measured": "why"}
    assert "not measured" in summarise([math.nan])


def test_the_table_and_the_json_say_what_was_not_measured(tmp_path: Path) -> None:
    rows = {"one": {"a": summarise([1.0, 1.0]), "b": summarise("no weights")}, "two": {"a": summarise([20.5])}}
    rows["two"]["b"] = rows["one"]["b"]
    table = markdown(rows, "method")
    assert "| one | 1.000 [1.000, 1.000] | not measured |" in table and "| 20.50 [20.50, 20.50] |" in table
    assert table.endswith("- b not measured: no weights\n")
    write_report(tmp_path, "x", {"values": [math.inf, math.nan, 1.0]}, table)
    assert json.loads((tmp_path / "x.json").read_text())["values"] == ["inf", None, 1.0]
    assert (tmp_path / "x.md").read_text() == table


def test_measuring_twice_gives_the_same_and_longer_runs_keep_their_tasks() -> None:
    methods = references()
    first, rows = measure(methods, SETUP, WHY)
    again, _ = measure(methods, Setup(2, 3, 48), WHY)
    for name in methods:
        kept = first["clips"][name]["identity"]
        assert len(kept) == 3 and kept[:2] == again["clips"][name]["identity"]
    assert first["methods"]["truth"]["character LPIPS"] == {"not measured": WHY}
    means = [first["methods"][name]["character PSNR"]["mean"] for name in ("truth", "copy driving")]
    assert means[0] > means[1] + 100
    assert sheet(rows, puppets.sheet_titles(methods)).width > 7 * 192


def test_titles_of_a_sheet_keep_to_their_columns() -> None:
    row = [np.zeros((40, 96, 3), np.uint8)] * 4
    short = sheet([row], ["a", "b", "c", ""])
    long = sheet([row], ["character composited, hands empty", "reference pasted into the box", "over two", ""])
    head = np.asarray(long)[: long.height - short.height + TITLE]
    assert long.height > short.height and long.width == short.width
    between = [GAP + column * (96 + GAP) - GAP + place for column in (0, 1, 2, 4) for place in range(GAP)]
    assert (head[:, between] == PAPER).all() and (head[:, 3 * (96 + GAP) - 40 : 3 * (96 + GAP)] != PAPER).any()


def test_animations_have_baselines_of_their_own() -> None:
    setup = Setup(3, 3, 48, ANIMATION)
    methods = references(ANIMATION)
    report, rows = measure(methods, setup, WHY)
    found = report["methods"]
    assert report["setup"]["task"] == ANIMATION and report["regions"] == KINDS[ANIMATION].regions
    assert [row["frame PSNR"]["clips"] for row in found.values()] == [3] * 4
    assert all("box PSNR" not in row for row in found.values())
    still, erased, moved = list(found)[1:]
    # The still picture has the colours and never moves; the pasted one is where it should be.
    assert found[moved]["character PSNR"]["mean"] > found[still]["character PSNR"]["mean"]
    assert found[moved]["identity"]["mean"] > found[erased]["identity"]["mean"]
    assert sheet(rows, puppets.sheet_titles(methods, ANIMATION)).width > 6 * 192
    given = next(tasks(setup)).given
    frames = {name: method(next(tasks(setup))) for name, method in methods.items()}
    assert np.array_equal(frames[still], np.stack([given.reference] * 3))
    scene = given.cutout == 0
    assert np.array_equal(frames[erased][:, scene], frames[still][:, scene])
    boxes = box_masks(given.truth.mask, 0.0, 0) > 0
    changed = (frames[moved] != frames[erased]).any(axis=-1)
    assert changed.any() and not (changed & ~boxes).any()


def test_a_model_is_shown_the_task_and_never_the_truth() -> None:
    task = next(tasks(SETUP))
    shown = {}

    class Model:
        def __init__(self):
            self.settings, self.system = {"pose_scale": 4}, ANYCHARV

        def __call__(self, reference, scene, mask, pose, **settings):
            shown.update(reference=reference, scene=scene, mask=mask, pose=pose, **settings)
            self.frames = scene.copy()
            return self

    swap = task.given
    made = of_model(Model(), 3, 2.0, seed=7)(task)
    assert np.array_equal(shown["reference"], swap.reference) and np.array_equal(shown["mask"], swap.box)
    assert np.array_equal(shown["scene"], swap.driving.frames) and np.array_equal(made, swap.driving.frames)
    for given, expected in zip(shown["pose"].people, swap.poses().people, strict=True):
        assert np.array_equal(given, expected, equal_nan=True)
    assert (shown["steps"], shown["guidance_scale"], shown["seed"]) == (3, 2.0, 7)
    made = of_model(Model(), 1, 1.0, fine=True, cut=True)(task)
    mask = swap.driving.mask
    assert np.array_equal(shown["mask"], mask) and not shown["scene"][mask > 0].any()
    inside = box_masks(mask, 0.0, 0) > 0
    assert np.array_equal(made[~inside], swap.driving.frames[~inside])


def test_a_model_of_animate_anyone_is_shown_reference_and_pose_alone() -> None:
    setup = Setup(1, 3, 48, ANIMATION)
    shown = {}

    class Model:
        settings, system = {"pose_scale": 2}, ANIMATE_ANYONE

        def __call__(self, reference, **given):
            shown.update(reference=reference, **given)
            self.frames = np.stack([reference] * 3)
            return self

    task = next(tasks(setup))
    assert puppets.tasks_of(Model()) == (ANIMATION, BOLD_ANIMATION)
    assert np.array_equal(of_model(Model(), 2, 1.5)(task)[0], task.given.reference)
    pose = shown.pop("pose")
    assert (len(pose), pose.size) == (3, (48, 48)) and shown.pop("reference").shape == (48, 48, 3)
    assert shown == {"steps": 2, "guidance_scale": 1.5, "seed": 42, "size": (48, 48), "canvas": "frame"}


def test_tasks_go_out_and_frames_come_back(tmp_path: Path) -> None:
    folder = tmp_path / "tasks"
    export(folder, SETUP)
    assert read_setup(folder) == SETUP
    for task in tasks(SETUP):
        place, swap = folder / task.name, task.given
        assert np.array_equal(read_reference(place / "reference.png"), swap.reference)
        driving = [next(read_frames(path)) for path in sorted((place / "driving").iterdir())]
        assert np.array_equal(driving, swap.driving.frames)
        assert np.array_equal(list(mask_frames(place / "masks", (48, 48))), swap.driving.mask)
        assert np.array_equal(list(mask_frames(place / "boxes.json", (48, 48))), swap.box)
        skeletons = open_skeletons(place / "poses.json", (48, 48))
        assert skeletons.count == 3 and skeletons.size == (48, 48)
        assert np.array_equal(pose_pictures(swap.driving.poses(), (48, 48))[0].shape, (48, 48, 3)) and list(
            skeletons.drawn(skeletons.size, CanvasPath(Canvas((48, 48), (48, 48), (48, 48))))
        )
        assert len(list(read_frames(place / "driving.mp4"))) == 3
        assert sorted(path.name for path in place.iterdir()) == [
            "boxes.json",
            "driving",
            "driving.mp4",
            "masks",
            "poses.json",
            "reference.png",
            "skeletons",
        ]
        (place / "frames").mkdir()
        for index, frame in enumerate(swap.truth.frames):
            # Numbers without leading zeros, whose plain order would be 1, 10, 2.
            Image.fromarray(frame).save(place / "frames" / f"{8 + index}.png")
    report, _ = measure({"peer": of_folder(folder)}, SETUP, WHY)
    assert report["methods"]["peer"]["character PSNR"]["low"] == pytest.approx(148.1308)
    with pytest.raises(UserError, match="not an empty folder"):
        export(folder, SETUP)


def test_animations_go_out_and_the_folder_knows_what_they_are(tmp_path: Path, capsys) -> None:
    folder = tmp_path / "tasks"
    words = ["--task", "animation", "--clips", "1", "--frames", "2", "--size", "48"]
    assert main(["bench", "puppets", *words, "--export", str(folder)]) == 0
    setup = read_setup(folder)
    assert setup == Setup(1, 2, 48, ANIMATION)
    task = next(tasks(setup))
    place = folder / task.name
    assert sorted(path.name for path in place.iterdir()) == [
        "poses.json",
        "reference.png",
        "reference_mask.png",
        "skeletons",
    ]
    assert np.array_equal(read_reference(place / "reference.png"), task.given.reference)
    assert np.array_equal(np.asarray(Image.open(place / "reference_mask.png")), task.given.cutout)
    assert len(list((place / "skeletons").iterdir())) == 2
    assert "reference_mask.png" in (folder / "README.md").read_text()
    (place / "frames").mkdir()
    for index, frame in enumerate(task.given.truth.frames):
        Image.fromarray(frame).save(place / "frames" / f"{index}.png")
    capsys.readouterr()
    scored = ["bench", "puppets", "--score", str(folder), "--out", str(tmp_path / "out")]
    assert main(scored) == 0
    report = json.loads((tmp_path / "out" / "puppets.json").read_text())
    assert report["methods"]["tasks"]["frame PSNR"]["low"] == pytest.approx(148.1308)
    assert "task 'animation'" in (tmp_path / "out" / "puppets.md").read_text()
    assert main([*scored, "--task", "swap"]) == 2
    assert "is of the task 'animation', not 'swap'; leave --task out" in capsys.readouterr().err
    index = json.loads((folder / "bench.json").read_text())
    del index["task"]
    (folder / "bench.json").write_text(json.dumps(index))
    assert read_setup(folder).task == SWAP
    (folder / "bench.json").write_text(json.dumps(index | {"task": "dance"}))
    with pytest.raises(UserError, match="is not what"):
        read_setup(folder)


def test_frames_that_do_not_fit_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "tasks"
    export(folder, Setup(1, 2, 48))
    task = next(tasks(Setup(1, 2, 48)))
    method = of_folder(folder)
    with pytest.raises(UserError, match="holds nothing for 'frames'"):
        method(task)
    write_masks(folder / task.name / "frames", np.zeros((3, 48, 48), np.uint8))
    with pytest.raises(UserError, match="holds 3 frames of 48x48; the task has 2 frames of 48x48"):
        method(task)
    index = json.loads((folder / "bench.json").read_text())
    (folder / "bench.json").write_text(json.dumps(index | {"tasks": {task.name: "old"}}))
    with pytest.raises(UserError, match="exported by another version"):
        of_folder(folder)(task)
    (folder / "bench.json").write_text("{}")
    with pytest.raises(UserError, match="is not what"):
        read_setup(folder)


def test_lpips_is_zero_for_equals_and_grows_with_the_error(tmp_path: Path) -> None:
    lpips = Lpips(alexnet(tmp_path / "alexnet.pth"))
    rng = np.random.default_rng(0)
    truth = rng.integers(256, size=(2, 48, 64, 3), dtype=np.uint8)
    near, far = (np.clip(truth + rng.normal(0, s, truth.shape), 0, 255).astype(np.uint8) for s in (4, 60))
    assert lpips(truth, truth).tolist() == [0, 0]
    assert (lpips(near, truth) > 0).all() and (lpips(near, truth) < lpips(far, truth)).all()
    np.testing.assert_allclose(lpips(far, truth), lpips(truth, far), rtol=1e-5)
    with pytest.raises(UserError, match="32 pixels a side"):
        lpips(truth[:, :16], truth[:, :16])


def test_lpips_says_what_it_lacks(tmp_path: Path) -> None:
    assert "--lpips-weights" in load_lpips(None, "cpu")
    broken = tmp_path / "broken.pth"
    broken.write_bytes(b"no weights")
    with pytest.raises(UserError, match="is not a file of weights"):
        load_lpips(broken, "cpu")
    torch.save({"features.0.weight": torch.zeros(3)}, broken)
    with pytest.raises(UserError, match="does not hold torchvision's AlexNet"):
        load_lpips(broken, "cpu")


def test_what_cannot_be_written_or_scored_is_said_before_the_model_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["bench", "puppets", "--clips", "1", "--device", "cpu", "--dtype", "fp32", "--out"]
    (tmp_path / "taken" / "sheet.png").mkdir(parents=True)
    assert main([*words, str(tmp_path / "taken"), "--model", str(tmp_path / "unread")]) == 2
    assert "sheet.png: it is not an ordinary file" in capsys.readouterr().err
    (tmp_path / "broken.pth").write_bytes(b"no weights")
    broken = ["--lpips-weights", str(tmp_path / "broken.pth"), "--model", str(tmp_path / "unread")]
    assert main([*words, str(tmp_path / "out"), *broken]) == 2
    assert "broken.pth is not a file of weights" in capsys.readouterr().err


@pytest.mark.parametrize(("system", "guidance"), [(ANYCHARV, "3"), (ANIMATE_ANYONE, "3.5")])
def test_without_other_word_a_model_runs_with_its_systems_guidance(system: System, guidance: str) -> None:
    class Model:
        settings: ClassVar = {}

    model = Model()
    model.system = system
    names = list(_model(PuppetJob(model="made", out=Path("out")), model))
    assert names == [f"made, 1 step, guidance {guidance}", f"made, 30 steps, guidance {guidance}"]
    model.settings = {"steps": 7, "guidance_scale": 2.0}
    names = list(_model(PuppetJob(model="made", out=Path("out")), model))
    assert names == ["made, 1 step, guidance 2", "made, 7 steps, guidance 2"]
    model.settings["steps"] = 1
    assert list(_model(PuppetJob(model="made", out=Path("out")), model)) == ["made, 1 step, guidance 2"]


def test_the_command_scores_the_embedded_model_and_another_systems_frames(tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    size = ["--task", "swap", "--clips", "1", "--frames", "2"]
    weights = ["--lpips-weights", str(alexnet(tmp_path / "alexnet.pth"))]
    assert main(["bench", "puppets", *size, "--steps", "1", *weights, "--out", str(out)]) == 0
    report = json.loads((out / "puppets.json").read_text())
    model = report["methods"]["embedded, 1 step, guidance 1"]
    assert model["character PSNR"]["clips"] == 1
    assert model["character LPIPS"]["mean"] > 0 == report["methods"]["truth"]["character LPIPS"]["mean"]
    assert "| embedded, 1 step, guidance 1 |" in (out / "puppets.md").read_text()
    assert Image.open(out / "sheet.png").width > 8 * 192

    folder = tmp_path / "peer"
    assert main(["bench", "puppets", *size, "--export", str(folder)]) == 0
    pipe = Pipeline.from_pretrained("embedded")
    task = next(tasks(Setup(1, 2, 64)))
    made = of_model(pipe, 1, 1.0)(task)
    place = folder / task.name / "frames"
    place.mkdir()
    for index, frame in enumerate(made):
        Image.fromarray(frame).save(place / f"{index}.png")
    capsys.readouterr()
    assert main(["bench", "puppets", "--score", str(folder), "--out", str(out)]) == 0
    assert "not measured: give --lpips-weights" in capsys.readouterr().out
    peer = json.loads((out / "puppets.json").read_text())["methods"]["peer"]
    for metric in ("character PSNR", "identity", "warp error", "background PSNR"):
        assert peer[metric] == model[metric]


def test_the_command_scores_the_embedded_animation_model(tmp_path: Path, capsys) -> None:
    given = ["bench", "puppets", "--model", "embedded-animate", "--clips", "1", "--frames", "2"]
    assert main([*given, "--task", "swap", "--out", str(tmp_path)]) == 2
    assert (
        "embedded-animate can't be scored on the task 'swap'; use --task bold-animation" in capsys.readouterr().err
    )
    assert main([*given, "--out", str(tmp_path)]) == 0
    report = json.loads((tmp_path / "puppets.json").read_text())
    assert set(report["methods"]) == {
        *references(BOLD_ANIMATION),
        "the model's autoencoder",
        "embedded-animate, 1 step, guidance 1",
    }
    model = report["methods"]["embedded-animate, 1 step, guidance 1"]
    assert model["frame PSNR"]["clips"] == 1 and "box PSNR" not in model
    assert Image.open(tmp_path / "sheet.png").width > 7 * 160


def test_a_size_too_small_is_one_sentence(tmp_path: Path, capsys) -> None:
    assert main(["bench", "puppets", "--size", "8", "--clips", "1", "--out", str(tmp_path)]) == 2
    assert "32 or more" in capsys.readouterr().err


def test_bold_swaps_are_seen_through_a_canvas_that_follows(monkeypatch: pytest.MonkeyPatch) -> None:
    task = next(tasks(Setup(1, 3, 256, BOLD_SWAP)))
    pipe = Pipeline.from_pretrained("embedded")
    seen, encode = [], pipe.backend.encode
    monkeypatch.setattr(
        pipe.backend, "encode", lambda pictures: seen.append(pictures.shape[1:3]) or encode(pictures)
    )
    made = of_model(pipe, 1, 1.0)(task)
    assert set(seen) == {tuple(pipe.settings["size"][::-1])}, "the model works at its own size on 256 pixels"
    assert made.shape == task.given.truth.frames.shape
    outside = cv2.dilate(task.given.box.max(axis=0), np.ones((25, 25), np.uint8)) == 0
    np.testing.assert_array_equal(made[:, outside], task.given.driving.frames[:, outside])
    assert float(score(task, made, WHY)["character PSNR"]) > 5


def test_a_folder_that_was_not_exported_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "puppets", "--score", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert f"{tmp_path} has no bench.json; give the folder" in said and "--export" in said
