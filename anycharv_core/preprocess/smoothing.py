"""Keypoints steadied over time: the 1 Euro filter (Casiez, Roussel and Vogel, CHI 2012), without its lag."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ..media.pose import BOX, MIN_SCORE, PLACES, Poses

# The detector's box is a finding and not a point of the body; it stays as it was found.
_STEADIED = slice(PLACES[BOX].start)
# Hz: the paper's own choice, with which it found no need to tune.
_SPEED_CUTOFF = 1.0


def smooth_poses(
    poses: Poses,
    tracks: Sequence[np.ndarray],
    rate: float,
    cuts: Sequence[int] = (),
    min_cutoff: float = 2.0,
    beta: float = 30.0,
) -> Poses:
    """The poses of a video with every tracked person's points steadied; scores are kept.

    The filter is causal and so lags behind motion. A video has a future too: it runs over each stretch once
    forwards and once backwards, and the two are averaged, so that the lag of the one cancels the lead of the
    other. It starts again wherever a point was unseen (score <= 0.3), the person absent, or a shot began.

    Args:
        poses: of F frames.
        tracks: per person int [F], the index into each frame's people, -1 where absent. People who are on no
            track stay as they are.
        rate: frames per second.
        cuts: the first frame of every shot but the first.
        min_cutoff: Hz, below which a still point may move; less is steadier.
        beta: Hz per person's size a second by which motion opens the filter; more follows faster. Speeds are
            measured in that size (the median diagonal of the seen points' extent over the shot), so that
            both numbers mean the same at any resolution and distance.

    Returns:
        F frames; unseen points and boxes are those of the input.
    """
    smoothed = [people.copy() for people in poses.people]
    for track in tracks:
        for shot in np.split(np.arange(len(smoothed)), sorted(cuts)):
            persons = [smoothed[t][track[t]] if track[t] >= 0 else None for t in shot]
            if any(person is not None for person in persons):
                _smooth_person(persons, rate, min_cutoff, beta)
    return replace(poses, people=smoothed)


def _smooth_person(persons: list[np.ndarray | None], rate: float, min_cutoff: float, beta: float) -> None:
    """Steadies one person [POINTS, 3] over one shot, in place; None where absent."""
    places = np.full((len(persons), _STEADIED.stop, 2), np.nan)
    for row, person in zip(places, persons, strict=True):
        if person is not None:
            points = person[_STEADIED]
            row[:] = np.where(points[:, 2:] > MIN_SCORE, points[:, :2], np.nan)
    seen = ~np.isnan(places[..., 0])
    extents = [np.ptp(row[there], axis=0) for row, there in zip(places, seen, strict=True) if there.any()]
    # A person of a single point has no size; the pixel then stands in for it.
    size = np.median([math.hypot(*extent) for extent in extents]) if extents else 0.0
    beta /= size or 1.0
    forwards, backwards = (one_euro(places[::way], rate, min_cutoff, beta)[::way] for way in (1, -1))
    steady = (forwards + backwards) / 2
    for row, there, person in zip(steady, seen, persons, strict=True):
        if person is not None:
            person[_STEADIED][there, :2] = row[there]


def one_euro(places: np.ndarray, rate: float, min_cutoff: float, beta: float) -> np.ndarray:
    """The causal filter of the paper's algorithm 1, its speed taken as a vector so that no axis is special.

    Args:
        places: float64 [F, N, 2]; NaN where a point is unseen, after which its filter starts again.
        rate: frames per second.
        min_cutoff, beta: Hz, and Hz per unit of `places` a second.

    Returns:
        float64 [F, N, 2], NaN where `places` is.
    """
    filtered = np.empty_like(places)
    place, velocity = np.full_like(places[0], np.nan), np.zeros_like(places[0])
    for t, found in enumerate(places):
        new = np.isnan(place)
        change = (found - place) * rate
        velocity = np.where(new, 0.0, velocity + _weight(_SPEED_CUTOFF, rate) * (change - velocity))
        cutoff = min_cutoff + beta * np.linalg.norm(velocity, axis=-1, keepdims=True)
        place = np.where(new, found, place + _weight(cutoff, rate) * (found - place))
        filtered[t] = place
    return filtered


def _weight(cutoff: float | np.ndarray, rate: float) -> float | np.ndarray:
    return 1.0 / (1.0 + rate / (2 * math.pi * cutoff))
