"""The command line: files in, video out; and every mistake in one sentence with exit code 2."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import needs
import numpy as np
import pytest
import torch
from keypoint_files import write_frames as write_poses
from PIL import Image
from safetensors.torch import load_file, save_file
from waiting import PATIENCE, until

from anycharv_core import Pipeline, UserError
from anycharv_core.checkpoints.single_file import write_single
from anycharv_core.cli import main
from anycharv_core.jobs.doctor import examine, find_models
from anycharv_core.jobs.inputs import read_reference
from anycharv_core.jobs.run import sheet_frames
from anycharv_core.media.canvas import pose_canvas, working_size
from anycharv_core.media.video_read import probe, read_frames
from anycharv_core.media.video_write import VideoWriter, write_masks
from anycharv_core.systems import read_checkpoint, write_folder

WIDTH, HEIGHT, FRAMES = 48, 40, 6
TIMES = [0, 512, 1024, 2000, 2048, 2560]
Files = SimpleNamespace
Run = Callable[..., tuple[int, str]]


def packets(path: Path) -> list[tuple[Fraction, bytes]]:
    """Time and bytes of every audio packet."""
    with av.open(str(path)) as container:
        demuxed = container.demux(container.streams.audio)
        return [(packet.pts * packet.time_base, bytes(packet)) for packet in demuxed if packet.size]


def stamps(path: Path) -> list[Fraction]:
    info = probe(path)
    return [pts * info.time_base for pts in info.timestamps]


def pictures(count: int, width: int = WIDTH, height: int = HEIGHT) -> Iterator[np.ndarray]:
    rng = np.random.default_rng(0)
    ramp = np.linspace(0, 120, width, dtype=np.uint8)[None, :, None] + np.zeros((height, 1, 3), np.uint8)
    for _ in range(count):
        yield ramp + rng.integers(0, 90, ramp.shape, np.uint8)


def person(x: float) -> dict[str, object]:
    """A pose on the clip's canvas: a straight body at `x`."""
    points = [[x + (i % 3 - 1) * 4, 8 + 1.5 * i, 1.0] for i in range(18)]
    return {
        "canvas_width": WIDTH,
        "canvas_height": HEIGHT,
        "people": [{"pose_keypoints_2d": np.array(points).ravel().tolist()}],
    }


def masks(count: int = FRAMES) -> list[np.ndarray]:
    made = np.zeros((count, HEIGHT, WIDTH), np.uint8)
    made[:, 10:30, 12:28] = 255
    return list(made)


def make_clip(path: Path) -> Path:
    """Six frames at uneven times, with a second of sound."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", 25, width=WIDTH, height=HEIGHT, pix_fmt="yuv420p")
        video.codec_context.time_base = Fraction(1, 12800)
        sound = container.add_stream("aac", 44100)
        for time_, frame in zip(TIMES, pictures(FRAMES), strict=True):
            picture = av.VideoFrame.from_ndarray(frame, "rgb24")
            picture.pts, picture.time_base = time_, Fraction(1, 12800)
            container.mux(video.encode(picture))
        container.mux(video.encode())
        samples = (np.sin(np.arange(9000) / 20) * 9000).astype(np.int16)
        tone = av.AudioFrame.from_ndarray(np.repeat(samples, 2)[None], "s16", "stereo")
        tone.sample_rate, tone.pts, tone.time_base = 44100, 0, Fraction(1, 44100)
        container.mux([*sound.encode(tone), *sound.encode()])
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """A clip with its masks and poses in every form that is taken, and a reference."""
    folder = tmp_path_factory.mktemp("inputs")
    made = Files(
        video=make_clip(folder / "clip.mp4"),
        reference=folder / "reference.png",
        outline=folder / "outline.png",
        mask=folder / "mask.mkv",
        pngs=folder / "masks",
        boxes=folder / "boxes.json",
        pose=folder / "pose.json",
        skeletons=folder / "skeletons.mp4",
    )
    picture = np.random.default_rng(1).integers(0, 256, (30, 20, 4), np.uint8)
    Image.fromarray(picture).save(made.reference)
    Image.fromarray(np.full((30, 20), 255, np.uint8)).save(made.outline)
    write_masks(made.mask, masks())
    write_masks(made.pngs, masks())
    made.boxes.write_text(json.dumps([[12, 10, 28, 30]] * 5 + [None]))
    write_poses(made.pose, (person(16.0 + i) for i in range(FRAMES)))
    with VideoWriter(made.skeletons, WIDTH, HEIGHT, rate=Fraction(25)) as writer:
        for frame in pictures(FRAMES):
            writer.write(frame)
    return made


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command line; gives its exit code and stderr."""

    def call(*words: object) -> tuple[int, str]:
        capsys.readouterr()
        code = main([str(word) for word in words])
        return code, capsys.readouterr().err

    return call


def command(files: Files, model: Path, out: Path, **changed: object) -> list[object]:
    """`generate` with quick settings; `changed` options are replaced, or left out where None."""
    options = {
        "reference": files.reference,
        "video": files.video,
        "mask": files.mask,
        "pose": files.pose,
        "model": model,
        "steps": 2,
        "device": "cpu",
        "out": out,
    } | {name.replace("_", "-"): value for name, value in changed.items()}
    return ["generate", *(w for k, v in options.items() if v is not None for w in (f"--{k}", v))]


def refused(result: tuple[int, str], *words: str) -> None:
    """One sentence that names what is wrong, and exit code 2."""
    code, errors = result
    assert code == 2 and errors.startswith("anycharv: ") and errors.endswith("\n"), errors
    assert errors.count("\n") == 1 and "Traceback" not in errors, errors
    for word in words:
        assert word in errors


# Generating


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
    assert run(*command(files, tmp_path / "tiny.safetensors", tmp_path / "a.mp4", steps=None))[0] == 0
    report = json.loads((tmp_path / "a.report.json").read_text())
    assert (report["settings"]["steps"], report["settings"]["guidance_scale"]) == (1, 1.0)
    assert report["settings"]["size"] == [18, 15] and report["network_size"] == [18, 16]
    assert report["output_size"] == [WIDTH, HEIGHT] and report["background_bit_equal"] is True


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


# Mistakes


def _nothing(path: Path, files: Files) -> Path:
    return path / "nothing-here"


def _text(path: Path, files: Files) -> Path:
    (path / "text.mp4").write_text("this is no video\n" * 50)
    return path / "text.mp4"


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


def _deep_picture(path: Path, files: Files) -> Path:
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(path / "deep.png")
    return path / "deep.png"


def _clear_picture(path: Path, files: Files) -> Path:
    Image.new("RGBA", (4, 4)).save(path / "clear.png")
    return path / "clear.png"


def _torn_picture(path: Path, files: Files) -> Path:
    (path / "torn.png").write_bytes(files.reference.read_bytes()[:200])
    return path / "torn.png"


@pytest.mark.parametrize(
    ("option", "make", "words"),
    [
        ("video", _nothing, "nothing-here is not there"),
        ("video", _text, "text.mp4"),
        ("video", _torn, "torn.mp4"),
        ("video", _no_frames, "holds no frames"),
        ("video", _empty_file, "is not a video"),
        ("video", _folder, "is not a file"),
        ("mask", _nothing, "nothing-here is not there"),
        ("mask", _folder, "holds no PNG"),
        ("mask", _five_masks, "holds 5 masks but"),
        ("mask", _seven_masks, "holds 7 masks but"),
        ("mask", _five_boxes, "holds 5 masks but"),
        ("mask", _empty_masks, "black.mkv marks nothing"),
        ("mask", _empty_boxes, "null.json marks nothing"),
        ("mask", _small_masks, "24x20 but"),
        ("mask", _bad_json, "not valid JSON"),
        ("pose", _nothing, "nothing-here is not there"),
        ("pose", _text, "text.mp4"),
        ("pose", _folder, "no pose frames"),
        ("pose", _seven_poses, "holds 7 poses but"),
        ("pose", _short_skeletons, "holds 3 poses but"),
        ("pose", _tall_poses, "proportions"),
        ("pose", _bad_json, "not valid JSON"),
        ("reference", _nothing, "nothing-here is not there"),
        ("reference", _folder, "is not a file"),
        ("reference", _text, "is not a picture"),
        ("reference", _torn_picture, "is not a picture"),
        ("reference", _deep_picture, "more than 8 bits"),
        ("reference", _clear_picture, "transparent everywhere"),
        ("reference_mask", _clear_picture, "give a mask of the reference's size"),
        ("model", _nothing, "no model at"),
        ("model", _folder, "not a complete AnyCharV folder"),
        ("vae", _folder, "has no"),
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
        # Outputs are tried, and then written under another name: both leave nothing behind.
        until(lambda: list(tmp_path.glob(".writing*")), process)
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    assert process.returncode == 130 and output == b""
    assert errors == b"anycharv: stopped; unfinished files were removed.\n"
    assert out.read_bytes() == b"old" and [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


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


# Model files


def _stranger(key: str) -> Callable[[Path, Path], Path]:
    def make(path: Path, model: Path) -> Path:
        save_file({key: torch.zeros(2)}, path / "a.safetensors")
        return path / "a.safetensors"

    return make


def _truncated(path: Path, model: Path) -> Path:
    write_single(read_checkpoint(model), path / "a.safetensors")
    data = (path / "a.safetensors").read_bytes()
    (path / "a.safetensors").write_bytes(data[: len(data) // 2])
    return path / "a.safetensors"


def _changed(part: str, change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path, Path], Path]:
    def make(path: Path, model: Path) -> Path:
        checkpoint = read_checkpoint(model)
        checkpoint.weights = {name: dict(weights) for name, weights in checkpoint.weights.items()}
        change(checkpoint.weights[part])
        write_folder(checkpoint, path / "model")
        return path / "model"

    return make


def _torn_config(path: Path, model: Path) -> Path:
    write_folder(read_checkpoint(model), path / "model")
    (path / "model" / "pose_guider" / "config.json").write_text("{")
    return path / "model"


BROKEN = [
    (_stranger("lora_unet_down.lora_up.weight"), "a LoRA"),
    (_stranger("double_blocks.0.img_attn.qkv.weight"), "a Flux"),
    (_stranger("model.diffusion_model.input_blocks.0.0.weight"), "a plain Stable Diffusion"),
    (_stranger("something.weight"), "another model's file"),
    (_stranger("denoising_unet.conv_in.weight"), "without AnyCharV metadata"),
    (_truncated, "torn"),
    (_changed("denoising_unet", lambda w: w.update({"conv_in.bias": torch.full((32,), torch.nan)})), "NaN"),
    (_changed("vae", lambda w: w.update({"encoder.conv_in.bias": torch.full((8,), torch.nan)})), "NaN"),
    (_changed("denoising_unet", lambda w: w.update({"conv_in.weight": torch.zeros(32, 4, 3, 3)})), "conv_in"),
    (_changed("reference_unet", lambda w: w.pop("conv_in.bias")), "lack key 'conv_in.bias'"),
    (_changed("pose_guider", lambda w: w.update({"extra": torch.zeros(1)})), "unexpected key 'extra'"),
    (_torn_config, "config.json is not valid JSON"),
]


@pytest.mark.parametrize(("make", "words"), BROKEN, ids=[words for _, words in BROKEN])
@pytest.mark.parametrize("verb", ["generate", "convert"])
def test_broken_and_foreign_models_are_named(
    files: Files, tiny_model: Path, tmp_path: Path, run: Run, verb: str, make: Callable, words: str
) -> None:
    model = make(tmp_path, tiny_model)
    if verb == "generate":
        refused(run(*command(files, model, tmp_path / "a.mp4")), words)
        assert not (tmp_path / "a.mp4").exists()
    else:
        refused(run("convert", model, tmp_path / "new"), words)
        assert not (tmp_path / "new").exists()


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return {
        f"{file.parent.name}.{key}": value
        for file in folder.glob("*/*.safetensors")
        for key, value in load_file(file).items()
    }


@pytest.mark.parametrize("dtype", [None, "fp16"])
def test_convert_there_and_back(tiny_model: Path, tmp_path: Path, run: Run, dtype: str | None) -> None:
    start = tiny_model
    if dtype:
        assert run("convert", tiny_model, tmp_path / "start", "--dtype", dtype) == (0, "")
        start = tmp_path / "start"
    assert run("convert", start, tmp_path / "one.safetensors") == (0, "")
    assert run("convert", tmp_path / "one.safetensors", tmp_path / "back") == (0, "")
    before, after = weights_of(start), weights_of(tmp_path / "back")
    assert before.keys() == after.keys() and len(before) > 100
    for key, value in before.items():
        assert value.dtype == after[key].dtype and torch.equal(value, after[key]), key
    Pipeline.from_pretrained(tmp_path / "back")


def test_convert_keeps_the_settings(tiny_model: Path, tmp_path: Path, run: Run) -> None:
    model = read_checkpoint(tiny_model)
    model.settings = {"size": [16, 16]}
    write_single(model, tmp_path / "a.safetensors")
    assert run("convert", tmp_path / "a.safetensors", tmp_path / "b")[0] == 0
    assert run("convert", tmp_path / "b", tmp_path / "c.safetensors")[0] == 0
    assert read_checkpoint(tmp_path / "c.safetensors").settings == {"size": [16, 16]}


def test_convert_puts_parts_in(tiny_model: Path, tmp_path: Path, run: Run) -> None:
    model = read_checkpoint(tiny_model)
    for part in ("vae", "image_encoder"):
        del model.weights[part], model.configs[part]
    write_folder(model, tmp_path / "bare")
    parts = ["--vae", tiny_model / "vae", "--image-encoder", tiny_model / "image_encoder"]
    assert run("convert", tmp_path / "bare", tmp_path / "whole.safetensors", *parts)[0] == 0
    Pipeline.from_pretrained(tmp_path / "whole.safetensors")
    with pytest.raises(UserError, match="--image-encoder"):
        Pipeline.from_pretrained(tmp_path / "bare", vae=tiny_model / "vae")


def test_convert_replaces_only_when_told_and_only_models(tiny_model: Path, tmp_path: Path, run: Run) -> None:
    single, folder = tmp_path / "a.safetensors", tmp_path / "model"
    single.write_bytes(b"old")
    refused(run("convert", tiny_model, single), "--force")
    assert single.read_bytes() == b"old"
    assert run("convert", tiny_model, single, "--force")[0] == 0
    assert run("convert", single, folder)[0] == 0
    refused(run("convert", single, folder), "--force")
    assert run("convert", single, folder, "--force", "--dtype", "bf16")[0] == 0
    (folder / "holiday.jpg").touch()
    refused(run("convert", single, folder, "--force"), "holiday.jpg")
    assert (folder / "holiday.jpg").exists()
    refused(run("convert", tiny_model, tmp_path / "a.ckpt"), ".safetensors")
    refused(run("convert", tiny_model, tmp_path / "no" / "a.safetensors"), "folder does not exist")
    refused(run("convert", tiny_model, tmp_path / "no" / "model"), "folder does not exist")


@pytest.mark.parametrize("target", ["a.safetensors", "model"])
def test_convert_on_a_full_disk(tiny_model: Path, tmp_path: Path, run: Run, target: str) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        result = run("convert", tiny_model, tmp_path / target)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    refused(result, f"/{target}", "choose another disk")
    assert list(tmp_path.iterdir()) == []


# Doctor and demo


def test_doctor_finds_models(tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_single(read_checkpoint(tiny_model), tmp_path / "mine.safetensors")
    save_file({"lora_a": torch.zeros(1)}, tmp_path / "lora.safetensors")
    (tmp_path / "torn.safetensors").write_bytes(b"\xff" * 20)
    model = read_checkpoint(tiny_model)
    for part in ("vae", "image_encoder"):
        del model.weights[part], model.configs[part]
    write_folder(model, tmp_path / "official")
    assert find_models(tmp_path) == [tmp_path / "mine.safetensors", tmp_path / "official"]
    assert find_models(tiny_model) == [tiny_model]
    assert main(["doctor", "--models", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "mine.safetensors" in printed and "official AnyCharV's folder" in printed and "lora" not in printed
    assert "pass --vae and --image-encoder" in printed and torch.__version__ in printed
    assert printed.count("shipped with this package") == 2


def test_doctor_finds_what_comfyui_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("ANYCHARV_MODELS", raising=False)
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert examine() == 0
    printed = capsys.readouterr().out
    assert f"$COMFYUI_PATH            {tmp_path / 'models'}, which is not there" in printed
    assert printed.count("not found. No ComfyUI models folder was found") == 2
    models = tmp_path / "models"
    published = models / "anycharv" / "animate"
    for file in (
        *(models / "detection" / name for name in ("yolox_l.onnx", "dw-ll_ucoco_384.onnx")),
        models / "sam2" / "large" / "config.json",
        *(published / f"{part}.pth" for part in ("denoising_unet", "reference_unet", "pose_guider")),
        published / "sd-vae-ft-mse" / "config.json",
    ):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    assert find_models(models / "anycharv") == [published]
    assert examine() == 0
    printed = capsys.readouterr().out
    assert f"DWPose                   {models / 'detection'}\n" in printed
    assert f"SAM2                     {models / 'sam2' / 'large'}\n" in printed
    assert f"{published} Animate Anyone's folder" in printed
    assert "has no image_encoder; pass --image-encoder with it" in printed
    (models / "detection" / "yolox_l.onnx").unlink()
    assert examine() == 0
    assert "DWPose                   not found" in capsys.readouterr().out


def test_doctor_misses_what_should_be_shipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from anycharv_core.jobs import doctor

    missing = {name: tmp_path / path.name for name, path in doctor.EMBEDDED.items()}
    monkeypatch.setattr(doctor, "EMBEDDED", missing)
    assert examine([tmp_path]) == 1
    assert "Reinstall this package: embedded and embedded-animate came with it" in capsys.readouterr().out


def test_doctor_looks_where_the_environment_says(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ANYCHARV_MODELS", str(tiny_model.parent))
    assert examine() == 0
    assert str(tiny_model) in capsys.readouterr().out


def test_doctor_explains_what_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def version(name: str) -> str:
        if name in ("av", "onnxruntime"):
            raise doctor.metadata.PackageNotFoundError(name)
        return "1.2.3"

    def load(name: str) -> object:
        if name != "cv2":
            return sys.modules[name]
        raise ImportError("libGL.so.1: cannot open shared object file: No such file or directory")

    from anycharv_core.jobs import doctor

    monkeypatch.setattr(doctor.metadata, "version", version)
    monkeypatch.setattr(doctor.importlib, "import_module", load)
    assert examine([tmp_path]) == 1
    printed = capsys.readouterr().out
    assert "pip install av" in printed and "overwrite each other" in printed
    assert "pip uninstall opencv-python; pip install opencv-python-headless" in printed


def test_demo_tells_where_its_files_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def made(out: Path, clips: int, model: str, progress: Callable) -> dict[str, object]:
        progress(1, 2)
        (out / f"{model}.mp4").write_bytes(b"")
        return {"clips": clips}

    monkeypatch.setitem(sys.modules, "anycharv_core.jobs.demo", SimpleNamespace(run=made))
    for name, model in (("demo", "embedded"), ("demo-animate", "embedded-animate")):
        assert main([name, "--out", str(tmp_path), "--clips", "2"]) == 0
        assert str(tmp_path / f"{model}.mp4") in capsys.readouterr().out
