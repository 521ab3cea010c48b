"""PCK, the share of body points in the right place (Yang and Ramanan 2013)."""

from __future__ import annotations

import math

import numpy as np
from scipy.optimize import linear_sum_assignment

from ..media.pose import MIN_SCORE, Poses, body_points

ALPHA = 0.1


def pck(real: np.ndarray, generated: np.ndarray) -> tuple[int, int]:
    """Counts one frame's body points.

    A point seen (score > 0.3) in `real` is right if its namesake is seen in `generated`, at most `ALPHA` times
    the longer side of the box around the real person's seen points away. People are paired so that most points
    are right. Both are the people [n, POINTS, 3] of a frame of `pose.Poses`, on one canvas.

    Returns:
        Points that are right, and points seen in `real`.
    """
    wanted, found = ([body_points(person) for person in people] for people in (real, generated))
    seen = [points[:, 2] > MIN_SCORE for points in wanted]
    right = np.zeros((len(wanted), len(found)), int)
    for row, (points, known) in enumerate(zip(wanted, seen, strict=True)):
        if not known.any():
            continue
        reach = ALPHA * np.ptp(points[known, :2], axis=0).max()
        for column, other in enumerate(found):
            near = np.linalg.norm(points[:, :2] - other[:, :2], axis=1) <= reach
            right[row, column] = (near & known & (other[:, 2] > MIN_SCORE)).sum()
    total = int(sum(known.sum() for known in seen))
    return int(right[linear_sum_assignment(-right)].sum()), total


def pck_of_video(real: Poses, generated: Poses) -> float:
    """The share of the points seen in the real poses that are right, of as many frames; NaN where none is seen.

    The generated poses are brought to the canvas of the real ones.
    """
    right, total = 0, 0
    for ours, theirs in zip(real.people, generated.scaled(*real.size).people, strict=True):
        counted = pck(ours, theirs)
        right, total = right + counted[0], total + counted[1]
    return right / total if total else math.nan
