"""How processes that work for a training begin, and that they end with it."""

from __future__ import annotations

import multiprocessing
import os
import threading


def begin_worker(_: int = 0) -> None:
    """Called first in a worker process: one thread for its arithmetic, and an end with the process it works for.

    A parent that was killed can tell its workers nothing, and they would wait for more work for ever: torch's own
    watch is on whoever forked them, a server that in turn lives as long as they do.
    """
    import cv2
    import torch

    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
