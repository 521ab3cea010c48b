"""What the commands of training/ have in common: how help looks, and one sentence for what went wrong."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from anycharv_core.errors import UserError
from anycharv_core.files import write_error

LOCK = ".lock"


def new_parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """The parser of `python -m training.<name>`, its description with the line breaks that it has."""
    return argparse.ArgumentParser(
        prog=f"python -m training.{name}",
        description=description,
        formatter_class=argparse.RawTextHelpFormatter,
    )


def run(name: str, work: Callable[[], None], stopped: str) -> int:
    """Calls `work`; returns the exit code: 0 done, 2 something the user can put right, 130 Ctrl-C, after which
    `stopped` says how to go on. Both are one line on stderr that begins with `name`."""
    try:
        work()
    except UserError as error:
        return _say(name, str(error), 2)
    except KeyboardInterrupt:
        return _say(name, stopped, 130)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _say(name, f"{where}{error.strerror or error}; check the path and its permissions.", 2)
    return 0


def _say(name: str, sentence: str, code: int) -> int:
    print(f"{name}: {' '.join(sentence.split())}", file=sys.stderr)
    return code


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Makes `folder`, and keeps every other process that asks the same out of it until the body ends.

    It is the operating system that holds the lock, so it ends with the process, however that ends; the file
    `.lock` stays and means nothing by itself. Raises UserError where another process is at work there, or where
    nothing can be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK, timeout=0)
        lock.acquire()
    except Timeout:
        raise UserError(
            f"Another process is at work in {folder}: wait until it has ended, or give another --out."
        ) from None
    except OSError as error:
        raise write_error(folder, error) from error
    try:
        yield
    finally:
        lock.release()
