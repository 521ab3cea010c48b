"""Clips of any codec, pixel format, rotation and sound, for the tests to read."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import ColorRange


def make_clip(
    path: Path,
    frames: Sequence[np.ndarray],
    *,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    times: Sequence[int] | None = None,
    time_base: Fraction = Fraction(1, 25),
    rotation: tuple[int, bool] = (0, False),
    audio_codec: str | None = None,
    sample_format: str = "fltp",
    options: dict[str, str] | None = None,
) -> Path:
    """Write a clip by the shortest route, not the one under test."""
    with av.open(str(path), "w", options=options or {}) as container:
        height, width = frames[0].shape[:2]
        stream = container.add_stream(codec, 25, width=width, height=height, pix_fmt=pix_fmt)
        stream.codec_context.time_base = time_base
        if rotation != (0, False):
            stream.set_display_rotation(rotation[0], hflip=rotation[1])
        sound = container.add_stream(audio_codec, 44100) if audio_codec else None
        for index, frame in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(frame, "rgb24")
            picture.pts = times[index] if times else index
            picture.time_base = time_base
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
        if sound:
            samples = (np.sin(np.arange(44100) / 20) * 9000).astype(np.int16)
            tone = av.AudioFrame.from_ndarray(np.repeat(samples, 2)[None], "s16", "stereo")
            tone.sample_rate, tone.pts, tone.time_base = 44100, 0, Fraction(1, 44100)
            container.mux(sound.encode(tone))
            container.mux(sound.encode())
    return path


def write_yuv(
    path: Path,
    planes: np.ndarray,
    bits: int,
    tags: tuple[int, int, int],
    full: bool | None,
    count: int = 3,
) -> Path:
    """A lossless clip of equal frames, luma and chroma [3, H, W], with these matrix, primaries and transfer."""
    pix_fmt, kind = ("yuv444p", "u1") if bits == 8 else (f"yuv444p{bits}le", "<u2")
    height, width = planes.shape[1:]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", 25, width=width, height=height, pix_fmt=pix_fmt)
        context = stream.codec_context
        context.colorspace, context.color_primaries, context.color_trc = tags
        ranges = {None: ColorRange.UNSPECIFIED, True: ColorRange.JPEG, False: ColorRange.MPEG}
        context.color_range = ranges[full]
        for index in range(count):
            frame = av.VideoFrame(width, height, pix_fmt)
            for plane, levels in zip(frame.planes, planes, strict=True):
                rows = np.zeros(
                    (plane.buffer_size // plane.line_size, plane.line_size // (1 if bits == 8 else 2)), kind
                )
                rows[:height, :width] = levels
                plane.update(rows.tobytes())
            frame.pts = index
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path
