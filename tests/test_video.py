"""Video in and out: exactness of frames, times, audio and masks, and what happens when things go wrong."""

from __future__ import annotations

import errno
import itertools
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import needs
import numpy as np
import pytest
from clip_files import make_clip
from waiting import PATIENCE

from anycharv_core.errors import UserError
from anycharv_core.files import atomic_path
from anycharv_core.media.video_read import probe, read_frames
from anycharv_core.media.video_write import VideoWriter, read_gray, write_masks

RISING = [0, 3, 4, 11, 12, 13, 20, 31, 32, 40, 41, 55]


def times(path: Path) -> list[Fraction]:
    info = probe(path)
    return [pts * info.time_base for pts in info.timestamps]


def audio(path: Path) -> list[tuple[int, Fraction, bytes]]:
    """Return stream number, time and bytes of every audio packet."""
    with av.open(str(path)) as container:
        first = min(stream.index for stream in container.streams.audio)
        return [
            (packet.stream.index - first, packet.pts * packet.time_base, bytes(packet))
            for packet in container.demux(container.streams.audio)
            if packet.size
        ]


def pictures(count: int, height: int, width: int) -> Iterator[np.ndarray]:
    """Yield smooth pictures whose brightness tells their number."""
    ramp = np.linspace(0, 60, width, dtype=np.uint8)[None, :, None]
    for index in range(count):
        yield np.broadcast_to(ramp + np.uint8(10 * index % 190), (height, width, 3)).copy()


def noise(count: int, height: int = 96, width: int = 128) -> Iterator[np.ndarray]:
    rng = np.random.default_rng(0)
    for _ in range(count):
        yield rng.integers(0, 256, (height, width, 3), np.uint8)


def rewrite(source: Path, target: Path) -> str | None:
    """Write a clip back the way the product does; return the audio note."""
    info = probe(source)
    with VideoWriter(
        target,
        info.width,
        info.height,
        info.timestamps,
        info.time_base,
        audio_from=source,
        sample_aspect=info.sample_aspect,
    ) as writer:
        for frame in read_frames(source):
            writer.write(frame)
    return writer.audio_note


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def leftovers(folder: Path) -> list[str]:
    return [name for name in names(folder) if name.startswith(".")]


# Reading


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


# Timestamps


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


# Audio


CODECS = ("aac", "libmp3lame", "ac3", "alac", "pcm_s16le")
NOT_IN_MOV = ("flac", "libopus")


@pytest.mark.parametrize(
    ("codec", "suffix"),
    [
        *itertools.product(CODECS + NOT_IN_MOV, ("mp4", "mkv")),
        *itertools.product(CODECS, ("mov",)),
    ],
)
def test_audio_packets_are_copied(tmp_path: Path, codec: str, suffix: str) -> None:
    if codec == "libopus":
        clip = make_opus(tmp_path / f"a.{suffix}")
    else:
        clip = make_clip(tmp_path / f"a.{suffix}", list(pictures(25, 48, 64)), audio_codec=codec)
    assert rewrite(clip, tmp_path / "b.mp4") is None
    assert times(tmp_path / "b.mp4") == times(clip)
    before, after = audio(clip), audio(tmp_path / "b.mp4")
    if suffix == "mkv" or codec == "pcm_s16le":
        # Matroska counts milliseconds and mp4 samples, and mp4 cuts PCM into packets as it likes.
        assert b"".join(p[2] for p in before) == b"".join(p[2] for p in after)
        assert abs(before[0][1] - after[0][1]) <= Fraction(1, 2 * 44100)
    else:
        assert before == after


def make_opus(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", 25, width=64, height=48, pix_fmt="yuv420p")
        sound = container.add_stream("libopus", 48000)
        for frame in pictures(25, 48, 64):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, "rgb24")))
        container.mux(stream.encode())
        tone = av.AudioFrame.from_ndarray(np.zeros((1, 96000), np.int16), "s16", "stereo")
        tone.sample_rate, tone.pts, tone.time_base = 48000, 0, Fraction(1, 48000)
        container.mux(sound.encode(tone))
        container.mux(sound.encode())
    return path


def test_late_start_of_both_is_kept(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "a.ts", list(pictures(25, 48, 64)), audio_codec="aac")
    assert times(clip)[0] > 0
    assert rewrite(clip, tmp_path / "b.mp4") is None
    assert times(tmp_path / "b.mp4") == times(clip)
    before, after = audio(clip), audio(tmp_path / "b.mp4")
    # A transport stream wraps each AAC packet in a 7-byte header that mp4 has no use for.
    assert [packet[7:] for _, _, packet in before] == [packet for _, _, packet in after]
    assert max(abs(a[1] - b[1]) for a, b in zip(before, after, strict=True)) <= Fraction(1, 2 * 44100)


def test_every_audio_stream_is_copied(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "a.mp4", list(pictures(25, 48, 64)), audio_codec="aac")
    with av.open(str(clip)) as source, av.open(str(tmp_path / "two.mp4"), "w") as container:
        video = container.add_stream_from_template(source.streams.video[0])
        copies = [container.add_stream_from_template(source.streams.audio[0]) for _ in range(2)]
        for packet in source.demux():
            if packet.size:
                data, pts, dts, base = bytes(packet), packet.pts, packet.dts, packet.time_base
                for stream in [video] if packet.stream.type == "video" else copies:
                    copy = av.Packet(data)
                    copy.pts, copy.dts, copy.time_base, copy.stream = pts, dts, base, stream
                    copy.is_keyframe = packet.is_keyframe
                    container.mux(copy)
    rewrite(tmp_path / "two.mp4", tmp_path / "b.mp4")
    assert {number for number, _, _ in audio(tmp_path / "b.mp4")} == {0, 1}
    assert sorted(audio(tmp_path / "b.mp4")) == sorted(audio(tmp_path / "two.mp4"))


def test_audio_that_mp4_cannot_hold_becomes_aac(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "a.avi", list(pictures(25, 48, 64)), codec="mpeg4", audio_codec="adpcm_ms")
    note = rewrite(clip, tmp_path / "b.mp4")
    assert note is not None and "adpcm_ms" in note and "re-encoded to AAC" in note
    with av.open(str(tmp_path / "b.mp4")) as container:
        assert container.streams.audio[0].codec_context.name == "aac"
        seconds = sum(frame.samples for frame in container.decode(audio=0)) / 44100
    assert abs(seconds - 1) < 0.06


def test_audio_that_jumps_back_in_time_is_re_encoded(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "a.mkv", list(pictures(25, 48, 64)), audio_codec="ac3")
    data = bytearray(clip.read_bytes())
    # A block's time is in the two bytes before its flags, which come before the packet.
    at = data.index(audio(clip)[12][2]) - 3
    data[at : at + 2] = (5).to_bytes(2, "big")
    clip.write_bytes(data)
    note = rewrite(clip, tmp_path / "b.mp4")
    assert note is not None and "re-encoded" in note
    with av.open(str(tmp_path / "b.mp4")) as container:
        assert abs(sum(frame.samples for frame in container.decode(audio=0)) / 44100 - 1) < 0.1


def test_a_source_without_audio_gives_none(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "a.mp4", list(pictures(3, 48, 64)))
    assert rewrite(clip, tmp_path / "b.mp4") is None
    assert not probe(tmp_path / "b.mp4").has_audio


def test_a_clip_can_be_written_over_itself(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "a.mp4", list(pictures(25, 48, 64)), audio_codec="aac")
    before = times(clip), audio(clip)
    rewrite(clip, clip)
    assert (times(clip), audio(clip)) == before


# Nothing is lost when writing goes wrong


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


# Masks


@pytest.mark.parametrize("name", ["masks.mkv", "masks"])
@pytest.mark.parametrize("size", [(48, 64), (37, 53), (1, 1)])
def test_masks_are_bit_equal(tmp_path: Path, name: str, size: tuple[int, int]) -> None:
    rng = np.random.default_rng(1)
    masks = [rng.integers(0, 256, size, np.uint8) for _ in range(12)]
    for _ in range(2):
        write_masks(tmp_path / name, iter(masks))
        assert all(np.array_equal(a, b) for a, b in zip(read_gray(tmp_path / name), masks, strict=True))
    assert names(tmp_path) == [name]


def test_mask_times_are_kept_to_the_millisecond(tmp_path: Path) -> None:
    stamps = [pts * 1001 for pts in RISING]
    masks = [np.full((8, 8), index, np.uint8) for index in range(len(RISING))]
    write_masks(tmp_path / "a.mkv", masks, stamps, Fraction(1, 30000))
    for got, pts in zip(times(tmp_path / "a.mkv"), stamps, strict=True):
        assert abs(got - Fraction(pts, 30000)) <= Fraction(1, 2000)
    with pytest.raises(ValueError, match=r"shorter"):
        write_masks(tmp_path / "a.mkv", masks, stamps[:-1], Fraction(1, 30000))


@pytest.mark.parametrize("name", ["masks.mkv", "masks"])
def test_an_interrupted_mask_write_leaves_the_old_masks(tmp_path: Path, name: str) -> None:
    old = [np.full((8, 8), 7, np.uint8)] * 3
    write_masks(tmp_path / name, old)

    def interrupted() -> Iterator[np.ndarray]:
        yield np.zeros((8, 8), np.uint8)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_masks(tmp_path / name, interrupted())
    assert [mask[0, 0] for mask in read_gray(tmp_path / name)] == [7, 7, 7]
    with pytest.raises(UserError, match=r"No masks came"):
        write_masks(tmp_path / name, [])
    with pytest.raises(ValueError, match=r"of one size"):
        write_masks(tmp_path / name, [np.zeros((8, 8), np.uint8), np.zeros((8, 9), np.uint8)])
    assert names(tmp_path) == [name] and len(list(read_gray(tmp_path / name))) == 3


def test_a_folder_with_other_things_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"dear")
    with pytest.raises(UserError, match=r"also holds photo\.jpg"):
        write_masks(tmp_path, [np.zeros((4, 4), np.uint8)])
    with pytest.raises(UserError, match=r"neither a .mkv file nor a folder"):
        write_masks(tmp_path / "a.mp4", [np.zeros((4, 4), np.uint8)])
    assert (tmp_path / "photo.jpg").read_bytes() == b"dear"


def test_any_kind_of_mask_image_is_read(tmp_path: Path) -> None:
    image = needs.installed("pillow", module="PIL.Image")
    mask = np.arange(0, 256, dtype=np.uint8).reshape(8, 32)
    gray = image.fromarray(mask)
    for mode in ("L", "RGB", "RGBA", "LA", "P"):
        gray.convert(mode).save(tmp_path / f"{mode} 100%d.png")
        (got,) = read_gray(tmp_path / f"{mode} 100%d.png")
        assert np.array_equal(got, mask), mode
    gray.point(lambda value: 255 * (value > 99)).convert("1").save(tmp_path / "1.png")
    assert np.array_equal(next(read_gray(tmp_path / "1.png")), 255 * (mask > 99))
    image.fromarray(mask.astype(np.uint16) * 257).save(tmp_path / "16.png")
    assert np.array_equal(next(read_gray(tmp_path / "16.png")), mask)


def test_a_coloured_mask_video_becomes_full_range_luma(tmp_path: Path) -> None:
    frame = np.zeros((48, 64, 3), np.uint8)
    frame[:, 32:] = 255
    clip = make_clip(tmp_path / "a.mp4", [frame] * 2)
    for mask in read_gray(clip):
        assert mask[:, :30].max() <= 1 and mask[:, 34:].min() >= 254


def test_folders_are_read_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    image = needs.installed("pillow", module="PIL.Image")
    for index in (0, 2, 10, 1):
        image.fromarray(np.full((4, 4), index, np.uint8)).save(tmp_path / f"m{index}.png")
    assert [mask[0, 0] for mask in read_gray(tmp_path)] == [0, 1, 2, 10]
    image.fromarray(np.zeros((4, 5), np.uint8)).save(tmp_path / "m11.png")
    with pytest.raises(UserError, match=r"m11.png is 5x4 but the first PNG in its folder is 4x4"):
        list(read_gray(tmp_path))


# Bad input


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


# Memory


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


# Real clips


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
    monkeypatch.setattr("anycharv_core.media.video_read._MOST_PIXELS", width * height - 1)
    with pytest.raises(UserError, match=f"is {width}x{height}; give one of at most"):
        probe(tmp_path / "a.mkv")
