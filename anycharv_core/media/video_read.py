"""Reading video and masks: exact frames, upright, with exact timestamps, a few frames at a time."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import av
import av.filter
import numpy as np
from av.container import InputContainer
from av.sidedata.sidedata import Type as SideDataType
from av.stream import Disposition
from av.video.codeccontext import VideoCodecContext
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter
from av.video.stream import VideoStream

from ..errors import UserError
from ..foreign import check_file
from .colour import (
    BT709,
    MATRICES,
    PRIMARIES,
    TRANSFERS,
    UNKNOWN_MATRICES,
    UNTAGGED,
    Colours,
    stored_depth,
    to_rgb,
    widened,
)

# The same pixels on every machine: no fast paths that round differently, chroma at full resolution.
EXACT = (
    Interpolation.BICUBIC
    | Interpolation.ACCURATE_RND
    | Interpolation.BITEXACT
    | Interpolation.FULL_CHR_H_INT
    | Interpolation.FULL_CHR_H_INP
)
_Matrix = tuple[int, int, int, int]
# FFmpeg's own decoders of these drop the alpha channel.
_LIBVPX = {"vp8": "libvpx", "vp9": "libvpx-vp9"}
# Containers in which videos and masks come, one picture among them. FFmpeg also reads playlists, which name other
# files and wait for more of them, descriptions of network streams, and text.
_CONTAINERS = (
    *("matroska", "webm", "mov", "mp4", "m4a", "3gp", "3g2", "mj2", "avi", "asf", "flv", "mpeg", "mpegts", "ogg"),
    *(
        "mpegvideo",
        "m4v",
        "h263",
        "h264",
        "hevc",
        "vvc",
        "obu",
        "av1",
        "ivf",
        "nut",
        "mxf",
        "gxf",
        "wtv",
        "dv",
        "rm",
    ),
    *(
        "vc1",
        "mjpeg",
        "yuv4mpegpipe",
        "gif",
        "apng",
        "png_pipe",
        "jpeg_pipe",
        "webp_pipe",
        "bmp_pipe",
        "tiff_pipe",
    ),
    *(
        "pam_pipe",
        "pbm_pipe",
        "pgm_pipe",
        "ppm_pipe",
        "exr_pipe",
        "dpx_pipe",
        "j2k_pipe",
        "jpegxl_pipe",
        "qoi_pipe",
    ),
    *("image2", "wav", "mp3", "flac", "aac", "ac3"),
)
VIDEOS = (".mp4", ".mkv", ".mov", ".webm", ".avi", ".m4v", ".gif")  # endings of their names
# 8K twice over; a frame of it takes 0.2 GB as RGB, and several are held at a time.
_MOST_SIDE, _MOST_PIXELS = 16384, 2**26
# Side data of a frame that PyAV must not see, by number: of one whose metadata it would free a second time (it
# crashes), and those that it has no name for (it raises ValueError).
_UNSAFE = (SideDataType.ICC_PROFILE.value, *sorted(set(range(40)) - {known.value for known in SideDataType}))


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
            frame, matrix = next(_decoded(self.path, container))
            height, width, _ = _oriented(_rgb(self.path, frame, VideoReformatter()), matrix).shape
            return (width, height), _colours(frame)

    def __iter__(self) -> Iterator[np.ndarray]:
        return self.frames()

    def frames(self, deep: bool = False) -> Iterator[np.ndarray]:
        """What a loop over it yields. deep: as `read_frames` takes it."""
        reformatter = VideoReformatter()
        with open_input(self.path) as container:
            for frame, matrix in self.decoded(container):
                yield _oriented(_rgb(self.path, frame, reformatter, deep), matrix)

    def decoded(self, container: InputContainer) -> Iterator[tuple[av.VideoFrame, _Matrix]]:
        """The frames of the opened file, which is measured once they have all passed."""
        timestamps: list[int] = []
        stream = _video_stream(container)
        time_base = stream.time_base or Fraction(1, 25)
        nominal = stream.average_rate or stream.guessed_rate or Fraction(25)
        aspect = stream.sample_aspect_ratio or Fraction(1)
        step = max(1, round(1 / (nominal * time_base)))
        for frame, matrix in _decoded(self.path, container):
            if not timestamps:
                turned = matrix[0] == 0
                width, height = (frame.height, frame.width) if turned else (frame.width, frame.height)
                rotation = frame.rotation
                depth, colours = _depth(frame), _colours(frame)
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
        stream = _video_stream(container)
        try:
            return stream.frames or sum(1 for packet in container.demux(stream) if packet.size)
        except av.FFmpegError as error:
            raise _undecodable(path, "its end", error) from error


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
        for frame, matrix in itertools.islice(_decoded(path, container), start, stop):
            yield _oriented(_rgb(path, frame, reformatter, deep), matrix)


def read_gray(path: Path | str) -> Iterator[np.ndarray]:
    """Yield masks as uint8 [H, W], 0 to 255, from a video, a folder of PNGs or one image.

    Gray sources come back bit for bit (16-bit ones scaled to 8), coloured ones as the BT.601 luma of
    their RGB. PNGs are taken in the order of the numbers in their names.

    Raises UserError as `probe` does, if a folder holds no PNGs, or if their sizes differ.
    """
    yield from _masks(path, _gray_frames)


def read_alpha(path: Path | str) -> Iterator[np.ndarray]:
    """Yield the alpha channel as uint8 [H, W], 0 (clear) to 255 (opaque), of what `read_gray` takes.

    8-bit alpha comes back bit for bit, deeper one scaled to 8. VP8 and VP9 are included.

    Raises UserError as `read_gray` does, or if there is no alpha channel.
    """
    yield from _masks(path, _alpha_frames)


def has_alpha(path: Path | str) -> bool:
    """Whether the first picture has an alpha channel that is not opaque everywhere.

    Raises UserError as `read_gray` does.
    """
    try:
        return bool((next(read_alpha(path)) < 255).any())
    except _NoAlphaError:
        return False


class _NoAlphaError(UserError):
    pass


def _masks(path: Path | str, read: Callable[[Path | str], Iterator[np.ndarray]]) -> Iterator[np.ndarray]:
    folder = Path(path)
    if not folder.is_dir():
        yield from read(path)
        return
    images = numbered_pngs(folder)
    if not images:
        raise UserError(f"{path} holds no PNG files; give a folder of PNG masks or a mask video.")
    first: tuple[int, ...] | None = None
    for image in images:
        for mask in read(image):
            first = first or mask.shape
            if mask.shape != first:
                raise UserError(
                    f"{image} is {_size(mask.shape)} but the first PNG in its folder is {_size(first)}; "
                    "give masks of one size."
                )
            yield mask


def numbered_pngs(folder: Path) -> list[Path]:
    """The PNG files of a folder in the order of the numbers in their names."""
    files = (file for file in folder.iterdir() if file.suffix.lower() == ".png" and file.is_file())
    return sorted(files, key=lambda file: [int(p) if p.isdecimal() else p for p in re.split(r"(\d+)", file.name)])


def average_rate(timestamps: Sequence[int], time_base: Fraction) -> Fraction | None:
    if len(timestamps) < 2:
        return None
    return (len(timestamps) - 1) / ((timestamps[-1] - timestamps[0]) * time_base)


@contextmanager
def open_input(path: Path | str, kind: str = "video") -> Iterator[InputContainer]:
    check_file(path)
    try:
        # The prefix keeps a colon in a file name from being read as the name of a protocol.
        limits = {"format_whitelist": ",".join(_CONTAINERS), "protocol_whitelist": "file"}
        container = av.open(f"file:{path}", container_options=limits, metadata_errors="replace")
    except PermissionError as error:
        raise UserError(f"{path} may not be read; change its permissions.") from error
    except av.FFmpegError as error:
        raise UserError(
            f"{path} is not a video that can be read ({error.strerror}); give a complete video file."
        ) from error
    with container:
        if kind == "video":
            stream = container.streams.best("video")
            cover = stream and stream.disposition & Disposition.attached_pic
            if stream is None or cover:
                raise UserError(f"{path} holds no video; give a video file.")
            if stream.codec_context is None:
                raise UserError(f"{path} has a video format that cannot be decoded; convert it to H.264.")
            if not stream.time_base:
                raise UserError(f"{path} does not say when its frames are shown; convert it to H.264.")
            context = cast(VideoCodecContext, stream.codec_context)
            _check_size(path, context.width, context.height)
        yield container


def _video_stream(container: InputContainer) -> VideoStream:
    """The stream that `open_input` found to be there."""
    stream = container.streams.best("video")
    assert isinstance(stream, VideoStream)
    return stream


def _decoded(
    path: Path | str, container: InputContainer, alpha: bool = False
) -> Iterator[tuple[av.VideoFrame, _Matrix]]:
    stream = _video_stream(container)
    stream.thread_type = "AUTO"
    stored = Path(path).stat().st_size
    for index, entry in enumerate(stream.index_entries):
        if entry.pos + entry.size > stored:
            raise UserError(f"{path} is cut short at frame {index}; give a complete copy.")
    frames = _libvpx_frames(container) if alpha and _has_libvpx_alpha(stream) else container.decode(stream)
    size: tuple[int, int] | None = None
    for index in itertools.count():
        try:
            frame = next(frames, None)
        except av.FFmpegError as error:
            raise _undecodable(path, f"frame {index}", error) from error
        if frame is None:
            break
        if size is None:
            size = frame.height, frame.width
            _check_size(path, frame.width, frame.height)
            # Asked of one frame only: the answer ties a frame into a reference cycle, and with a cycle
            # for each the pixels would pile up until the garbage collector happens to run.
            matrix = _matrix(frame)
        if (frame.height, frame.width) != size:
            raise UserError(
                f"{path} changes from {_size(size)} to {_size((frame.height, frame.width))} at frame "
                f"{index}; give a video of one size."
            )
        yield frame, matrix
    if size is None:
        raise UserError(f"{path} holds no frames; give a complete video file.")


def _undecodable(path: Path | str, place: str, error: av.FFmpegError) -> UserError:
    return UserError(
        f"{path} cannot be decoded at {place} ({error.strerror}), so it is damaged or cut short; give a complete "
        "copy."
    )


def _check_size(path: Path | str, width: int, height: int) -> None:
    if max(width, height) > _MOST_SIDE or width * height > _MOST_PIXELS:
        raise UserError(
            f"{path} is {width}x{height}; give one of at most {_MOST_SIDE} pixels a side and {_MOST_PIXELS:,} "
            "in all."
        )


def _has_libvpx_alpha(stream: VideoStream) -> bool:
    """Whether the stream carries alpha as WebM has it: beside the pictures, where only libvpx looks for it."""
    tags = {name.lower(): value for name, value in stream.metadata.items()}
    return stream.codec_context.name in _LIBVPX and tags.get("alpha_mode") == "1"


def _libvpx_frames(container: InputContainer) -> Iterator[av.VideoFrame]:
    stream = _video_stream(container)
    decoder = av.CodecContext.create(_LIBVPX[stream.codec_context.name], "r")
    assert isinstance(decoder, VideoCodecContext)
    for packet in container.demux(stream):
        # The empty packet at the end asks for what the decoder still holds.
        yield from decoder.decode(packet if packet.size else None)


def _rgb(path: Path | str, frame: av.VideoFrame, reformatter: VideoReformatter, deep: bool = False) -> np.ndarray:
    matrix = None
    if frame.colorspace in UNKNOWN_MATRICES:
        raise UserError(
            f"{path} has colours made by a matrix that is not known here (number {frame.colorspace} of H.273); "
            "convert it to BT.709."
        )
    if frame.colorspace not in MATRICES:
        matrix = Colorspace.ITU709 if frame.height > 576 or frame.width > 1024 else Colorspace.ITU601
    depth = _depth(frame) if deep else 8
    try:
        if depth > 8:
            return widened(_deep(frame, depth, matrix or frame.colorspace, reformatter), depth)
        return reformatter.reformat(frame, format="rgb24", src_colorspace=matrix, interpolation=EXACT).to_ndarray()
    except av.FFmpegError as error:
        raise UserError(
            f"{path} has colours that cannot be converted ({frame.format.name}); convert it to H.264."
        ) from error


def _deep(frame: av.VideoFrame, depth: int, matrix: int, reformatter: VideoReformatter) -> np.ndarray:
    """RGB uint16 [H, W, 3] of `depth` bits."""
    if frame.format.is_rgb:
        picture = reformatter.reformat(frame, format=f"gbrp{depth}le", interpolation=EXACT)
        return np.stack([_plane(picture, index) for index in (2, 0, 1)], axis=-1)
    # FFmpeg brings chroma to full resolution, but not to RGB: there it takes white of 10 bits for 1020.
    picture = reformatter.reformat(frame, format=f"yuv444p{depth}le", interpolation=EXACT)
    planes = np.stack([_plane(picture, index) for index in range(3)])
    return to_rgb(planes, depth, matrix or BT709, frame.color_range == ColorRange.JPEG)


def _plane(frame: av.VideoFrame, index: int) -> np.ndarray:
    """A plane of little-endian numbers of 16 bits, uint16 [H, W]."""
    plane = frame.planes[index]
    return np.frombuffer(memoryview(plane), "<u2").reshape(-1, plane.line_size // 2)[: frame.height, : frame.width]


def _depth(frame: av.VideoFrame) -> int:
    return stored_depth(frame.format.components[0].bits)


def _colours(frame: av.VideoFrame) -> Colours:
    kind = frame.format
    matrix, primaries, transfer = int(frame.colorspace), int(frame.color_primaries), int(frame.color_trc)
    ranges = {int(ColorRange.MPEG): False, int(ColorRange.JPEG): True}
    stored_rgb = kind.is_rgb or kind.has_palette
    return Colours(
        matrix=0 if stored_rgb else matrix if matrix in MATRICES and matrix else None,
        full=None if stored_rgb else ranges.get(frame.color_range),
        primaries=primaries if primaries in PRIMARIES else None,
        transfer=transfer if transfer in TRANSFERS else None,
    )


def _gray_frames(path: Path | str) -> Iterator[np.ndarray]:
    reformatter = VideoReformatter()
    with open_input(path) as container:
        for frame, matrix in _decoded(path, container):
            if re.fullmatch(r"gray(\d+[lb]e)?", frame.format.name):
                gray = _to_8_bits(frame.to_ndarray(), frame.format.components[0].bits)
            else:
                # Integer weights that add up to one, so that gray stays exactly what it is.
                weighted = _rgb(path, frame, reformatter) @ np.array([19595, 38470, 7471], np.uint32)
                gray = ((weighted + 0x8000) >> 16).astype(np.uint8)
            yield _oriented(gray, matrix)


def _alpha_frames(path: Path | str) -> Iterator[np.ndarray]:
    reformatter = VideoReformatter()
    with open_input(path) as container:
        for frame, matrix in _decoded(path, container, alpha=True):
            # A palette has its alpha in the colours, not in the picture.
            picture = reformatter.reformat(frame, format="rgba") if frame.format.name == "pal8" else frame
            channels = picture.format.components
            if not channels[-1].is_alpha or channels[-1].bits > 16:
                raise _NoAlphaError(
                    f"{path} has no alpha channel ({frame.format.name}); give a video with transparency "
                    "(ProRes 4444, QuickTime Animation, FFV1 or VP9), PNGs with transparency, or masks in black "
                    "and white."
                )
            yield _oriented(_to_8_bits(_alpha(picture), channels[-1].bits), matrix)


def _alpha(frame: av.VideoFrame) -> np.ndarray:
    """The alpha channel, uint8 or uint16 [H, W], in any of FFmpeg's whole-number layouts."""
    kind = frame.format
    channel = kind.components[-1]
    plane = frame.planes[channel.plane]
    width = 1 if channel.bits == 8 else 2
    rows = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)[: frame.height]
    together = sum(other.plane == channel.plane for other in kind.components)
    samples = rows[:, : frame.width * together * width].reshape(frame.height, frame.width, together, width)
    # Names of interleaved layouts spell the order of their channels, such as argb.
    chosen = samples[:, :, kind.name.index("a") if together > 1 else 0]
    order = ">" if kind.is_big_endian else "<"
    return np.ascontiguousarray(chosen).view(f"{order}u{width}")[..., 0]


def _to_8_bits(gray: np.ndarray, bits: int) -> np.ndarray:
    top = 2**bits - 1
    return gray if bits == 8 else ((gray.astype(np.uint32) * 255 + top // 2) // top).astype(np.uint8)


def _matrix(frame: av.VideoFrame) -> _Matrix:
    """Return a, b, c, d, each -1, 0 or 1: a stored (x, y) is shown at (a x + c y, b x + d y)."""
    side_data: Any = _with_safe_side_data(frame).side_data  # PyAV's annotation knows motion vectors alone
    stored = side_data.get(SideDataType.DISPLAYMATRIX)
    if stored is None:
        return 1, 0, 0, 1
    a, b, _, c, d = np.frombuffer(stored, np.int32)[:5].tolist()
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return (-1 if a < 0 else 1), 0, 0, (-1 if d < 0 else 1)
    return 0, (-1 if b < 0 else 1), (-1 if c < 0 else 1), 0


def _with_safe_side_data(frame: av.VideoFrame) -> av.VideoFrame:
    """The same picture without `_UNSAFE`."""
    graph = av.filter.Graph()
    chain = [
        graph.add_buffer(
            width=frame.width,
            height=frame.height,
            format=frame.format,
            time_base=frame.time_base or Fraction(1, 25),
        ),
        *(graph.add("sidedata", f"mode=delete:type={number}") for number in _UNSAFE),
        graph.add("buffersink"),
    ]
    for one, following in itertools.pairwise(chain):
        one.link_to(following)
    graph.configure()
    graph.push(frame)
    return cast(av.VideoFrame, graph.pull())


def _oriented(picture: np.ndarray, matrix: _Matrix) -> np.ndarray:
    a, b, c, d = matrix
    if a == 0:
        picture = picture.swapaxes(0, 1)
    return np.ascontiguousarray(picture[:: b + d, :: a + c])


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]}x{shape[0]}"
