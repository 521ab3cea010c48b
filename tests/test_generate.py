"""`anycharv generate`: files in, video out."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from cli_files import FRAMES, HEIGHT, TIMES, WIDTH, Files, Run, command, packets, pictures, stamps
from cli_files import files as files
from cli_files import run as run
from PIL import Image

from anycharv_core.checkpoints.single_file import write_single
from anycharv_core.jobs.inputs import read_reference
from anycharv_core.jobs.run import sheet_frames
from anycharv_core.media.canvas import pose_canvas, working_size
from anycharv_core.media.video_read import probe, read_frames
from anycharv_core.media.video_write import VideoWriter
from anycharv_core.systems import read_checkpoint


@pytest.mark.parametrize(
    ("mask", "pose"), [("mask", "pose"), ("pngs", "skeletons"), ("boxes", "pose")], ids=lambda kind: kind
)
def test_a_video_comes_out_as_the_clip_went_in(
    files: Files, tiny_model: Path, tmp_path: Path, run: Run, mask: str, pose: str
) -> None:
    out, sheet = tmp_path / "out.mp4", tmp_path / "sheet.png"
    words = command(
        files, tiny_model, out, mask=getattr(files, mask), pose=getattr(files, pose), sheet=sheet, cfg=2
    )
    assert run(*words) == (0, "")
    info = probe(out)
    assert (info.width, info.height, info.frames) == (WIDTH, HEIGHT, FRAMES)
    assert stamps(out) == stamps(files.video) and len(set(np.diff(TIMES))) > 2
    assert packets(out) == packets(files.video) and len(packets(out)) > 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.mp4", "out.report.json", "sheet.png"]

    report = json.loads((tmp_path / "out.report.json").read_text())
    assert report["background_bit_equal"] is True and report["audio"] == "copied"
    assert report["settings"] == {
        "recipe": "default",
        "steps": 2,
        "guidance_scale": 2.0,
        "seed": 42,
        "size": None,
        "dtype": "fp32",
        "canvas": "auto",
        "context": 0.1,
        "match_colour": False,
    }
    assert report["frames"] == FRAMES and report["network_size"] == [48, 40]
    assert report["peak_memory_bytes"]["process"] > 10**7 and report["device"].startswith("cpu")
    assert {"check", "load", "encode", "sample", "decode", "write", "total"} == set(report["seconds"])
    assert {"anycharv", "python", "torch", "av", "opencv-python-headless"} <= set(report["versions"])
    with Image.open(sheet) as picture:
        assert 600 < picture.width <= 1250 and picture.height > 200


def test_the_character_changes_and_the_background_does_not(
    files: Files, tiny_model: Path, tmp_path: Path, run: Run
) -> None:
    assert run(*command(files, tiny_model, tmp_path / "a.mp4"))[0] == 0
    for made, original in zip(read_frames(tmp_path / "a.mp4"), read_frames(files.video), strict=True):
        difference = np.abs(made.astype(int) - original).mean(axis=-1)
        assert difference[14:26, 16:24].mean() > 3 * difference[:6].mean() + 1


def test_the_model_s_settings_are_the_defaults(files: Files, tiny_model: Path, tmp_path: Path, run: Run) -> None:
    model = read_checkpoint(tiny_model)
    model.settings = {"size": [16, 16], "steps": 1, "guidance_scale": 1.0}
    write_single(model, tmp_path / "tiny.safetensors")
    model, out = tmp_path / "tiny.safetensors", tmp_path / "a.mp4"
    assert run(*command(files, model, out, steps=None, canvas="frame"))[0] == 0
    report = json.loads((tmp_path / "a.report.json").read_text())
    assert (report["settings"]["steps"], report["settings"]["guidance_scale"]) == (1, 1.0)
    assert report["settings"]["size"] == [18, 15] and report["network_size"] == [18, 16]
    assert report["output_size"] == [WIDTH, HEIGHT] and report["background_bit_equal"] is True
    # A window has no proportions to keep, and so just the size that the model was made for.
    assert run(*command(files, model, out, steps=None, canvas="person"))[0] == 0
    report = json.loads((tmp_path / "a.report.json").read_text())
    assert report["network_size"] == [16, 16] and report["output_size"] == [WIDTH, HEIGHT]


def test_the_official_recipe_writes_the_size_it_worked_at(
    files: Files, tiny_model: Path, tmp_path: Path, run: Run
) -> None:
    words = command(files, tiny_model, tmp_path / "a.mp4", recipe="official", size="32x30", mask=files.boxes)
    assert run(*words)[0] == 0
    info = probe(tmp_path / "a.mp4")
    assert (info.width, info.height) == (32, 30) and stamps(tmp_path / "a.mp4") == stamps(files.video)
    assert json.loads((tmp_path / "a.report.json").read_text())["background_bit_equal"] is None


def test_the_official_recipe_takes_the_size_of_the_skeletons(
    files: Files, tiny_model: Path, tmp_path: Path, run: Run
) -> None:
    with VideoWriter(tmp_path / "pose.mp4", 32, 36, rate=Fraction(25)) as writer:
        for frame in pictures(FRAMES, 32, 36):
            writer.write(frame)
    words = command(files, tiny_model, tmp_path / "a.mp4", recipe="official", pose=tmp_path / "pose.mp4", cfg=1)
    assert run(*words) == (0, "")
    info = probe(tmp_path / "a.mp4")
    assert (info.width, info.height, info.frames) == (32, 36, FRAMES)


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_half_precision_runs(files: Files, tiny_model: Path, tmp_path: Path, run: Run, dtype: str) -> None:
    words = command(files, tiny_model, tmp_path / "a.mp4", dtype=dtype, reference_mask=files.outline, size="16x16")
    assert run(*words) == (0, "")


def test_the_rule_for_the_working_size() -> None:
    assert working_size([64, 64], (540, 960), 4) == (48, 85)
    assert working_size([64, 64], (32, 32), 4) == (64, 64)
    assert working_size([64, 64], (6000, 10), 8)[1] == 8
    for clip in [(1920, 1080), (333, 777), (64, 64), (50, 2000)]:
        width, height = working_size([128, 96], clip, 8)
        assert min(width, height) >= 8 and abs(width * height / (128 * 96) - 1) < 0.1
        assert abs(width / height / (clip[0] / clip[1]) - 1) < 0.1


def test_where_poses_are_drawn() -> None:
    assert pose_canvas((48, 85), 2) == (96, 170)
    assert pose_canvas((576, 1024), 1) == (576, 1024)


def test_the_sheet_shows_the_ends_of_the_clip() -> None:
    assert sheet_frames(1) == (0,) and sheet_frames(3) == (0, 1, 2)
    assert sheet_frames(100)[0] == 0 and sheet_frames(100)[-1] == 99 and len(sheet_frames(100)) == 6


@pytest.mark.parametrize(("mode", "channels"), [("L", 3), ("P", 3), ("RGBA", 4), ("LA", 4), ("CMYK", 3)])
def test_references_of_every_kind_are_read(tmp_path: Path, mode: str, channels: int) -> None:
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    Image.new("RGB", (5, 7), "red").convert(mode).save(path)
    assert read_reference(path).shape == (7, 5, channels)
