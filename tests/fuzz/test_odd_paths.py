"""Every path that a command takes, given as what is no such file or folder: one sentence, and nothing changes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from bounds import bounded
from clip_files import make_clip
from corpus import frames, keypoints, masks, written
from PIL import Image

from anycharv_core.cli import main
from anycharv_core.media.video_write import write_masks

GENERATE = {"--reference": "a.png", "--reference-mask": "m.png", "--video": "a.mp4", "--mask": "m.mkv"}
COMMANDS = {
    "generate": GENERATE | {"--pose": "pose.json", "--model": "embedded", "--sheet": "s.png", "--out": "o.mp4"},
    "animate": {"--reference": "a.png", "--pose": "pose.json", "--scene": "a.mp4", "--mask": "m.mkv"}
    | {"--reference-pose": "pose.json", "--model": "embedded-animate", "--sheet": "s.png", "--out": "o.mp4"},
    "preprocess": {"": "a.mp4", "--poses": "pose.json", "--masks": "m.mkv", "--retarget": "a.png", "--out": "out"}
    | {"--pose-model": "embedded"},
    "convert": {"": "embedded", " ": "model.safetensors", "--vae": "vae", "--image-encoder": "clip"},
    "evaluate": {"": "real", " ": "made", "--masks": "masks", "--references": "refs", "--out": "scores"}
    | {"--real-poses": "poses", "--generated-poses": "poses", "--lpips-weights": "l.pth", "--clip-model": "clip"},
    "bench": {"--export": "tasks", "--score": "made"},
}
# A folder's parents are made, and a link that leads nowhere is replaced by the video.
WELCOME = {
    ("preprocess", "--out", "no/such/place"),
    ("generate", "--out", "loop.mp4"),
    ("animate", "--out", "loop.mp4"),
}
ODD = ("", ".", "/dev/zero", "/dev/null", "pipe", "pipe.json", "loop", "loop.mp4", "x" * 300, "no/such/place")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ANYCHARV_CACHE", str(tmp_path / "cache"))
    Image.fromarray(frames(1)[0]).save("a.png")
    Image.fromarray(masks(1)[0]).save("m.png")
    make_clip(Path("a.mp4"), frames())
    write_masks("m.mkv", masks())
    written("pose.json", keypoints(4))(tmp_path)
    for name in ("pipe", "pipe.json"):
        os.mkfifo(name)
    for name in ("loop", "loop.mp4"):
        Path(name).symlink_to(name)
    for name in ("real", "made", "masks", "refs", "poses", "vae", "clip", "cache"):
        Path(name).mkdir()
    return tmp_path


def listed(place: Path) -> list[Path]:
    """What is there but for the cache, which keeps what a failed run had finished."""
    return sorted(path for path in place.rglob("*") if path.relative_to(place).parts[0] != "cache")


@pytest.mark.parametrize(("command", "option"), [(name, option) for name in COMMANDS for option in COMMANDS[name]])
def test_an_odd_path_costs_one_sentence(
    command: str, option: str, place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = listed(place)
    for odd in ODD:
        if (command, option, odd) in WELCOME:
            continue
        given = COMMANDS[command] | {option: odd}
        arguments = [text for name, value in given.items() for text in ([name] * bool(name.strip()) + [value])]
        if command == "bench":
            arguments = ["puppets", option, odd]
        with bounded():
            code = main([command, *arguments])
        said = capfd.readouterr().err.strip()
        assert code == 2 and said and "\n" not in said, (odd, code, said)
        assert listed(place) == before, odd


def test_a_locale_without_the_letters_of_a_name(tmp_path: Path) -> None:
    """What is printed to a terminal or a file of 7 or 8 bits has escapes in place of them."""
    environment = os.environ | {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    ran = subprocess.run(
        [
            sys.executable,
            "-m",
            "anycharv_core",
            "download",
            "pose",
            "--offline",
            "--to",
            str(tmp_path / "hä\u4e16"),
        ],
        cwd=Path(__file__).parents[2],
        env=environment,
        capture_output=True,
        check=False,
    )
    assert ran.returncode == 0 and not ran.stderr, ran.stderr
    assert b"yolox_l.onnx" in ran.stdout and ran.stdout.isascii()
