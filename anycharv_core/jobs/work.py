"""What a stopped generation leaves beside its output, so that the same command goes on after the last whole round.

The latents of a round are on the disk before the state names them, and those of the one before stay until then: at
any moment there is a whole round to go on from.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import shutil
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import fields, is_dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
from torch import Tensor

from ..checkpoints.places import EMBEDDED
from ..errors import UserError
from ..files import atomic_path, file_digest, flushed, locked, write_error
from ..foreign import open_file, read_json
from ..inference.latents import Latents
from ..media.frames import FrameStore

SUFFIX = ".anycharv-work"
_STATE, _LOCK, _LATENTS, _UNFINISHED = "state.json", "lock", "latents-*-?", "unfinished"
_BLOCK, _BLOCKS = 2**20, 256  # bytes; of a larger file that many blocks are looked at, evenly spread
_log = logging.getLogger(__name__)


def work_folder(out: Path) -> Path:
    """Where the state of a generation of `out` lies."""
    target = Path(os.path.realpath(out))
    return target.with_name(target.name + SUFFIX)


def identity(job: Any, ignored: Iterable[str], **more: Any) -> dict[str, str]:
    """What decides over every number of a job, a dataclass: its fields and `more`, files by their content."""
    given = {field.name: getattr(job, field.name) for field in fields(job)} | more
    return {name: _digest(value) for name, value in given.items() if name not in set(ignored)}


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(_content(value), sort_keys=True).encode()).hexdigest()


def _content(value: Any) -> Any:
    """`value` for JSON, with files and folders by what they hold."""
    if isinstance(value, str) and value in EMBEDDED:
        value = EMBEDDED[value]
    elif isinstance(value, str) and Path(value).exists():
        value = Path(value)
    if isinstance(value, Path) and not value.exists():
        return str(value)  # what reads it says so
    if isinstance(value, Path):
        if value.is_dir():
            files = sorted(path for path in value.rglob("*") if path.is_file())
            return {path.relative_to(value).as_posix(): _file_content(path) for path in files}
        return _file_content(value)
    if is_dataclass(value):
        return {field.name: _content(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(name): _content(each) for name, each in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_content(each) for each in value]
    return value


def _file_content(path: Path) -> Any:
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size <= _BLOCK * _BLOCKS:
            return file_digest(path).hex()
        # Gigabytes of weights, of which training leaves no part as it was.
        digest = hashlib.sha256(str(size).encode())
        for start in np.linspace(0, size - _BLOCK, _BLOCKS).astype(np.int64).tolist():
            file.seek(start)
            digest.update(file.read(_BLOCK))
        return digest.hexdigest()


@contextmanager
def work(out: Path, decides: Mapping[str, str], fresh: bool) -> Iterator[Work]:
    """The state of a generation of `out` that `decides` (see `identity`) describes.

    It is removed when the body succeeds, and when it fails before the first round is finished. fresh: nothing is
    taken up.

    Raises UserError where it cannot be written, belongs to other inputs, or another process works on it.
    """
    place = work_folder(out)
    try:
        place.mkdir(exist_ok=True)
    except OSError as error:
        raise write_error(place, error) from error
    with _held(place) as ours:
        if not ours:
            raise UserError(f"Another process is making {out}; wait for it, or choose another output.")
        state = Work(place, dict(decides), fresh)
        finished = False
        try:
            yield state
            finished = True
        finally:
            state.close()
            if finished or not state.people:
                state.remove()


def remove_abandoned(folder: Path, seconds: float) -> None:
    """Removes what stopped generations left in `folder` where it was not touched for so long and nobody is at work
    on it. Files of others stay, and what cannot be removed."""
    for place in sorted(folder.glob(f"*{SUFFIX}")):
        with suppress(OSError):
            touched = max(path.stat().st_mtime for path in (place, *place.iterdir()))
            if time.time() - touched > seconds:
                with _held(place) as ours:
                    if ours:
                        Work(place, {}, fresh=True).remove()


@contextmanager
def _held(place: Path) -> Iterator[bool]:
    """Whether this process alone works in the folder `place`, which goes afterwards if nothing is left in it."""
    ours = False
    try:
        with locked(place / _LOCK) as ours:
            yield ours
    finally:
        if ours:
            with suppress(OSError):
                (place / _LOCK).unlink()
                place.rmdir()


class _Kept(Latents):
    """Latents in files, of which every round that can be gone on from is kept as soon as it is finished."""

    def __init__(
        self,
        stores: Sequence[FrameStore],
        places: Iterable[int],
        sums: Iterable[int],
        rounds: int,
        parts: int,
        keep: Callable[[_Kept], None],
    ) -> None:
        """sums: the CRC-32 of what is read of every frame, none yet where there are no `places`."""
        super().__init__(stores, places, rounds, parts)
        self._sums = list(sums)
        self._keep = keep
        self.written: set[int] = set()  # stores, since they were last kept

    @property
    def kept(self) -> dict[str, Any]:
        """What is known of them beside the files, as JSON."""
        return {"rounds": self.rounds, "places": "".join(map(str, self._places)), "sums": self._sums}

    def advance(self, resumable: bool = True) -> None:
        super().advance(resumable)
        if resumable:
            self._keep(self)

    def settle(self) -> None:
        # Without this what was changed in its place would count as torn.
        if self.rounds:
            self._keep(self)

    def _write(self, place: int, frame: int, row: np.ndarray) -> None:
        super()._write(place, frame, row)
        self.written.add(place)
        self._sums += [0] * (frame + 1 - len(self._sums))
        self._sums[frame] = zlib.crc32(row.tobytes())


def _sums(path: Path, frames: Iterable[int], size: int) -> list[int]:
    """The CRC-32 of some frames of a file of latents, of `size` bytes each; none where there is no file."""
    sums = []
    if path.is_file():
        with open_file(path) as file:
            for frame in frames:
                file.seek(frame * size)
                sums.append(zlib.crc32(file.read(size)))
    return sums


class Work:
    """See `work`. people: what is kept of the latents of each, by their number."""

    def __init__(self, place: Path, decides: dict[str, str], fresh: bool) -> None:
        self._place, self._decides = place, decides
        self.people: dict[str, dict[str, Any]] = {} if fresh else self._found()
        self.taken_up = 0  # rounds that an earlier process has finished
        self._opened: list[IO[bytes]] = []

    def latents(self, number: int, shape: Sequence[int], noise: Iterable[Tensor], parts: int = 2) -> Latents:
        """The latents of person `number` after the last round that was finished, or else noise. parts: as in
        `Latents`."""
        frames, channels, *sides = shape
        row = channels * parts, *sides
        files = [self._place / f"latents-{number}-{letter}" for letter in "abc"]
        kept = self._kept(number, files, 4 * math.prod(row), frames)
        held = ((frames, *row), np.dtype(np.float32)) if kept else None
        stores = [FrameStore.in_file(self._open(path, whole=bool(kept)), held) for path in files]
        kept = kept or {"places": "", "sums": [], "rounds": 0}
        places = map(int, kept["places"])
        keep = partial(self._keep, number, files)
        made = _Kept(stores, places, kept["sums"], kept["rounds"], parts, keep)
        if made.rounds:
            self.taken_up += made.rounds
            _log.warning("Going on after round %d of sampling, which an earlier run had finished.", made.rounds)
        else:
            self.people.pop(str(number), None)
            made.fill(noise)
        return made

    def unfinished(self, ending: str) -> Path:
        """Where the video lies while it is written."""
        return self._place / f"{_UNFINISHED}{ending}"

    def close(self) -> None:
        """Closes the files of all latents, whoever still holds these: Windows removes no file that is open."""
        for file in self._opened:
            # A full disk refuses here what it refused before, of which the user is told already.
            with suppress(OSError):
                file.close()

    def remove(self) -> None:
        """Removes all but the folder and its lock."""
        # Among them halves of a state and of a video, which a process that was killed could not remove.
        for pattern in (_STATE, _LATENTS, ".writing-*", f"*{_UNFINISHED}.*"):
            for path in self._place.glob(pattern):
                with suppress(OSError):
                    path.unlink()
        shutil.rmtree(self._place / _UNFINISHED, ignore_errors=True)

    def _found(self) -> dict[str, dict[str, Any]]:
        path = self._place / _STATE
        if not path.is_file():
            return {}
        try:
            state = read_json(path)
            before, people = state["decides"], state["people"]
            for each in people.values():
                if not (isinstance(each["rounds"], int) and each["places"] and set(each["places"]) <= set("012")):
                    raise ValueError
                list(map(int, each["sums"]))
        except (UserError, KeyError, TypeError, AttributeError, ValueError):
            _log.warning("%s is damaged, so the video is made from the start.", path)
            return {}
        if before != self._decides:
            names = sorted({*before, *self._decides}, key=list(self._decides | before).index)
            changed = [name.replace("_", " ") for name in names if before.get(name) != self._decides.get(name)]
            raise UserError(
                f"{self._place} holds an unfinished video of another {', '.join(changed)}; use --fresh to start "
                "over, or choose another output."
            )
        return people

    def _kept(self, number: int, files: Sequence[Path], size: int, frames: int) -> dict[str, Any] | None:
        """What is known of the latents of a person, of `size` bytes a frame, where they are whole."""
        kept = self.people.get(str(number))
        if kept is None:
            return None
        places, sums = kept["places"], kept["sums"]
        for number, path in enumerate(files):
            rows = [frame for frame, place in enumerate(places) if int(place) == number]
            if rows and not (
                len(places) == len(sums) == frames and _sums(path, rows, size) == [sums[row] for row in rows]
            ):
                _log.warning("%s is torn, so its video is made from the start.", path)
                return None
        return kept

    def _keep(self, number: int, files: Sequence[Path], latents: _Kept) -> None:
        for place in sorted(latents.written):
            flushed(files[place])
        latents.written.clear()
        self.people[str(number)] = latents.kept
        with atomic_path(self._place / _STATE) as temporary:
            temporary.write_text(json.dumps({"decides": self._decides, "people": self.people}), encoding="utf-8")
        flushed(self._place)

    def _open(self, path: Path, whole: bool) -> IO[bytes]:
        try:
            file = path.open("r+b" if whole and path.is_file() else "w+b")
        except OSError as error:
            raise write_error(path, error) from error
        self._opened.append(file)
        return file
