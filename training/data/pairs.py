"""Self-boosting pairs (paper 3.3) as training samples: what training/prepare/pairs.py wrote, read back.

A pair of F frames has these members in `000000.tar`, all lossless, so that outside the mask the generated video is
the original to the bit:

    KEY.FFF.frame.png      the original frame, which is to be learned
    KEY.FFF.scene.png      the generated frame, black where it is the original's
    KEY.FFF.mask.png       the mask that the first-stage model filled
    KEY.FFF.character.png  exact mask of the original person
    KEY.FFF.pose.png       skeleton
    KEY.reference.png      the original person elsewhere, background black
    KEY.partner.png        the reference of the generated clip
    KEY.json               provenance

`000000.json`, which is written last, has a line for every pair and where it begins; a shard without one is
unfinished.
"""

from __future__ import annotations

import json
import re
import struct
import tarfile
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from anycharv_core.errors import UserError
from anycharv_core.foreign import read_json
from anycharv_core.inference.finish import paste_weights
from training.config import Data
from training.data.conditions import SCATTERED, STEADY, given_masks
from training.data.shards import checked
from training.sections import Range, build

HEADER = "pairs.json"
MASKS = ("mask", "character")
LAYERS = ("frame", "scene", "mask", "character", "pose")
REFERENCE = "reference.png"
_MOST_BYTES = 2**28  # of one picture


@dataclass(frozen=True)
class Pair:
    """A pair in a shard. offset: where its members begin, in bytes; size: (width, height); origin: its provenance,
    seed and quality."""

    key: str
    shard: Path
    offset: int
    frames: int
    size: tuple[int, int]
    origin: dict[str, Any]

    def pictures(self, names: Collection[str]) -> dict[str, np.ndarray]:
        """Some members by name, uint8 [H, W, 3] RGB or [H, W].

        Raises UserError where the shard is missing or torn.
        """
        wanted = {f"{self.key}.{name}": name for name in names}
        found: dict[str, np.ndarray] = {}
        try:
            with self.shard.open("rb") as file:
                file.seek(self.offset)
                with tarfile.open(fileobj=file, mode="r:") as tar:
                    for member in tar:
                        file_in_it = tar.extractfile(member) if member.name in wanted else None
                        if file_in_it is not None:
                            found[wanted[member.name]] = _decoded(file_in_it.read(_MOST_BYTES), self.size)
                        if len(found) == len(wanted):
                            return found
        except OSError as error:
            raise _lost(self.shard, error.strerror or "damaged") from error
        except (tarfile.TarError, ValueError, EOFError) as error:
            raise _lost(self.shard, f"damaged ({error})") from error
        raise _lost(self.shard, f"without {next(name for name in wanted if wanted[name] not in found)}")

    def clip(self, numbers: range) -> dict[str, np.ndarray]:
        """frame, scene, mask, character and pose of some frames, stacked, and reference."""
        names = {kind: [f"{number:03d}.{kind}.png" for number in numbers] for kind in LAYERS}
        pictures = self.pictures([name for each in names.values() for name in each] + [REFERENCE])
        flat = {name: picture.ndim for name, picture in pictures.items()}
        for kind, each in names.items():
            if any(flat[name] != (2 if kind in MASKS else 3) for name in each):
                raise _lost(self.shard, f"damaged: a {kind} of {self.key} has other channels")
        stacked = {kind: np.stack([pictures[name] for name in each]) for kind, each in names.items()}
        return stacked | {"reference": pictures[REFERENCE]}


def _decoded(content: bytes, size: tuple[int, int]) -> np.ndarray:
    """The picture in a PNG of that size. Raises ValueError where it is another file."""
    # Looked at before it is decoded, since a small file can say that it is huge.
    if content[:8] != b"\x89PNG\r\n\x1a\n" or struct.unpack(">II", content[16:24].ljust(8)) != size:
        raise ValueError(f"no PNG of {size[0]}x{size[1]} pixels")
    picture = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    if picture is None or picture.dtype != np.uint8 or (picture.ndim == 3 and picture.shape[2] != 3):
        raise ValueError("a damaged picture")
    return cv2.cvtColor(picture, cv2.COLOR_BGR2RGB) if picture.ndim == 3 else picture


@dataclass(frozen=True)
class PairRow:
    """A pair in a shard's index; `Pair` says what its keys are."""

    key: str
    offset: Annotated[int, Range(0, 2**48)]
    frames: Annotated[int, Range(1, 10**4)]
    size: tuple[Annotated[int, Range(1, 16384)], Annotated[int, Range(1, 16384)]]
    origin: dict[str, Any]


@dataclass(frozen=True)
class Index:
    """A finished shard: how many pairs were tried, and those that are in it."""

    tried: Annotated[int, Range(0, 10**8)]
    pairs: tuple[PairRow, ...]


def read_indices(folder: Path) -> dict[Path, Index]:
    """The indices of the shards of `folder` that are complete, in the order of their numbers.

    Raises UserError where one is damaged.
    """
    files = sorted(path for path in folder.glob("*.json") if re.fullmatch(r"\d{6,}", path.stem))
    return {path: build(Index, checked(read_json(path), Index, str(path)), "") for path in files}


def read_pairs(folder: Path) -> list[Pair]:
    """All pairs of a folder, in the order of their numbers.

    Raises UserError where it holds none, or where a shard is missing.
    """
    pairs = []
    for path, index in read_indices(folder).items():
        shard = path.with_suffix(".tar")
        if not shard.is_file():
            raise _lost(shard, "missing")
        if not all(isinstance(row.origin.get("driving"), dict) for row in index.pairs):
            raise UserError(f"{path} is damaged: a pair has no origin; restore it from a copy.")
        pairs += [Pair(row.key, shard, row.offset, row.frames, row.size, row.origin) for row in index.pairs]
    if not pairs:
        raise UserError(f"{folder} holds no pairs; make them with python -m training.make_pairs.")
    return pairs


def _lost(shard: Path, what: str) -> UserError:
    return UserError(
        f"The shard {shard} is {what}: restore it from a copy, or delete it with its .json and run make_pairs "
        "again with the same arguments, which makes it again."
    )


class PairClips(Dataset):
    """The pairs in `data.path`; of each, `frames` successive ones from a place that changes with the epoch.

    Samples are those of `training.data`, with the generated clip as `scene`, and `mask` after `data.mask`, in
    the paper a box. `buckets` numbers the pairs' sizes.
    """

    def __init__(self, data: Data, frames: int):
        self.data, self.frames = data, frames
        self.pairs = read_pairs(Path(data.path or ""))
        shortest = min(pair.frames for pair in self.pairs)
        if shortest < frames:
            raise UserError(
                f"{data.path} has pairs of {shortest} frames, but the phase asks for {frames}: make longer pairs."
            )
        sizes = sorted({pair.size for pair in self.pairs})
        self.buckets = [sizes.index(pair.size) for pair in self.pairs]

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, sample: tuple[int, int]) -> dict[str, Tensor]:
        index, epoch = sample
        pair = self.pairs[index]
        rng = np.random.default_rng([self.data.seed, epoch, index])
        start = int(rng.integers(pair.frames - self.frames + 1))
        numbers = range(start, start + self.frames)
        clip = pair.clip(numbers)
        touched = np.stack([paste_weights(mask) > 0 for mask in clip["mask"]])[..., None]
        steady = 0 if self.frames <= SCATTERED else STEADY
        arrays = {
            "frames": clip["frame"],
            "scene": np.where(touched, clip["scene"], clip["frame"]),
            "pose": clip["pose"],
            "character": clip["character"],
            "mask": given_masks(clip["character"], self.data, rng, steady),
            "reference": clip["reference"],
        }
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    def reference(self, index: int, epoch: int) -> Tensor:
        return torch.from_numpy(self.pairs[index].pictures([REFERENCE])[REFERENCE])

    def origin(self, index: int, epoch: int) -> dict[str, Any]:
        return self.pairs[index].origin["driving"]


def png(picture: np.ndarray) -> bytes:
    """uint8 [H, W, 3] RGB or [H, W] as a PNG."""
    ordered = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR) if picture.ndim == 3 else picture
    return cv2.imencode(".png", ordered)[1].tobytes()


def facts(row: dict[str, Any]) -> bytes:
    return json.dumps(row).encode()
