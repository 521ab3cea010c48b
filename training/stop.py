"""When a run stops before its end, by Ctrl-C or by the clock, and goes on later."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType


class Unfinished(Exception):
    """Stopped, its state saved, before the last step; the same command goes on."""


@dataclass
class Stop:
    """When to stop: `deadline` in time.monotonic() seconds, or `asked` by Ctrl-C."""

    deadline: float = math.inf
    asked: bool = field(default=False)

    def now(self) -> bool:
        return self.asked or time.monotonic() > self.deadline

    @contextmanager
    def on_signals(self) -> Iterator[None]:
        """The first Ctrl-C, or SIGTERM, asks to stop after the step; a second Ctrl-C stops at once."""

        def ask(number: int, _: FrameType | None) -> None:
            if self.asked and number == signal.SIGINT:
                raise KeyboardInterrupt
            self.asked = True

        before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
