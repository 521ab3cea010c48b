"""Video files opened, within limits, and the frames they hold as they are stored."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import av
from av.container import InputContainer
from av.stream import Disposition
from av.video.codeccontext import VideoCodecContext
from av.video.stream import VideoStream

from ..errors import UserError
from ..foreign import check_file
from .pixels import Matrix, matrix_of

# FFmpeg's own decoders of these drop the alpha channel.
_LIBVPX = {"vp8": "libvpx", "vp9": "libvpx-vp9"}
# Containers in which videos and masks come, one picture among them. FFmpeg also reads playlists, which name other
# files and wait for more of them, descriptions of network streams, and text.
_CONTAINERS = (
    "matroska,webm,mov,mp4,m4a,3gp,3g2,mj2,avi,asf,flv,mpeg,mpegts,ogg,mpegvideo,m4v,h263,h264,hevc,vvc,"
    "obu,av1,ivf,nut,mxf,gxf,wtv,dv,rm,vc1,mjpeg,yuv4mpegpipe,gif,apng,png_pipe,jpeg_pipe,webp_pipe,"
    "bmp_pipe,tiff_pipe,pam_pipe,pbm_pipe,pgm_pipe,ppm_pipe,exr_pipe,dpx_pipe,j2k_pipe,jpegxl_pipe,"
    "qoi_pipe,image2,wav,mp3,flac,aac,ac3"
)
# 8K twice over; a frame of it takes 0.2 GB as RGB, and several are held at a time.
_MOST_SIDE, _MOST_PIXELS = 16384, 2**26


@contextmanager
def open_input(path: Path | str, kind: str = "video") -> Iterator[InputContainer]:
    """A file opened. kind: "video" for one that must hold a video, which can be decoded. Raises UserError."""
    check_file(path)
    try:
        # The prefix keeps a colon in a file name from being read as the name of a protocol.
        limits = {"format_whitelist": _CONTAINERS, "protocol_whitelist": "file"}
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


def video_stream(container: InputContainer) -> VideoStream:
    """The stream that `open_input` found to be there."""
    stream = container.streams.best("video")
    assert isinstance(stream, VideoStream)
    return stream


def decoded_frames(
    path: Path | str, container: InputContainer, alpha: bool = False
) -> Iterator[tuple[av.VideoFrame, Matrix]]:
    """Every frame of an opened video, and how it is turned. alpha: WebM's too, which lies beside the pictures.

    Raises UserError at a frame that is damaged or of another size than the first, and where there is none.
    """
    stream = video_stream(container)
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
            raise undecodable(path, f"frame {index}", error) from error
        if frame is None:
            break
        if size is None:
            size = frame.height, frame.width
            _check_size(path, frame.width, frame.height)
            # Asked of one frame only: the answer ties a frame into a reference cycle, and with a cycle
            # for each the pixels would pile up until the garbage collector happens to run.
            matrix = matrix_of(frame)
        if (frame.height, frame.width) != size:
            raise UserError(
                f"{path} changes from {size_text(size)} to {size_text((frame.height, frame.width))} at frame "
                f"{index}; give a video of one size."
            )
        yield frame, matrix
    if size is None:
        raise UserError(f"{path} holds no frames; give a complete video file.")


def undecodable(path: Path | str, place: str, error: av.FFmpegError) -> UserError:
    """The sentence for a file that is damaged at `place`; the caller raises it."""
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
    stream = video_stream(container)
    decoder = av.CodecContext.create(_LIBVPX[stream.codec_context.name], "r")
    assert isinstance(decoder, VideoCodecContext)
    for packet in container.demux(stream):
        # The empty packet at the end asks for what the decoder still holds.
        yield from decoder.decode(packet if packet.size else None)


def size_text(shape: tuple[int, ...]) -> str:
    """A shape [H, W(, 3)] for people."""
    return f"{shape[1]}x{shape[0]}"
