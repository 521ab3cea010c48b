"""What tests of video share: pictures to write, and the times and audio of what was written."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from anycharv_core.media.video_read import probe, read_frames
from anycharv_core.media.video_write import VideoWriter

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
