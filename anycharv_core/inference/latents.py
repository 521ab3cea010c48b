"""The latents of a video while it is denoised, of which a few windows are in memory at a time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..media.frames import FrameStore


class Latents:
    """Latents float32 [F, c, h, w], read and written by frames.

    What a round of sampling writes of a frame lies beside what is read of it until `advance` puts it in its place.
    Of a frame there are `parts`, two or three: its latents; what windows have predicted of it at this step so far,
    summed up; and, for solvers that look back, what it seemed to become a step before. rounds: how many are done.
    """

    def __init__(self, stores: Sequence[FrameStore], places: Iterable[int] = (), rounds: int = 0, parts: int = 2):
        """stores: three, of which each frame lies in the one that `places` says; none yet where it says nothing.
        Only rounds that cannot be gone on from need the last one."""
        self._stores = stores
        self._places = list(places)
        self._safe = list(self._places)  # where they were when sampling could last be gone on from
        self._next: dict[int, int] = {}
        self.rounds, self.parts = rounds, parts

    @classmethod
    def begun(cls, noise: Iterable[Tensor], folder: Path | None = None, parts: int = 2) -> Latents:
        """Before the first round: `noise` comes in blocks [n, c, h, w] of frames in order. folder: as for
        `FrameStore`."""
        latents = cls([FrameStore(folder) for _ in range(3)], parts=parts)
        latents.fill(noise)
        return latents

    def __len__(self) -> int:
        return len(self._places)

    @property
    def shape(self) -> tuple[int, ...]:
        channels, *sides = self._row(0).shape
        return len(self), channels // self.parts, *sides

    def take(self, frames: Sequence[int]) -> Tensor:
        """[len(frames), c, h, w] on the CPU."""
        return self.take_parts(frames)[0]

    def take_parts(self, frames: Sequence[int]) -> tuple[Tensor, ...]:
        """The same, part by part."""
        return torch.from_numpy(np.stack([self._row(frame) for frame in frames])).chunk(self.parts, dim=1)

    def whole(self) -> Tensor:
        """All of them, in memory."""
        return self.take(range(len(self)))

    def fill(self, blocks: Iterable[Tensor]) -> None:
        """Takes all frames from blocks [n, c, h, w] in order."""
        frame = 0
        for block in blocks:
            self.replace(range(frame, frame + len(block)), block)
            frame += len(block)

    def replace(self, frames: Sequence[int], values: Tensor) -> None:
        """Sets what is read."""
        missing = max(frames, default=-1) + 1 - len(self)
        self._places += [0] * missing
        self._safe += [0] * missing
        for frame, row in zip(frames, self._rows(values), strict=True):
            self._write(self._places[frame], frame, row)

    def put(self, frames: Sequence[int], *values: Tensor) -> None:
        """Sets what is read after the next `advance`; values: part by part, what is left out is 0."""
        for frame, row in zip(frames, self._rows(*values), strict=True):
            self._next[frame] = min({0, 1, 2} - {self._places[frame], self._safe[frame]})
            self._write(self._next[frame], frame, row)

    def advance(self, resumable: bool = True) -> None:
        """Ends a round; frames that were not put stay as they are. resumable: whether what follows needs nothing
        else of what was before."""
        for frame, place in self._next.items():
            self._places[frame] = place
        self._next.clear()
        self.rounds += 1
        if resumable:
            self._safe = list(self._places)

    def settle(self) -> None:
        """Is due where `replace` has set what is read, and no round follows."""

    def _row(self, frame: int) -> np.ndarray:
        return self._stores[self._places[frame]][frame]

    def _rows(self, *values: Tensor) -> np.ndarray:
        missing = [torch.zeros_like(values[0])] * (self.parts - len(values))
        return torch.cat([*values, *missing], dim=1).float().cpu().numpy()

    def _write(self, place: int, frame: int, row: np.ndarray) -> None:
        self._stores[place].put(frame, row)
