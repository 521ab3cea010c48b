"""Videos as the nodes read them: in memory, in a file, trimmed, with their times and sound."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from comfy_api.latest import InputImpl, Types
from comfy_pack import core

TONE = {"waveform": torch.sin(torch.arange(44100) / 20).expand(1, 2, -1), "sample_rate": 44100}


def in_memory(rate: Any, images: torch.Tensor, audio: Any = None) -> Any:
    return InputImpl.VideoFromComponents(
        Types.VideoComponents(images=images, audio=audio, frame_rate=Fraction(rate))
    )


@pytest.mark.parametrize(
    ("rate", "exact"),
    [(29.97, "2997/100"), (23.976, "2997/125"), (59.94, "2997/50"), ("30000/1001", "30000/1001"), (25, "25")],
)
def test_rates_of_create_video_can_be_written(rate: Any, exact: str, tmp_path: Path) -> None:
    written = core("anycharv_core.media.video_write")
    with core("nodes.video").opened(in_memory(rate, torch.zeros(3, 16, 16, 3))) as source:
        info = source.info
        times = info.timestamps, info.time_base, info.rate
        with written.VideoWriter(tmp_path / "a.mp4", 16, 16, *times) as writer:
            for frame in source.frames:
                writer.write(np.asarray(frame))
    made = core("anycharv_core.media.video_read").probe(tmp_path / "a.mp4")
    assert [time * made.time_base for time in made.timestamps] == [i / Fraction(exact) for i in range(3)]


def seconds_of_sound(path: str | None) -> float:
    assert path is not None
    with av.open(path) as container:
        return sum(frame.samples / frame.sample_rate for frame in container.decode(audio=0))


@pytest.mark.parametrize(("height", "channels"), [(65, 3), (64, 4)])
def test_sound_in_memory_is_kept_whatever_the_pictures_are(height: int, channels: int) -> None:
    video = in_memory(8, torch.rand(8, height, 64, channels), TONE)
    for first, seconds in ((0, 1.0), (4, 0.5)):
        with core("nodes.video").opened(video, first) as source:
            # AAC comes in blocks of 1024 samples.
            assert abs(seconds_of_sound(source.sound) - seconds) <= 1024 / 44100
            assert [frame.shape for frame in source.frames] == [(height, 64, 3)] * int(8 * seconds)


def test_sound_of_a_trimmed_file_with_odd_sides_is_kept(tmp_path: Path) -> None:
    with core("nodes.video").opened(in_memory(8, torch.rand(8, 65, 63, 3), TONE)) as source:
        info, path = source.info, tmp_path / "odd.mp4"
        writer = core("anycharv_core.media.video_write").VideoWriter
        with writer(path, 63, 65, info.timestamps, info.time_base, audio_from=source.sound) as written:
            for frame in source.frames:
                written.write(frame)
    video = InputImpl.VideoFromFile
    trimmed = video(str(path), start_time=0.25, duration=0.5)
    for given, first, frames in ((video(str(path)), 4, 4), (trimmed, 0, 4), (trimmed, 2, 2)):
        with core("nodes.video").opened(given, first) as source:
            assert abs(seconds_of_sound(source.sound) - frames / 8) <= 1024 / 44100
            assert sum(1 for _ in source.frames) == source.info.frames == frames
