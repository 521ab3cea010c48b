"""Videos of any length: what is kept of every frame lies in files, and nothing comes out differently for it."""

from __future__ import annotations

import errno
import gc
import tempfile
import tracemalloc
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from anycharv_core import Pipeline
from anycharv_core.errors import UserError
from anycharv_core.inference import features
from anycharv_core.inference.features import FrameFeatures
from anycharv_core.inference.latents import Latents
from anycharv_core.inference.sampling import sample, sample_video, to_the_end
from anycharv_core.jobs.inputs import Replacement
from anycharv_core.jobs.replace import ReplaceJob, generate
from anycharv_core.media import frames
from anycharv_core.media.frames import FrameStore
from anycharv_core.media.pose import POINTS, Poses, write_poses
from anycharv_core.media.video_write import VideoWriter
from anycharv_core.models.schedule import NoiseSchedule, ddim_step, ddim_timesteps
from anycharv_core.models.windows import Windows, closed_loop_windows, linear_windows
from anycharv_core.systems.recipes import frame_noise

FRAMES, WIDTH, HEIGHT = 30, 32, 24


@pytest.mark.parametrize("recipe", ["default", "official"])
def test_what_lies_in_files_is_bit_equal_to_what_lies_in_memory(
    recipe: str, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    scene = rng.integers(256, size=(FRAMES, HEIGHT, WIDTH, 3), dtype=np.uint8)
    mask = np.full((FRAMES, HEIGHT, WIDTH), 255, np.uint8)
    mask[26:] = 0
    made = []
    for memory in (2**30, 1):
        monkeypatch.setattr(frames, "MEMORY", memory)
        pipe = Pipeline.from_pretrained(tiny_model)
        pipe.folder = tmp_path
        made.append(pipe(scene[0], scene, mask, scene, steps=3, guidance_scale=2.0, recipe=recipe))
    assert torch.equal(made[0].latents, made[1].latents) and np.array_equal(made[0].frames, made[1].frames)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("way", ["pipeline", "job"])
def test_nothing_is_spooled_to_the_system_s_own_folder(
    way: str, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which may be small, or lie in memory."""
    monkeypatch.setattr(frames, "MEMORY", 1)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "not there"))
    scene = np.random.default_rng(0).integers(256, size=(3, HEIGHT, WIDTH, 3), dtype=np.uint8)
    if way == "pipeline":
        pipe = Pipeline.from_pretrained(tiny_model)
        pipe.folder = tmp_path
        mask = np.full((3, HEIGHT, WIDTH), 255, np.uint8)
        assert len(list(pipe(scene[0], iter(scene), iter(mask), iter(scene), steps=1).frames)) == 3
        return
    boxes, video, reference = (tmp_path / name for name in ("b.json", "v.mp4", "r.png"))
    Image.fromarray(scene[0]).save(reference)
    with VideoWriter(video, WIDTH, HEIGHT, rate=Fraction(25)) as writer:
        for frame in scene:
            writer.write(frame)
    boxes.write_text(str([[4, 4, 28, 20]] * 3))
    people = (Replacement(reference, boxes, video),) * 2
    job = ReplaceJob(video=video, people=people, out=tmp_path / "out.mp4", model=str(tiny_model), steps=1)
    assert generate(job)["frames"] == 3


def test_a_frame_more_takes_less_than_two_kilobytes(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of all that lives while a video is denoised, with every point of a skeleton known."""
    monkeypatch.setattr(frames, "MEMORY", 1)
    rng = np.random.default_rng(0)
    boxes, pose, video, reference = (tmp_path / name for name in ("b.json", "p.json", "v.mp4", "r.png"))
    Image.fromarray(rng.integers(256, size=(30, 20, 3), dtype=np.uint8)).save(reference)
    held = []
    for number, count in enumerate((2, 30, 90)):  # the first for what is loaded once
        with VideoWriter(video, WIDTH, HEIGHT, rate=Fraction(25)) as writer:
            for _ in range(count):
                writer.write(rng.integers(256, size=(HEIGHT, WIDTH, 3), dtype=np.uint8))
        boxes.write_text(str([[4, 4, 28, 20]] * count))
        points = np.full((count, 1, POINTS, 3), 0.2)
        write_poses(pose, Poses(WIDTH, HEIGHT, list(points)))
        del points
        job = ReplaceJob(
            video=video,
            people=(Replacement(reference, boxes, pose),),
            out=tmp_path / "out.mp4",
            model=str(tiny_model),
            steps=1,
            canvas="frame",
        )
        if number:
            tracemalloc.start()
        generate(job, lambda done, total: held.append(_traced()) if done == total else None)
        tracemalloc.stop()
    assert (held[2] - held[1]) / 60 < 2000


def _traced() -> int:
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


def test_a_store_is_read_as_it_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames, "MEMORY", 1)
    rows = np.random.default_rng(0).normal(size=(5, 2, 3)).astype(np.float32)
    store = FrameStore(tmp_path)
    for index in (3, 0, 1, 4, 2):
        store.put(index, rows[index])
    assert len(store) == 5 and np.array_equal(store.take([4, 0, 0, 3]), rows[[4, 0, 0, 3]])
    store.put(1, rows[0])
    assert np.array_equal(store[1], rows[0]) and np.array_equal(store[2], rows[2])
    with pytest.raises(IndexError):
        store[5]


def test_a_full_disk_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = FrameStore(tmp_path)

    def full(data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(store._file, "write", full)
    with pytest.raises(UserError, match=r"Cannot write temporary files to .*: the disk is full; free some space"):
        store.append(np.zeros(4, np.uint8))


@given(count=st.integers(1, 80), rest=st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 3)))
def test_noise_in_blocks_is_that_of_one_draw(count: int, rest: tuple[int, int, int]) -> None:
    shape = (count, *rest)
    blocks = list(frame_noise(shape, torch.Generator().manual_seed(1)))
    assert max(map(len, blocks)) < 32
    assert torch.equal(torch.cat(blocks), torch.randn(shape, generator=torch.Generator().manual_seed(1)))


def whole_steps(noise: torch.Tensor, steps: int, windows: Windows) -> torch.Tensor:
    """DDIM as it is defined, with every frame of the video in memory."""
    x = noise
    for t, t_prev in ddim_timesteps(steps):
        fused, mass = torch.zeros_like(x), torch.zeros(len(x), 1, 1, 1)
        for index, weight in zip(windows.indices, windows.weights, strict=True):
            rows, share = torch.tensor(index), torch.tensor(weight).reshape(-1, 1, 1, 1)
            fused.index_add_(0, rows, share * predicted(x[rows], t, index))
            mass.index_add_(0, rows, share)
        x = ddim_step(fused / mass if windows.average else fused, x, t, t_prev)
    return x


def predicted(x: torch.Tensor, t: int, index: object) -> torch.Tensor:
    """Something of which every frame of a window depends on all the others."""
    return torch.sin(x + x.mean(0) + t)


@pytest.mark.parametrize(
    "windows",
    [linear_windows(FRAMES, 8, 3), linear_windows(FRAMES, 6, 5)]
    + [closed_loop_windows(FRAMES, average, 8, 3) for average in (True, False)],
)
def test_windows_are_fused_at_every_step(windows: Windows) -> None:
    noise = torch.randn(FRAMES, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(sample(predicted, noise, 3, windows, NoiseSchedule()), whole_steps(noise, 3, windows))


def test_frames_in_no_window_stay_as_they_are() -> None:
    noise = torch.randn(4, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    made = sample(predicted, noise, 2, Windows(((1, 2),), ((1.0, 1.0),)), NoiseSchedule())
    assert torch.equal(made[[0, 3]], noise[[0, 3]]) and not (made == noise)[1:3].any()


def test_sampling_goes_on_from_the_step_it_is_at() -> None:
    noise = torch.randn(FRAMES, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    windows, calls = linear_windows(FRAMES, 8, 3), []

    def stop(done: int, total: int) -> None:
        calls.append((done, total))
        if done == len(windows.indices) + 2 and len(calls) == done:
            raise KeyboardInterrupt

    latents = Latents.begun([noise])
    run = predicted, latents, 3, windows, NoiseSchedule(), noise.device, stop
    with pytest.raises(KeyboardInterrupt):
        to_the_end(sample_video(*run))
    assert latents.rounds == 4
    to_the_end(sample_video(*run))
    assert torch.equal(latents.whole(), whole_steps(noise, 3, windows))
    total = 3 * len(windows.indices)
    assert calls[-1] == (total, total) and len(calls) == total + 2


def test_features_of_a_very_long_video_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[int]] = []

    def compute(frames: list[int]) -> torch.Tensor:
        asked.append(frames)
        return torch.tensor(frames, dtype=torch.float32).reshape(-1, 1, 1, 1).expand(-1, 2, 3, 3)

    windows = [0, 1, 2], [1, 2, 3], [3, 3, 0]
    for most, expected in ((4 * 72, [[0, 1], [2], [3]]), (4 * 72 - 1, [[0, 1], [2], [1, 2], [3], [3, 0]])):
        asked.clear()
        monkeypatch.setattr(features, "MOST", most)
        kept = FrameFeatures(compute, 2, 4, FrameStore())
        assert [kept.take(window)[:, 0, 0, 0].tolist() for window in windows] == list(map(list, windows))
        assert asked == expected


@pytest.mark.parametrize(("held", "stays"), [(4 * 72, True), (4 * 72 - 1, False)])
def test_features_stay_on_the_device_where_those_of_the_whole_video_fit(held: int, stays: bool) -> None:
    store = FrameStore()
    kept = FrameFeatures(lambda frames: torch.full((len(frames), 2, 3, 3), frames[0]).float(), 1, 4, store, held)
    for window in ([0, 1, 2], [1, 2, 3], [3, 3, 0]):
        assert kept.take(window)[:, 0, 0, 0].tolist() == window
    assert len(store) == (0 if stays else 4)


def test_a_device_whose_memory_nobody_knows_keeps_as_much_as_any() -> None:
    assert features.held_on(torch.device("cpu")) == 0
    assert features.held_on(torch.device("mps")) == features.HELD
