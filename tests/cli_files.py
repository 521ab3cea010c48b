"""What tests of the command line share: a video with its masks and poses, and ways to run and to judge."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
from keypoint_files import write_frames as write_poses
from PIL import Image

from anycharv_core.cli import main
from anycharv_core.media.video_read import probe
from anycharv_core.media.video_write import VideoWriter, write_masks

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
        "dtype": "fp32",
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


def no_file(path: Path, files: Files) -> Path:
    return path / "nothing-here"


def text_file(path: Path, files: Files) -> Path:
    (path / "text.mp4").write_text("this is no video\n" * 50)
    return path / "text.mp4"
