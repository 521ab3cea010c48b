"""Who is who: people found frame by frame become tracks that keep one person's identity over the whole video.

Three stages. (1) Within a shot, each frame's people are assigned to the running tracklets at the least total
cost of motion and looks (Hungarian algorithm, as in SORT and DeepSORT, arXiv:1602.00763 and 1703.07402), so
that short occlusions are bridged. (2) Where two tracklets met, their looks before and after decide whether they
changed places; second detections and scraps of people nearly hidden are put away. (3) Tracklets are joined over
long gaps, re-entries and cuts by looks, closest pair first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from ...media.pose import BODY, BOX, MIN_SCORE, PLACES
from .looks import SIZE, body_looks, looks_distance, mean_looks
from .tracklets import (
    ALIKE,
    Observation,
    Observed,
    Tracklet,
    box_area,
    box_centre,
    follow,
    most_seen,
    untangle,
    with_scraps,
    without_twins,
)

# The skeleton ends at the ears, wrists and ankles: what the body reaches beyond them, in parts of its extent.
_GROW = 0.12
# Box sizes per frame that a person can cross out of sight, plus an allowance for one step.
_SPEED, _STEP = 0.25, 1.0
# What the farthest plausible way, and a doubling of size, cost beside looks between tracklets of one shot.
_WAY_COST, _RESIZE_COST = 0.1, 0.06
# Tracklets of a whole video that are joined.
_MOST = 3000


@dataclass(frozen=True)
class Track:
    """One person over a video of F frames.

    boxes: float32 [F, 4], x0, y0, x1, y1 in pixels, NaN where absent; people: int [F], index into the frame's
    people, -1 where absent; looks: float32 [D], averaged where nobody is in the way.
    """

    boxes: np.ndarray
    people: np.ndarray
    looks: np.ndarray

    @property
    def present(self) -> np.ndarray:
        """bool [F]: the frames in which the person is seen."""
        return self.people >= 0


def observe(frame: np.ndarray, people: np.ndarray) -> Observation:
    """Boxes, scores and looks of a frame's people.

    Args:
        frame: uint8 RGB [H, W, 3].
        people: [n, POINTS, 3] of `pose.Poses`, in the frame's pixels. Boxes are the detector's, or else drawn
            around the body points seen.
    """
    height, width = frame.shape[:2]
    count = len(people)
    boxes, scores = np.full((count, 4), np.nan, np.float32), np.zeros(count, np.float32)
    looks = np.zeros((count, SIZE), np.float32)
    for index, person in enumerate(people):
        points = np.nan_to_num(person[PLACES[BODY]])
        box, scores[index] = _person_box(person[PLACES[BOX]], points)
        box = np.clip(box, 0, (width, height) * 2)
        if box[2] - box[0] >= 1 and box[3] - box[1] >= 1:
            boxes[index] = box
            looks[index] = body_looks(frame, box, points)
    return Observation(boxes, scores, looks)


def track(observations: Sequence[Observation], cuts: Sequence[int] = ()) -> list[Track]:
    """Follow everybody through the video.

    Args:
        observations: one per frame.
        cuts: first frame of every shot but the first, as `shots.find_cuts` returns them.

    Returns:
        One track per person, by time on screen times mean area, the most prominent first; no two tracks hold
        the same person of a frame. Nobody is left out but second detections of one person and,
        where hundreds come and go, those seen least.
    """
    observed = Observed(observations)
    ends = [0, *sorted({cut for cut in cuts if 0 < cut < len(observations)}), len(observations)]
    shots: list[list[Tracklet]] = []
    for start, stop in pairwise(ends):
        tracklets = follow(observed, start, stop)
        untangle(observed, tracklets)
        shots.append(with_scraps(observed, without_twins(observed, tracklets)))
    followed = set(most_seen([one for shot in shots for one in shot], _MOST))
    shots = [[one for one in shot if one in followed] for shot in shots]
    tracks = [_as_track(observed, group) for group in _join(observed, shots)]
    return sorted(tracks, key=_prominence, reverse=True)


def _person_box(corners: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, float]:
    if not np.isnan(corners).any():
        return corners[:, :2].ravel(), float(corners[0, 2])
    seen = points[points[:, 2] > MIN_SCORE]
    if not len(seen):
        return np.zeros(4), 0.0
    low, high = seen[:, :2].min(0), seen[:, :2].max(0)
    margin = _GROW * float((high - low).max())
    return np.concatenate([low - margin, high + margin]), float(seen[:, 2].mean())


def _join(observed: Observed, shots: list[list[Tracklet]]) -> list[list[Tracklet]]:
    """Groups of tracklets that show one person each, the closest pair of groups joined first."""
    tracklets = [one for shot in shots for one in shot]
    shot_of = np.repeat(np.arange(len(shots)), [len(shot) for shot in shots])
    groups = [[one] for one in tracklets]
    if not groups:
        return []
    looks = np.stack([observed.looks(one) for one in tracklets])
    extra = np.zeros((len(tracklets), len(tracklets)))
    for i, one in enumerate(tracklets):
        for j in np.flatnonzero(shot_of[:i] == shot_of[i]).tolist():
            extra[i, j] = extra[j, i] = _implausible(observed, one, tracklets[j])
    np.fill_diagonal(extra, np.inf)
    cost = looks_distance(looks, looks) + extra
    while cost.flat[closest := int(np.argmin(cost))] <= ALIKE:
        i, j = sorted(divmod(closest, len(cost)))
        sizes = np.array([sum(len(one.frames) for one in groups[n]) for n in (i, j)], np.float32)
        groups[i] += groups[j]
        groups[j] = []
        looks[i] = mean_looks(looks[[i, j]], sizes / sizes.sum())
        extra[i] = extra[:, i] = np.maximum(extra[i], extra[j])
        extra[j] = extra[:, j] = np.inf
        cost[i] = cost[:, i] = looks_distance(looks[i : i + 1], looks)[0] + extra[i]
        cost[j] = cost[:, j] = np.inf
    return [group for group in groups if group]


def _implausible(observed: Observed, one: Tracklet, other: Tracklet) -> float:
    """What speaks against two tracklets of one shot being one person; infinite where they cannot be."""
    first, second = sorted((one, other), key=lambda tracklet: tracklet.frames[0])
    if second.frames[0] <= first.frames[-1] and np.intersect1d(one.frames, other.frames).size:
        return np.inf
    left, entered = observed.boxes(first)[-1], observed.boxes(second)[0]
    size = (box_area(left) * box_area(entered)) ** 0.25
    away = float(np.linalg.norm(box_centre(left) - box_centre(entered))) / size
    reach = _STEP + _SPEED * max(1, second.frames[0] - first.frames[-1])
    doublings = abs(float(np.log2(box_area(left) / box_area(entered)))) / 2
    return np.inf if away > reach else _WAY_COST * away / reach + _RESIZE_COST * doublings


def _as_track(observed: Observed, group: list[Tracklet]) -> Track:
    boxes = np.full((len(observed.seen), 4), np.nan, np.float32)
    people = np.full(len(observed.seen), -1)
    for one in group:
        boxes[one.frames] = observed.boxes(one)
        people[one.frames] = one.places
    sightings = np.array([len(one.frames) for one in group], np.float32)
    looks = mean_looks(np.stack([observed.looks(one) for one in group]), sightings / sightings.sum())
    return Track(boxes, people, looks)


def _prominence(one: Track) -> float:
    return float(np.nansum(box_area(one.boxes.astype(np.float64))))
