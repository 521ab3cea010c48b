"""Which sample is trained on when: a pure function of a seed and of the position in training.

A dataset is finite and map-style; `dataset[(index, epoch)]` is one clip as a dict of uint8 tensors, all of whose
randomness comes from its seed, the epoch and the index. So neither workers nor processes nor interruptions can
repeat or drop a sample, and what step n sees is known without the steps before it.
"""

from __future__ import annotations

import bisect
import multiprocessing
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from anycharv_core.errors import UserError
from training.workers import begin_worker

Sample = tuple[int, int]
"""(index, epoch)"""


class Samples(Protocol):
    """A finite data set; item (index, epoch) is a dict of tensors. With an attribute `buckets`, a number for every
    sample, a batch holds samples of one bucket only."""

    def __len__(self) -> int: ...

    def __getitem__(self, sample: Sample, /) -> dict[str, Tensor]: ...


@runtime_checkable
class Resident(Samples, Protocol):
    """Samples that lie in memory and come as whole batches [B, ...]."""

    def batch(self, samples: Sequence[Sample], /) -> dict[str, Tensor]: ...


PREFETCH = 2  # batches a worker prepares ahead: a clip of 24 frames at 576 x 1024 has 100 MB


def positions(seed: int, length: int, start: int, count: int, bucket: int = 0) -> list[Sample]:
    """Positions `start` to `start + count` of the endless stream over epochs of `length` samples.

    Every epoch is a permutation of its own, so every sample comes exactly once in it wherever the stream is
    cut into batches. Streams of different buckets are independent of each other.
    """
    stream: list[Sample] = []
    while count > 0:
        epoch, offset = divmod(start, length)
        indices = _permutation(seed, epoch, bucket, length)[offset : offset + count].tolist()
        stream += [(index, epoch) for index in indices]
        start, count = start + len(indices), count - len(indices)
    return stream


def batches(seed: int, buckets: Sequence[int], batch: int, first: int, last: int) -> Iterator[list[Sample]]:
    """Global batches `first` to `last`, each of samples of one bucket; buckets[index] names the sample's.

    Every bucket has a stream of its own (`positions`) that its batches cut up without a rest, so a batch may end
    with samples of the bucket's next epoch. Within an epoch the buckets come in random order, each as often as
    it has batches that begin in it. So every (index, epoch) comes exactly once. A dataset of one bucket gives
    the batches of the plain stream.
    """
    names, of_sample = np.unique(np.asarray(buckets), return_inverse=True)
    members = [np.flatnonzero(of_sample == number) for number in range(len(names))]
    sizes = [len(indices) for indices in members]

    def begun(epoch: int) -> np.ndarray:
        """Batches of every bucket that begin before the epoch."""
        return np.array([-(-epoch * size // batch) for size in sizes])

    number = first
    while number < last:
        # Rounding up only adds batches, so this epoch or an earlier one holds the batch.
        latest = number * batch // len(of_sample)
        epoch = bisect.bisect_right(range(latest + 1), number, key=lambda e: int(begun(e).sum())) - 1
        done = begun(epoch)
        labels = np.repeat(np.arange(len(sizes)), begun(epoch + 1) - done)
        np.random.default_rng([seed, epoch, len(sizes)]).shuffle(labels)
        skipped = number - int(done.sum())
        place = done + np.bincount(labels[:skipped], minlength=len(sizes))
        for label in labels[skipped : skipped + last - number].tolist():
            stream = positions(seed, sizes[label], int(place[label]) * batch, batch, bucket=label)
            yield [(int(members[label][index]), turn) for index, turn in stream]
            place[label] += 1
            number += 1


def loader(
    dataset: Samples, seed: int, start: int, stop: int, batch: int, rank: int = 0, world: int = 1, workers: int = 0
) -> Iterator[dict[str, Tensor]]:
    """The share of process `rank` of `world` in positions `start` to `stop`, batch by batch, in order.

    Global batch g is positions g * batch ... (g + 1) * batch - 1, of which every process gets a contiguous
    slice; `batch` counts the clips of all processes.

    Yields the samples' tensors stacked [batch / world, ...], and int64 [batch / world] `position`, `index` and
    `epoch`. Leaves torch's global random state alone. With `workers` the dataset must pickle.

    Raises UserError, at once, if `batch` doesn't divide by `world` or the dataset is empty, and later what the
    dataset raises; ValueError if `start` or `stop` is no multiple of `batch`.
    """
    if batch % world:
        raise UserError(f"The batch of {batch} clips does not divide by {world} processes; change `batch`.")
    if start % batch or stop % batch:
        raise ValueError(f"Positions {start} and {stop} are no multiples of the batch, {batch}.")
    length = len(dataset)
    if not length:
        raise UserError("The data set holds no sample; prepare more videos or ask for fewer frames.")
    buckets: Sequence[int] = getattr(dataset, "buckets", [0] * length)
    share = batch // world
    own = slice(rank * share, (rank + 1) * share)
    numbered = enumerate(batches(seed, buckets, batch, start // batch, stop // batch), start // batch)
    order = (
        [(sample, number * batch + place) for place, sample in enumerate(whole)][own] for number, whole in numbered
    )
    if isinstance(dataset, Resident):
        return (_picked(dataset, places) for places in order)
    return _load(
        DataLoader(
            _Placed(dataset),
            batch_sampler=order,
            num_workers=workers,
            multiprocessing_context=_clean_processes() if workers else None,
            collate_fn=_collate,
            worker_init_fn=begin_worker,
            prefetch_factor=PREFETCH if workers else None,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # else the loader draws from torch's global one
        )
    )


def _picked(dataset: Resident, places: Sequence[tuple[Sample, int]]) -> dict[str, Tensor]:
    samples, numbers = zip(*places, strict=True)
    index, epoch = zip(*samples, strict=True)
    counters = {"position": numbers, "index": index, "epoch": epoch}
    return dataset.batch(samples) | {name: torch.tensor(values) for name, values in counters.items()}


def _load(source: DataLoader) -> Iterator[dict[str, Tensor]]:
    for item in source:
        if isinstance(item, UserError):
            raise item
        yield item


class _Placed(Dataset):
    """The dataset's samples with their place in training. A UserError comes back as an item: raised in a worker
    it would arrive as a traceback."""

    def __init__(self, dataset: Samples):
        self.dataset = dataset

    def __getitem__(self, place: tuple[Sample, int]) -> dict[str, Any] | UserError:
        sample, position = place
        try:
            tensors = self.dataset[sample]
        except UserError as error:
            return error
        return {**tensors, "position": position, "index": sample[0], "epoch": sample[1]}


def _collate(items: list[Any]) -> Any:
    return next((item for item in items if isinstance(item, UserError)), None) or default_collate(items)


@lru_cache(maxsize=16)
def _permutation(seed: int, epoch: int, bucket: int, length: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch, bucket]).permutation(length)


def _clean_processes() -> Any:
    """Where workers come from: a fork of this process may inherit FFmpeg's locks, held by threads it has lost."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["training.data.sources"])
    return context
