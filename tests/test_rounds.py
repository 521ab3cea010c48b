"""The first windows of a long video go ahead, so that its first frames are there before the last step of the last
one, and nothing comes out differently for it."""

from __future__ import annotations

import json
from contextlib import suppress
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_files import Files, person
from cli_files import files as files
from hypothesis import given
from hypothesis import strategies as st
from keypoint_files import write_frames as write_poses

from anycharv_core.errors import UserError
from anycharv_core.inference import pipeline
from anycharv_core.inference.latents import Latents
from anycharv_core.inference.sampling import sample, sample_chained, sample_video
from anycharv_core.inference.shortcuts import Shortcuts
from anycharv_core.jobs import work
from anycharv_core.jobs.inputs import Replacement
from anycharv_core.jobs.replace import ReplaceJob, generate
from anycharv_core.media.video_read import probe, read_frames
from anycharv_core.media.video_write import FFV1, VideoWriter
from anycharv_core.models.schedule import NoiseSchedule
from anycharv_core.models.solvers import DPM
from anycharv_core.models.windows import (
    Windows,
    chained_windows,
    closed_loop_windows,
    linear_windows,
    rounds_of,
)

CPU, SCHEDULE, STEPS = torch.device("cpu"), NoiseSchedule(), 3


@given(
    frames=st.integers(1, 60),
    size=st.integers(2, 9),
    overlap=st.integers(0, 8),
    loop=st.booleans(),
    steps=st.integers(1, 5),
)
def test_a_window_takes_a_step_when_all_it_needs_is_there(
    frames: int, size: int, overlap: int, loop: bool, steps: int
) -> None:
    overlap = min(overlap, size - 1)
    windows = closed_loop_windows(frames, True, size, overlap) if loop else linear_windows(frames, size, overlap)
    count = len(windows.indices)
    shared = [[bool({*one} & {*other}) for other in windows.indices] for one in windows.indices]
    done = [0] * count
    for taken in rounds_of(count, steps, windows.apart):
        assert taken
        for step, number in taken:
            assert done[number] == step
            for other in range(count):
                if shared[number][other] and other != number:
                    assert (number, step) not in [(other, s) for s, _ in taken]
                    assert done[other] == step + (other < number)
        for step, number in taken:
            done[number] = step + 1
    assert done == [steps] * count


def predicted(x: torch.Tensor, t: int, index: object, known: torch.Tensor | None = None) -> torch.Tensor:
    """Something of which every frame of a window depends on all the others."""
    return torch.sin(x + x.mean(0) + t)


def noise_of(frames: int) -> torch.Tensor:
    return torch.randn(frames, 2, 3, 3, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", ["linear", "closed loop", "chained"])
def test_what_is_said_to_be_finished_stays(kind: str) -> None:
    noise = noise_of(40)
    windows: Windows = {
        "linear": linear_windows(40, 8, 3),
        "closed loop": closed_loop_windows(40, True, 8, 3),
        "chained": chained_windows(40, 8, 1),
    }[kind]
    sampler = sample_chained if kind == "chained" else sample_video
    latents, seen = Latents.begun([noise]), []
    for finished in sampler(predicted, latents, STEPS, windows, SCHEDULE, CPU):
        seen.append((finished, latents.whole()))
    final = latents.whole()
    assert [count for count, _ in seen] == sorted(count for count, _ in seen) and seen[-1][0] == 40
    assert all(torch.equal(rows[:count], final[:count]) for count, rows in seen)
    early = sum(0 < count < 40 for count, _ in seen)
    # In a closed loop the first frames wait for the last.
    assert early == 0 if kind == "closed loop" else early >= len(windows.indices) - 2


@pytest.mark.parametrize("way", [Shortcuts(), Shortcuts(solver=DPM), Shortcuts(deep_cache=2)])
@pytest.mark.parametrize("loop", [False, True])
def test_stopped_at_any_call_it_goes_on_to_the_same_bytes(way: Shortcuts, loop: bool, tmp_path: Path) -> None:
    noise = noise_of(30)
    windows = closed_loop_windows(30, True, 8, 3) if loop else linear_windows(30, 8, 3)
    made = (predicted, STEPS, windows, SCHEDULE)

    def run(stop: int) -> torch.Tensor:
        def progress(done: int, total: int) -> None:
            if done == stop:
                raise KeyboardInterrupt

        with work.work(tmp_path / "out.mp4", {}, fresh=False) as state:
            latents = state.latents(0, tuple(noise.shape), [noise], way.parts)
            for _ in sample_video(made[0], latents, *made[1:], CPU, progress, way):
                pass
            return latents.whole()

    expected = run(0)
    for stop in range(1, STEPS * len(windows.indices) + 1):
        with pytest.raises(KeyboardInterrupt):
            run(stop)
    assert torch.equal(run(0), expected)
    if way == Shortcuts():
        assert torch.equal(sample(*(made[0], noise, *made[1:])), expected)


def test_the_first_frames_can_be_watched_while_the_last_are_sampled(
    files: Files, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = 120
    video, boxes, pose, out = (tmp_path / name for name in ("v.mkv", "b.json", "p.json", "out.mkv"))
    rng = np.random.default_rng(0)
    with VideoWriter(video, 48, 40, rate=Fraction(25), codec=FFV1) as writer:
        for _ in range(count):
            writer.write(rng.integers(256, size=(40, 48, 3), dtype=np.uint8))
    boxes.write_text(json.dumps([[12, 10, 28, 30]] * count))
    write_poses(pose, (person(16.0) for _ in range(count)))
    # Of a canvas as small as this one many are decoded at once.
    monkeypatch.setattr(pipeline, "frames_at_a_time", lambda size: 4)
    shown, seen = work.work_folder(out) / "unfinished.mkv", []

    def watch(done: int, total: int) -> None:
        so_far = tmp_path / "so_far.mkv"
        so_far.write_bytes(shown.read_bytes())
        with suppress(UserError):  # nothing yet, or a last part that is torn
            seen.append(sum(1 for _ in read_frames(so_far)))

    people = (Replacement(files.reference, boxes, pose),)
    job = ReplaceJob(video=video, people=people, out=out, model=str(tiny_model), steps=2, format=FFV1)
    generate(job, watch)
    assert 20 < max(seen) < count and probe(out).frames == count
