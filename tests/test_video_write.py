"""Writing video: exact times, nothing lost when it goes wrong, never a whole video in memory."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from contextlib import suppress
from fractions import Fraction
from pathlib import Path

import needs
import numpy as np
import pytest
from video_files import RISING, audio, leftovers, names, noise, pictures, rewrite, times
from waiting import PATIENCE

from anycharv_core.errors import UserError
from anycharv_core.files import atomic_path
from anycharv_core.media.video_read import probe, read_frames
from anycharv_core.media.video_write import VideoWriter, read_gray, write_masks


@pytest.mark.parametrize("start", [0, 1, 7, 100_003])
@pytest.mark.parametrize(
    "time_base",
    [
        Fraction(1, 25),
        Fraction(1, 1000),
        Fraction(1, 15360),
        Fraction(1, 90000),
        Fraction(1001, 30000),
        Fraction(1, 44100),
        Fraction(1, 10**9),
        Fraction(1, 10**7),
        Fraction(7, 3 * 2**40),
    ],
    ids=str,
)
def test_timestamps_are_exact(tmp_path: Path, time_base: Fraction, start: int) -> None:
    # A time base too fine for mp4 must still work where the times themselves fit.
    scale = 2**38 if time_base.denominator > 2**31 else 1
    timestamps = [scale * (start + step) for step in RISING]
    with VideoWriter(tmp_path / "a.mp4", 64, 48, timestamps, time_base) as writer:
        for frame in pictures(len(timestamps), 48, 64):
            writer.write(frame)
    assert times(tmp_path / "a.mp4") == [pts * time_base for pts in timestamps]


@pytest.mark.parametrize("rate", [Fraction(25), Fraction(30000, 1001), Fraction(24, 7), Fraction(12.34)])
def test_even_rates_are_exact(tmp_path: Path, rate: Fraction) -> None:
    with VideoWriter(tmp_path / "a.mp4", 64, 48, rate=rate) as writer:
        for frame in pictures(20, 48, 64):
            writer.write(frame)
    rounded = rate.limit_denominator(100_000)
    assert times(tmp_path / "a.mp4") == [index / rounded for index in range(20)]
    assert probe(tmp_path / "a.mp4").rate == rounded


@pytest.mark.parametrize("timestamps", [[0, 2, 2], [0, 3, 1], [-1, 0, 1]])
def test_times_that_do_not_rise_are_refused(tmp_path: Path, timestamps: list[int]) -> None:
    with pytest.raises(UserError, match=r"do not rise"):
        VideoWriter(tmp_path / "a.mp4", 64, 48, timestamps, Fraction(1, 25))


def test_times_beyond_mp4_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"too fine"):
        VideoWriter(tmp_path / "a.mp4", 64, 48, [0, 1, 3], Fraction(1, 2**40 + 1))


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("written", [0, 3, 60])
def test_an_interrupted_write_leaves_the_old_file(
    tmp_path: Path, error: type[BaseException], written: int
) -> None:
    target = tmp_path / "a.mp4"
    target.write_bytes(b"old")
    with pytest.raises(error), VideoWriter(target, 128, 96, rate=Fraction(25)) as writer:
        for frame in noise(written):
            writer.write(frame)
        raise error
    assert target.read_bytes() == b"old" and names(tmp_path) == ["a.mp4"]


@pytest.mark.parametrize("kind", ["video", "masks", "json"])
def test_a_full_disk_leaves_the_old_file(tmp_path: Path, kind: str) -> None:
    """A limit on file size stops the real writers as a full disk does, late, inside the library."""
    target = tmp_path / {"video": "a.mp4", "masks": "a.mkv", "json": "a.json"}[kind]
    target.write_bytes(b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, hard))
    try:
        with pytest.raises(UserError, match=rf"Cannot write .*{target.name}: the file grew past"):
            if kind == "video":
                with VideoWriter(target, 128, 96, rate=Fraction(25)) as writer:
                    for frame in noise(200):
                        writer.write(frame)
            elif kind == "masks":
                write_masks(target, (frame[..., 0] for frame in noise(200)))
            else:
                with atomic_path(target) as temporary:
                    temporary.write_bytes(bytes(400_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert target.read_bytes() == b"old" and names(tmp_path) == [target.name]


def test_a_disk_that_fills_up_at_the_very_end_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    target = tmp_path / "a.mp4"
    target.write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", full)
    with (
        pytest.raises(UserError, match=r"a.mp4: the disk is full; free some space"),
        VideoWriter(target, 64, 48, rate=Fraction(25)) as writer,
    ):
        for frame in pictures(3, 48, 64):
            writer.write(frame)
    assert target.read_bytes() == b"old" and names(tmp_path) == ["a.mp4"]


def test_control_c_in_a_real_process_leaves_nothing(tmp_path: Path) -> None:
    script = """
import sys, numpy as np
from fractions import Fraction
from anycharv_core.media.video_write import VideoWriter
with VideoWriter(sys.argv[1], 128, 96, rate=Fraction(25)) as writer:
    writer.write(np.zeros((96, 128, 3), np.uint8))
    noise = np.random.default_rng(0).integers(0, 256, (96, 128, 3), np.uint8)
    print("writing", flush=True)
    while True:
        writer.write(noise)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "a.mp4")],
        cwd=Path(__file__).parents[1],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None and process.stdout.readline() == b"writing\n"
    assert leftovers(tmp_path) and not (tmp_path / "a.mp4").exists()
    process.send_signal(2)
    _, errors = process.communicate(timeout=PATIENCE)
    assert b"KeyboardInterrupt" in errors and names(tmp_path) == []


def test_a_wrong_number_of_frames_is_refused(tmp_path: Path) -> None:
    frame = next(pictures(1, 48, 64))
    target, rate = tmp_path / "a.mp4", Fraction(25)
    with (
        pytest.raises(ValueError, match="announced with 2 frames and got 1"),
        VideoWriter(target, 64, 48, [0, 1], Fraction(1, 25)) as writer,
    ):
        writer.write(frame)
    with (
        pytest.raises(ValueError, match="got one more"),
        VideoWriter(target, 64, 48, [0], Fraction(1, 25)) as writer,
    ):
        writer.write(frame)
        writer.write(frame)
    with pytest.raises(ValueError, match="expected uint8"), VideoWriter(target, 64, 48, rate=rate) as writer:
        writer.write(frame[:, :-1])
    with pytest.raises(UserError, match="No frames came"), VideoWriter(target, 64, 48, rate=rate):
        pass
    assert names(tmp_path) == []


def test_atomic_path_replaces_on_success_and_follows_links(tmp_path: Path) -> None:
    real, link = tmp_path / "real.json", tmp_path / "link.json"
    real.write_text("old")
    link.symlink_to(real)
    with atomic_path(link) as temporary:
        assert temporary.suffix == ".json" and temporary.parent == tmp_path
        temporary.write_text("new")
        assert real.read_text() == "old"
    assert real.read_text() == "new" and link.is_symlink() and leftovers(tmp_path) == []


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    os.mkfifo(tmp_path / "pipe")
    for place, words in {
        tmp_path / "none" / "a.mp4": "folder does not exist",
        tmp_path / "file" / "a.mp4": "folder does not exist",
        tmp_path: "not an ordinary file",
        tmp_path / "pipe": "not an ordinary file",
    }.items():
        with pytest.raises(UserError, match=words), VideoWriter(place, 64, 48, rate=Fraction(25)):
            pass
    with pytest.raises(UserError, match=r"folder does not exist"):
        write_masks(tmp_path / "none" / "masks", [np.zeros((4, 4), np.uint8)])


@needs.not_root
def test_a_folder_that_may_not_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(UserError, match=r"you may not write there"), atomic_path(tmp_path / "a.json"):
            pass
    finally:
        tmp_path.chmod(0o700)


def test_a_long_clip_is_never_wholly_in_memory(tmp_path: Path) -> None:
    script = """
import sys, resource, numpy as np
from fractions import Fraction
from anycharv_core.media.video_read import probe, read_frames
from anycharv_core.media.video_write import VideoWriter
frame = np.zeros((540, 960, 3), np.uint8)
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
def run(count):
    with VideoWriter(sys.argv[1], 960, 540, rate=Fraction(25)) as writer:
        for _ in range(count):
            writer.write(frame)
    assert sum(1 for _ in read_frames(sys.argv[1])) == probe(sys.argv[1]).frames == count
    return peak()
short = run(100)
print(run(500) - short)
"""
    result = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "a.mp4")],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    # 400 more frames are 590 MiB of pixels.
    assert int(result.stdout) < 100


@needs.recorded(needs.CLIPS)
@pytest.mark.parametrize("name", ["dance_indoor_1", "ski", "surf"])
def test_real_clips_come_back_exactly(tmp_path: Path, name: str) -> None:
    source = needs.CLIPS / name / "video.mp4"
    assert rewrite(source, tmp_path / "out.mp4") is None
    before, after = probe(source), probe(tmp_path / "out.mp4")
    assert (after.width, after.height, after.frames) == (before.width, before.height, before.frames)
    assert (after.time_base, after.timestamps) == (before.time_base, before.timestamps)
    assert after.has_audio == before.has_audio
    if before.has_audio:
        assert audio(tmp_path / "out.mp4") == audio(source)
    error = [
        np.mean((a.astype(float) - b) ** 2)
        for a, b in zip(read_frames(source), read_frames(tmp_path / "out.mp4"), strict=True)
    ]
    assert 10 * np.log10(255**2 / np.mean(error)) > 35
    masks = list(read_gray(needs.CLIPS / name / "mask.mkv"))
    write_masks(tmp_path / "m.mkv", iter(masks), before.timestamps, before.time_base)
    write_masks(tmp_path / "m", read_gray(tmp_path / "m.mkv"))
    for path in (tmp_path / "m.mkv", tmp_path / "m"):
        assert all(np.array_equal(a, b) for a, b in zip(read_gray(path), masks, strict=True))


@pytest.mark.parametrize(("ending", "codec", "least"), [(".mp4", "h264", 25), (".mkv", "ffv1", 60)])
def test_what_is_written_so_far_can_be_watched(tmp_path: Path, ending: str, codec: str, least: int) -> None:
    shown, so_far, out = (tmp_path / f"{name}{ending}" for name in ("shown", "so_far", "out"))
    with VideoWriter(out, 64, 48, rate=Fraction(25), codec=codec, until_then=shown) as writer:
        for picture in noise(110, 48, 64):
            writer.write(picture)
        so_far.write_bytes(shown.read_bytes())
    assert names(tmp_path) == [out.name, so_far.name]
    count = 0
    with suppress(UserError):  # where a last part is torn
        for picture, whole in zip(read_frames(so_far), read_frames(out), strict=False):
            np.testing.assert_array_equal(picture, whole)
            count += 1
    assert count >= least and probe(out).frames == 110
