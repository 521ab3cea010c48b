"""One pass over a clip: everybody's pose, who is who over time, and where the shots begin."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from ..errors import UserError
from ..media.frames import batched
from ..media.pose import Pose
from .pose_stack import PoseStack
from .shots import ShotDetector
from .tracking import Observation, Track, observe, track

BATCH = 8  # frames the networks see at once
_TRACK = ("boxes", "people", "looks")

Poser = Callable[[np.ndarray], list[Pose]]
"""Frames uint8 [F, H, W, 3] -> the poses of everybody in each, all of the frames' size."""


@dataclass(frozen=True)
class Findings:
    """What a clip shows. poses: one POSE_KEYPOINT frame per frame of the clip; tracks: the people, most
    prominent first; cuts: the first frame of every shot but the first."""

    poses: PoseStack
    tracks: list[Track]
    cuts: list[int]

    def save(self, folder: Path) -> None:
        self.poses.save(folder / "poses.safetensors")
        held = {"cuts": np.array(self.cuts, np.int64)}
        for number, person in enumerate(self.tracks):
            held |= {f"{number}.{name}": getattr(person, name) for name in _TRACK}
        save_file(held, folder / "tracks.safetensors")

    @classmethod
    def load(cls, folder: Path) -> Findings:
        held = load_file(folder / "tracks.safetensors")
        count = sum(name.endswith(".boxes") for name in held)
        tracks = [Track(**{name: held[f"{number}.{name}"] for name in _TRACK}) for number in range(count)]
        return cls(PoseStack.load(folder / "poses.safetensors"), tracks, held["cuts"].tolist())


def find_people(
    frames: Iterable[np.ndarray], poser: Poser, progress: Callable[[int], None] | None = None
) -> Findings:
    """Reads `frames`, uint8 [H, W, 3], once, a few at a time; progress(done) is called after each few.

    Raises UserError where there is no frame, and what `poser` raises.
    """
    poses: PoseStack | None = None
    observations: list[Observation] = []
    shots = ShotDetector()
    for batch in batched(frames, BATCH):
        for frame, pose in zip(batch, poser(np.stack(batch)), strict=True):
            poses = poses or PoseStack(frame.shape[1], frame.shape[0])
            shots.feed(frame)
            poses.append(pose)
            observations.append(observe(frame, pose))
        if progress:
            progress(len(observations))
    if poses is None:
        raise UserError("The clip has no frames; give at least one.")
    cuts = shots.finish()
    return Findings(poses, track(observations, cuts), cuts)
