"""What a stopped generation leaves beside its output, so that the same command goes on after the last whole step.

The latents of a step are on the disk before the state names them, and those of the step before stay until then: at
any moment there is a whole step to go on from.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import fields, is_dataclass
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

    It is removed when the body succeeds, and when it fails before a step was finished. fresh: nothing is taken up.

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
    """Latents in files, of which every step that can be resumed is kept as soon as it is finished."""

    def __init__(
        self,
        now: FrameStore,
        following: FrameStore,
        spare: Callable[[], FrameStore],
        steps: int,
        parts: int,
        keep: Callable[[_Kept], None],
    ) -> None:
        """spare: makes a third store, for steps after which the one before is still the one to resume from."""
        super().__init__(now, following, steps, parts)
        self._keep = keep
        self._kept = now if steps else None
        self._make_spare = spare
        self._spare: FrameStore | None = None

    @property
    def path(self) -> Path:
        """The file of what is read."""
        return Path(self._now.name)

    def advance(self, resumable: bool = True) -> None:
        super().advance(resumable)
        if resumable:
            self._keep(self)
            self._kept = self._now
        elif self._following is self._kept:
            self._following, self._spare = self._spare or self._make_spare(), self._following

    def settle(self) -> None:
        # The file that is kept is the one that was changed, and without this it would count as torn.
        if self._now is self._kept:
            self._keep(self)


class Work:
    """See `work`. people: what is kept of the latents of each, by their number."""

    def __init__(self, place: Path, decides: dict[str, str], fresh: bool) -> None:
        self._place, self._decides = place, decides
        self.people: dict[str, dict[str, Any]] = {} if fresh else self._found()
        self.taken_up = 0  # steps that an earlier process has finished
        self._opened: list[IO[bytes]] = []

    def latents(self, number: int, shape: Sequence[int], noise: Iterable[Tensor], parts: int = 1) -> Latents:
        """The latents of person `number` after the last step that was finished, or else noise. parts: as in
        `Latents`."""
        frames, channels, *sides = shape
        shape = (frames, channels * parts, *sides)
        kept = self._kept(number, shape)
        letter, steps = kept or ("a", 0)
        other, third = (each for each in "abc" if each != letter)
        held = (shape, np.dtype(np.float32)) if kept else None
        now = FrameStore.in_file(self._open(number, letter, "r+b" if kept else "w+b"), held)
        following = FrameStore.in_file(self._open(number, other, "w+b"))

        def spare() -> FrameStore:
            return FrameStore.in_file(self._open(number, third, "w+b"))

        made = _Kept(now, following, spare, steps, parts, lambda latents: self._keep(number, latents))
        if kept:
            self.taken_up += steps
            _log.warning("Going on after step %d, which an earlier run had finished.", steps)
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
                int(each["steps"]), str(each["file"]), str(each["sha256"])
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

    def _kept(self, number: int, shape: Sequence[int]) -> tuple[str, int] | None:
        """The letter of the file of what is kept of a person, and the steps done, where it is whole."""
        kept = self.people.get(str(number))
        if kept is None:
            return None
        path = self._place / Path(kept["file"]).name
        whole = path.is_file() and path.stat().st_size == 4 * int(np.prod(shape))
        if not whole or file_digest(path).hex() != kept["sha256"]:
            _log.warning("%s is torn, so its video is made from the start.", path)
            return None
        return path.name[-1], int(kept["steps"])

    def _keep(self, number: int, latents: _Kept) -> None:
        path = latents.path
        flushed(path)
        self.people[str(number)] = {
            "steps": latents.steps,
            "file": path.name,
            "sha256": file_digest(path).hex(),
        }
        with atomic_path(self._place / _STATE) as temporary:
            temporary.write_text(json.dumps({"decides": self._decides, "people": self.people}), encoding="utf-8")
        flushed(self._place)

    def _open(self, number: int, letter: str, mode: str) -> IO[bytes]:
        path = self._place / f"latents-{number}-{letter}"
        try:
            file = path.open(mode)
        except OSError as error:
            raise write_error(path, error) from error
        self._opened.append(file)
        return file
