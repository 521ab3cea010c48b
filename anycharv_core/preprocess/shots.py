"""Shot boundaries: FFmpeg's `scdet` filter, fed through PyAV, and two checks that a jump is a cut.

`scdet` (libavfilter/vf_scdet.c) scores a frame by its mean absolute difference to the frame before it, and by
how much that difference itself jumps, so that steady fast motion and pans score low. PySceneDetect's wheel
would bring a second OpenCV into ComfyUI's Python.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from fractions import Fraction
from typing import NamedTuple

import av
import numpy as np

from ..opencv import cv2

# Small enough that noise and fine motion average out, and that a frame costs a fraction of a millisecond.
_SIDE = 64
# In scdet's per cent. Over three real videos with fast camera and body motion, also with two of three frames
# left out, nothing scores above 4; the closest of 24 cuts between drawn scenes scores 8, of 6 real ones 29.
_MIN_SCORE = 6.0
# Frames on either side that take part in the decision: longer than a camera flash.
_REACH = 4
# A cut's difference stands out from its neighbours' by this factor. In videos whose every second frame repeats
# the one before, or that jerk all along, it does not.
_STANDS_OUT = 2.0
# After a flash the picture comes back: frames from before and after it differ by less than this part of the jump.
_COMES_BACK = 0.5


class _Seen(NamedTuple):
    """A frame as the detector keeps it: its thumbnail, and scdet's difference and score in per cent."""

    number: int
    thumbnail: np.ndarray
    difference: float
    score: float


class ShotDetector:
    """Finds hard cuts in frames given one by one, keeping nine thumbnails whatever the video's length.

    Dissolves and fades are no cuts here. A picture shown for up to three frames between frames of one shot
    (a flash) starts no shot.
    """

    def __init__(self) -> None:
        self._graph = av.filter.Graph()
        self._source = self._graph.add_buffer(
            width=_SIDE, height=_SIDE, format=av.VideoFormat("rgb24"), time_base=Fraction(1, 25)
        )
        detector = self._graph.add("scdet", "t=0")
        self._sink = self._graph.add("buffersink")
        self._source.link_to(detector)
        detector.link_to(self._sink)
        self._graph.configure()
        self._window: deque[_Seen | None] = deque([None] * (2 * _REACH + 1), 2 * _REACH + 1)
        self._fed = 0
        self._cuts: list[int] = []

    def feed(self, frame: np.ndarray) -> None:
        """Take the video's next frame, uint8 RGB [H, W, 3]."""
        thumbnail = cv2.resize(frame, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA)
        picture = av.VideoFrame.from_ndarray(thumbnail.astype(np.uint8, copy=False), "rgb24")
        picture.pts, picture.time_base = self._fed, Fraction(1, 25)
        self._source.push(picture)
        found = self._sink.pull().metadata
        difference, score = (float(found.get(f"lavfi.scd.{key}", 0)) for key in ("mafd", "score"))
        self._advance(_Seen(self._fed, thumbnail.astype(np.int16), difference, score))
        self._fed += 1

    def finish(self) -> list[int]:
        """The index of every shot's first frame but the first shot's; call it once, after the last frame."""
        for _ in range(_REACH):
            self._advance(None)
        return self._cuts

    def _advance(self, seen: _Seen | None) -> None:
        self._window.append(seen)
        middle = self._window[_REACH]
        if middle and _is_cut(middle, self._window):
            self._cuts.append(middle.number)


def find_cuts(frames: Iterable[np.ndarray]) -> list[int]:
    """The index of every shot's first frame but the first shot's, for frames uint8 RGB [H, W, 3]."""
    detector = ShotDetector()
    for frame in frames:
        detector.feed(frame)
    return detector.finish()


def _is_cut(middle: _Seen, window: Iterable[_Seen | None]) -> bool:
    """Whether the frame in the middle of the window starts a shot."""
    if middle.score < _MIN_SCORE:
        return False
    before = [seen for seen in window if seen and seen.number < middle.number]
    after = [seen for seen in window if seen and seen.number > middle.number]
    # The largest may be another cut close by.
    around = sorted(seen.difference for seen in before + after)[:-1]
    if around and middle.difference < _STANDS_OUT * around[-1]:
        return False
    jump = _apart(before[-1], middle)
    return all(_apart(old, new) > _COMES_BACK * jump for old in before for new in (middle, *after))


def _apart(one: _Seen, other: _Seen) -> float:
    return float(np.abs(one.thumbnail - other.thumbnail).mean())
