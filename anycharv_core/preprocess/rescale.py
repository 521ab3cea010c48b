"""A driving skeleton brought to the reference character's proportions, size and place (Animate Anyone, 4.1)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..media.pose import MIN_SCORE, Poses, body_points
from .retarget import retarget, size_ratio

NECK = 1


def rescale(poses: Poses, reference: Poses, keep_aspect: bool = True) -> Poses:
    """The video's poses as the character of the reference picture would take them.

    Bones first get the character's proportions (see `retarget`). Then the whole motion is scaled by one factor for
    the video until the skeleton is as long as the character's, and moved so that where the neck usually is lies on
    the character's. A video or reference that shows no neck stays in its place.

    Args:
        poses: of F frames, each with one person or nobody.
        reference: the character, in its first frame, on the canvas of the reference picture.
        keep_aspect: whether the networks see the picture in the middle of the video's canvas, its proportions
            kept, as the default recipe shows it, or stretched to the canvas.

    Returns:
        F frames on the video's canvas.

    Raises:
        UserError: see `retarget`.
    """
    placed = _placed(reference, *poses.size) if keep_aspect else reference.scaled(*poses.size)
    moved = retarget(poses, placed)
    factor = size_ratio(poses, placed)
    necks = np.array([_neck(people) for people in moved.people]).reshape(-1, 2)
    known = ~np.isnan(necks[:, 0])
    usual = np.median(necks[known], axis=0) if known.any() else np.full(2, np.nan)
    target = _neck(placed.people[0])
    if np.isnan(usual + target).any():
        usual = target = np.array(poses.size) / 2
    return _mapped(moved, factor, target - factor * usual)


def _placed(reference: Poses, width: int, height: int) -> Poses:
    """The reference's pose where a letterboxed picture of it lies on a canvas."""
    old = np.array(reference.size)
    factor = float((np.array([width, height]) / old).min())
    shift = (np.array([width, height]) - factor * old) / 2
    return replace(_mapped(reference, factor, shift), width=width, height=height)


def _neck(people: np.ndarray) -> np.ndarray:
    x, y, score = body_points(people[0])[NECK] if len(people) else np.zeros(3)
    return np.array([x, y], np.float64) if score > MIN_SCORE else np.full(2, np.nan)


def _mapped(poses: Poses, factor: float, shift: np.ndarray) -> Poses:
    """The poses with every point that has a score at factor * point + shift, in pixels of the same canvas."""
    mapped = [people.copy() for people in poses.people]
    for people in mapped:
        found = people[..., 2] > 0
        people[found, :2] = factor * people[found, :2] + shift
    return replace(poses, people=mapped)
