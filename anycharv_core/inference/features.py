"""What a network makes of single frames, computed once for all steps and windows."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..media.frames import FrameStore

MOST = 2**32  # bytes of a file; to compute them again costs half a percent of a denoising step
HELD = 2**30  # bytes that stay on the device: a window's come from a file no faster than a few GB a second


class FrameFeatures:
    """Tensors of one shape by frame, computed when first asked for.

    They stay on the device where those of the whole video take at most `held` bytes, else they are kept off it,
    and not at all where a video is so long that they would take more than MOST bytes.
    """

    def __init__(
        self,
        compute: Callable[[list[int]], Tensor],
        batch: int,
        frames: int,
        store: FrameStore,
        held: int = 0,
    ) -> None:
        """compute(frames) -> [frames, C, h, w] on the device, of at most `batch` frames at once. frames: of the
        video; store: an empty one, to keep them in."""
        self._compute = compute
        self._most_held = held
        self._held: dict[int, Tensor] = {}
        self._batch = batch
        self._frames = frames
        self._store = store
        self._places: dict[int, int] = {}
        self._dtype = torch.float32
        self._device = torch.device("cpu")

    def take(self, frames: Sequence[int]) -> Tensor:
        """[frames, C, h, w] on the device that `compute` gives them on."""
        kept = self._held or self._places
        missing = [frame for frame in dict.fromkeys(frames) if frame not in kept]
        batches = [missing[start : start + self._batch] for start in range(0, len(missing), self._batch)]
        computed = [self._compute(batch) for batch in batches]
        total = self._frames * computed[0][0].nbytes if computed else 0
        if total > MOST:
            # What a window of so long a video asks for is never partly kept, so that numbers depend on it alone.
            return torch.cat(computed)[[missing.index(frame) for frame in frames]]
        for batch, features in zip(batches, computed, strict=True):
            if total <= self._most_held:
                self._held |= zip(batch, features, strict=True)
            else:
                self._add(batch, features)
        if self._held:
            return torch.stack([self._held[frame] for frame in frames])
        found = torch.from_numpy(self._store.take([self._places[frame] for frame in frames]))
        return found.view(self._dtype).to(self._device)

    def _add(self, frames: list[int], features: Tensor) -> None:
        self._dtype, self._device = features.dtype, features.device
        for frame, feature in zip(frames, features.cpu().contiguous(), strict=True):
            self._places[frame] = len(self._store)
            self._store.append(feature.view(torch.uint8).numpy())
