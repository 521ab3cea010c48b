"""The poses of a whole clip, held as numbers: 3 kB a person where a POSE_KEYPOINT frame takes 15."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from ..media.pose import PARTS, Pose, clean_pose

_LAYOUT = tuple(PARTS.items())  # part -> most points it may have
_POINTS = sum(most for _, most in _LAYOUT)


class PoseStack:
    """POSE_KEYPOINT frames of one canvas size, appended once and read by index; nothing is lost."""

    def __init__(self, width: int, height: int):
        self.width, self.height = width, height
        self._frames: list[np.ndarray] = []

    def __len__(self) -> int:
        return len(self._frames)

    def append(self, pose: Pose) -> None:
        """Adds a frame. Raises UserError as `clean_pose` does."""
        people = clean_pose(pose)["people"]
        packed = np.full((len(people), _POINTS, 3), np.nan)
        for row, person in zip(packed, people, strict=True):
            start = 0
            for part, most in _LAYOUT:
                if person[part]:
                    points = np.reshape(person[part], (-1, 3))
                    row[start : start + len(points)] = points
                start += most
        self._frames.append(packed)

    def __getitem__(self, index: int) -> Pose:
        people = [_person(row) for row in self._frames[index]]
        return {"canvas_width": self.width, "canvas_height": self.height, "people": people}

    def __iter__(self) -> Iterator[Pose]:
        return (self[index] for index in range(len(self)))

    def save(self, path: Path) -> None:
        counts = np.array([len(frame) for frame in self._frames], np.int64)
        points = np.concatenate([np.empty((0, _POINTS, 3)), *self._frames])
        canvas = np.array([self.width, self.height], np.int64)
        save_file({"counts": counts, "points": points, "canvas": canvas}, path)

    @classmethod
    def load(cls, path: Path) -> PoseStack:
        held = load_file(path)
        stack = cls(*held["canvas"].tolist())
        stack._frames = np.split(held["points"], np.cumsum(held["counts"])[:-1])
        return stack


def _person(row: np.ndarray) -> dict[str, list[float] | None]:
    person, start = {}, 0
    for part, most in _LAYOUT:
        points = row[start : start + most]
        seen = points[~np.isnan(points[:, 0])]
        person[part] = seen.ravel().tolist() if len(seen) else None
        start += most
    return person
