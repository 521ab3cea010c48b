"""The pose of the character in a reference picture, found once and cached."""

from __future__ import annotations

from pathlib import Path

from ..errors import UserError
from ..media.pose import Poses, read_poses, write_poses
from ..preprocess.cache import cached, content_key, weights_key
from ..preprocess.dwpose import DWPose
from ..preprocess.models import pose_files
from .inputs import read_reference
from .prepared import POSES


def reference_pose(picture: Path, pose_model: str | None, device: str | None) -> Poses:
    """The most certain person of a picture, as poses of one frame.

    pose_model: see `models.pose_files`; device: see `DWPose`.
    Raises UserError where nobody is found, or the model or the picture cannot be read.
    """
    files = pose_files(pose_model)

    def make(folder: Path) -> None:
        poses = DWPose(*files, device).poses(read_reference(picture)[None, ..., :3], people_limit=1)
        if not len(poses.people[0]):
            raise UserError(f"Nobody was found in {picture}; retarget to a picture of the whole character.")
        write_poses(folder / POSES, poses)

    key = content_key(picture, *map(weights_key, files))
    return read_poses(cached("reference_pose", key, make) / POSES)
