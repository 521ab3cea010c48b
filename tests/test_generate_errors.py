"""Every mistake of a `generate` is one sentence with exit code 2, and costs no old file."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import needs
import numpy as np
import pytest
from cli_files import (
    FRAMES,
    HEIGHT,
    WIDTH,
    Files,
    Run,
    command,
    masks,
    no_file,
    person,
    pictures,
    refused,
    text_file,
)
from cli_files import files as files
from cli_files import run as run
from conftest import CONFIGS
from keypoint_files import write_frames as write_poses
from PIL import Image
from safetensors.torch import save_file
from waiting import PATIENCE, until

from anycharv_core import Pipeline, UserError
from anycharv_core.checkpoints.networks import new_library_part
from anycharv_core.inference.people import check_number
from anycharv_core.media.video_write import VideoWriter, write_masks
from anycharv_core.systems.anycharv import RECIPES


def _torn(path: Path, files: Files) -> Path:
    (path / "torn.mp4").write_bytes(files.video.read_bytes()[:1500])
    return path / "torn.mp4"


def _no_frames(path: Path, files: Files) -> Path:
    (path / "empty.y4m").write_text(f"YUV4MPEG2 W{WIDTH} H{HEIGHT} F25:1 Ip A1:1 C420jpeg\n")
    return path / "empty.y4m"


def _empty_file(path: Path, files: Files) -> Path:
    (path / "empty.mp4").touch()
    return path / "empty.mp4"


def _folder(path: Path, files: Files) -> Path:
    (path / "folder").mkdir()
    return path / "folder"


def _five_masks(path: Path, files: Files) -> Path:
    write_masks(path / "five.mkv", masks(5))
    return path / "five.mkv"


def _seven_masks(path: Path, files: Files) -> Path:
    write_masks(path / "seven", masks(7))
    return path / "seven"


def _five_boxes(path: Path, files: Files) -> Path:
    (path / "five.json").write_text(json.dumps([[1, 2, 30, 40]] * 5))
    return path / "five.json"


def _empty_masks(path: Path, files: Files) -> Path:
    write_masks(path / "black.mkv", [np.zeros((HEIGHT, WIDTH), np.uint8)] * FRAMES)
    return path / "black.mkv"


def _empty_boxes(path: Path, files: Files) -> Path:
    (path / "null.json").write_text(json.dumps([None] * FRAMES))
    return path / "null.json"


def _small_masks(path: Path, files: Files) -> Path:
    write_masks(path / "small.mkv", [mask[::2, ::2] for mask in masks()])
    return path / "small.mkv"


def _seven_poses(path: Path, files: Files) -> Path:
    write_poses(path / "seven.json", [person(20.0)] * 7)
    return path / "seven.json"


def _tall_poses(path: Path, files: Files) -> Path:
    write_poses(path / "tall.json", [person(20.0) | {"canvas_height": 90}] * FRAMES)
    return path / "tall.json"


def _short_skeletons(path: Path, files: Files) -> Path:
    with VideoWriter(path / "short.mp4", WIDTH, HEIGHT, rate=Fraction(25)) as writer:
        for frame in pictures(3):
            writer.write(frame)
    return path / "short.mp4"


def _bad_json(path: Path, files: Files) -> Path:
    (path / "bad.json").write_text("[1, 2")
    return path / "bad.json"


def _other_json(path: Path, files: Files) -> Path:
    (path / "other.json").write_text(json.dumps([{"boxes": []}] * FRAMES))
    return path / "other.json"


def _deep_picture(path: Path, files: Files) -> Path:
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(path / "deep.png")
    return path / "deep.png"


def _pickle(path: Path, files: Files) -> Path:
    (path / "denoising_unet.pth").write_text("weights")
    return path / "denoising_unet.pth"


def _renamed_vae(path: Path, files: Files) -> Path:
    (path / "vae").mkdir()
    (path / "vae" / "config.json").write_text(json.dumps(CONFIGS["vae"]))
    weights = {key: value.clone() for key, value in new_library_part("vae", CONFIGS["vae"]).state_dict().items()}
    save_file(weights, path / "vae" / "model.safetensors")
    return path / "vae"


def _clear_picture(path: Path, files: Files) -> Path:
    Image.new("RGBA", (4, 4)).save(path / "clear.png")
    return path / "clear.png"


def _torn_picture(path: Path, files: Files) -> Path:
    (path / "torn.png").write_bytes(files.reference.read_bytes()[:200])
    return path / "torn.png"


@pytest.mark.parametrize(
    ("option", "make", "words"),
    [
        ("video", no_file, "nothing-here is not there"),
        ("video", text_file, "text.mp4"),
        ("video", _torn, "torn.mp4"),
        ("video", _no_frames, "holds no frames"),
        ("video", _empty_file, "is not a video"),
        ("video", _folder, "is not a file"),
        ("mask", no_file, "nothing-here is not there"),
        ("mask", _folder, "holds no PNG"),
        ("mask", _five_masks, "holds 5 masks but"),
        ("mask", _seven_masks, "holds 7 masks but"),
        ("mask", _five_boxes, "holds 5 masks but"),
        ("mask", _empty_masks, "black.mkv marks nothing"),
        ("mask", _empty_boxes, "null.json marks nothing"),
        ("mask", _small_masks, "24x20 but"),
        ("mask", _bad_json, "not valid JSON"),
        ("pose", no_file, "nothing-here is not there"),
        ("pose", text_file, "text.mp4"),
        ("pose", _folder, "no pose frames"),
        ("pose", _seven_poses, "holds 7 poses but"),
        ("pose", _short_skeletons, "holds 3 poses but"),
        ("pose", _tall_poses, "proportions"),
        ("pose", _bad_json, "not valid JSON"),
        ("pose", _other_json, "lists its people"),
        ("reference", no_file, "nothing-here is not there"),
        ("reference", _folder, "is not a file"),
        ("reference", text_file, "is not a picture"),
        ("reference", _torn_picture, "is not a picture"),
        ("reference", _deep_picture, "more than 8 bits"),
        ("reference", _clear_picture, "transparent everywhere"),
        ("reference_mask", _clear_picture, "give a mask of the reference's size"),
        ("model", no_file, "no model at"),
        ("model", _folder, "not a complete AnyCharV folder"),
        ("model", _pickle, "give the folder that holds all of the model"),
        ("vae", _folder, "has no"),
        ("vae", _renamed_vae, "the weights of a VAE are named diffusion_pytorch_model.safetensors"),
    ],
)
def test_bad_inputs_are_named(
    files: Files, tiny_model: Path, tmp_path: Path, run: Run, option: str, make: Callable, words: str
) -> None:
    bad = make(tmp_path, files)
    out = tmp_path / "out.mp4"
    out.write_bytes(b"old")
    refused(run(*command(files, **{"model": tiny_model, "out": out, option: bad})), words)
    assert out.read_bytes() == b"old" and not (tmp_path / "out.report.json").exists()


def _uneven_pngs(path: Path, files: Files) -> Path:
    write_masks(path / "uneven", masks())
    Image.new("L", (WIDTH, HEIGHT - 2)).save(sorted((path / "uneven").iterdir())[-1])
    return path / "uneven"


@pytest.mark.parametrize(
    ("option", "make", "words"),
    [
        ("mask", _five_masks, "holds 5 masks but"),
        ("mask", _seven_masks, "holds 7 masks but"),
        ("mask", _five_boxes, "holds 5 masks but"),
        ("mask", _small_masks, "24x20 but"),
        ("mask", _uneven_pngs, "give masks of one size"),
        ("pose", _seven_poses, "holds 7 poses but"),
        ("pose", _short_skeletons, "holds 3 poses but"),
        ("pose", _tall_poses, "proportions"),
    ],
)
def test_what_does_not_fit_together_is_named_before_the_model_is_read(
    files: Files, tmp_path: Path, run: Run, option: str, make: Callable, words: str
) -> None:
    changed = {option: make(tmp_path, files)}
    refused(run(*command(files, tmp_path / "unread", tmp_path / "out.mp4", **changed)), words)


def test_a_file_that_is_wrong_about_its_length_is_counted(
    files: Files, tiny_model: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one with an edit list is."""
    monkeypatch.setattr("anycharv_core.jobs.lengths.likely_frames", lambda path: FRAMES + 3)
    assert run(*command(files, tiny_model, tmp_path / "out.mp4")) == (0, "")


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("recipe", "fancy", "no recipe 'fancy'"),
        ("steps", "0", "--steps"),
        ("steps", "ten", "whole number"),
        ("cfg", "nan", "--cfg"),
        ("size", "64", "512x768"),
        ("size", "0x8", "512x768"),
        ("seed", "-1", "--seed"),
        ("dtype", "int4", "--dtype"),
        ("device", "tpu", "--device"),
        ("pose", None, "--pose"),
    ],
)
def test_bad_options_are_named(
    files: Files, tiny_model: Path, tmp_path: Path, run: Run, option: str, value: str | None, words: str
) -> None:
    refused(run(*command(files, tiny_model, tmp_path / "a.mp4", **{option: value})), words)


@needs.no_gpu
def test_a_missing_gpu_is_named(files: Files, tiny_model: Path, tmp_path: Path, run: Run) -> None:
    refused(run(*command(files, tiny_model, tmp_path / "a.mp4", device="cuda")), "no CUDA device")


def test_no_command_and_no_such_command(run: Run) -> None:
    refused(run())
    refused(run("dance"), "dance")


def test_outputs_that_cannot_be_are_refused_before_the_model_is_read(
    files: Files, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tmp_path / "unread"
    (tmp_path / "file").touch()
    refused(run(*command(files, model, tmp_path / "missing" / "a.mp4")), "its folder does not exist")
    refused(run(*command(files, model, tmp_path / "file" / "a.mp4")), "its folder does not exist")
    refused(run(*command(files, model, tmp_path)), ".mp4")
    refused(run(*command(files, model, tmp_path / "a.avi")), ".mp4")
    refused(run(*command(files, model, tmp_path / "a.mp4", sheet=tmp_path / "no" / "s.png")), "s.png")
    refused(run(*command(files, model, tmp_path / "a.mp4", sheet=tmp_path / "s.gif")), ".png")
    refused(run(*command(files, model, files.video)), "is one of the inputs")
    (tmp_path / "dir.mp4").mkdir()
    refused(run(*command(files, model, tmp_path / "dir.mp4")), "not an ordinary file")

    def denied(path: Path, *_: object) -> int:
        raise PermissionError(13, "Permission denied", os.fspath(path))

    # Not chmod: the suite may run as root, who may write anywhere.
    monkeypatch.setattr("anycharv_core.files.os.open", denied)
    refused(run(*command(files, model, tmp_path / "a.mp4")), "you may not write there")


def test_a_full_disk_leaves_the_old_video(files: Files, tiny_model: Path, tmp_path: Path, run: Run) -> None:
    """A limit on file size stops the writer as a full disk does, inside the library."""
    out = tmp_path / "a.mp4"
    out.write_bytes(b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        result = run(*command(files, tiny_model, out))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    refused(result, "a.mp4", "choose another disk")
    assert out.read_bytes() == b"old" and [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


def test_an_odd_system_error_is_one_sentence(
    files: Files, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: object) -> None:
        raise OSError(5, "Input/output error", "/some/clip.mp4")

    monkeypatch.setattr("anycharv_core.jobs.replace.Video", broken)
    refused(run(*command(files, tmp_path, tmp_path / "a.mp4")), "/some/clip.mp4: Input/output error")


def test_control_c_leaves_the_old_video(files: Files, tiny_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.mp4"
    out.write_bytes(b"old")
    words = command(files, tiny_model, out, steps=1000)
    process = subprocess.Popen(
        [sys.executable, "-m", "anycharv_core", *map(str, words)],
        cwd=Path(__file__).parents[1],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    try:
        # Outputs are tried, and then written in a folder beside them: both leave nothing behind.
        until(lambda: list(tmp_path.glob("*/.unfinished.mp4")), process)
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    assert process.returncode == 130 and output == b""
    assert errors == b"anycharv: stopped; unfinished files were removed.\n"
    assert out.read_bytes() == b"old" and [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


def test_a_reader_who_has_enough_is_no_error() -> None:
    words = [sys.executable, "-m", "anycharv_core", "download", "pose", "--offline", "--to", "models"]
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        words, cwd=Path(__file__).parents[1], stdout=writing, stderr=subprocess.PIPE, check=False
    )
    os.close(writing)
    assert done.returncode == 141 and done.stderr == b""


def test_without_a_model_it_is_said_that_the_embedded_one_knows_puppets(
    files: Files, tmp_path: Path, run: Run
) -> None:
    """Before anything else: somebody who forgot --model should not wait for a puppet."""
    out = tmp_path / "a.avi"
    animate = ["animate", "--reference", files.reference, "--pose", files.pose, "--out", out]
    replace = command(files, tmp_path, out)
    del replace[(place := replace.index("--model")) : place + 2]
    for words in (replace, animate):
        code, said = run(*words)
        assert code == 2 and said.startswith("No --model is given, so 'embedded") and "puppets" in said, said
    refused(run(*command(files, Path("embedded"), out)), ".mp4")


def test_help_does_not_wait_for_torch() -> None:
    script = (
        "import sys\nfrom anycharv_core.cli import main\n"
        "try: main(['generate', '--help'])\nfinally: sys.stderr.write(str('torch' in sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=Path(__file__).parents[1], capture_output=True, text=True
    )
    assert done.returncode == 0 and done.stderr == "False" and "--reference" in done.stdout


@pytest.mark.parametrize(
    ("name", "shape"),
    [("scene", (2, 8, 8, 4)), ("scene", (2, 8, 8)), ("mask", (2, 8, 8, 3)), ("pose", (2, 8, 8, 1))],
)
def test_wrong_channel_counts_are_named(tiny_model: Path, name: str, shape: tuple[int, ...]) -> None:
    given = {"scene": (2, 8, 8, 3), "mask": (2, 8, 8), "pose": (2, 8, 8, 3)} | {name: shape}
    arrays = {key: np.full(value, 255, np.uint8) for key, value in given.items()}
    pipe = Pipeline.from_pretrained(tiny_model)
    with pytest.raises(UserError, match=f"The {name} must be uint8"):
        pipe(np.zeros((8, 8, 3), np.uint8), **arrays, steps=1)
    with pytest.raises(UserError, match="The reference must be uint8"):
        pipe(np.zeros((8, 8, 2), np.uint8), **arrays, steps=1)


def test_only_a_recipe_that_pastes_replaces_several() -> None:
    for name, people in (("default", 2), ("official", 1)):
        check_number(name, RECIPES[name], people)
    with pytest.raises(UserError, match="The recipe official replaces one person only; use 'default'"):
        check_number("official", RECIPES["official"], 2)
