"""What a video job reads, draws and computes: every frame as often as it must, and no more."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from keypoint_files import write_frames
from PIL import Image
from tiny_animate import model as model
from torch.utils._python_dispatch import TorchDispatchMode

from anycharv_core import Pipeline
from anycharv_core.inference import phases
from anycharv_core.inference.backend import TorchBackend
from anycharv_core.inference.phases import Phases
from anycharv_core.jobs.animate import AnimateJob, animate
from anycharv_core.jobs.inputs import Replacement
from anycharv_core.jobs.replace import ReplaceJob, generate
from anycharv_core.media import mask_read, pose_drawing, video_read
from anycharv_core.media.video_write import VideoWriter, write_masks

WIDTH, HEIGHT, FRAMES = 32, 24, 30


def person(x: float) -> dict[str, object]:
    points = [[x + (i % 3 - 1) * 2, 4 + i, 1.0] for i in range(18)]
    people = [{"pose_keypoints_2d": np.array(points).ravel().tolist()}]
    return {"canvas_width": WIDTH, "canvas_height": HEIGHT, "people": people}


@pytest.fixture
def job(tiny_model: Path, tmp_path: Path) -> Callable[..., ReplaceJob]:
    """A job with as many people as asked for, whose windows overlap."""
    rng = np.random.default_rng(0)
    with VideoWriter(tmp_path / "video.mp4", WIDTH, HEIGHT, rate=Fraction(25)) as writer:
        for _ in range(FRAMES):
            writer.write(rng.integers(256, size=(HEIGHT, WIDTH, 3), dtype=np.uint8))
    people = []
    for number in range(2):
        place = tmp_path / f"person_{number}"
        place.mkdir()
        mask = np.zeros((HEIGHT, WIDTH), np.uint8)
        mask[6:16, 4 + 14 * number : 14 + 14 * number] = 255
        write_masks(place / "mask.mkv", [mask] * FRAMES)
        write_frames(place / "pose.json", [person(9.0 + 14 * number)] * FRAMES)
        Image.fromarray(rng.integers(256, size=(20, 16, 3), dtype=np.uint8)).save(place / "reference.png")
        people.append(Replacement(place / "reference.png", place / "mask.mkv", place / "pose.json"))

    def make(count: int, canvas: str = "frame") -> ReplaceJob:
        return ReplaceJob(
            video=tmp_path / "video.mp4",
            people=tuple(people[:count]),
            model=str(tiny_model),
            steps=2,
            device="cpu",
            out=tmp_path / "out.mp4",
            sheet=tmp_path / "sheet.png",
            canvas=canvas,
        )

    return make


@pytest.mark.parametrize("canvas", ["frame", "person"])
@pytest.mark.parametrize("people", [1, 2])
def test_a_job_decodes_and_draws_each_frame_once_to_encode_and_once_to_paste(
    job: Callable[..., ReplaceJob], people: int, canvas: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To follow a person takes a look at all masks and for cuts before."""
    decoded: Counter[str] = Counter()
    drawn = []
    decode, draw = video_read.decoded_frames, pose_drawing._drawn

    def counted(path: Path, *args: object, **kwargs: object) -> Iterator[object]:
        for frame in decode(path, *args, **kwargs):
            decoded[Path(path).name] += 1
            yield frame

    def counted_drawing(*args: object) -> np.ndarray:
        drawn.append(1)
        return draw(*args)

    for reader in (video_read, mask_read):
        monkeypatch.setattr(reader, "decoded_frames", counted)
    monkeypatch.setattr(pose_drawing, "_drawn", counted_drawing)
    report = generate(job(people, canvas))
    times = 2 if canvas == "frame" else 3
    assert report["background_bit_equal"] is True and report["frames"] == FRAMES
    # One frame of the video tells its size before the model is loaded, and one of a mask whether it has alpha.
    assert decoded == {"video.mp4": times * FRAMES + 1, "mask.mkv": people * (times * FRAMES + 1)}
    assert len(drawn) == people * FRAMES


def test_an_animation_decodes_its_scene_and_masks_twice_and_its_skeletons_once(
    job: Callable[..., ReplaceJob], model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before, each was decoded once more to be counted before the model was loaded."""
    made = job(1, "frame")
    person = made.people[0]
    decoded: Counter[str] = Counter()
    decode = video_read.decoded_frames

    def counted(path: Path, *args: object, **kwargs: object) -> Iterator[object]:
        for frame in decode(path, *args, **kwargs):
            decoded[Path(path).name] += 1
            yield frame

    for reader in (video_read, mask_read):
        monkeypatch.setattr(reader, "decoded_frames", counted)
    skeletons = made.video.with_name("skeletons.mp4")
    skeletons.write_bytes(made.video.read_bytes())
    given = {"scene": made.video, "mask": person.mask, "pose": skeletons}
    settings = {"model": str(model), "size": (WIDTH, HEIGHT), "steps": 1, "device": "cpu"}
    animation = AnimateJob(reference=person.reference, out=made.out, **settings, **given)
    assert animate(animation)["frames"] == FRAMES
    # And one frame each, for its size or to see whether it has alpha.
    assert decoded == {"video.mp4": 2 * FRAMES + 1, "mask.mkv": 2 * FRAMES + 1, "skeletons.mp4": FRAMES + 1}


def test_the_pose_guider_sees_every_frame_once(tiny_model: Path) -> None:
    pipe = Pipeline.from_pretrained(tiny_model)
    assert isinstance(pipe.backend, TorchBackend)
    seen = []

    def count(module: torch.nn.Module, args: tuple[torch.Tensor]) -> None:
        seen.append(len(args[0]))

    pipe.backend.networks.pose_guider.register_forward_pre_hook(count)
    rng = np.random.default_rng(0)
    frames = rng.integers(256, size=(FRAMES, HEIGHT, WIDTH, 3), dtype=np.uint8)
    mask = np.full((FRAMES, HEIGHT, WIDTH), 255, np.uint8)
    calls = []
    pipe(frames[0], frames, mask, frames, steps=3, guidance_scale=2.0, progress=lambda *done: calls.append(done))
    # Two windows of three steps; without the cache it saw 24 frames in each.
    assert len(calls) == 6 and sum(seen) == FRAMES


def test_time_in_an_inner_phase_is_not_the_outer_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count()
    monkeypatch.setattr(phases.time, "perf_counter", lambda: float(next(clock)))
    spent = Phases()
    with spent("write"):
        with spent("decode"):
            pass
        with spent("decode"):
            pass
    assert spent.seconds == {"write": 3.0, "decode": 2.0}


def test_with_several_people_no_second_is_counted_twice(
    job: Callable[..., ReplaceJob], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second person's frames to encode are the first one's, which are decoded meanwhile."""
    clock = [0.0]
    decode = TorchBackend.decode

    def slow(backend: TorchBackend, *args: object) -> np.ndarray:
        clock[0] += 100.0
        return decode(backend, *args)

    monkeypatch.setattr(TorchBackend, "decode", slow)
    monkeypatch.setattr(phases.time, "perf_counter", lambda: clock[0])
    seconds = generate(job(2))["seconds"]
    assert seconds["decode"] > 0 and seconds["total"] == seconds["decode"]
    assert all(seconds[name] == 0 for name in ("encode", "sample", "write"))
    assert json.loads((job(2).report).read_text())["seconds"] == seconds


class Frames:
    """Frames that can be read again, and how many were read the last time."""

    def __init__(self, frames: np.ndarray) -> None:
        self.frames, self.read = frames, 0

    def __iter__(self) -> Iterator[np.ndarray]:
        for count, frame in enumerate(self.frames, 1):
            self.read = count
            yield frame


def test_few_large_frames_wait_to_be_encoded(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though of a small canvas many go through the VAE at a time."""
    frames = np.random.default_rng(0).integers(256, size=(FRAMES, HEIGHT, WIDTH, 3), dtype=np.uint8)
    scene, mask, waiting = Frames(frames), np.full((FRAMES, HEIGHT, WIDTH), 255, np.uint8), []
    pipe = Pipeline.from_pretrained(tiny_model)
    encode = pipe.backend.encode

    def counted(pictures: np.ndarray) -> torch.Tensor:
        waiting.append(scene.read - sum(waiting))
        return encode(pictures)

    monkeypatch.setattr(pipe.backend, "encode", counted)
    monkeypatch.setattr("anycharv_core.inference.encode.HELD_PIXELS", 7 * WIDTH * HEIGHT)
    pipe(frames[0], scene, mask, frames, steps=1, canvas="frame")
    assert waiting[:5] == [7, 7, 7, 7, 2]


def test_frames_decoded_together_are_finished_one_by_one(tiny_model: Path) -> None:
    """Of pictures as small as a canvas many are decoded at once, while the frames may be large."""
    frames = np.random.default_rng(0).integers(256, size=(FRAMES, HEIGHT, WIDTH, 3), dtype=np.uint8)
    scene, mask = Frames(frames), np.full((FRAMES, HEIGHT, WIDTH), 255, np.uint8)
    made = Pipeline.from_pretrained(tiny_model)(frames[0], scene, mask, frames, steps=1)
    finished = iter(made.frames)
    for count in (1, 2):
        next(finished)
        assert scene.read == count


class Waits(TorchDispatchMode):
    """Counts what makes a card's host wait: numbers and shapes that are read out of tensors."""

    KINDS = frozenset(("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::unique2"))

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.name().split(".")[0] in self.KINDS
        return func(*args, **kwargs or {})


def test_no_step_reads_a_number_out_of_a_tensor(tiny_model: Path) -> None:
    pipe = Pipeline.from_pretrained(tiny_model)
    rng = np.random.default_rng(0)
    frames = rng.integers(256, size=(FRAMES, HEIGHT, WIDTH, 3), dtype=np.uint8)
    mask = np.full((FRAMES, HEIGHT, WIDTH), 255, np.uint8)
    counts = []
    for steps in (1, 3):
        with Waits() as waits:
            pipe(frames[0], frames, mask, frames, steps=steps, guidance_scale=2.0)
        counts.append(waits.count)
    assert counts[0] == counts[1]
    with Waits() as waits:
        torch.ones(2).max().item()
    assert waits.count == 1, "it counts"
