"""Videos as streams: read twice, checked as they pass, never wholly in memory."""

from __future__ import annotations

import math
import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from itertools import chain, islice, zip_longest
from pathlib import Path
from typing import IO, TypeVar

import numpy as np

from ..errors import UserError
from ..files import write_error
from .colour import eight_bits
from .imaging import Size

MEMORY = 2**22  # bytes a store keeps in memory before it moves to a file

Frames = np.ndarray | Iterable[np.ndarray]
"""uint8 [F, H, W(, 3)], or anything that yields uint8 [H, W(, 3)]; where deep ones are taken, uint16 too."""


class FrameStore:
    """Arrays of one shape and type, one for each frame of a video; large stores lie in a file.

    Files are read and written by position and not mapped into memory: a full disk is then an error that can be
    explained, not the end of the process, and what was read once does not stay.
    """

    def __init__(self, folder: Path | str | None = None) -> None:
        """folder: where a temporary file lies that the store moves to, None = where the system has them."""
        self._folder = None if folder is None else str(folder)
        self._file: IO[bytes] = tempfile.SpooledTemporaryFile(MEMORY, dir=self._folder)  # noqa: SIM115
        weakref.finalize(self, self._file.close)
        self._named = ""
        self._shape: tuple[int, ...] = ()
        self._dtype = np.dtype(np.uint8)
        self._count = 0

    @classmethod
    def in_file(cls, file: IO[bytes], held: tuple[Sequence[int], np.dtype] | None = None) -> FrameStore:
        """A store that lies in a file with a name. held: shape [F, ...] and type of what it already holds."""
        store = cls()
        store._file, store._named = file, file.name
        if held is not None:
            (store._count, *shape), store._dtype = held
            store._shape = tuple(shape)
        return store

    @property
    def name(self) -> str:
        """The file it lies in, where that has a name."""
        return self._named

    def __len__(self) -> int:
        return self._count

    def append(self, frame: np.ndarray) -> None:
        """Raises UserError where the disk is full."""
        self.put(self._count, frame)

    def put(self, index: int, frame: np.ndarray) -> None:
        """Writes a frame in any order; all before the last one are to be written, too. Raises UserError where the
        disk is full."""
        self._shape, self._dtype = frame.shape, frame.dtype
        try:
            self._file.seek(index * frame.nbytes)
            self._file.write(np.ascontiguousarray(frame).tobytes())
            self._file.flush()
        except OSError as error:
            where = self._folder or f"{tempfile.gettempdir()} (TMPDIR names another)"
            raise write_error(self._named or f"temporary files to {where}", error) from error
        self._count = max(self._count, index + 1)

    def __getitem__(self, index: int) -> np.ndarray:
        if not 0 <= index < self._count:
            raise IndexError(index)
        size = math.prod(self._shape) * self._dtype.itemsize
        self._file.seek(index * size)
        return np.frombuffer(self._file.read(size), self._dtype).reshape(self._shape)

    def empty(self) -> FrameStore:
        """A new store that lies where this one does."""
        return FrameStore(self._folder)

    def take(self, indices: Sequence[int]) -> np.ndarray:
        """[len(indices), ...] in memory of its own."""
        return np.stack([self[index] for index in indices])


Row = TypeVar("Row")


def batched(rows: Iterable[Row], size: int) -> Iterator[list[Row]]:
    """Lists of `size` rows, the last one possibly shorter; nothing is read ahead."""
    stream = iter(rows)
    while batch := list(islice(stream, size)):
        yield batch


class Reopened:
    """Frames that can be read any number of times: every loop calls `read` again. count: how many, where known."""

    def __init__(self, read: Callable[[], Iterator[np.ndarray]], count: int | None = None):
        self._read = read
        self.count = count

    def __iter__(self) -> Iterator[np.ndarray]:
        return self._read()


class Replay:
    """Lets any source of frames be read twice: a one-shot iterator is spooled while it is first read."""

    def __init__(self, source: Frames, folder: Path | str | None = None):
        """folder: as for `FrameStore`."""
        self._source = source
        self._store: FrameStore | None = FrameStore(folder) if iter(source) is source else None
        self._begun = False

    def __iter__(self) -> Iterator[np.ndarray]:
        if self._store is None:
            yield from self._source
        elif self._begun:
            yield from (self._store[index] for index in range(len(self._store)))
        else:
            self._begun = True
            for frame in self._source:
                self._store.append(frame)
                yield frame


def checked(
    name: str, frames: Iterable[np.ndarray], channels: int | None, deep: bool = False
) -> Iterator[np.ndarray]:
    """Passes on uint8 frames [H, W] (channels None) or [H, W, channels], all of one size; deep: or uint16.

    Raises UserError naming `name` and the frame when one is not.
    """
    want = "uint8 or uint16 " if deep else "uint8 "
    want += "[H, W]" if channels is None else f"[H, W, {channels}]"
    types = (np.uint8, np.uint16) if deep else (np.uint8,)
    first: tuple[int, ...] | None = None
    for index, frame in enumerate(frames):
        frame = np.asarray(frame)
        shaped = frame.ndim == 2 if channels is None else frame.ndim == 3 and frame.shape[2] == channels
        if frame.dtype not in types or not shaped or 0 in frame.shape:
            raise UserError(f"The {name} must be {want}; frame {index} is {frame.dtype} {list(frame.shape)}.")
        first = first or frame.shape
        if frame.shape != first:
            raise UserError(
                f"The {name} changes size at frame {index}, from {first[1]}x{first[0]} to "
                f"{frame.shape[1]}x{frame.shape[0]}; make all its frames one size."
            )
        yield frame


class Source:
    """Frames uint8 [H, W] (channels None) or [H, W, channels] of one size, checked as they pass.

    name: what messages call them. Every loop starts at the first frame, where `replayed` even of an iterator,
    which is spooled to `folder`, see `FrameStore`. deep: uint16 is taken too.
    """

    def __init__(
        self,
        name: str,
        frames: Frames,
        channels: int | None,
        replayed: bool = False,
        deep: bool = False,
        folder: Path | str | None = None,
    ):
        self.name = name
        self._frames = Replay(frames, folder) if replayed else frames
        self._channels = channels
        self._takes_deep = deep
        self._size: Size | None = None
        self._deep = False
        self._begun: Iterator[np.ndarray] | None = None
        self.count = len(frames) if isinstance(frames, Sized) else getattr(frames, "count", None)

    @property
    def size(self) -> Size:
        """(width, height) of the first frame, which is read ahead. Raises UserError where there is none."""
        return self._looked()[0]

    @property
    def deep(self) -> bool:
        """Whether the first frame is uint16, for which it is read ahead as for `size`."""
        return self._looked()[1]

    def _looked(self) -> tuple[Size, bool]:
        if self._size is None:
            frames = iter(self)
            first = next(frames, None)
            if first is None:
                raise UserError(f"The {self.name} has no frames; give at least one.")
            self._size, self._deep = (first.shape[1], first.shape[0]), first.dtype == np.uint16
            self._begun = chain([first], frames)
        return self._size, self._deep

    def __iter__(self) -> Iterator[np.ndarray]:
        begun, self._begun = self._begun, None
        return begun or checked(self.name, self._frames, self._channels, self._takes_deep)


def eight_bit(source: Source) -> Source:
    """The same frames as uint8, whatever depth they have."""
    return Source(source.name, Reopened(lambda: map(eight_bits, source), source.count), 3)


def together(*sources: Source) -> Iterator[tuple[np.ndarray, ...]]:
    """Frames of several sources side by side. Raises UserError when their lengths differ."""
    for index, row in enumerate(zip_longest(*sources)):
        present = tuple(frame for frame in row if frame is not None)
        if len(present) < len(row):
            ended = [frame is None for frame in row]
            raise uneven(sources[ended.index(True)].name, index, sources[ended.index(False)].name)
        yield present


def uneven(short: str, count: int, longer: str) -> UserError:
    """The sentence for a source that ends after `count` frames, before another; the caller raises it."""
    return UserError(
        f"The {short} has {count} frames but the {longer} has more; give one {short} frame for every {longer} "
        "frame."
    )
