"""Video in and out: exact frames and timestamps, H.264 mp4 with the source's audio, lossless masks.

Everything streams: no function here holds more than a few frames of pixels at a time.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import final

import av
import numpy as np
from av.container import InputContainer, OutputContainer
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc, VideoReformatter

from ..errors import UserError
from ..files import atomic_path, owned_folder, write_error
from .video_read import EXACT, VideoInfo, average_rate, open_input, probe, read_frames, read_gray

__all__ = ["VideoInfo", "VideoWriter", "probe", "read_frames", "read_gray", "write_masks"]

_MP4_MAX = 2**31 - 1  # mp4 keeps timescales and the steps between frames in 32 bits


@final
class VideoWriter:
    """Write frames to an H.264 mp4 (CRF `crf`, BT.709, limited range) with exact timestamps.

    Use it in a `with` statement. The file takes its name only when the body ends well; after any
    exception, Ctrl-C included, an old file of that name is as it was.

    `width` and `height` are in pixels. H.264 with halved chroma (yuv420p, what every player takes)
    cannot hold an odd size, so pictures with an odd side keep their size and are written as yuv444p.

    Give `timestamps`, the time of each frame in units of `time_base` seconds, strictly rising from 0
    or more; then `rate` sets only how long the last frame lasts. Or give `rate` alone, in frames per
    second, for evenly spaced frames from 0. Read back, timestamp times time base is exactly equal.

    Every audio stream of the clip `audio_from` is copied packet by packet, as long as it is in the
    source. If mp4 cannot hold its codec it is re-encoded to AAC, and `audio_note` says so in a
    sentence; otherwise `audio_note` is None. `sample_aspect` is as in `VideoInfo`.

    Raises UserError if the file cannot be written, if `audio_from` cannot be read, or if no frames
    came; ValueError if the frames do not match what was announced.
    """

    def __init__(
        self,
        path: Path | str,
        width: int,
        height: int,
        timestamps: Sequence[int] | None = None,
        time_base: Fraction | None = None,
        rate: Fraction | None = None,
        audio_from: Path | str | None = None,
        crf: int = 17,
        sample_aspect: Fraction = Fraction(1),
    ) -> None:
        self.path = Path(path)
        self.width = width
        self.height = height
        self.audio_note: str | None = None
        self._timestamps: Sequence[int]
        if timestamps is None:
            if rate is None:
                raise ValueError("VideoWriter needs timestamps with their time base, or a rate.")
            self._rate = _stored_rate(rate)
            self._timescale, step = self._rate.as_integer_ratio()
            self._timestamps = range(0, _MP4_MAX * step, step)
            self._expected = None
        else:
            if time_base is None:
                raise ValueError("VideoWriter needs the time base of the timestamps.")
            self._timestamps, self._timescale = _mp4_ticks(self.path, timestamps, time_base)
            average = average_rate(self._timestamps, Fraction(1, self._timescale))
            self._rate = _stored_rate(rate or average or 25)
            self._expected = len(timestamps)
        self._last = max(1, round(self._timescale / self._rate))
        self._audio_from = audio_from
        self._crf = crf
        self._aspect = sample_aspect
        self._reformatter = VideoReformatter()
        self._durations: dict[int, int] = {}
        self._count = 0

    def __enter__(self) -> VideoWriter:
        with _write_errors(self.path), ExitStack() as stack:
            temporary = stack.enter_context(atomic_path(self.path))
            source = stack.enter_context(open_input(self._audio_from, "audio")) if self._audio_from else None
            # A stream that FFmpeg has no decoder for cannot be described to the muxer either.
            found = source.streams.audio if source else ()
            streams = [stream for stream in found if stream.codec_context is not None]
            # The start of a stream is kept in units of the movie's timescale, so one that counts both
            # video ticks and audio samples keeps every start exact.
            movie = math.lcm(self._timescale, *(stream.rate for stream in streams if stream.rate))
            self._container = av.open(
                f"file:{temporary}",
                "w",
                format="mp4",
                container_options={
                    "video_track_timescale": str(self._timescale),
                    "movie_timescale": str(movie if movie <= _MP4_MAX else self._timescale),
                    "strict": "experimental",  # TrueHD in mp4
                },
            )
            stack.callback(_abandon, self._container)
            self._add_video()
            self._audio = _AudioCopy(self._audio_from, source, streams, self._container)
            self.audio_note = self._audio.note
            self._container.start_encoding()
            self._stack = stack.pop_all()
        return self

    def write(self, frame: np.ndarray) -> None:
        """Add the next frame, uint8 RGB [H, W, 3].

        Raises ValueError if its shape or type is wrong or no timestamp is left, UserError if the file
        cannot be written.
        """
        if frame.shape != (self.height, self.width, 3) or frame.dtype != np.uint8:
            raise ValueError(
                f"Frame {self._count} for {self.path} is {frame.dtype} {frame.shape}; "
                f"expected uint8 {(self.height, self.width, 3)}."
            )
        if self._count == self._expected:
            raise ValueError(f"{self.path} was announced with {self._expected} frames and got one more.")
        following = self._count + 1
        picture = self._reformatter.reformat(
            av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), "rgb24"),
            format=self._stream.pix_fmt,
            dst_colorspace=Colorspace.ITU709,
            interpolation=EXACT,
            src_color_range=ColorRange.JPEG,
            dst_color_range=ColorRange.MPEG,
        )
        picture.pts = self._timestamps[self._count]
        picture.time_base = self._stream.time_base
        last = following == self._expected or self._expected is None
        self._durations[picture.pts] = self._last if last else self._timestamps[following] - picture.pts
        self._count = following
        with _write_errors(self.path):
            self._encode(picture)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        if kind is not None:
            return self._stack.__exit__(kind, error, trace)
        with _write_errors(self.path), self._stack:
            if self._count == 0:
                raise UserError(f"No frames came for {self.path}, so it was not written; give at least one.")
            if self._expected not in (None, self._count):
                raise ValueError(f"{self.path} was announced with {self._expected} frames and got {self._count}.")
            self._encode(None)
            self._audio.copy_until(None)
            self._container.close()
        return None

    def _add_video(self) -> None:
        even = self.width % 2 == 0 and self.height % 2 == 0
        self._stream = self._container.add_stream(
            "libx264",
            rate=self._rate,
            width=self.width,
            height=self.height,
            pix_fmt="yuv420p" if even else "yuv444p",
            time_base=Fraction(1, self._timescale),
            options={"crf": str(self._crf)},
        )
        context = self._stream.codec_context
        context.sample_aspect_ratio = self._aspect
        context.color_range = ColorRange.MPEG
        context.colorspace = Colorspace.ITU709
        context.color_primaries = ColorPrimaries.BT709
        context.color_trc = ColorTrc.BT709

    def _encode(self, picture: av.VideoFrame | None) -> None:
        for packet in self._stream.encode(picture):
            assert packet.pts is not None and packet.dts is not None  # the encoder sets both
            packet.duration = self._durations.pop(packet.pts)
            # Audio keeps pace with video, so the muxer never has more than moments of either waiting.
            self._audio.copy_until(packet.dts * packet.time_base)
            self._container.mux(packet)


def write_masks(
    path: Path | str,
    masks: Iterable[np.ndarray],
    timestamps: Sequence[int] | None = None,
    time_base: Fraction | None = None,
    rate: Fraction = Fraction(25),
) -> None:
    """Write masks, uint8 [H, W], without loss: FFV1 if `path` ends in .mkv, else a folder of PNGs.

    `timestamps` in units of `time_base` seconds, or else `rate` in frames per second, time the .mkv,
    which keeps them to the millisecond. An old file of that name, or a folder that this function
    wrote, is replaced once all is written, and is left as it was if anything goes wrong.

    Raises UserError if the place cannot be written, if the folder holds anything that this function did not
    write, or if no masks came; ValueError if they are not uint8 [H, W] of one size.
    """
    target = Path(path)
    if target.suffix.lower() == ".mkv":
        _write_mkv(target, masks, timestamps, time_base, rate)
    elif target.suffix and not target.is_dir():
        raise UserError(f"{path} is neither a .mkv file nor a folder; give one of these for the masks.")
    else:
        _write_pngs(target, masks)


def _write_mkv(
    path: Path,
    masks: Iterable[np.ndarray],
    timestamps: Sequence[int] | None,
    time_base: Fraction | None,
    rate: Fraction,
) -> None:
    times: Iterable[int] = itertools.count()
    tick = 1 / rate
    if timestamps is not None:
        if time_base is None:
            raise ValueError("write_masks needs the time base of the timestamps.")
        times, tick = timestamps, time_base
        rate = _stored_rate(average_rate(timestamps, tick) or rate)
    with (
        atomic_path(path) as temporary,
        _write_errors(path),
        av.open(f"file:{temporary}", "w", format="matroska") as container,
    ):
        stream = None
        for mask, time in zip(_checked(path, masks), times, strict=timestamps is not None):
            if stream is None:
                stream = container.add_stream(
                    "ffv1",
                    rate=rate,
                    width=mask.shape[1],
                    height=mask.shape[0],
                    pix_fmt="gray",
                    time_base=tick,
                    options={"level": "3", "slicecrc": "1", "g": "1"},
                )
                stream.codec_context.color_range = ColorRange.JPEG
            frame = av.VideoFrame.from_ndarray(mask, "gray")
            frame.pts, frame.time_base = time, tick
            container.mux(stream.encode(frame))
        assert stream is not None  # _checked lets no empty sequence pass
        container.mux(stream.encode())


def _stored_rate(rate: Fraction | int) -> Fraction:
    """A rate in frames per second as containers hold it: never 0, however long a pause the timestamps make."""
    return min(max(Fraction(rate).limit_denominator(100_000), Fraction(1, 100_000)), Fraction(10**9))


def _write_pngs(path: Path, masks: Iterable[np.ndarray]) -> None:
    with owned_folder(path) as temporary:
        encoder = None
        for index, mask in enumerate(_checked(path, masks)):
            if encoder is None:
                encoder = av.CodecContext.create("png", "w")
                encoder.width, encoder.height = mask.shape[1], mask.shape[0]
                encoder.pix_fmt, encoder.time_base = "gray", Fraction(1, 25)
            packets = encoder.encode(av.VideoFrame.from_ndarray(mask, "gray"))
            (temporary / f"{index:06d}.png").write_bytes(b"".join(map(bytes, packets)))


def _checked(path: Path, masks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    shape: tuple[int, ...] | None = None
    for index, mask in enumerate(masks):
        shape = shape or mask.shape
        if mask.dtype != np.uint8 or mask.ndim != 2 or mask.shape != shape:
            raise ValueError(
                f"Mask {index} for {path} is {mask.dtype} {mask.shape}; expected uint8 [H, W] of one size."
            )
        yield np.ascontiguousarray(mask)
    if shape is None:
        raise UserError(f"No masks came for {path}, so it was not written; give at least one.")


class _AudioCopy:
    """Carries the audio of a clip into an mp4, a little at a time."""

    def __init__(
        self,
        path: Path | str | None,
        source: InputContainer | None,
        streams: Sequence[av.AudioStream],
        output: OutputContainer,
    ) -> None:
        self.note: str | None = None
        self._path = path
        self._output = output
        self._copied: dict[int, av.AudioStream] = {}
        self._encoded: dict[int, av.AudioStream] = {}
        if source and len(streams) < len(source.streams.audio):
            self.note = f"Part of the audio of {path} is in an unknown format and was left out."
        for stream in streams:
            assert path is not None
            if _fits_mp4(path, stream.index):
                self._copied[stream.index] = _add_copy(output, stream)
            else:
                self._encode_instead(stream)
        self._times: dict[int, int] = {}
        self._packets = source.demux(tuple(streams)) if source and streams else iter(())
        self._waiting = self._next()

    def copy_until(self, end: Fraction | None) -> None:
        """Write the audio up to `end` in seconds, or all that is left."""
        while self._waiting and (end is None or _time(self._waiting) * self._waiting.time_base <= end):
            packet, self._waiting = self._waiting, self._next()
            index = packet.stream.index
            if index in self._copied:
                # Without a duration the last packet would lie past the end of its track.
                time = _time(packet)
                packet.duration = packet.duration or time - self._times.get(index, time - 1)
                self._times[index] = time
                packet.stream = self._copied[index]
                self._output.mux(packet)
                continue
            # A damaged packet leaves a gap; it must not cost a video that is nearly finished.
            frames: list[av.AudioFrame] = []
            with suppress(av.FFmpegError):
                frames = packet.decode()
            for frame in frames:
                self._output.mux(self._encoded[index].encode(self._rising(index, frame)))
        if self._waiting is None:
            for output in self._encoded.values():
                self._output.mux(output.encode())
            self._encoded.clear()

    def _rising(self, index: int, frame: av.AudioFrame) -> av.AudioFrame:
        last = self._times.get(index)
        if last is None:
            frame.pts = frame.pts or 0
        elif frame.pts is None or frame.pts <= last:
            assert frame.time_base is not None
            frame.pts = last + round(Fraction(frame.samples, frame.sample_rate) / frame.time_base)
        self._times[index] = frame.pts
        return frame

    def _next(self) -> av.Packet[av.AudioStream] | None:
        with _audio_errors(self._path):
            # Empty packets only tell a decoder that its stream has ended.
            return next((packet for packet in self._packets if packet.size), None)

    def _encode_instead(self, stream: av.AudioStream) -> None:
        aac = av.Codec("aac", "w")
        rate = stream.rate if stream.rate in (aac.audio_rates or ()) else 48000
        layout = "mono" if stream.channels == 1 else "stereo"
        output = self._output.add_stream("aac", rate=rate, layout=layout, bit_rate=192_000)
        self._encoded[stream.index] = output
        self.note = (
            f"The audio of {self._path} is {stream.codec_context.name}, which mp4 cannot hold, "
            f"so it was re-encoded to AAC ({layout}, {rate} Hz)."
        )


class _Sink:
    """A file that forgets what is written to it."""

    def __init__(self) -> None:
        self._at = self._end = 0

    def write(self, data: bytes) -> int:
        self._at += len(data)
        self._end = max(self._end, self._at)
        return len(data)

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = offset + (0, self._at, self._end)[whence]
        return self._at

    def tell(self) -> int:
        return self._at


def _fits_mp4(path: Path | str, index: int) -> bool:
    """Try to copy one audio stream into an mp4, because some faults only show when the file is closed."""
    with open_input(path, "audio") as source, ExitStack() as stack:
        output = av.open(_Sink(), "w", format="mp4", options={"strict": "experimental"})
        stack.callback(_abandon, output)
        stream = source.streams[index]
        assert isinstance(stream, av.AudioStream)
        try:
            copy = _add_copy(output, stream)
            packets = source.demux(stream)
            while True:
                with _audio_errors(path):
                    packet = next((packet for packet in packets if packet.size), None)
                if packet is None:
                    break
                packet.stream = copy
                output.mux(packet)
            output.close()
        except UserError:
            raise
        except (ValueError, av.FFmpegError):
            return False
    return True


def _add_copy(output: OutputContainer, stream: av.AudioStream) -> av.AudioStream:
    copy = output.add_stream_from_template(stream)
    # Some files give only a number of channels; mp4 wants to know which ones they are.
    if stream.channels <= 2:
        copy.codec_context.layout = "mono" if stream.channels == 1 else "stereo"
    return copy


def _time(packet: av.Packet) -> int:
    return (packet.pts if packet.dts is None else packet.dts) or 0


def _abandon(container: OutputContainer) -> None:
    # Closing also writes what an unfinished file lacks; on a full disk that fails, and the file is
    # about to be deleted anyway.
    with suppress(av.FFmpegError):
        container.close()


@contextmanager
def _write_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except av.FFmpegError as error:
        if isinstance(error, OSError):
            raise write_error(path, error) from error
        raise UserError(f"{path} could not be encoded ({error.strerror}); try another size.") from error


@contextmanager
def _audio_errors(path: Path | str | None) -> Iterator[None]:
    try:
        yield
    except av.FFmpegError as error:
        raise UserError(
            f"The audio of {path} cannot be read ({error.strerror}); give an undamaged copy or no audio."
        ) from error


def _mp4_ticks(path: Path, timestamps: Sequence[int], time_base: Fraction) -> tuple[Sequence[int], int]:
    """Return the timestamps in whole mp4 ticks, and the ticks in a second."""
    ticks = [time * time_base.numerator for time in timestamps]
    gaps = [later - earlier for earlier, later in itertools.pairwise(ticks)]
    if min(gaps, default=1) <= 0 or ticks[:1] < [0]:
        raise UserError(f"The timestamps for {path} do not rise from 0 or more; give the source's own.")
    longest, timescale = max(gaps, default=0), time_base.denominator
    if max(longest, timescale) > _MP4_MAX:
        common = math.gcd(timescale, *ticks)
        ticks, timescale, longest = [tick // common for tick in ticks], timescale // common, longest // common
        if max(longest, timescale) > _MP4_MAX:
            raise UserError(f"The timestamps for {path} are too fine for mp4; convert the source first.")
    return ticks, timescale
