"""What a network makes of single frames, computed once for all steps and windows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..device import free_memory
from ..media.frames import FrameStore

Held = dict[str, Any]
"""The denoising UNet's arguments `objects` and `holds`, or neither."""

MOST = 2**32  # bytes of a file; to compute them again costs half a percent of a denoising step
HELD = 2**30  # bytes that stay on the device: a window's come from a file no faster than a few GB a second


def held_on(device: torch.device) -> int:
    """How many bytes of a video's features may stay on a device: none on the CPU, whose memory a file spares."""
    return 0 if device.type == "cpu" else int(min(HELD, free_memory(device) / 8))


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


def object_features(
    guide: Callable[[Tensor], list[Tensor]], objects: FrameStore, holds: Sequence[bool], batch: int
) -> Callable[[Sequence[int]], Held]:
    """What an object guider makes of the objects in frames, once for each: a function of their numbers that gives
    nothing at all where none of them has one.

    guide: from latents [n, c, h, w] on the CPU, at most `batch`, to features by level on the device; objects,
    holds: as `EncodedVideo` has them.
    """
    places = np.cumsum(holds) - 1
    shapes: list[torch.Size] = []

    def compute(held: list[int]) -> Tensor:
        features = guide(torch.from_numpy(objects.take(held)))
        shapes[:] = [each.shape[1:] for each in features]
        return torch.cat([each.flatten(1) for each in features], dim=1)

    flat = FrameFeatures(compute, batch, len(objects), objects.empty())

    def take(frames: Sequence[int]) -> Held:
        having = torch.tensor([holds[frame] for frame in frames])
        if not having.any():
            return {}
        # Those of others take any place: their rows are not blended.
        rows = flat.take([int(places[frame]) if holds[frame] else int(places.max()) for frame in frames])
        parts = rows.split([shape.numel() for shape in shapes], dim=1)
        features = [part.reshape(-1, *shape) for part, shape in zip(parts, shapes, strict=True)]
        return {"objects": features, "holds": having.to(rows).reshape(-1, 1, 1, 1)}

    return take


def repeated(held: Held, count: int) -> Held:
    """Objects for `count` times as many rows, with and without the reference: guidance is to strengthen that
    alone."""
    return {
        name: [each.repeat(count, 1, 1, 1) for each in value]
        if isinstance(value, list)
        else value.repeat(count, 1, 1, 1)
        for name, value in held.items()
    }
