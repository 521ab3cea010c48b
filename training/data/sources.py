"""Where samples come from: one dataset for each `source` of the config."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

from anycharv_core.errors import UserError
from training.config import JOURNEYS, Data
from training.data.pairs import PairClips
from training.data.puppets import PuppetClips
from training.data.samples import Samples
from training.data.shard_clips import ShardClips
from training.data.travel import TravelClips


class Clips(Samples, Protocol):
    """Clips of one length, samples as `training.data` describes them."""

    def reference(self, index: int, epoch: int) -> Tensor:
        """A sample's reference without its clip."""
        ...

    def origin(self, index: int, epoch: int) -> dict[str, Any]:
        """Where the sample comes from, for JSON; "video" in it tells videos apart."""
        ...


def open_dataset(data: Data, frames: int) -> Clips:
    """The dataset of clips of `frames` frames.

    Raises UserError where `path` is not named or does not hold what it should.
    """
    if data.source == "puppets":
        return (TravelClips if data.world in JOURNEYS else PuppetClips)(data, frames)
    if data.path is None:
        raise UserError(f"data.source is '{data.source}' but data.path names no folder; name the prepared one.")
    return ShardClips(data, frames) if data.source == "shards" else PairClips(data, frames)
