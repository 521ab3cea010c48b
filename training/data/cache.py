"""Clips encoded once and kept on disk, for when preparing a clip costs as much as training on it."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset
from tqdm import tqdm

from anycharv_core.checkpoints.state_dicts import save_safetensors
from anycharv_core.device import free_memory
from anycharv_core.errors import UserError
from anycharv_core.foreign import read_header
from training.config import Data
from training.data.samples import Sample, Samples
from training.data.shards import MANIFEST, read_lines
from training.stop import Stop, Unfinished

_log = logging.getLogger(__name__)


class EncodedClips(Dataset):
    """The clips of `source` as `fill` encodes them, rounded to half precision, from files in `folder`.

    Augmentation comes in `variants`: epoch e is that of epoch e % variants.
    """

    def __init__(self, source: Samples, folder: Path, variants: int):
        self.source, self.folder, self.variants = source, folder, variants
        if hasattr(source, "buckets"):
            self.buckets = source.buckets

    def __len__(self) -> int:
        return len(self.source)

    def path(self, sample: Sample) -> Path:
        index, epoch = sample
        return self.folder / f"{index // 1000:03d}" / f"{index:06d}-{epoch % self.variants}.safetensors"

    def holds(self, sample: Sample) -> bool:
        """Whether there is a file for `sample`; a torn one, with a warning, counts as none."""
        path = self.path(sample)
        if not path.exists():
            return False
        try:
            read_header(path)
        except UserError:
            _log.warning("%s is torn, so it is made again.", path)
            return False
        return True

    def __getitem__(self, sample: Sample) -> dict[str, Tensor]:
        return _floats(self.stored(sample))

    def stored(self, sample: Sample) -> dict[str, Tensor]:
        """The sample as its file holds it."""
        path = self.path(sample)
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise UserError(
                f"{path} is torn or missing ({error}): run the same command, which makes it again."
            ) from None


class ResidentClips:
    """The encodings of `wanted`, all in the memory of `device`, as half precision: batches are picked there.

    Raises UserError where it has no room for them.
    """

    def __init__(self, clips: EncodedClips, wanted: Collection[Sample], device: torch.device):
        self.clips = clips
        samples = sorted(wanted)
        self._row = {sample: row for row, sample in enumerate(samples)}
        with ThreadPoolExecutor() as pool:
            files = pool.map(clips.stored, samples)
            first = next(files)
            _check_room(len(samples) * sum(value.nbytes for value in first.values()), device)
            self._all = {
                name: value.new_empty((len(samples), *value.shape), device=device) for name, value in first.items()
            }
            for row, stored in enumerate(chain([first], files)):
                for name, value in stored.items():
                    self._all[name][row] = value.to(device, non_blocking=True)

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, sample: Sample) -> dict[str, Tensor]:
        return {name: value[0] for name, value in self.batch([sample]).items()}

    def batch(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """The encodings [B, ...] of the samples, on the device."""
        rows = [self._row[index, epoch % self.clips.variants] for index, epoch in samples]
        chosen = {name: value[rows] for name, value in self._all.items()}
        return _floats(chosen)


def fill(
    accelerator: Accelerator,
    encode: Callable[[dict[str, Tensor]], dict[str, Tensor]],
    clips: EncodedClips,
    wanted: Collection[Sample],
    workers: int,
    stop: Stop,
) -> None:
    """Encodes those of `wanted` (index, variant) that have no whole file yet, each process its share; all must
    call it.

    encode: a batch of clips to a batch of encodings.

    One clip at a time: arithmetic may round differently in batches, and an interrupted run groups them
    differently.
    """
    missing = [sample for sample in sorted(wanted) if not clips.holds(sample)]
    accelerator.wait_for_everyone()
    own = missing[accelerator.process_index :: accelerator.num_processes]
    # torch's annotations know whole numbers alone as indices; ours are (index, variant).
    chosen: Subset[dict[str, Tensor]] = Subset(cast(Any, clips.source), cast(Any, own))
    source = DataLoader(chosen, batch_size=None, num_workers=workers, generator=torch.Generator())
    bar = tqdm(own, "encoding", unit="clip", disable=not (own and accelerator.is_main_process))
    for sample, clip in zip(bar, source, strict=True):
        batch = {name: value[None].to(accelerator.device) for name, value in clip.items()}
        with accelerator.autocast():
            encoded = encode(batch)
        path = clips.path(sample)
        path.parent.mkdir(parents=True, exist_ok=True)
        save_safetensors({name: _stored(value[0]) for name, value in encoded.items()}, path, {})
        if stop.now():
            raise Unfinished("The clips are not all encoded yet; run again to go on.")
    accelerator.wait_for_everyone()


def cache_name(encoders: Sequence[nn.Module], *settings: Any) -> str:
    """A folder name that is another one when the settings, `identity` among them, or the frozen encoders'
    weights are."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for part in encoders:
        trained = any(p.requires_grad for p in part.parameters())
        digest.update(str(trained).encode())
        for value in part.state_dict().values() if not trained else ():
            digest.update(value.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def identity(data: Data) -> str:
    """SHA-256 of the indices in `data.path`: other data prepared under the same path have another one.

    They stand for the pictures, which would take too long to read: an index holds hash and place in bytes of what
    was packed. Puppets have none, being a function of the settings.
    """
    folder = Path(data.path or "")
    rows: list[Any] = []
    if data.source == "shards":
        # The times of the videos' files change when they are only copied.
        rows = [row | {"stamp": None} for row in read_lines(folder / MANIFEST)]
    elif data.source == "pairs":
        rows = [path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.json"))]
    return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()


def _check_room(needed: int, device: torch.device) -> None:
    free = free_memory(device)
    if needed > free:
        raise UserError(
            f"The encoded clips take {needed / 1e9:.1f} GB, and {device} has {free / 1e9:.1f} GB free: leave "
            "cache.resident out, or use fewer clips."
        )


def _floats(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.float() if value.dtype == torch.half else value for name, value in tensors.items()}


def _stored(value: Tensor) -> Tensor:
    # Cameras, which come in double precision, mean nothing in half.
    narrow = value.is_floating_point() and value.dtype != torch.double
    return (value.half() if narrow else value).cpu().contiguous()
