"""Reading video: exact frames, upright, with exact timestamps, a few frames at a time."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.video.reformatter import VideoReformatter

from .colour import UNTAGGED, Colours
from .decode import decoded_frames, open_input, undecodable, video_stream
from .pixels import Matrix, colours_of, depth_of, oriented, rgb_of

VIDEOS = (".mp4", ".mkv", ".mov", ".webm", ".avi", ".m4v", ".gif")  # endings of their names


@dataclass(frozen=True)
class VideoInfo:
    """What a video holds, as measured by decoding it.

    `width` and `height` are in pixels after rotation; `frames` is the number of displayed frames;
    `timestamps` holds the time of each in units of `time_base` seconds, strictly rising; `rate` is the
    average in frames per second; `rotation` is the angle in degrees, counter-clockwise, by which the
    stored picture is turned for display; `sample_aspect` is the width of a displayed pixel over its
    height; `depth` is the bits a channel that its frames are read with, where asked for, one of `DEPTHS`.
    """

    width: int
    height: int
    frames: int
    time_base: Fraction
    timestamps: tuple[int, ...]
    rate: Fraction
    rotation: int
    has_audio: bool
    sample_aspect: Fraction
    depth: int = 8
    colours: Colours = UNTAGGED


def probe(path: Path | str) -> VideoInfo:
    """Decode the whole video, keeping no pixels, and say what it holds.

    Frames without a timestamp, or with one that does not rise, get the next free one.

    Raises UserError if the file is missing, is not a video, has no frames or cannot be decoded.
    """
    video = Video(path)
    with open_input(path) as container:
        for _ in video.decoded(container):
            pass
    return video.info


class Video:
    """A video file that is measured while its frames are read for the first time.

    Every loop over it yields what `read_frames` does, and raises UserError as that does.
    """

    def __init__(self, path: Path | str):
        self.path = path
        self._info: VideoInfo | None = None

    @property
    def measured(self) -> bool:
        """Whether its frames have been read to the end."""
        return self._info is not None

    @cached_property
    def likely(self) -> int:
        """How many frames it seems to have, see `likely_frames`."""
        return likely_frames(self.path)

    @property
    def total(self) -> int:
        """How many frames it has, as `info` says."""
        return self.info.frames

    @property
    def info(self) -> VideoInfo:
        """What it holds; where its frames have not been read to the end yet, they are decoded for this."""
        if self._info is None:
            self._info = probe(self.path)
        return self._info

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the first frame, the only one that is decoded for this."""
        return self._first[0]

    @property
    def colours(self) -> Colours:
        """The colour tags of the first frame, the only one that is decoded for this."""
        return self._first[1]

    @cached_property
    def _first(self) -> tuple[tuple[int, int], Colours]:
        with open_input(self.path) as container:
            frame, matrix = next(decoded_frames(self.path, container))
            height, width, _ = oriented(rgb_of(self.path, frame, VideoReformatter()), matrix).shape
            return (width, height), colours_of(frame)

    def __iter__(self) -> Iterator[np.ndarray]:
        return self.frames()

    def frames(self, deep: bool = False) -> Iterator[np.ndarray]:
        """What a loop over it yields. deep: as `read_frames` takes it."""
        reformatter = VideoReformatter()
        with open_input(self.path) as container:
            for frame, matrix in self.decoded(container):
                yield oriented(rgb_of(self.path, frame, reformatter, deep), matrix)

    def decoded(self, container: InputContainer) -> Iterator[tuple[av.VideoFrame, Matrix]]:
        """The frames of the opened file, which is measured once they have all passed."""
        timestamps: list[int] = []
        stream = video_stream(container)
        time_base = stream.time_base or Fraction(1, 25)
        nominal = stream.average_rate or stream.guessed_rate or Fraction(25)
        aspect = stream.sample_aspect_ratio or Fraction(1)
        step = max(1, round(1 / (nominal * time_base)))
        for frame, matrix in decoded_frames(self.path, container):
            if not timestamps:
                turned = matrix[0] == 0
                width, height = (frame.height, frame.width) if turned else (frame.width, frame.height)
                rotation = frame.rotation
                depth, colours = depth_of(frame), colours_of(frame)
            earliest = timestamps[-1] + 1 if timestamps else None
            pts = frame.pts
            if pts is None:
                pts = timestamps[-1] + step if timestamps else 0
            timestamps.append(pts if earliest is None else max(pts, earliest))
            yield frame, matrix
        self._info = VideoInfo(
            width=width,
            height=height,
            frames=len(timestamps),
            time_base=time_base,
            timestamps=tuple(timestamps),
            rate=average_rate(timestamps, time_base) or nominal,
            rotation=rotation,
            has_audio=bool(container.streams.audio),
            sample_aspect=1 / aspect if turned else aspect,
            depth=depth,
            colours=colours,
        )


def likely_frames(path: Path | str) -> int:
    """How many frames a video says it holds or, where it does not say, has packets of; none is decoded.

    Not what it displays for certain: an edit list, say, leaves some out. Raises UserError as `probe` does.
    """
    with open_input(path) as container:
        stream = video_stream(container)
        try:
            return stream.frames or sum(1 for packet in container.demux(stream) if packet.size)
        except av.FFmpegError as error:
            raise undecodable(path, "its end", error) from error


def read_frames(
    path: Path | str, start: int = 0, stop: int | None = None, deep: bool = False
) -> Iterator[np.ndarray]:
    """Yield displayed frames `start` to `stop` (exclusive) as uint8 RGB [H, W, 3], turned upright.

    deep: give frames of more than 8 bits as uint16, as colour.py has them, instead of rounded to 8.

    Frames are counted exactly, so those before `start` are decoded and dropped. The stream's own
    colour matrix and range are used; where it names no matrix, BT.709 is taken for pictures over 576
    rows or 1024 columns and BT.601 for smaller ones, as players do. HDR is not tone-mapped.

    Raises UserError, on the first step or at the frame concerned, as `probe` does.
    """
    reformatter = VideoReformatter()
    with open_input(path) as container:
        for frame, matrix in itertools.islice(decoded_frames(path, container), start, stop):
            yield oriented(rgb_of(path, frame, reformatter, deep), matrix)


def average_rate(timestamps: Sequence[int], time_base: Fraction) -> Fraction | None:
    if len(timestamps) < 2:
        return None
    return (len(timestamps) - 1) / ((timestamps[-1] - timestamps[0]) * time_base)
