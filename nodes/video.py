"""A VIDEO as the engine reads it: frame by frame, as it is, with what is to be known of it."""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import folder_paths
import numpy as np
import torch
from comfy_api.latest import InputImpl, Types
from torch import Tensor

from ..anycharv_core.errors import UserError
from ..anycharv_core.media.audio import cut_audio
from ..anycharv_core.media.colour import check_transfer
from ..anycharv_core.media.frames import Reopened
from ..anycharv_core.media.video_read import VideoInfo, probe, read_frames
from .pictures import digest, interruptible, rgb_frames


@dataclass(frozen=True)
class OpenedVideo:
    """A VIDEO whose frames are read from where they are, and can be read again; reading ends where the user
    interrupts.

    frames: uint8 or uint16 [H, W, 3]; plain: the same as uint8; sound: a file with its sound, or None; name: what
    to call it; tell: see `content`.
    """

    info: VideoInfo
    frames: Iterable[np.ndarray]
    plain: Iterable[np.ndarray]
    sound: str | None
    name: str
    tell: Callable[[], tuple[object, ...]]

    @cached_property
    def content(self) -> tuple[object, ...]:
        """What tells it from any other video, for `content_key`; one in memory is read for it."""
        return self.tell()


@contextmanager
def opened(video: Any, first: int = 0) -> Iterator[OpenedVideo]:
    """The VIDEO's own frames, not encoded on the way: of its file, of what it is trimmed to, or in memory.

    first: only so many of its frames, 0 = all. Raises UserError where it cannot be read.
    """
    with tempfile.TemporaryDirectory(prefix="anycharv_") as folder:
        saved = Path(folder) / "sound.mp4"
        if isinstance(video, InputImpl.VideoFromComponents):
            yield _in_memory(video, first, saved)
            return
        source = video.get_stream_source()
        if not isinstance(source, str):
            copy = Path(folder) / "source"
            copy.write_bytes(source.getvalue())
            source = str(copy)
        yield _in_file(video, source, first, saved)


def temporary_folder() -> Path:
    """ComfyUI's, which it makes only when it needs it itself."""
    folder = Path(folder_paths.get_temp_directory())
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def new_video(folder: Path) -> Path:
    """Where a video can lie in a folder that others write to, too."""
    return folder / f"anycharv_{secrets.token_hex(8)}.mp4"


def _in_memory(video: Any, first: int, saved: Path) -> OpenedVideo:
    parts = video.get_components()
    # Create Video makes fractions of floats: 29.97 has a denominator of 2^47, more than any container holds.
    rate = Fraction(parts.frame_rate).limit_denominator(1001)
    images, audio = parts.images[: first or None], parts.audio
    if audio:
        _save_sound(audio, len(images), rate, saved)
    frames = rgb_frames(images, "video")
    info = _info_of_pictures(images, rate)
    sound = str(saved) if audio else None
    return OpenedVideo(info, frames, frames, sound, "in memory", lambda: (digest(frames), images.shape))


def _save_sound(audio: Any, count: int, rate: Fraction, saved: Path) -> None:
    """An AUDIO, as long as so many frames, in a file."""
    # ComfyUI would encode the video's own pictures only to carry the sound, and fails where they have odd sides or
    # transparency.
    blank = torch.zeros(1, 16, 16, 3).expand(count, -1, -1, -1)
    parts = Types.VideoComponents(images=blank, audio=audio, frame_rate=rate)
    InputImpl.VideoFromComponents(parts).save_to(str(saved))


def _in_file(video: Any, source: str, first: int, saved: Path) -> OpenedVideo:
    info = probe(source)
    check_transfer(source, info.colours)
    start, duration = video.get_active_trim_window()
    trimmed = (start, duration) != (0.0, 0.0)
    part = range(info.frames)
    if trimmed:
        part, info = _trimmed(info, start, duration)
    begin, end = Fraction(start), Fraction(start + duration) if duration else None
    shortened = 0 < first < len(part)
    if shortened:
        end = begin + info.timestamps[first] * info.time_base
        part = part[:first]
        info = replace(info, frames=first, timestamps=info.timestamps[:first])
    sound: str | None
    content: tuple[Path | int, ...]
    if not (trimmed or shortened):
        deep, plain = partial(read_frames, source, deep=True), partial(read_frames, source)
        sound, content = source if info.has_audio else None, (Path(source),)
    else:
        # ComfyUI would encode the pictures, too, only to carry the sound, and fails where they have odd sides.
        sound = str(saved) if info.has_audio and cut_audio(source, begin, end, saved) else None
        bounds = part.start, part.stop
        deep, plain = partial(read_frames, source, *bounds, deep=True), partial(read_frames, source, *bounds)
        content = Path(source), *bounds
    streams = interruptible(Reopened(deep)), interruptible(Reopened(plain))
    return OpenedVideo(info, *streams, sound, source, lambda: content)


def _info_of_pictures(images: Tensor, rate: Fraction) -> VideoInfo:
    count, height, width, _ = images.shape
    return VideoInfo(
        width=width,
        height=height,
        frames=count,
        time_base=1 / rate,
        timestamps=tuple(range(count)),
        rate=rate,
        rotation=0,
        has_audio=False,
        sample_aspect=Fraction(1),
    )


def _trimmed(info: VideoInfo, start: float, duration: float) -> tuple[range, VideoInfo]:
    """Which frames ComfyUI shows of a video trimmed to `duration` seconds (0 = all) from `start` on, and what they
    are by themselves, with times from the start of the trim."""
    first = int(start / info.time_base)
    end = int((start + duration) / info.time_base) if duration else info.timestamps[-1] + 1
    chosen = [index for index, time in enumerate(info.timestamps) if first <= time < end]
    if not chosen:
        raise UserError(
            f"The video is trimmed to {duration} seconds from {start} on, where it has no frames; trim less."
        )
    part = range(chosen[0], chosen[-1] + 1)
    times = tuple(time - first for time in info.timestamps[part.start : part.stop])
    return part, replace(info, frames=len(part), timestamps=times)
