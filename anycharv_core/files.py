"""Files out so that a crash, Ctrl-C or a full disk never costs the old file or leaves half."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import shutil
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from .errors import UserError
from .foreign import open_file, read_json, unreadable

MANIFEST = ".anycharv.json"

_REMEDIES = {
    errno.ENOENT: "its folder does not exist; create the folder or choose another one",
    errno.ENOTDIR: "its folder does not exist; create the folder or choose another one",
    errno.EACCES: "you may not write there; choose another folder or change its permissions",
    errno.EPERM: "you may not write there; choose another folder or change its permissions",
    errno.EROFS: "that disk is read-only; choose a folder on another disk",
    errno.ENOSPC: "the disk is full; free some space or choose another disk, then run again",
    errno.EDQUOT: "your disk quota is used up; free some space or choose another disk, then run again",
    errno.EFBIG: "the file grew past the size limit of this disk or account; choose another disk",
    errno.EIO: "the disk reported a fault; choose another disk",
}
# These can only come from writing. The others may belong to a file that the caller was reading.
_WRITE_ONLY = {errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def write_error(path: Path | str, error: OSError) -> UserError:
    """Return the sentence for a file or folder that could not be written; the caller raises it."""
    reason = _REMEDIES.get(error.errno or 0, f"{error.strerror or error}; choose another place")
    return UserError(f"Cannot write {path}: {reason}.")


@contextmanager
def atomic_path(final: Path | str, until_then: Path | None = None) -> Iterator[Path]:
    """Give a temporary path beside `final`, with its suffix, that takes its name when the body succeeds.

    until_then: the temporary path, on the same disk, where it is to have a name that is known; what a killed
    process left there is replaced.

    The temporary file exists, empty, when the body starts. If the body raises anything, Ctrl-C
    included, it is deleted and an old file under the final name is left as it was. A symbolic link
    stays a link: the file it points to is replaced.

    Raises UserError if the folder is missing or not writable, if `final` is not an ordinary file, or
    if the disk fills up.
    """
    target = Path(os.path.realpath(final))
    if target.exists() and not target.is_file():
        raise UserError(f"Cannot write {final}: it is not an ordinary file; give a file name.")
    temporary = until_then or _temporary_name(target, target.suffix)
    with _cleaned_up(final, temporary):
        temporary.unlink(missing_ok=True)
        os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(target)


@contextmanager
def atomic_folder(final: Path | str) -> Iterator[Path]:
    """Give an empty temporary folder beside `final` that takes its name when the body succeeds.

    If the body raises anything, it is deleted. `final` is a new or an empty folder; `owned_folder` replaces what
    an earlier run wrote.

    Raises UserError as `atomic_path` does, or if `final` is there and not an empty folder.
    """
    target = _folder_target(final)
    if target.exists() and any(target.iterdir()):
        raise UserError(f"{final} is not empty; choose a new folder.")
    with _swapped_in(final, target) as temporary:
        yield temporary


@contextmanager
def owned_folder(
    final: Path | str, inputs: Iterable[Path | str] = (), until_then: Path | None = None
) -> Iterator[Path]:
    """As `atomic_folder`, but with a manifest, and a folder that this function filled before is replaced.

    until_then: as for `atomic_path`.

    The manifest, `.anycharv.json`, names every file with its size and SHA-256. Whatever it does not name, and
    whatever was changed since, belongs to somebody else: then the folder is left as it is. Call `check_owned`
    before work that takes long.

    Raises UserError as `atomic_path` and `check_owned` do.
    """
    target, inputs = _folder_target(final), list(inputs)
    check_owned(final, inputs)
    with _swapped_in(final, target, until_then) as temporary:
        yield temporary
        files = {path.relative_to(temporary).as_posix(): _fingerprint(path) for path in _files(temporary)}
        content = json.dumps({"written_by": "anycharv", "files": files}, indent=2)
        (temporary / MANIFEST).write_text(content + "\n", encoding="utf-8")
        check_owned(final, inputs)


def check_owned(folder: Path | str, inputs: Iterable[Path | str] = ()) -> None:
    """Raises UserError unless `owned_folder` may write `folder`: it is new, empty, or exactly as that left it.

    inputs: files and folders that are being read, none of which may be `folder` or lie in it.
    """
    target = _folder_target(folder)
    if not target.exists():
        return
    for each in inputs:
        real = Path(os.path.realpath(each))
        if real.exists() and any(place.samefile(target) for place in (real, *real.parents)):
            raise UserError(f"{each} lies in {folder}, which would be replaced; choose a new folder.")
    try:
        files = sorted(_files(target))
        manifest = read_json(target / MANIFEST) if target / MANIFEST in files else {}
        known = manifest.get("files") if isinstance(manifest, dict) else None
        for path in files:
            name = path.relative_to(target).as_posix()
            if name == MANIFEST:
                continue
            if not isinstance(known, dict) or name not in known:
                raise UserError(
                    f"{folder} also holds {name}, which this command did not write; choose a new folder."
                )
            if path.is_symlink() or known[name] != _fingerprint(path):
                raise UserError(f"{folder} holds {name}, which was changed since; choose a new folder.")
    except OSError as error:
        raise unreadable(folder, error) from error


def intact(folder: Path) -> bool:
    """Whether `owned_folder` wrote `folder`, and it still holds exactly that."""
    if not (folder / MANIFEST).is_file():
        return False
    try:
        known = read_json(folder / MANIFEST)["files"]
        check_owned(folder)
    except (UserError, KeyError, TypeError):
        return False
    return {path.relative_to(folder).as_posix() for path in _files(folder)} == {MANIFEST, *known}


def _files(folder: Path) -> Iterator[Path]:
    """Everything below a folder but folders; a link to a folder is not followed."""

    def stop(error: OSError) -> None:
        raise error

    for place, folders, names in os.walk(folder, onerror=stop):
        links = [name for name in folders if Path(place, name).is_symlink()]
        yield from (Path(place, name) for name in (*names, *links))


def _fingerprint(path: Path) -> dict[str, Any] | None:
    """Size in bytes and SHA-256 of an ordinary file; None of anything else."""
    if not path.is_file():
        return None
    return {"bytes": path.stat().st_size, "sha256": file_digest(path).hex()}


def file_digest(path: Path | str) -> bytes:
    """The SHA-256 of an ordinary file. Raises UserError where it cannot be read."""
    digest = hashlib.sha256()
    with open_file(path) as file:
        try:
            while block := file.read(2**20):
                digest.update(block)
        except OSError as error:
            raise unreadable(path, error) from error
    return digest.digest()


def flushed(path: Path) -> None:
    """Waits until what was written to a file, or the names in a folder, would outlast a power cut.

    Raises UserError where the disk is full.
    """
    if path.is_dir() and os.name == "nt":
        return  # Windows opens no folders
    try:
        number = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
        try:
            os.fsync(number)
        finally:
            os.close(number)
    except OSError as error:
        raise write_error(path, error) from error


@contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Whether this process alone works on what `path`, a file made for that, stands for.

    However the process ends, the system gives the lock back. True where the file system knows no locks.
    """
    with path.open("wb") as file:
        yield _lock(file.fileno())


def _lock(number: int) -> bool:
    if sys.platform == "win32":
        import msvcrt

        try:
            msvcrt.locking(number, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True
    import fcntl

    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def _folder_target(final: Path | str) -> Path:
    target = Path(os.path.realpath(final))
    if os.path.lexists(target) and not target.is_dir():
        raise UserError(f"Cannot write {final}: it is not a folder; choose another name.")
    return target


@contextmanager
def _swapped_in(final: Path | str, target: Path, until_then: Path | None = None) -> Iterator[Path]:
    temporary = until_then or _temporary_name(target, "")
    with _cleaned_up(final, temporary):
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        yield temporary
        if not target.exists():
            temporary.rename(target)
            return
        # No system call swaps two folders everywhere, so the old one steps aside and, should the
        # second rename fail, comes back.
        aside = _temporary_name(target, "")
        target.rename(aside)
        with ExitStack() as undo:
            undo.callback(aside.rename, target)
            temporary.rename(target)
            undo.pop_all()
        shutil.rmtree(aside, ignore_errors=True)


def _temporary_name(target: Path, suffix: str) -> Path:
    # Not built on the final name, which may already be as long as the file system allows.
    return target.with_name(f".writing-{secrets.token_hex(6)}{suffix}")


@contextmanager
def _cleaned_up(final: Path | str, temporary: Path) -> Iterator[None]:
    if not temporary.parent.is_dir():
        raise UserError(f"Cannot write {final}: {_REMEDIES[errno.ENOENT]}.")
    try:
        yield
    except OSError as error:
        if error.errno in _WRITE_ONLY or error.filename == os.fspath(temporary):
            raise write_error(final, error) from error
        raise
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            # On a read-only disk this fails for a file that isn't there, too, and would hide what was the matter.
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
