"""What is given up, one step after another, where the memory is not enough: time, and never the video."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from enum import Enum
from typing import Any, TypeVar

import torch
from torch import nn

from ..errors import UserError

FULL_MEMORY = "The memory is not enough for this video; give a smaller --size, or --dtype fp16 on a GPU."
# What oneDNN, torch's allocator and C++ say of it, which have no exception of their own.
_SIGNS = ("could not create a primitive", "can't allocate memory", "not enough memory", "bad_alloc")

_log = logging.getLogger(__name__)
T = TypeVar("T")


class Rung(Enum):
    """A step down; its value says what then happens."""

    ROWS_APART = "the rows with and without the reference go through the denoising UNet one after another"
    ONE_FRAME = "frames go through the VAE one at a time"
    TILES = "large frames go through the VAE in tiles"
    TURNS = "networks wait in main memory for their turn"
    LAYERS = "the layers of networks that do not fit together wait in main memory for their turn, which takes time"


class Ladder:
    """The steps down that one backend has taken.

    taken: those that it begins with, or that would change nothing for it; advice: what is said where they are not
    enough.
    """

    def __init__(self, taken: Iterable[Rung] = (), advice: str = FULL_MEMORY):
        self.taken = set(taken)
        self.advice = advice

    @classmethod
    def of(cls, device: torch.device, vae: Any, advice: str = FULL_MEMORY) -> Ladder:
        """For networks on a device, and a VAE that may know no tiles."""
        ladder = cls(advice=advice)
        if device.type == "cpu":
            ladder.taken |= {Rung.TURNS, Rung.LAYERS}  # there is no other memory to wait in
        if not hasattr(vae, "enable_tiling"):
            ladder.taken.add(Rung.TILES)
        return ladder

    def tile(self, vae: Any) -> None:
        """Has a VAE work in tiles where it has come to that."""
        if Rung.TILES in self.taken and hasattr(vae, "enable_tiling"):
            vae.enable_tiling()

    def take_turns(
        self, networks: Iterable[nn.Module], running: Iterable[nn.Module], device: torch.device
    ) -> None:
        """Leaves only the running ones of a model's networks on the device where it has come to that."""
        if Rung.TURNS not in self.taken or device.type == "cpu":
            return
        running = list(running)
        with torch.inference_mode(False):  # or their weights would become inference tensors
            for network in networks:
                if network not in running:
                    network.to("cpu")
            for network in running:
                network.to(device)

    def run(self, work: Callable[[], T], *rungs: Rung) -> T:
        """What `work` returns; where memory runs out, it is tried again after the next of `rungs`.

        Raises UserError where memory runs out after the last of them.
        """
        while True:
            try:
                return work()
            except (RuntimeError, MemoryError) as error:
                if not is_full_memory(error):
                    raise
                rung = next((rung for rung in rungs if rung not in self.taken), None)
                if rung is None:
                    raise UserError(self.advice) from error
            # Out here, where the exception no longer holds the tensors of the attempt.
            self.take(rung)

    def take(self, rung: Rung) -> None:
        """Says so in the log, once."""
        if rung in self.taken:
            return
        self.taken.add(rung)
        _log.warning("Memory is short: from here on %s.", rung.value)
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()


def is_full_memory(error: BaseException) -> bool:
    """Whether it says that the memory of a device or of the process is full."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SIGNS)
