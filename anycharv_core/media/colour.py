"""What a video says of its colours, how deep they are, and the arithmetic between its planes and RGB.

Frames of up to 8 bits are uint8. Deeper ones are uint16 and take the whole of it, 65535 being white, so that the
type tells what the numbers mean; those of a 10-bit video lie on the 1024 levels it has.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ..errors import UserError

DEPTHS = (8, 10, 12, 16)  # bits a channel, as frames are read and written
RGB, BT709 = 0, 1  # matrices
# Numbers of ITU-T H.273 and FFmpeg's names of them. 2 is "unspecified"; what is not here is as good as that.
MATRICES = {
    RGB: "rgb",
    BT709: "bt709",
    4: "fcc",
    5: "bt470bg",
    6: "smpte170m",
    7: "smpte240m",
    9: "bt2020nc",
}
UNKNOWN_MATRICES = {8, *range(10, 18)}  # YCgCo, constant luminance, ICtCp and more, for which FFmpeg takes BT.601
PRIMARIES = {
    1: "bt709",
    4: "bt470m",
    5: "bt470bg",
    6: "smpte170m",
    7: "smpte240m",
    8: "film",
    9: "bt2020",
    10: "smpte428",
    11: "smpte431",
    12: "smpte432",
    22: "ebu3213",
}
TRANSFERS = {
    1: "bt709",
    4: "bt470m",
    5: "bt470bg",
    6: "smpte170m",
    7: "smpte240m",
    8: "linear",
    9: "log100",
    10: "log316",
    11: "iec61966-2-4",
    12: "bt1361e",
    13: "iec61966-2-1",
    14: "bt2020-10",
    15: "bt2020-12",
    16: "smpte2084",
    17: "smpte428",
    18: "arib-std-b67",
}
PQ, HLG = 16, 18  # transfers of HDR
UNSPECIFIED = 2
# The shares of red and blue in luma.
_LUMA = {
    1: (0.2126, 0.0722),
    4: (0.30, 0.11),
    5: (0.299, 0.114),
    6: (0.299, 0.114),
    7: (0.212, 0.087),
    9: (0.2627, 0.0593),
}
# Thresholds in 64ths, of which every 8 x 8 pixels have each once, so that nothing but their mean shows.
_BAYER = np.zeros((1, 1), np.int64)
for _ in range(3):
    _BAYER = np.block([[4 * _BAYER, 4 * _BAYER + 2], [4 * _BAYER + 3, 4 * _BAYER + 1]])


@dataclass(frozen=True)
class Colours:
    """The colour tags of a video, as numbers of ITU-T H.273; None where it does not say.

    full: whether luma takes all levels, rather than 16 to 235 of 255. Of RGB, matrix 0, it says nothing.
    """

    matrix: int | None = None
    full: bool | None = None
    primaries: int | None = None
    transfer: int | None = None

    def as_yuv(self) -> Colours:
        """The tags of the same colours as luma and chroma: BT.709's matrix and limited range where none is given.

        Where nothing but perhaps the range is given, the rest is BT.709's too.
        """
        matrix = self.matrix or BT709
        if (self.matrix or None, self.primaries, self.transfer) == (None, None, None):
            return Colours(matrix, bool(self.full), BT709, BT709)
        return replace(self, matrix=matrix, full=bool(self.full))

    def as_rgb(self) -> Colours:
        """The tags of the same colours as RGB."""
        return replace(self, matrix=RGB, full=True)

    @property
    def named(self) -> dict[str, str]:
        """FFmpeg's names of them, for a report."""
        return {
            "matrix": MATRICES.get(self.matrix if self.matrix is not None else UNSPECIFIED, "unspecified"),
            "range": {True: "full", False: "limited", None: "unspecified"}[self.full],
            "primaries": PRIMARIES.get(self.primaries or UNSPECIFIED, "unspecified"),
            "transfer": TRANSFERS.get(self.transfer or UNSPECIFIED, "unspecified"),
        }


_log = logging.getLogger(__name__)
UNTAGGED = Colours()


def check_transfer(path: Path | str, colours: Colours) -> None:
    """Raises UserError for a PQ video, in which a network's levels would be far too bright or too dark; logs what
    an HLG one costs, whose levels are made to be shown as SDR too."""
    if colours.transfer == PQ:
        raise UserError(
            f"{path} is HDR (PQ), but the networks make SDR pictures; convert it to SDR first, for example with "
            "ffmpeg's filters zscale and tonemap."
        )
    if colours.transfer == HLG:
        _log.warning(
            "%s is HDR (HLG): its levels are kept, and the character, who has SDR levels, looks brighter than in "
            "the reference on an HDR display; convert the video to SDR first for exact colours.",
            path,
        )


def stored_depth(bits: int) -> int:
    """The depth at which a video of so many bits is read: the next of `DEPTHS`."""
    return next((depth for depth in DEPTHS if bits <= depth), DEPTHS[-1])


def to_rgb(planes: np.ndarray, depth: int, matrix: int, full: bool) -> np.ndarray:
    """Luma and chroma uint16 [3, H, W] of `depth` bits -> RGB uint16 [H, W, 3] of as many."""
    black, swing, colour, grey = _levels(depth, full)
    red, blue = _LUMA[matrix]
    top = np.float32(2**depth - 1)
    luma = (planes[0].astype(np.float32) - np.float32(black)) * (top / np.float32(swing))
    u, v = ((plane.astype(np.float32) - np.float32(grey)) * (top / np.float32(colour)) for plane in planes[1:])
    of_u, of_v = np.float32(2 - 2 * blue), np.float32(2 - 2 * red)
    green = np.float32(1 - red - blue)
    rgb = np.empty((*luma.shape, 3), np.float32)
    rgb[..., 0] = luma + of_v * v
    rgb[..., 1] = luma - (np.float32(blue) * of_u / green) * u - (np.float32(red) * of_v / green) * v
    rgb[..., 2] = luma + of_u * u
    return np.rint(np.clip(rgb, 0, top)).astype(np.uint16)


def to_yuv(rgb: np.ndarray, depth: int, matrix: int, full: bool) -> np.ndarray:
    """RGB uint16 [H, W, 3] of `depth` bits -> luma and chroma uint16 [3, H, W] of as many."""
    black, swing, colour, grey = _levels(depth, full)
    red, blue = _LUMA[matrix]
    top = np.float32(2**depth - 1)
    r, g, b = (rgb[..., channel].astype(np.float32) / top for channel in range(3))
    luma = np.float32(red) * r + np.float32(1 - red - blue) * g + np.float32(blue) * b
    planes = np.empty((3, *luma.shape), np.float32)
    planes[0] = np.float32(black) + np.float32(swing) * luma
    planes[1] = np.float32(grey) + np.float32(colour / (2 - 2 * blue)) * (b - luma)
    planes[2] = np.float32(grey) + np.float32(colour / (2 - 2 * red)) * (r - luma)
    return np.rint(np.clip(planes, 0, top)).astype(np.uint16)


def _levels(depth: int, full: bool) -> tuple[int, int, int, int]:
    """Black, and the levels from there to white; the levels of chroma, and its grey."""
    if full:
        return 0, 2**depth - 1, 2**depth - 1, 2 ** (depth - 1)
    unit = 2 ** (depth - 8)
    return 16 * unit, 219 * unit, 224 * unit, 128 * unit


def widened(picture: np.ndarray, depth: int = 8) -> np.ndarray:
    """Levels of `depth` bits, uint8 or uint16 -> uint16 that take the whole of it."""
    if depth == 16:
        return picture
    top = 2**depth - 1
    return ((picture.astype(np.uint32) * 65535 + top // 2) // top).astype(np.uint16)


def narrowed(picture: np.ndarray, depth: int) -> np.ndarray:
    """A frame [H, W, C], uint8 or uint16 that take the whole of their type -> levels of `depth` bits, in uint16.

    What lies on one of these levels is kept. Between two of them an ordered dither chooses, so that a smooth slope
    stays one and gets no steps.
    """
    wide = widened(picture) if picture.dtype == np.uint8 else picture
    if depth == 16:
        return wide
    scale = (2**depth - 1) / 65535
    # Farther from 0 and 1 than a level of fewer bits is from itself after it was rounded to 16.
    margin = 0.51 * scale
    threshold = (margin + (1 - 2 * margin) * (_BAYER + 0.5) / _BAYER.size).astype(np.float32)
    height, width = wide.shape[:2]
    rows, columns = (-(-side // len(_BAYER)) for side in (height, width))
    levels = wide * np.float32(scale)
    levels += np.tile(threshold, (rows, columns))[:height, :width, None]
    return levels.astype(np.uint16)


def eight_bits(frame: np.ndarray) -> np.ndarray:
    """A frame uint8, or uint16 that takes the whole of it -> uint8, to the nearest level."""
    return frame if frame.dtype == np.uint8 else ((frame.astype(np.uint32) + 128) // 257).astype(np.uint8)
