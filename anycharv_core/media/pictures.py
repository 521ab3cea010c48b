"""Frames as encoders take them: planes and colours of their kind."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter

from .colour import BT709, Colours, narrowed, to_yuv
from .pixels import EXACT

ToPicture = Callable[[np.ndarray], av.VideoFrame]
"""A frame uint8 RGB [H, W, 3], or uint16 where it is deeper -> what an encoder takes."""


class RgbPictures:
    """Makes pictures of RGB without loss, in 8-bit "bgr0", "rgb24", or deeper planes."""

    def __init__(self, pix_fmt: str, depth: int) -> None:
        self._pix_fmt, self._depth = pix_fmt, depth
        self._reformatter = VideoReformatter()

    def __call__(self, frame: np.ndarray) -> av.VideoFrame:
        if self._depth == 8:
            return self._reformatter.reformat(av.VideoFrame.from_ndarray(frame, "rgb24"), format=self._pix_fmt)
        levels = narrowed(frame, self._depth)
        return _of_planes([levels[..., channel] for channel in (1, 2, 0)], self._pix_fmt)


class YuvPictures:
    """Makes pictures of luma and chroma by the matrix and range of `colours`."""

    def __init__(self, pix_fmt: str, depth: int, colours: Colours) -> None:
        self._pix_fmt, self._depth = pix_fmt, depth
        self._matrix, self._full = colours.matrix or BT709, bool(colours.full)
        self._reformatter = VideoReformatter()

    def __call__(self, frame: np.ndarray) -> av.VideoFrame:
        levels = ColorRange.JPEG if self._full else ColorRange.MPEG
        if self._depth == 8:
            return self._reformatter.reformat(
                av.VideoFrame.from_ndarray(frame, "rgb24"),
                format=self._pix_fmt,
                dst_colorspace=_SWSCALE.get(self._matrix, self._matrix),
                interpolation=EXACT,
                src_color_range=ColorRange.JPEG,
                dst_color_range=levels,
            )
        planes = to_yuv(narrowed(frame, self._depth), self._depth, self._matrix, self._full)
        picture = _of_planes(list(planes), f"yuv444p{self._depth}le")
        picture.colorspace, picture.color_range = self._matrix, levels
        return self._reformatter.reformat(picture, format=self._pix_fmt, interpolation=EXACT)


# Two numbers for one matrix, of which FFmpeg's scaler knows one.
_SWSCALE = {6: Colorspace.ITU601}


def _of_planes(planes: Sequence[np.ndarray], pix_fmt: str) -> av.VideoFrame:
    """A picture of planes uint16 [H, W], stored as little-endian numbers of 16 bits."""
    height, width = planes[0].shape
    picture = av.VideoFrame(width, height, pix_fmt)
    for plane, levels in zip(picture.planes, planes, strict=True):
        rows = np.zeros((plane.buffer_size // plane.line_size, plane.line_size // 2), "<u2")
        rows[:height, :width] = levels
        plane.update(rows.tobytes())
    return picture
