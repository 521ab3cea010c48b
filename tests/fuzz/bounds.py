"""Bounds of time and memory around one reading of a damaged input."""

from __future__ import annotations

import faulthandler
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SECONDS = 60  # a hundred times what the slowest takes
GIGABYTES = 4


class TooLongError(BaseException):
    """The time is up."""


@contextmanager
def bounded() -> Iterator[None]:
    """Time that ends with an error, or with the whole run where C code does not return, and memory that ends."""

    def stop(*_: object) -> None:
        raise TooLongError

    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + GIGABYTES * 2**30, before[1]))
    faulthandler.dump_traceback_later(2 * SECONDS, exit=True)
    handler = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, handler)
        faulthandler.cancel_dump_traceback_later()
        resource.setrlimit(resource.RLIMIT_AS, before)
