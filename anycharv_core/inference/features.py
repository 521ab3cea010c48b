"""What a network makes of single frames, computed once for all steps and windows."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..media.frames import FrameStore


class FrameFeatures:
    """Tensors of one shape by frame, computed when first asked for.

    They are kept off the device: for a long video they take gigabytes.
    """

    def __init__(self, compute: Callable[[list[int]], Tensor], batch: int) -> None:
        """compute(frames) -> [frames, C, h, w] on the device, of at most `batch` frames at once."""
        self._compute = compute
        self._batch = batch
        self._store = FrameStore()
        self._places: dict[int, int] = {}
        self._dtype = torch.float32
        self._device = torch.device("cpu")

    def take(self, frames: Sequence[int]) -> Tensor:
        """[frames, C, h, w] on the device that `compute` gives them on."""
        missing = [frame for frame in dict.fromkeys(frames) if frame not in self._places]
        for start in range(0, len(missing), self._batch):
            self._add(missing[start : start + self._batch])
        found = torch.from_numpy(self._store.take([self._places[frame] for frame in frames]))
        return found.view(self._dtype).to(self._device)

    def _add(self, frames: list[int]) -> None:
        features = self._compute(frames)
        self._dtype, self._device = features.dtype, features.device
        for frame, feature in zip(frames, features.cpu().contiguous(), strict=True):
            self._places[frame] = len(self._store)
            self._store.append(feature.view(torch.uint8).numpy())
