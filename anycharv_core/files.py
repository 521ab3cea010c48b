"""Files out so that a crash, Ctrl-C or a full disk never costs the old file or leaves half."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import UserError

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
def atomic_path(final: Path | str) -> Iterator[Path]:
    """Give a temporary path beside `final`, with its suffix, that takes its name when the body succeeds.

    The temporary file exists, empty, when the body starts. If the body raises anything, Ctrl-C
    included, it is deleted and an old file under the final name is left as it was. A symbolic link
    stays a link: the file it points to is replaced.

    Raises UserError if the folder is missing or not writable, if `final` is not an ordinary file, or
    if the disk fills up.
    """
    target = Path(os.path.realpath(final))
    if target.exists() and not target.is_file():
        raise UserError(f"Cannot write {final}: it is not an ordinary file; give a file name.")
    temporary = _temporary_name(target, target.suffix)
    with _cleaned_up(final, temporary):
        os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(target)


@contextmanager
def atomic_folder(final: Path | str) -> Iterator[Path]:
    """Give an empty temporary folder beside `final` that takes its name when the body succeeds.

    An old folder of that name is replaced with all it holds, so the caller must have made sure that
    this is wanted. If the body raises anything, the old folder is left as it was.

    Raises UserError as `atomic_path` does.
    """
    target = Path(os.path.realpath(final))
    temporary = _temporary_name(target, "")
    with _cleaned_up(final, temporary):
        temporary.mkdir()
        yield temporary
        if not target.exists():
            temporary.rename(target)
            return
        # No system call swaps two folders everywhere, so the old one steps aside and, should the
        # second rename fail, comes back.
        aside = _temporary_name(target, "")
        target.rename(aside)
        try:
            temporary.rename(target)
        except BaseException:
            aside.rename(target)
            raise
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
            temporary.unlink(missing_ok=True)
