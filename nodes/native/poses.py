"""POSE_KEYPOINT -> skeleton pictures."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from torch import Tensor

from ...anycharv_core.errors import UserError
from ...anycharv_core.media.pose import clean_pose, draw_pose, only_person, scale_pose
from .pictures import masks_uint8, same_length


def drawn_poses(keypoints: Any, person: Tensor | None, width: int, height: int) -> Iterator[np.ndarray]:
    """Skeletons uint8 [H, W, 3], one per frame of POSE_KEYPOINT.

    person: MASK of whom to draw, or None for everybody; width, height: of the pictures, 0 = the canvas's.
    Raises UserError where keypoints or mask are not what they should be.
    """
    frames = pose_frames(keypoints)
    masks: Any = [None] * len(frames)
    if person is not None:
        (masks,) = same_length(len(frames), person=masks_uint8(person, "person"))
    for frame, mask in zip(frames, masks, strict=True):
        pose = clean_pose(frame)
        if mask is not None:
            pose = only_person(pose, mask)
        yield draw_pose(scale_pose(pose, width or pose["canvas_width"], height or pose["canvas_height"]))


def pose_frames(keypoints: Any) -> list[Any]:
    """POSE_KEYPOINT as a list of frames. Raises UserError where there are none."""
    frames = keypoints if isinstance(keypoints, list) else [keypoints]
    if not frames or frames == [None]:
        raise UserError("keypoints has no frames; wire in what DWPose or SDPose found.")
    return frames
