"""Video out: exact frames and timestamps, H.264 or lossless FFV1 with the source's audio, and lossless masks.

Everything streams: no function here holds more than a few frames of pixels at a time.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, final

import av
import numpy as np
from av.video.reformatter import ColorRange

from ..errors import UserError
from ..files import atomic_path, owned_folder, write_error
from .audio import AudioCopy, abandon
from .colour import DEPTHS, UNSPECIFIED, UNTAGGED, Colours
from .decode import open_input
from .mask_read import read_gray
from .pictures import RgbPictures, ToPicture, YuvPictures
from .video_read import VideoInfo, average_rate, probe, read_frames
from .watchable import Watchable

__all__ = ["VideoInfo", "VideoWriter", "probe", "read_frames", "read_gray", "write_masks"]

H264, FFV1 = "h264", "ffv1"
CONTAINERS = {H264: "mp4", FFV1: "matroska"}
CRF, WORST_CRF = 17, 51
_FFV1_OPTIONS = {"level": "3", "slicecrc": "1", "g": "1"}
_MP4_MAX = 2**31 - 1  # mp4 keeps timescales and the steps between frames in 32 bits


@final
class VideoWriter:
    """Write frames to a video with exact timestamps.

    Use it in a `with` statement. The file takes its name only when the body ends well; after any
    exception, Ctrl-C included, an old file of that name is as it was. Until then what there is of it
    can be watched at `until_then`, on the same disk; of an mp4 that is a copy without sound.

    `codec` "h264" makes an mp4 of quality `crf` (0 to 51, less is better). `width` and `height` are in pixels.
    H.264 with halved chroma (4:2:0, what every player takes) cannot hold an odd size, so pictures with an odd
    side keep their size and are written as 4:4:4. `codec` "ffv1" makes a Matroska file of RGB from which every
    frame comes back bit for bit, and whose times are kept to the millisecond.

    `colours` are those of the source, whose tags the file gets; what they leave open is BT.709 in limited range.
    With a `depth` of more than 8 bits, frames are uint16 as colour.py has them, or uint8; H.264 holds at most 10.

    Give `timestamps`, the time of each frame in units of `time_base` seconds, strictly rising from 0
    or more; then `rate` sets only how long the last frame lasts. Or give `rate` alone, in frames per
    second, for evenly spaced frames from 0. Read back from mp4, timestamp times time base is exactly equal.

    Every audio stream of the video `audio_from` is copied packet by packet, as long as it is in the
    source. If the file cannot hold its codec it is re-encoded to AAC, and `audio_note` says so in a
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
        crf: int = CRF,
        sample_aspect: Fraction = Fraction(1),
        codec: str = H264,
        colours: Colours = UNTAGGED,
        depth: int = 8,
        until_then: Path | None = None,
    ) -> None:
        if codec not in CONTAINERS or depth not in DEPTHS:
            raise ValueError(f"VideoWriter cannot write {codec} of {depth} bits.")
        self.path = Path(path)
        self.width = width
        self.height = height
        self.audio_note: str | None = None
        self._codec = codec
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
            ticks = _mp4_ticks if codec == H264 else _milliseconds
            self._timestamps, self._timescale = ticks(self.path, timestamps, time_base)
            average = average_rate(self._timestamps, Fraction(1, self._timescale))
            self._rate = _stored_rate(rate or average or 25)
            self._expected = len(timestamps)
        self._last = max(1, round(self._timescale / self._rate))
        self._audio_from = audio_from
        self._crf = crf
        self._aspect = sample_aspect
        self._deep = depth > 8
        self._until_then = until_then
        self._picture: ToPicture
        if codec == FFV1:
            self._colours, self._depth = colours.as_rgb(), depth
            self._pix_fmt = f"gbrp{depth}le" if self._deep else "bgr0"
            self._picture = RgbPictures(self._pix_fmt, depth)
        else:
            self._colours, self._depth = colours.as_yuv(), min(depth, 10)
            even = width % 2 == 0 and height % 2 == 0
            self._pix_fmt = ("yuv420p" if even else "yuv444p") + ("10le" if self._deep else "")
            self._picture = YuvPictures(self._pix_fmt, self._depth, self._colours)
        self._durations: dict[int, int] = {}
        self._count = 0

    @property
    def written(self) -> dict[str, Any]:
        """What kind of file it is, for a report."""
        return {
            "codec": self._codec,
            "crf": self._crf if self._codec == H264 else None,
            "lossless": self._codec == FFV1,
            "pixel_format": self._pix_fmt,
            "depth": self._depth,
            "colours": self._colours.named,
        }

    def __enter__(self) -> VideoWriter:
        with _write_errors(self.path), ExitStack() as stack:
            # An mp4 can't be played before its end is written.
            shown = self._until_then if self._codec == H264 else None
            place = shown.with_name(f".{shown.name}") if shown else self._until_then
            temporary = stack.enter_context(atomic_path(self.path, place))
            source = stack.enter_context(open_input(self._audio_from, "audio")) if self._audio_from else None
            # A stream that FFmpeg has no decoder for cannot be described to the muxer either.
            found = source.streams.audio if source else ()
            streams = [stream for stream in found if stream.codec_context is not None]
            # The start of a stream is kept in units of the movie's timescale, so one that counts both
            # video ticks and audio samples keeps every start exact.
            movie = math.lcm(self._timescale, *(stream.rate for stream in streams if stream.rate))
            options = {
                "video_track_timescale": str(self._timescale),
                "movie_timescale": str(movie if movie <= _MP4_MAX else self._timescale),
                "strict": "experimental",  # TrueHD in mp4
            }
            self._container = av.open(
                f"file:{temporary}",
                "w",
                format=CONTAINERS[self._codec],
                container_options=options if self._codec == H264 else {"flush_packets": "1"},
            )
            stack.callback(abandon, self._container)
            self._add_video()
            self._audio = AudioCopy(self._audio_from, source, streams, self._container)
            self.audio_note = self._audio.note
            self._container.start_encoding()
            self._watchable = stack.enter_context(Watchable(shown, self._stream)) if shown else None
            self._stack = stack.pop_all()
        return self

    def write(self, frame: np.ndarray) -> None:
        """Add the next frame, uint8 RGB [H, W, 3], or uint16 where there are more than 8 bits.

        Raises ValueError if its shape or type is wrong or no timestamp is left, UserError if the file
        cannot be written.
        """
        types = (np.uint8, np.uint16) if self._deep else (np.uint8,)
        if frame.shape != (self.height, self.width, 3) or frame.dtype not in types:
            raise ValueError(
                f"Frame {self._count} for {self.path} is {frame.dtype} {frame.shape}; "
                f"expected {' or '.join(kind.__name__ for kind in types)} {(self.height, self.width, 3)}."
            )
        if self._count == self._expected:
            raise ValueError(f"{self.path} was announced with {self._expected} frames and got one more.")
        following = self._count + 1
        picture = self._picture(np.ascontiguousarray(frame))
        picture.pts = self._timestamps[self._count]
        picture.time_base = Fraction(1, self._timescale)
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
        lossless = self._codec == FFV1
        self._stream = self._container.add_stream(
            "ffv1" if lossless else "libx264",
            rate=self._rate,
            width=self.width,
            height=self.height,
            pix_fmt=self._pix_fmt,
            time_base=Fraction(1, self._timescale),
            options=_FFV1_OPTIONS if lossless else {"crf": str(self._crf)},
        )
        context, colours = self._stream.codec_context, self._colours
        context.sample_aspect_ratio = self._aspect
        context.color_range = ColorRange.JPEG if colours.full else ColorRange.MPEG
        context.colorspace, context.color_primaries, context.color_trc = (
            UNSPECIFIED if tag is None else tag for tag in (colours.matrix, colours.primaries, colours.transfer)
        )

    def _encode(self, picture: av.VideoFrame | None) -> None:
        for packet in self._stream.encode(picture):
            assert packet.pts is not None and packet.dts is not None  # the encoder sets both
            packet.duration = self._durations.pop(packet.pts)
            # Audio keeps pace with video, so the muxer never has more than moments of either waiting.
            self._audio.copy_until(packet.dts * packet.time_base)
            self._container.mux(packet)
            if self._watchable:
                self._watchable.mux(packet)


_MASK_RATE = Fraction(25)  # where masks come without times


def write_masks(
    path: Path | str,
    masks: Iterable[np.ndarray],
    timestamps: Sequence[int] | None = None,
    time_base: Fraction | None = None,
) -> None:
    """Write masks, uint8 [H, W], without loss: FFV1 if `path` ends in .mkv, else a folder of PNGs.

    `timestamps` in units of `time_base` seconds, or else 25 frames per second, time the .mkv,
    which keeps them to the millisecond. An old file of that name, or a folder that this function
    wrote, is replaced once all is written, and is left as it was if anything goes wrong.

    Raises UserError if the place cannot be written, if the folder holds anything that this function did not
    write, or if no masks came; ValueError if they are not uint8 [H, W] of one size.
    """
    target = Path(path)
    if target.suffix.lower() == ".mkv":
        _write_mkv(target, masks, timestamps, time_base)
    elif target.suffix and not target.is_dir():
        raise UserError(f"{path} is neither a .mkv file nor a folder; give one of these for the masks.")
    else:
        _write_pngs(target, masks)


def _write_mkv(
    path: Path,
    masks: Iterable[np.ndarray],
    timestamps: Sequence[int] | None,
    time_base: Fraction | None,
) -> None:
    times: Iterable[int] = itertools.count()
    rate = _MASK_RATE
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
                    options=_FFV1_OPTIONS,
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


@contextmanager
def _write_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except av.FFmpegError as error:
        if isinstance(error, OSError):
            raise write_error(path, error) from error
        raise UserError(f"{path} could not be encoded ({error.strerror}); try another size.") from error


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


def _milliseconds(path: Path, timestamps: Sequence[int], time_base: Fraction) -> tuple[Sequence[int], int]:
    """Return the timestamps as Matroska has them, and how many of these are in a second."""
    ticks = [round(time * time_base * 1000) for time in timestamps]
    if any(later <= earlier for earlier, later in itertools.pairwise(ticks)) or ticks[:1] < [0]:
        raise UserError(
            f"The timestamps for {path} do not rise by milliseconds from 0 on, as Matroska needs; write H.264 or "
            "PNGs instead."
        )
    return ticks, 1000
