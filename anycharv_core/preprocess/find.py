"""One pass over a clip: everybody's pose, who is who over time, and where the shots begin."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save

from ..errors import UserError
from ..media.frames import batched
from ..media.pose import Poses
from .shots import ShotDetector
from .tracking import Observation, Track, observe, track

BATCH = 8  # frames the networks see at once
_TRACK = ("boxes", "people", "looks")

Poser = Callable[[np.ndarray], Poses]
"""Frames uint8 [F, H, W, 3] -> the poses of everybody in each, on a canvas of the frames' size."""


@dataclass(frozen=True)
class Findings:
    """What a clip shows. poses: of every frame; tracks: the people, most
    prominent first; cuts: the first frame of every shot but the first."""

    poses: Poses
    tracks: list[Track]
    cuts: list[int]

    def save(self, folder: Path) -> None:
        # Not by safetensors' own writer, whose error for a full disk is none of the system's.
        (folder / "poses.safetensors").write_bytes(save(self.poses.pack()))
        held = {"cuts": np.array(self.cuts, np.int64)}
        for number, person in enumerate(self.tracks):
            held |= {f"{number}.{name}": getattr(person, name) for name in _TRACK}
        (folder / "tracks.safetensors").write_bytes(save(held))

    @classmethod
    def load(cls, folder: Path) -> Findings:
        held = load_file(folder / "tracks.safetensors")
        count = sum(name.endswith(".boxes") for name in held)
        tracks = [Track(**{name: held[f"{number}.{name}"] for name in _TRACK}) for number in range(count)]
        return cls(Poses.unpack(load_file(folder / "poses.safetensors")), tracks, held["cuts"].tolist())


def find_people(
    frames: Iterable[np.ndarray], poser: Poser, progress: Callable[[int], None] | None = None
) -> Findings:
    """Reads `frames`, uint8 [H, W, 3], once, a few at a time; progress(done) is called after each few.

    Raises UserError where there is no frame, and what `poser` raises.
    """
    poses: list[Poses] = []
    observations: list[Observation] = []
    shots = ShotDetector()
    for batch in batched(frames, BATCH):
        poses.append(poser(np.stack(batch)))
        for frame, people in zip(batch, poses[-1].people, strict=True):
            shots.feed(frame)
            observations.append(observe(frame, people))
        if progress:
            progress(len(observations))
    if not poses:
        raise UserError("The video has no frames; give at least one.")
    cuts = shots.finish()
    whole = replace(poses[0], people=[people for batch in poses for people in batch.people])
    return Findings(whole, track(observations, cuts), cuts)


def in_order(poses: Poses) -> Poser:
    """Hands out poses found before, for frames that come in the same order."""
    rest = iter(range(len(poses)))
    return lambda frames: poses.take(islice(rest, len(frames)))
