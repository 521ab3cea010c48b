"""Reading video: sizes, formats, colours, rotation, times, and what cannot be read."""

from __future__ import annotations

import itertools
import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from clip_files import make_clip
from video_files import leftovers, noise, pictures, rewrite, times

from anycharv_core.errors import UserError
from anycharv_core.media.video_read import probe, read_frames
from anycharv_core.media.video_write import VideoWriter, read_gray, write_masks


@pytest.mark.parametrize("size", [(48, 64), (47, 63), (48, 63), (47, 64)])
def test_sizes_survive_both_ways(tmp_path: Path, size: tuple[int, int]) -> None:
    frames = list(pictures(5, *size))
    with VideoWriter(tmp_path / "a.mp4", size[1], size[0], rate=Fraction(25)) as writer:
        for frame in frames:
            writer.write(frame)
    info = probe(tmp_path / "a.mp4")
    assert (info.height, info.width, info.frames, info.rate) == (*size, 5, 25)
    for got, frame in zip(read_frames(tmp_path / "a.mp4"), frames, strict=True):
        assert got.dtype == np.uint8 and np.abs(got.astype(int) - frame).max() <= 6


@pytest.mark.parametrize(
    ("codec", "pix_fmt", "suffix"),
    [
        ("libx264", "yuv422p10le", "mp4"),
        ("libx264", "yuvj420p", "mp4"),
        ("libx265", "yuv420p10le", "mp4"),
        ("libvpx-vp9", "yuv420p", "webm"),
        ("mpeg4", "yuv420p", "avi"),
        ("mjpeg", "yuvj422p", "mov"),
        ("ffv1", "bgr0", "mkv"),
    ],
)
def test_formats_decode_to_the_right_colours(tmp_path: Path, codec: str, pix_fmt: str, suffix: str) -> None:
    frames = list(pictures(6, 96, 128))
    clip = make_clip(tmp_path / f"a.{suffix}", frames, codec=codec, pix_fmt=pix_fmt)
    for got, frame in zip(read_frames(clip), frames, strict=True):
        assert np.abs(got.astype(int) - frame).mean() < 4


@pytest.mark.parametrize("rotation", list(itertools.product([0, 90, 180, -90], [False, True])))
def test_pictures_are_turned_upright(tmp_path: Path, rotation: tuple[int, bool]) -> None:
    stored = np.zeros((48, 80, 3), np.uint8)
    stored[:16, :24, 0] = 250
    stored[32:, 56:, 2] = 250
    clip = make_clip(tmp_path / "a.mp4", [stored] * 3, pix_fmt="yuv444p", rotation=rotation)
    # The mirror comes after the rotation (PyAV's words), which is counter-clockwise.
    shown = np.rot90(stored, rotation[0] // 90 % 4)
    shown = shown[:, ::-1] if rotation[1] else shown
    info = probe(clip)
    assert (info.height, info.width) == shown.shape[:2]
    for got in read_frames(clip):
        assert np.abs(got.astype(int) - shown).mean() < 3


@pytest.mark.parametrize(("space", "height"), [(1, 48), (5, 48), (2, 48), (2, 720)])
def test_the_colour_matrix_of_the_stream_is_used(tmp_path: Path, space: int, height: int) -> None:
    kr, kb = (0.2126, 0.0722) if space == 1 or height == 720 else (0.299, 0.114)
    red, green, blue = 200.0, 40.0, 90.0
    luma = kr * red + (1 - kr - kb) * green + kb * blue
    planes = [16 + luma * 219 / 255]
    planes += [128 + (colour - luma) / (2 - 2 * k) * 224 / 255 for colour, k in ((blue, kb), (red, kr))]
    flat = np.empty((3, height, 64), np.uint8)
    flat[:] = np.round(planes)[:, None, None]
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream = container.add_stream("ffv1", 25, width=64, height=height, pix_fmt="yuv444p")
        stream.codec_context.colorspace = space
        container.mux(stream.encode(av.VideoFrame.from_ndarray(flat, "yuv444p")))
        container.mux(stream.encode())
    got = next(read_frames(tmp_path / "a.mkv"))
    assert np.abs(got.astype(float) - [red, green, blue]).max() <= 2


def test_a_part_of_a_clip_is_counted_by_frames(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "a.mp4", list(pictures(12, 48, 64)))
    everything = list(read_frames(clip))
    part = list(read_frames(clip, 3, 7))
    assert len(everything) == 12 and len(part) == 4
    assert all(np.array_equal(a, b) for a, b in zip(part, everything[3:7], strict=True))


def test_frames_without_usable_timestamps_get_rising_ones(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "a.h264", list(pictures(8, 48, 64)))
    info = probe(clip)
    assert info.frames == 8 and all(a < b for a, b in itertools.pairwise(info.timestamps))
    rewrite(clip, tmp_path / "b.mp4")
    assert times(tmp_path / "b.mp4") == times(clip)


def test_non_square_pixels_are_kept(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "a.mp4", 64, 48, rate=Fraction(25), sample_aspect=Fraction(4, 3)) as writer:
        writer.write(next(pictures(1, 48, 64)))
    assert probe(tmp_path / "a.mp4").sample_aspect == Fraction(4, 3)


def test_bad_inputs_give_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("not a film\n" * 50)
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "empty").mkdir()
    with av.open(str(tmp_path / "sound.m4a"), "w", format="mp4") as container:
        sound = container.add_stream("aac", 44100)
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 2048), np.int16), "s16", "stereo")
        silence.sample_rate = 44100
        container.mux(sound.encode(silence))
        container.mux(sound.encode())
    for name in ("none.mp4", "notes.txt", "empty.mp4", "empty", "sound.m4a"):
        for read in (probe, lambda path: list(read_frames(path)), lambda path: list(read_gray(path))):
            with pytest.raises(UserError, match=name) as caught:
                read(tmp_path / name)
            assert str(caught.value).endswith(".") and "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"none.mp4"):
        rewrite_audio = VideoWriter(
            tmp_path / "a.mp4", 64, 48, rate=Fraction(25), audio_from=tmp_path / "none.mp4"
        )
        with rewrite_audio:
            pass
    assert not (tmp_path / "a.mp4").exists() and leftovers(tmp_path) == []


def test_a_truncated_clip_names_the_frame(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "a.mp4", list(noise(40)), options={"movflags": "+faststart"})
    clip.write_bytes(clip.read_bytes()[: clip.stat().st_size // 2])
    with pytest.raises(UserError, match=r"a.mp4 is cut short at frame \d+; give a complete copy"):
        probe(clip)
    with pytest.raises(UserError, match=r"at frame \d+"):
        list(read_frames(clip))


def test_a_clip_without_its_end_is_refused(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "a.mp4", list(noise(10)))
    clip.write_bytes(clip.read_bytes()[:-2000])
    with pytest.raises(UserError, match=r"a.mp4 is not a video that can be read"):
        probe(clip)


def test_a_colon_in_a_name_is_only_a_colon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_clip(tmp_path / "a.mp4", list(pictures(3, 48, 64))).rename(tmp_path / "http:a.mp4")
    rewrite(Path("http:a.mp4"), Path("concat:b.mp4"))
    assert probe("concat:b.mp4").frames == 3


def test_a_pause_of_many_days_between_two_frames_is_kept(tmp_path: Path) -> None:
    clip = make_clip(
        tmp_path / "a.mkv", list(noise(2)), codec="ffv1", times=[0, 10**9], time_base=Fraction(1, 1000)
    )
    info = probe(clip)
    assert info.timestamps == (0, 10**9) and info.rate == Fraction(1, 10**6)
    size = info.width, info.height
    with VideoWriter(tmp_path / "b.mp4", *size, info.timestamps, info.time_base, info.rate) as video:
        for frame in read_frames(clip):
            video.write(frame)
    write_masks(tmp_path / "m.mkv", (frame[..., 0] for frame in noise(2)), info.timestamps, info.time_base)
    for name in ("b.mp4", "m.mkv"):
        copy = probe(tmp_path / name)
        assert [time * copy.time_base for time in copy.timestamps] == [0, 10**6]


@pytest.mark.parametrize("name", ["a:b.mkv", "new\nline.mkv", "%03d.mkv", "häß.mkv", os.fsdecode(b"odd\xff.mkv")])
def test_any_file_name_will_do(tmp_path: Path, name: str) -> None:
    make_clip(tmp_path / "a.mkv", list(noise(2)), codec="ffv1").rename(tmp_path / name)
    assert probe(tmp_path / name).frames == 2


def test_what_is_no_video_file_is_refused_without_waiting_for_it(tmp_path: Path) -> None:
    make_clip(tmp_path / "a.mp4", list(noise(2)))
    playlist = "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\na.mp4\n"
    for name, text in (
        ("live.m3u8", playlist),
        ("list.ffconcat", "ffconcat version 1.0\nfile a.mp4\n"),
        ("stream.sdp", "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=a\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n"),
        ("words.txt", "words\n" * 100),
        ("drawing.svg", "<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(UserError, match="is not a video that can be read"):
            probe(tmp_path / name)
    os.mkfifo(tmp_path / "pipe.mp4")
    for path in (tmp_path / "pipe.mp4", Path("/dev/zero")):
        with pytest.raises(UserError, match="is a pipe or a device"):
            probe(path)


def test_a_video_with_huge_pictures_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_clip(tmp_path / "a.mkv", list(noise(1)), codec="ffv1")
    height, width = next(noise(1)).shape[:2]
    monkeypatch.setattr("anycharv_core.media.decode._MOST_PIXELS", width * height - 1)
    with pytest.raises(UserError, match=f"is {width}x{height}; give one of at most"):
        probe(tmp_path / "a.mkv")
