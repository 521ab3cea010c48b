"""That masks, poses and scene are as many as the frames they go with.

What files say about themselves is compared before a model is loaded, and believed where it fits; where it doesn't,
they are decoded then and there. What they hold in truth is counted while they are read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Protocol

import numpy as np

from ..errors import UserError
from ..media.frames import Reopened
from ..media.mask_read import numbered_pngs
from ..media.video_read import likely_frames

Mismatch = Callable[[int, int], UserError]
"""The sentence for a count, and the one it should be."""


class Length(Protocol):
    """A number of frames, as a `Video` has. likely: found without decoding; measured: whether `total` is, too."""

    @property
    def likely(self) -> int: ...
    @property
    def measured(self) -> bool: ...
    @property
    def total(self) -> int: ...


class KnownLength:
    """The length of what was read already."""

    measured = True

    def __init__(self, count: int):
        self.likely = self.total = count


class MaskLength:
    """How many masks `path` holds, whose `frames` are decoded to be counted."""

    measured = False

    def __init__(self, path: Path, frames: Iterable[np.ndarray]):
        self.path, self._frames = path, frames

    @property
    def likely(self) -> int:
        return len(numbered_pngs(self.path)) if self.path.is_dir() else likely_frames(self.path)

    @property
    def total(self) -> int:
        return sum(1 for _ in self._frames)


def check_early(own: Length, length: Length, mismatch: Mismatch, more: bool = False) -> None:
    """Raises `mismatch` where one is not as long as the other; they are counted where they seem not to be.

    more: the first may be longer.
    """
    if not _fits(own.likely, length.likely, more) and not _fits(count := own.total, length.total, more):
        raise mismatch(count, length.total)


def as_many(frames: Iterable[np.ndarray], length: Length, mismatch: Mismatch, more: bool = False) -> Reopened:
    """The frames, which raise `mismatch` as they end where they are not as many as `length`.

    Where that is measured by reading, it is to be read first and beside them. more: if there are more, they are
    left out.
    """
    return Reopened(lambda: _counted(islice(frames, length.total) if more else iter(frames), length, mismatch))


def _counted(frames: Iterator[np.ndarray], length: Length, mismatch: Mismatch) -> Iterator[np.ndarray]:
    count = 0
    for frame in frames:
        count += 1
        if length.measured and count > length.total:
            count += sum(1 for _ in frames)
            break
        yield frame
    if count != length.total:
        raise mismatch(count, length.total)


def _fits(count: int, wanted: int, more: bool) -> bool:
    return count == wanted or (more and count > wanted)
