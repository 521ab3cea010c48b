"""The latents of a video while it is denoised, of which a few windows are in memory at a time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..media.frames import FrameStore


class Latents:
    """Latents float32 [F, c, h, w], read and written by frames.

    What a denoising step writes lies beside what it reads until `advance` puts it in its place, as windows
    overlap. steps: how many have been taken. parts: how many latents each frame has, where the solver of the steps
    needs more than those it goes on with; without them the others are 0.
    """

    def __init__(self, now: FrameStore, following: FrameStore, steps: int = 0, parts: int = 1) -> None:
        """now, following: what is read, all frames or none yet, and what is written."""
        self._now, self._following = now, following
        self.steps, self.parts = steps, parts

    @classmethod
    def begun(cls, noise: Iterable[Tensor], folder: Path | None = None, parts: int = 1) -> Latents:
        """Before the first step: `noise` comes in blocks [n, c, h, w] of frames in order. folder: as for
        `FrameStore`."""
        latents = cls(FrameStore(folder), FrameStore(folder), parts=parts)
        latents.fill(noise)
        return latents

    def __len__(self) -> int:
        return len(self._now)

    @property
    def shape(self) -> tuple[int, ...]:
        channels, *sides = self._now[0].shape
        return len(self), channels // self.parts, *sides

    def take(self, frames: Sequence[int], part: int = 0) -> Tensor:
        """[len(frames), c, h, w] on the CPU."""
        return torch.from_numpy(self._now.take(frames)).chunk(self.parts, dim=1)[part]

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
        self._put(self._now, frames, values)

    def put(self, frames: Sequence[int], *values: Tensor) -> None:
        """Sets what is read after the next `advance`, before which this is due for every frame; values: part by
        part."""
        self._put(self._following, frames, *values)

    def advance(self, resumable: bool = True) -> None:
        """Ends a step. resumable: whether the next one needs nothing else of those before."""
        self._now, self._following = self._following, self._now
        self.steps += 1

    def settle(self) -> None:
        """Is due where `replace` has set what is read, and no step follows."""

    def _put(self, store: FrameStore, frames: Sequence[int], *values: Tensor) -> None:
        missing = [torch.zeros_like(values[0])] * (self.parts - len(values))
        rows = torch.cat([*values, *missing], dim=1).float().cpu().numpy()
        for frame, row in zip(frames, rows, strict=True):
            store.put(frame, row)
