"""Frames as a folder of PNGs, with their times beside them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, final

import av
import numpy as np

from ..errors import UserError
from ..files import owned_folder
from .colour import UNTAGGED, Colours, widened

PNG = "png"
TIMES = "frames.json"


@final
class PngWriter:
    """Write frames to a folder, 000000.png onwards, from which every frame comes back bit for bit.

    It is used as `VideoWriter` is, and takes the same sizes, times, `audio_from`, `sample_aspect`, `colours` and
    `depth`; frames of more than 8 bits become PNGs of 16. A folder holds no sound, and `audio_note` says so. Times
    and colour tags go into frames.json: `timestamps` in units of `time_base` seconds, in the source's own numbers.

    The folder takes its name when the body ends well; until then it is called `until_then`, as for `atomic_path`.
    One that is there already is replaced only if it is as this class left it.

    Raises UserError if the folder cannot be written or holds anything else, or if no frames came; ValueError if
    the frames do not match what was announced.
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
        sample_aspect: Fraction = Fraction(1),
        colours: Colours = UNTAGGED,
        depth: int = 8,
        until_then: Path | None = None,
    ) -> None:
        if rate is None if timestamps is None else time_base is None:
            raise ValueError("PngWriter needs timestamps with their time base, or a rate.")
        self.path = Path(path)
        note = f"A folder of PNGs has no sound; that of {audio_from} was left out."
        self.audio_note = note if audio_from else None
        self._size = width, height
        self._timestamps, self._time_base, self._rate = timestamps, time_base, rate
        self._aspect, self._colours = sample_aspect, colours.as_rgb()
        self._deep = depth > 8
        self._until_then = until_then
        self._pix_fmt = "rgb48be" if self._deep else "rgb24"
        self._count = 0

    @property
    def written(self) -> dict[str, Any]:
        """What kind of files they are, for a report."""
        return {
            "codec": PNG,
            "crf": None,
            "lossless": True,
            "pixel_format": self._pix_fmt,
            "depth": 16 if self._deep else 8,
            "colours": self._colours.named,
        }

    def __enter__(self) -> PngWriter:
        with ExitStack() as stack:
            self._folder = stack.enter_context(owned_folder(self.path, until_then=self._until_then))
            encoder = av.CodecContext.create("png", "w")
            encoder.width, encoder.height = self._size
            encoder.pix_fmt, encoder.time_base = self._pix_fmt, Fraction(1, 25)
            self._encoder = encoder
            self._stack = stack.pop_all()
        return self

    def write(self, frame: np.ndarray) -> None:
        """Add the next frame, uint8 RGB [H, W, 3], or uint16 where there are more than 8 bits.

        Raises ValueError if its shape or type is wrong or no timestamp is left, UserError if the file
        cannot be written.
        """
        width, height = self._size
        types = (np.uint8, np.uint16) if self._deep else (np.uint8,)
        if frame.shape != (height, width, 3) or frame.dtype not in types:
            raise ValueError(f"Frame {self._count} for {self.path} is {frame.dtype} {frame.shape}.")
        if self._timestamps is not None and self._count == len(self._timestamps):
            raise ValueError(f"{self.path} was announced with {self._count} frames and got one more.")
        levels = widened(frame) if self._deep and frame.dtype == np.uint8 else frame
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(levels), self._pix_fmt)
        content = b"".join(map(bytes, self._encoder.encode(picture)))
        (self._folder / f"{self._count:06d}.png").write_bytes(content)
        self._count += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        if kind is not None:
            return self._stack.__exit__(kind, error, trace)
        with self._stack:
            if self._count == 0:
                raise UserError(f"No frames came for {self.path}, so it was not written; give at least one.")
            if self._timestamps is not None and self._count != len(self._timestamps):
                raise ValueError(
                    f"{self.path} was announced with {len(self._timestamps)} frames and got {self._count}."
                )
            (self._folder / TIMES).write_text(json.dumps(self._facts(), indent=2) + "\n", encoding="utf-8")
        return None

    def _facts(self) -> dict[str, Any]:
        times, tick = self._timestamps, self._time_base
        if times is None or tick is None:
            assert self._rate is not None  # one of the two was asked for
            times, tick = range(self._count), 1 / Fraction(self._rate)
        return {
            "size": list(self._size),
            "depth": self.written["depth"],
            "colours": self._colours.named,
            "sample_aspect": str(self._aspect),
            "time_base": str(tick),
            "timestamps": list(times),
        }
