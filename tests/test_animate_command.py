"""`anycharv animate`: pictures and skeletons in, video out, and what it refuses."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import needs
import numpy as np
import pytest
from keypoint_files import draw_pose
from keypoint_files import write_frames as write_poses
from PIL import Image
from tiny_animate import FRAMES, figure, make
from tiny_animate import model as model

from anycharv_core import Pipeline
from anycharv_core.cli import main
from anycharv_core.media.video_read import probe, read_frames
from anycharv_core.media.video_write import VideoWriter, write_masks


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(256, size=(40, 24, 3), dtype=np.uint8)).save(tmp_path / "ref.png")
    write_poses(tmp_path / "pose.json", [figure((64, 96), 0.6, (i, 0)) for i in range(FRAMES)])
    write_poses(tmp_path / "character.json", [figure((24, 40), 0.3, (0, 0))])
    with VideoWriter(tmp_path / "scene.mp4", 32, 48, [0, 1, 3, 4, 9], Fraction(1, 10)) as writer:
        for _ in range(FRAMES):
            writer.write(rng.integers(256, size=(48, 32, 3), dtype=np.uint8))
    return {path.stem: path for path in tmp_path.iterdir()}


def animate(files: dict[str, Path], model: Path, *more: str) -> int:
    given = ["--reference", str(files["ref"]), "--pose", str(files["pose"]), "--model", str(model)]
    out = files["ref"].with_name("out.mp4")
    return main(["animate", *given, "--out", str(out), "--size", "32x32", "--steps", "1", *more])


def test_animate_writes_video_sheet_and_report(model: Path, files: dict, tmp_path: Path) -> None:
    character = ["--reference-pose", str(files["character"])]
    assert animate(files, model, *character, "--sheet", str(tmp_path / "sheet.png")) == 0
    info = probe(tmp_path / "out.mp4")
    assert (info.frames, info.rate, info.width, info.height) == (FRAMES, 24, 21, 32)
    report = json.loads((tmp_path / "out.report.json").read_text())
    assert report["settings"]["rescale"] and report["settings"]["guidance_scale"] == 3.5
    assert (tmp_path / "sheet.png").is_file()


def test_animate_in_front_of_a_clip_keeps_its_times(model: Path, files: dict, tmp_path: Path) -> None:
    mask = np.zeros((40, 24), np.uint8)
    mask[5:35, 4:20] = 255
    Image.fromarray(mask).save(tmp_path / "matte.png")
    matte = ["--reference-mask", str(tmp_path / "matte.png"), "--scene", str(files["scene"])]
    assert animate(files, model, *matte) == 0
    source, made = probe(files["scene"]), probe(tmp_path / "out.mp4")
    assert [t * made.time_base for t in made.timestamps] == [t * source.time_base for t in source.timestamps]
    assert (made.width, made.height) == (32, 48)
    assert animate(files, model, *matte, "--frames", "3", "--fps", "12") == 0
    assert (probe(tmp_path / "out.mp4").frames, probe(tmp_path / "out.mp4").rate) == (3, 12)


def test_a_skeleton_video_gives_its_times(model: Path, files: dict, tmp_path: Path) -> None:
    assert animate(files | {"pose": files["scene"]}, model, "--recipe", "official") == 0
    assert probe(tmp_path / "out.mp4").timestamps == probe(files["scene"]).timestamps
    assert len(list(read_frames(tmp_path / "out.mp4"))) == FRAMES


DWPOSE = needs.PARITY / "pose_drawing" / "real_dwpose.mp4"


@pytest.fixture(params=["drawn", pytest.param("of a real clip", marks=needs.recorded(DWPOSE))])
def skeletons(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A video of skeletons: ours, or what DWPose found in a filmed clip."""
    if request.param != "drawn":
        return DWPOSE
    with VideoWriter(tmp_path / "drawn.mp4", 94, 142, rate=Fraction(25)) as writer:
        for step in range(FRAMES):
            writer.write(draw_pose(figure((94, 142), 1.2, (2 * step - 20, 10))))
    return tmp_path / "drawn.mp4"


@pytest.mark.parametrize("which", ["embedded-animate", "v1", "v2"])
def test_a_video_of_skeletons_drives_every_model(skeletons: Path, which: str, files: dict, tmp_path: Path) -> None:
    chosen = Path(which) if which.startswith("embedded") else make(tmp_path / which, which == "v1")
    source = probe(skeletons)
    made = tmp_path / "out.mp4"
    for asked in ((36, 52), (100, 36)):
        size = ["--size", "x".join(map(str, asked)), "--frames", "3"]
        assert animate(files | {"pose": skeletons}, chosen, *size) == 0
        info = probe(made)
        scale = min(asked[0] / source.width, asked[1] / source.height)
        assert (info.width, info.height) == (round(scale * source.width), round(scale * source.height))
        assert (info.frames, info.rate) == (3, source.rate)
        assert all(frame.std() > 1 for frame in read_frames(made))


def test_without_a_model_the_embedded_one_animates_at_its_own_size(files: dict, tmp_path: Path) -> None:
    given = ["--reference", str(files["ref"]), "--pose", str(files["pose"]), "--frames", "2"]
    assert main(["animate", *given, "--out", str(tmp_path / "out.mp4")]) == 0
    report = json.loads((tmp_path / "out.report.json").read_text())
    settings = Pipeline.from_pretrained("embedded-animate").settings
    assert report["model"] == "embedded-animate" and report["frames"] == 2
    assert report["settings"]["steps"] == settings["steps"]
    width, height = report["output_size"]
    area = settings["size"][0] * settings["size"][1]
    assert width * height == pytest.approx(area, rel=0.15) and width / height == pytest.approx(64 / 96, rel=0.05)


def test_what_animate_refuses(
    model: Path, tiny_model: Path, files: dict, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    cases = [
        (model, ["--frames", "9"], "holds 5 poses but 9 frames are asked for"),
        (model, ["--size", "33x32"], "33x32 is not divisible by 2"),
        (model, ["--mask", str(files["scene"])], "a mask but no scene"),
        (model, ["--scene", str(files["scene"])], "needs a matte"),
        (model, ["--scene", str(files["scene"]), "--frames", "3", "--recipe", "official"], "knows no scene"),
        (tiny_model, [], "use 'anycharv generate'"),
        (model, ["--pose", str(tmp_path / "none.json")], "none.json is not there; check the path"),
        (model, ["--pose", str(tmp_path / "none.mp4")], "none.mp4 is not there; check the path"),
        ("embedded-animate", ["--size", "50x50"], "50x50 is not divisible by 4; use 48x48, say"),
    ]
    for chosen, more, sentence in cases:
        assert animate(files, chosen, *more) == 2
        said = capsys.readouterr().err
        assert sentence in said and said.count("\n") == 1
    assert not (tmp_path / "out.mp4").exists()


def test_what_does_not_fit_together_is_named_before_the_model_is_read(
    files: dict, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    with VideoWriter(tmp_path / "short.mp4", 32, 48, rate=Fraction(10)) as writer:
        for _ in range(FRAMES - 1):
            writer.write(np.zeros((48, 32, 3), np.uint8))
    write_masks(tmp_path / "short.mkv", [np.zeros((48, 32), np.uint8)] * (FRAMES - 1))
    write_poses(tmp_path / "wide.json", [figure((96, 64), 0.4, (0, 0))] * FRAMES)
    short, scene = str(tmp_path / "short.mp4"), str(files["scene"])
    cases = [
        (["--scene", short, "--mask", short], "short.mp4 has 4 frames but there are 5 poses"),
        (["--scene", short, "--frames", "5"], "short.mp4 has 4 frames but there are 5 poses"),
        (
            ["--scene", scene, "--mask", str(tmp_path / "short.mkv")],
            "short.mkv has 4 frames but there are 5 poses",
        ),
        (["--scene", scene, "--pose", short], "scene.mp4 has 5 frames but there are 4 poses"),
        (["--pose", short, "--frames", "5"], "holds 4 poses but 5 frames are asked for"),
        (["--scene", scene, "--mask", scene, "--pose", str(tmp_path / "wide.json")], "proportions"),
        (["--scene", scene], "needs a matte"),
    ]
    for more, sentence in cases:
        assert animate(files, tmp_path / "unread", *more) == 2
        assert sentence in capsys.readouterr().err


def test_generate_refuses_a_model_without_scene(model: Path, files: dict, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "boxes.json").write_text(json.dumps([[4, 4, 28, 40]] * FRAMES))
    write_poses(tmp_path / "pose.json", [figure((32, 48), 0.4, (i, 0)) for i in range(FRAMES)])
    given = ["--reference", files["ref"], "--video", files["scene"], "--mask", tmp_path / "boxes.json"]
    given += ["--pose", tmp_path / "pose.json", "--model", model, "--out", tmp_path / "swap.mp4"]
    assert main(["generate", *map(str, given)]) == 2
    assert "use 'anycharv animate'" in capsys.readouterr().err
