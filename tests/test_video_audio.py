"""Audio is copied packet by packet, and re-encoded only where mp4 cannot hold it."""

from __future__ import annotations

import itertools
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from clip_files import make_clip
from video_files import audio, pictures, rewrite, times

from anycharv_core.media.audio import cut_audio
from anycharv_core.media.video_read import probe

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


def sound(path: Path) -> tuple[float, np.ndarray]:
    """When the sound of a file begins, in seconds, and its samples, mono, in -1..1."""
    with av.open(str(path)) as container:
        resampler = av.AudioResampler("flt", "mono", 44100)
        frames = [part for frame in container.decode(audio=0) for part in resampler.resample(frame)]
        return float(frames[0].pts * frames[0].time_base), np.hstack([frame.to_ndarray()[0] for frame in frames])


@pytest.mark.parametrize(("codec", "suffix"), [("aac", "mp4"), ("alac", "mov"), ("pcm_s16le", "mov")])
def test_audio_is_cut_to_the_sample(tmp_path: Path, codec: str, suffix: str) -> None:
    clip = make_clip(tmp_path / f"a.{suffix}", list(pictures(25, 48, 64)), audio_codec=codec)
    whole = sound(clip)[1]
    for start, end in ((Fraction(1, 4), Fraction(3, 4)), (Fraction(0), Fraction(1, 2)), (Fraction(1, 3), None)):
        assert cut_audio(clip, start, end, tmp_path / "b.mp4")
        begins, made = sound(tmp_path / "b.mp4")
        expected = whole[round(44100 * start) : None if end is None else round(44100 * end)]
        assert begins == 0 and 0 <= len(made) - len(expected) < 2048
        # Cut out of a tone, so the first and last blocks of AAC differ.
        middle = slice(2048, len(expected) - 2048)
        assert np.abs(made[middle] - expected[middle]).max() < 0.02
    assert not cut_audio(clip, Fraction(5), None, tmp_path / "b.mp4")


def test_audio_that_starts_late_is_cut_where_it_starts(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "a.ts", list(pictures(25, 48, 64)), audio_codec="aac")
    assert cut_audio(clip, Fraction(1, 50), Fraction(3), tmp_path / "b.mp4")
    # Of AAC the first block is silent.
    heard = [begins + np.argmax(made > 0.2) / 44100 for begins, made in map(sound, (clip, tmp_path / "b.mp4"))]
    assert heard[0] > 0.05 and abs(heard[0] - heard[1] - 0.02) < 0.001
