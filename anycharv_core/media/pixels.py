"""A decoded frame's pixels as arrays, in 8 bits or its own depth, turned upright, and what its colours mean."""

from __future__ import annotations

import itertools
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import av
import av.filter
import numpy as np
from av.sidedata.sidedata import Type as SideDataType
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter

from ..errors import UserError
from .colour import (
    BT709,
    MATRICES,
    PRIMARIES,
    TRANSFERS,
    UNKNOWN_MATRICES,
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
Matrix = tuple[int, int, int, int]
# Side data of a frame that PyAV must not see, by number: of one whose metadata it would free a second time (it
# crashes), and those that it has no name for (it raises ValueError).
_UNSAFE = (SideDataType.ICC_PROFILE.value, *sorted(set(range(40)) - {known.value for known in SideDataType}))


def rgb_of(
    path: Path | str, frame: av.VideoFrame, reformatter: VideoReformatter, deep: bool = False
) -> np.ndarray:
    """RGB uint8 [H, W, 3] as stored, not turned; deep: of more than 8 bits uint16, as colour.py has them.

    Raises UserError, naming `path`, for colours that cannot be converted.
    """
    matrix = None
    if frame.colorspace in UNKNOWN_MATRICES:
        raise UserError(
            f"{path} has colours made by a matrix that is not known here (number {frame.colorspace} of H.273); "
            "convert it to BT.709."
        )
    if frame.colorspace not in MATRICES:
        matrix = Colorspace.ITU709 if frame.height > 576 or frame.width > 1024 else Colorspace.ITU601
    depth = depth_of(frame) if deep else 8
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


def depth_of(frame: av.VideoFrame) -> int:
    """Bits a channel that its pixels are read with."""
    return stored_depth(frame.format.components[0].bits)


def colours_of(frame: av.VideoFrame) -> Colours:
    """Its colour tags."""
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


def matrix_of(frame: av.VideoFrame) -> Matrix:
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


def oriented(picture: np.ndarray, matrix: Matrix) -> np.ndarray:
    """A picture [H, W(, 3)] as it is shown."""
    a, b, c, d = matrix
    if a == 0:
        picture = picture.swapaxes(0, 1)
    return np.ascontiguousarray(picture[:: b + d, :: a + c])
