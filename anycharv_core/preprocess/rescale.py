"""A driving skeleton brought to the reference character's proportions, size and place (Animate Anyone, 4.1)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..media.pose import MIN_SCORE, PARTS, Pose, body_points, clean_pose, scale_pose
from .retarget import retarget, size_ratio

NECK = 1


def rescale(poses: Sequence[Pose], reference: Pose, keep_aspect: bool = True) -> list[Pose]:
    """The clip's poses as the character of the reference picture would take them.

    Bones first get the character's proportions (see `retarget`). Then the whole motion is scaled by one factor for
    the clip until the skeleton is as long as the character's, and moved so that where the neck usually is lies on
    the character's. A clip or reference that shows no neck stays in its place.

    Args:
        poses: F frames as `clean_pose` takes them, each with one person or nobody.
        reference: the character, on the canvas of the reference picture.
        keep_aspect: whether the networks see the picture in the middle of the clip's canvas, its proportions kept,
            as the default recipe shows it, or stretched to the canvas.

    Returns:
        F new frames in `clean_pose` form, on the clip's canvas.

    Raises:
        UserError: see `retarget`.
    """
    if not poses:
        return []
    first = clean_pose(poses[0])
    size = first["canvas_width"], first["canvas_height"]
    placed = _placed(clean_pose(reference), *size) if keep_aspect else scale_pose(reference, *size)
    frames = retarget(poses, placed)
    factor = size_ratio(poses, placed)
    necks = np.array([_neck(frame) for frame in frames])
    known = ~np.isnan(necks[:, 0])
    usual = np.median(necks[known], axis=0) if known.any() else np.full(2, np.nan)
    target = _neck(placed)
    if np.isnan(usual + target).any():
        usual = target = np.array(size) / 2
    return [_mapped(frame, factor, target - factor * usual) for frame in frames]


def _placed(reference: Pose, width: int, height: int) -> Pose:
    """The reference's pose where a letterboxed picture of it lies on a canvas."""
    old = np.array([reference["canvas_width"], reference["canvas_height"]])
    factor = float((np.array([width, height]) / old).min())
    shift = (np.array([width, height]) - factor * old) / 2
    return {**_mapped(reference, factor, shift), "canvas_width": width, "canvas_height": height}


def _neck(frame: Pose) -> np.ndarray:
    x, y, score = body_points(frame)[NECK]
    return np.array([x, y], np.float64) if score > MIN_SCORE else np.full(2, np.nan)


def _mapped(frame: Pose, factor: float, shift: np.ndarray) -> Pose:
    """The pose with every point at factor * point + shift, in pixels of the same canvas."""

    def moved(flat: list[float] | None) -> list[float] | None:
        if not flat:
            return flat
        points = np.reshape(np.array(flat, np.float64), (-1, 3))
        seen = points[:, 2] > 0
        points[seen, :2] = factor * points[seen, :2] + shift
        return points.ravel().tolist()

    people = [{name: moved(flat) if name in PARTS else flat for name, flat in p.items()} for p in frame["people"]]
    return {**frame, "people": people}
