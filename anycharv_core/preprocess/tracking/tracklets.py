"""The people of one shot: tracklets, each of which follows one person from sighting to sighting."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

from .looks import looks_distance, mean_looks

# One person detected twice: as good as one box, and as good as the same pixels in it.
_SAME_BOX, _SAME_PIXELS = 0.85, 0.25
# A tracklet that lies on another's boxes for most of its time is that person detected twice.
_TWIN_BOX, _TWIN_TIME = 0.6, 0.8
# Frames for which a tracklet waits for a person out of sight, about a second; longer gaps are left to looks.
_PATIENCE = 30
# How far a person may be from where motion predicts it, in box sizes, and how much farther per frame unseen.
_GATE, _GATE_GROWTH, _GATE_MAX = 0.6, 0.06, 1.6
# Largest ratio of box areas from one sighting to the next: crouching, or half a body hidden.
_RESIZE = 4.0
# Of motion (0 to 1) plus looks (0 to 1): well above a person partly hidden, below another person near by.
_MAX_COST = 1.0
# Motion alone joins what else would be left over on both sides within this cost and number of frames: what
# shows of somebody at the picture's edge or behind a post has few colours of their own.
_NEAR, _NEAR_FRAMES = 0.5, 2
# Looks closer than this are one person. Between the numbers in looks.py for one and for two.
ALIKE = 0.48
# Weight of a new sighting in a tracklet's velocity and looks.
_VELOCITY, _LOOKS = 0.4, 0.15
# A person unseen slows down in the prediction, so that it does not leave the picture at once.
_SLOWING = 0.93
# Part of a box that others' boxes may cover while its looks still count as its own.
_CLEAN_COVER = 0.15
# Sightings on either side of a meeting from which the looks before and after are averaged.
_SIDE = 12
# By how much the looks must speak for an exchange, summed over both people.
_EXCHANGE = 0.15

# What shows of somebody nearly hidden: so few sightings, so little of the box, so far inside it, and so many
# frames from a full sighting at most.
_SCRAP, _SCRAP_AREA, _SCRAP_INSIDE, _SCRAP_FRAMES = 5, 0.6, 0.7, 2
# Of a crowd that comes and goes only so many are followed in a shot, those seen most: who is who costs the square.
_MOST = 500


@dataclass(frozen=True)
class Observation:
    """The people of one frame, in the order of its poses.

    boxes: float32 [n, 4], x0, y0, x1, y1 in the frame's pixels, NaN for people of whom no point is seen;
    scores: float32 [n] in 0..1; looks: float32 [n, D], see `looks.body_looks`.
    """

    boxes: np.ndarray
    scores: np.ndarray
    looks: np.ndarray


@dataclass(eq=False)
class Tracklet:
    """A person within one shot, and what is known for finding it in the next frame.

    frames, places: per sighting, the frame and the index among its people; box, velocity and looks: where it
    was seen last (float64 [4]), how it moved (float64 [2], pixels per frame), what it looks like when nobody
    is in the way.
    """

    frames: list[int]
    places: list[int]
    box: np.ndarray
    velocity: np.ndarray
    looks: np.ndarray


class Observed:
    """All observations by frame, with duplicates of one frame left out and what is clean marked."""

    def __init__(self, observations: Sequence[Observation]):
        self.seen = observations
        self.usable: list[np.ndarray] = []
        self.clean: list[np.ndarray] = []
        for seen in observations:
            usable = _without_duplicates(seen)
            shared = _intersection(seen.boxes, seen.boxes)
            np.fill_diagonal(shared, 0)
            covered = shared[:, usable].max(axis=1, initial=0)
            self.usable.append(usable)
            self.clean.append(covered <= _CLEAN_COVER * box_area(seen.boxes))

    def looks(self, tracklet: Tracklet, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Mean looks of sightings start to stop, of the clean ones if there are any."""
        pairs = list(zip(tracklet.frames, tracklet.places, strict=True))[start:stop]
        clean = [(frame, place) for frame, place in pairs if self.clean[frame][place]]
        return mean_looks(np.stack([self.seen[frame].looks[place] for frame, place in clean or pairs]))

    def boxes(self, tracklet: Tracklet) -> np.ndarray:
        """float [n, 4] of the tracklet's sightings."""
        pairs = zip(tracklet.frames, tracklet.places, strict=True)
        return np.array([self.seen[frame].boxes[place] for frame, place in pairs], np.float64)

    def filled_boxes(self, tracklet: Tracklet, start: int, stop: int) -> np.ndarray:
        """float [stop - start, 4], straight lines between sightings."""
        sides = self.boxes(tracklet).T
        return np.stack([np.interp(np.arange(start, stop), tracklet.frames, side) for side in sides], axis=-1)


def _without_duplicates(seen: Observation) -> np.ndarray:
    """Indices of the people of a frame, rising, the worse of every pair detected twice left out."""
    overlap = box_overlap(seen.boxes, seen.boxes)
    kept: list[int] = []
    for index in np.argsort(-seen.scores, kind="stable").tolist():
        rivals = [other for other in kept if overlap[index, other] >= _SAME_BOX]
        apart = looks_distance(seen.looks[[index]], seen.looks[rivals]) if rivals else np.ones(1)
        if not np.isnan(seen.boxes[index, 0]) and apart.min() > _SAME_PIXELS:
            kept.append(index)
    return np.array(sorted(kept), int)


def follow(observed: Observed, start: int, stop: int) -> list[Tracklet]:
    """The tracklets of the shot of frames `start` to `stop` (exclusive): of more than 500 those seen most."""
    tracklets: list[Tracklet] = []
    running: list[Tracklet] = []
    for frame in range(start, stop):
        running = [one for one in running if frame - one.frames[-1] <= _PATIENCE]
        seen, places = observed.seen[frame], observed.usable[frame]
        boxes = seen.boxes[places].astype(np.float64)
        rows, columns = _assign(running, boxes, seen.looks[places], frame)
        for row, column in zip(rows, columns, strict=True):
            place = int(places[column])
            _extend(running[row], frame, place, seen, bool(observed.clean[frame][place]))
        for column in sorted(set(range(len(places))) - set(columns)):
            place = int(places[column])
            new = Tracklet([frame], [place], boxes[column], np.zeros(2), seen.looks[place])
            tracklets.append(new)
            running.append(new)
    return most_seen(tracklets, _MOST)


def most_seen(tracklets: list[Tracklet], most: int) -> list[Tracklet]:
    """The tracklets, in their order; of more than `most` those with most sightings."""
    if len(tracklets) <= most:
        return tracklets
    lengths = np.array([len(one.frames) for one in tracklets])
    return [tracklets[index] for index in sorted(np.argsort(-lengths, kind="stable")[:most].tolist())]


def _assign(
    running: list[Tracklet], boxes: np.ndarray, looks: np.ndarray, frame: int
) -> tuple[list[int], list[int]]:
    """Pairs of tracklets and people of the frame, at the least total cost."""
    if not running or not len(boxes):
        return [], []
    unseen = np.array([frame - one.frames[-1] for one in running])
    expected = np.stack([one.box for one in running])
    # The sum of the slowing steps, in closed form.
    steps = (1 - _SLOWING**unseen) / (1 - _SLOWING)
    expected = expected + np.tile(np.stack([one.velocity for one in running]) * steps[:, None], 2)
    size = np.sqrt(np.sqrt(box_area(expected)[:, None] * box_area(boxes)[None]))
    away = np.linalg.norm(box_centre(expected)[:, None] - box_centre(boxes)[None], axis=-1) / size
    motion = 0.5 * (1 - box_overlap(expected, boxes)) + 0.5 * np.minimum(away, 1)
    looks_cost = looks_distance(np.stack([one.looks for one in running]), looks)
    ratio = np.abs(np.log(box_area(expected)[:, None] / box_area(boxes)[None]))
    gate = np.minimum(_GATE + _GATE_GROWTH * (unseen - 1), _GATE_MAX)
    reached = (away <= gate[:, None]) & (ratio <= np.log(_RESIZE))
    cost = motion + looks_cost
    recent = np.broadcast_to(unseen[:, None] <= _NEAR_FRAMES, cost.shape)
    # Someone who comes out of hiding must look like the one who went; a person in sight may be half covered.
    rows, columns = _cheapest(cost, reached & (cost <= _MAX_COST) & (recent | (looks_cost <= ALIKE)))
    left = reached & recent & (motion <= _NEAR)
    left[rows], left[:, columns] = False, False
    more_rows, more_columns = _cheapest(motion, left)
    return rows + more_rows, columns + more_columns


def _cheapest(cost: np.ndarray, possible: np.ndarray) -> tuple[list[int], list[int]]:
    """As many pairs as are possible, at the least total cost."""
    if not possible.any():
        return [], []
    # An impossible pair costs more than any set of possible ones, so that their number is the largest.
    rows, columns = linear_sum_assignment(np.where(possible, cost, 10.0 * (1 + min(cost.shape))))
    taken = possible[rows, columns]
    return rows[taken].tolist(), columns[taken].tolist()


def _extend(tracklet: Tracklet, frame: int, place: int, seen: Observation, clean: bool) -> None:
    box = seen.boxes[place].astype(np.float64)
    passed = frame - tracklet.frames[-1]
    moved = (box_centre(box[None]) - box_centre(tracklet.box[None]))[0] / passed
    weight = 1.0 if len(tracklet.frames) == 1 else _VELOCITY
    tracklet.velocity = (1 - weight) * tracklet.velocity + weight * moved
    if clean:
        pair = np.stack([tracklet.looks, seen.looks[place]])
        # At first all sightings weigh the same, so that a poor first one is soon made up for.
        weight = max(_LOOKS, 1 / (len(tracklet.frames) + 1))
        tracklet.looks = mean_looks(pair, np.array((1 - weight, weight), np.float32))
    tracklet.box = box
    tracklet.frames.append(frame)
    tracklet.places.append(place)


def untangle(observed: Observed, tracklets: list[Tracklet]) -> None:
    """Exchanges the later parts of tracklets that met where looks say that they changed places."""
    # In whose tracklet the person whom a meeting speaks of is by now.
    now = list(range(len(tracklets)))
    for start, stop, i, j in sorted(_meetings(observed, tracklets), key=lambda meeting: meeting[:2]):
        pair = tracklets[now[i]], tracklets[now[j]]
        bounds = [np.searchsorted(one.frames, (start, stop)) for one in pair]
        if any(a == 0 or b == len(one.frames) for (a, b), one in zip(bounds, pair, strict=True)):
            continue
        sides = list(zip(pair, bounds, strict=True))
        before = np.stack([observed.looks(one, max(0, a - _SIDE), a) for one, (a, _) in sides])
        after = np.stack([observed.looks(one, b, b + _SIDE) for one, (_, b) in sides])
        apart = looks_distance(before, after)
        if apart[0, 1] + apart[1, 0] + _EXCHANGE < apart[0, 0] + apart[1, 1]:
            _exchange(*pair, (start + stop) // 2)
            now[i], now[j] = now[j], now[i]


def _meetings(observed: Observed, tracklets: list[Tracklet]) -> list[tuple[int, int, int, int]]:
    """(start, stop, one, other) of every run of frames in which two tracklets' boxes cover each other."""
    found = []
    reaches = np.array([_reach(observed.boxes(one)) for one in tracklets]).reshape(-1, 4)
    near = _shared_area(reaches[:, None], reaches[None]) > 0
    for i, one in enumerate(tracklets):
        for j in np.flatnonzero(near[i, :i]).tolist():
            other = tracklets[j]
            start, stop = max(one.frames[0], other.frames[0]), min(one.frames[-1], other.frames[-1]) + 1
            if start < stop:
                first, second = (observed.filled_boxes(tracklet, start, stop) for tracklet in (one, other))
                shared = _shared_area(first, second)
                met = shared > _CLEAN_COVER * np.minimum(box_area(first), box_area(second))
                found += [(start + a, start + b, i, j) for a, b in spans(met)]
    return found


def _reach(boxes: np.ndarray) -> np.ndarray:
    """[n, 4] -> [4], the box around all."""
    return np.concatenate([boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)])


def _exchange(one: Tracklet, other: Tracklet, frame: int) -> None:
    a, b = (int(np.searchsorted(tracklet.frames, frame)) for tracklet in (one, other))
    for name in ("frames", "places"):
        first, second = getattr(one, name), getattr(other, name)
        first[a:], second[b:] = second[b:], first[a:]


def with_scraps(observed: Observed, tracklets: list[Tracklet]) -> list[Tracklet]:
    """The tracklets, less those that show a scrap of a person, an arm at the picture's edge or a leg beside a
    post, which go to the tracklet of somebody who is out of sight in that very place."""
    whole = sorted(tracklets, key=lambda tracklet: -len(tracklet.frames))
    for scrap in [one for one in tracklets if len(one.frames) <= _SCRAP]:
        boxes, frames = observed.boxes(scrap), np.array(scrap.frames)
        for host in whole:
            first, last = host.frames[0] - _SCRAP_FRAMES, host.frames[-1] + _SCRAP_FRAMES
            if len(host.frames) <= len(frames) or frames[0] < first or frames[-1] > last:
                continue
            place = observed.filled_boxes(host, frames[0], frames[-1] + 1)[frames - frames[0]]
            inside = _shared_area(boxes, place) >= _SCRAP_INSIDE * box_area(boxes)
            small = box_area(boxes) <= _SCRAP_AREA * box_area(place)
            if (inside & small).all() and not set(scrap.frames) & set(host.frames):
                pairs = zip(host.frames + scrap.frames, host.places + scrap.places, strict=True)
                host.frames, host.places = (list(column) for column in zip(*sorted(pairs), strict=True))
                whole.remove(scrap)
                break
    return whole


def without_twins(observed: Observed, tracklets: list[Tracklet]) -> list[Tracklet]:
    """The tracklets less those that follow another one's person all along: second detections."""
    kept: list[Tracklet] = []
    for one in sorted(tracklets, key=lambda tracklet: -len(tracklet.frames)):
        twin = False
        for other in kept:
            together = min(one.frames[-1], other.frames[-1]) + 1 - max(one.frames[0], other.frames[0])
            if together < _TWIN_TIME * len(one.frames):
                continue
            shared, mine, theirs = np.intersect1d(one.frames, other.frames, return_indices=True)
            if len(shared) < _TWIN_TIME * len(one.frames):
                continue
            first, second = observed.boxes(one)[mine], observed.boxes(other)[theirs]
            area = _shared_area(first, second)
            same_box = area >= _TWIN_BOX * (box_area(first) + box_area(second) - area)
            same_pixels = [
                looks_distance(*(observed.seen[f].looks[[t.places[n]]] for t, n in ((one, i), (other, j)))).item()
                <= _SAME_PIXELS
                for f, i, j in zip(shared, mine, theirs, strict=True)
            ]
            twin = twin or (same_box & same_pixels).sum() >= _TWIN_TIME * len(one.frames)
        if not twin:
            kept.append(one)
    return kept


def box_overlap(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Intersection over union, float [n, m], of boxes [n, 4] and [m, 4]; 0 where one is NaN."""
    shared = _intersection(one, other)
    union = box_area(one)[:, None] + box_area(other)[None] - shared
    return np.nan_to_num(shared / np.maximum(union, 1e-9))


def box_area(boxes: np.ndarray) -> np.ndarray:
    """[..., 4] -> [...]."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def box_centre(boxes: np.ndarray) -> np.ndarray:
    """[..., 4] -> [..., 2], x and y."""
    return (boxes[..., :2] + boxes[..., 2:]) / 2


def spans(flags: np.ndarray) -> list[tuple[int, int]]:
    """Runs of True in bool [n], as (start, stop) with `stop` exclusive, in order."""
    steps = np.diff(np.concatenate([[0], np.asarray(flags, np.int8), [0]]))
    return list(zip(np.flatnonzero(steps > 0).tolist(), np.flatnonzero(steps < 0).tolist(), strict=True))


def _intersection(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """[n, 4] and [m, 4] -> areas [n, m]; 0 where one is NaN."""
    return np.nan_to_num(_shared_area(one[:, None], other[None]))


def _shared_area(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Areas [...] that boxes [..., 4] share, pair by pair."""
    sides = np.minimum(one[..., 2:], other[..., 2:]) - np.maximum(one[..., :2], other[..., :2])
    return np.maximum(sides, 0).prod(axis=-1)
