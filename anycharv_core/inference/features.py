"""What a network makes of single frames, computed once for all steps and windows."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..media.frames import FrameStore

MOST = 2**32  # bytes of a file; to compute them again costs half a percent of a denoising step


class FrameFeatures:
    """Tensors of one shape by frame, computed when first asked for.

    They are kept off the device, and not at all where a video is so long that they would take more than MOST
    bytes.
    """

    def __init__(self, compute: Callable[[list[int]], Tensor], batch: int, frames: int, store: FrameStore) -> None:
        """compute(frames) -> [frames, C, h, w] on the device, of at most `batch` frames at once. frames: of the
        video; store: an empty one, to keep them in."""
        self._compute = compute
        self._batch = batch
        self._frames = frames
        self._store = store
        self._places: dict[int, int] = {}
        self._dtype = torch.float32
        self._device = torch.device("cpu")

    def take(self, frames: Sequence[int]) -> Tensor:
        """[frames, C, h, w] on the device that `compute` gives them on."""
        missing = [frame for frame in dict.fromkeys(frames) if frame not in self._places]
        batches = [missing[start : start + self._batch] for start in range(0, len(missing), self._batch)]
        computed = [self._compute(batch) for batch in batches]
        if computed and self._frames * computed[0][0].nbytes > MOST:
            # What a window of so long a video asks for is never partly kept, so that numbers depend on it alone.
            return torch.cat(computed)[[missing.index(frame) for frame in frames]]
        for batch, features in zip(batches, computed, strict=True):
            self._add(batch, features)
        found = torch.from_numpy(self._store.take([self._places[frame] for frame in frames]))
        return found.view(self._dtype).to(self._device)

    def _add(self, frames: list[int], features: Tensor) -> None:
        self._dtype, self._device = features.dtype, features.device
        for frame, feature in zip(frames, features.cpu().contiguous(), strict=True):
            self._places[frame] = len(self._store)
            self._store.append(feature.view(torch.uint8).numpy())
