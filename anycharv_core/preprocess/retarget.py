"""A driving skeleton given the proportions of the reference character, and if wanted their size and place too.

Animate Anyone (section 4.1) brings the driving skeleton's length close to that of the character's. Here every
bone gets one factor for the whole video, so nothing swells and shrinks from frame to frame, and the factors are
chosen so that the person stays as tall as they were: the scale is the scene's, the build the character's.
Bones keep their directions, and the ankles, the lowest points that the drawing has, keep to the ground.
"""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np

from ..errors import UserError
from ..media.pose import BODY, BOX, FACE, FEET, HANDS, MID_HIP, MIN_SCORE, PLACES, POINTS, Poses, body_points

# Of the 18 body points; pairs are left, right, as the hands and the feet are.
_NOSE, _NECK, _WRISTS, _ANKLES = 0, 1, (7, 4), (13, 10)
# A nineteenth between the hips, because trunk and pelvis have lengths of their own.
_MIDDLE = 18

# Limbs and the distances that tell their length; the two of a left and a right count as one distance.
_DISTANCES = (
    ("neck", (_NECK, _NOSE)),
    ("head", (16, 17)),
    ("head", (14, 15)),
    ("head", (_NOSE, 16), (_NOSE, 17)),
    ("head", (_NOSE, 14), (_NOSE, 15)),
    ("shoulder", (_NECK, 2), (_NECK, 5)),
    ("upper arm", (2, 3), (5, 6)),
    ("forearm", (3, 4), (6, 7)),
    ("trunk", (_NECK, _MIDDLE)),
    ("pelvis", (8, 11)),
    ("thigh", (8, 9), (11, 12)),
    ("shin", (9, 10), (12, 13)),
)
_LIMBS = np.array([limb for limb, *_ in _DISTANCES])
_ENDS = np.array([(pairs * 2)[:2] for _, *pairs in _DISTANCES])
_UPRIGHT = np.isin(_LIMBS, ("shin", "thigh", "trunk", "neck"))
# A joint, its parent and the limb whose factor the bone between them has; parents come first. The head is
# rigid and hangs on the nose, or the eyes of body and face would come apart.
_BONES = (
    *((_MIDDLE, _NECK, "trunk"), (8, _MIDDLE, "pelvis"), (11, _MIDDLE, "pelvis")),
    *((9, 8, "thigh"), (10, 9, "shin"), (12, 11, "thigh"), (13, 12, "shin")),
    *((2, _NECK, "shoulder"), (3, 2, "upper arm"), (4, 3, "forearm")),
    *((5, _NECK, "shoulder"), (6, 5, "upper arm"), (7, 6, "forearm")),
    *((_NOSE, _NECK, "neck"), *((joint, _NOSE, "head") for joint in (14, 15, 16, 17))),
)
# What stands on the ground, or is nearest to it of a person whom the video never shows whole.
_STANDS = (_ANKLES, (12, 9), (11, 8), (_NECK,), tuple(range(18)))
# Lengths are taken at this percentile, not the largest, which is a mistake of the detector's.
_LONG = 90
# A limb that points at the camera in the reference picture has hardly a length; no body is built like that.
_LARGEST = 4.0
# How much higher than the other, in body heights, a foot is when it no longer carries: small beside a step,
# and large enough for the weight to move over within some frames and not at once.
_LIFT = 0.02
_STEADY = 3


def retarget(poses: Poses, reference: Poses) -> Poses:
    """The video's poses with the reference character's proportions.

    A limb's length in the video is a high percentile over time of what shows of it, relative to the person's
    size in that frame, because projection only shortens; in the reference it is the longer of left and right.
    A limb that either of the two never shows keeps its length. Hands, feet and face are carried whole, with
    the factors of forearm, shin and head. In every frame the lower ankle stays at its height, and sideways
    the foot that carries stays, or the point between two that do.

    Args:
        poses: of F frames, each with one person or nobody.
        reference: the character, in its first frame; of several people the tallest in pixels.

    Returns:
        F frames. Scores are kept, and unseen points (score <= 0.3) stay where they
        were; a box keeps its margins around the points.

    Raises:
        UserError: a frame has several people, or the reference has no body.
    """
    for index, people in enumerate(poses.people):
        if len(people) > 1:
            raise UserError(f"Frame {index} of the poses to retarget has {len(people)} people; choose one first.")
    persons = _first_people(poses)
    joints = _joints(persons)
    known, wanted = _lengths(joints), _reference_lengths(reference)
    factors = _factors(known, wanted)
    moves = _moves(joints, factors, np.nansum(known[_UPRIGHT]))
    wrists = _wrists_of_hands(persons, joints)
    carried = [_carried(*one, factors, wrists) for one in zip(persons, joints, moves, strict=True)]
    present = [person[None][: len(people)] for person, people in zip(carried, poses.people, strict=True)]
    return replace(poses, people=present)


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
    factor = _ratio(_lengths(_joints(_first_people(poses))), _reference_lengths(placed))
    necks = np.array([_neck(people) for people in moved.people]).reshape(-1, 2)
    known = ~np.isnan(necks[:, 0])
    usual = np.median(necks[known], axis=0) if known.any() else np.full(2, np.nan)
    target = _neck(placed.people[0])
    if np.isnan(usual + target).any():
        usual = target = np.array(poses.size) / 2
    return _mapped(moved, factor, target - factor * usual)


def _ratio(known: np.ndarray, wanted: np.ndarray) -> float:
    both = ~np.isnan(known * wanted)
    upright = both & _UPRIGHT if (both & _UPRIGHT).any() else both
    return float(wanted[upright].sum() / known[upright].sum()) if both.any() else 1.0


def _first_people(poses: Poses) -> np.ndarray:
    """float64 [F, POINTS, 3]: in each frame the first person, all NaN where nobody is."""
    nobody = np.full((1, POINTS, 3), np.nan)
    persons = [people[:1] if len(people) else nobody for people in poses.people]
    return np.concatenate([np.empty((0, POINTS, 3)), *persons])


def _joints(persons: np.ndarray) -> np.ndarray:
    """Of persons [n, POINTS, 3] float64 [n, 19, 2]: body points and the middle of the hips, or the hip that shows;
    NaN where unseen."""
    points = persons[:, PLACES[BODY]]
    seen = np.where(points[..., 2:] > MIN_SCORE, points[..., :2], np.nan)
    right, left = seen[:, 8], seen[:, 11]
    middle = np.where(np.isnan(right), left, np.where(np.isnan(left), right, (left + right) / 2))
    return np.concatenate([seen, middle[:, None]], axis=1)


def _reference_lengths(reference: Poses) -> np.ndarray:
    bodies = [body for body in _joints(reference.people[0]) if not np.isnan(_lengths(body[None])).all()]
    if not bodies:
        raise UserError("The reference pose has no body to take proportions from; use a picture that shows one.")
    tallest = max(bodies, key=lambda body: np.nanmax(body[:, 1]) - np.nanmin(body[:, 1]))
    return _lengths(tallest[None])


def _lengths(joints: np.ndarray) -> np.ndarray:
    """Of joints [F, 19, 2], the length of each of `_DISTANCES` in pixels of a usual frame; NaN if never seen."""
    ends = joints[:, _ENDS]
    shown = np.linalg.norm(ends[..., 0, :] - ends[..., 1, :], axis=-1)
    shown[shown == 0] = np.nan
    size = np.ones(len(joints))
    # Lengths follow from sizes and sizes from lengths. A person's size in a frame is what its longer limbs
    # say, and no one limb decides it, so that it holds while they bend, turn or leave the picture.
    for _ in range(4):
        lengths = _percentile(shown / size[:, None, None], _LONG, (0, 2))
        size = _percentile(shown / lengths[:, None], 75, (1, 2))
    return lengths


def _percentile(values: np.ndarray, percent: float, axes: tuple[int, int]) -> np.ndarray:
    if not values.size:
        return np.full(np.delete(values.shape, axes), np.nan)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "All-NaN slice")
        return np.nanpercentile(values, percent, axis=axes)


def _factors(known: np.ndarray, wanted: np.ndarray) -> dict[str, float]:
    """What to multiply each limb's length by, from the lengths in the video and in the reference."""
    both = ~np.isnan(known * wanted)
    same_height = 1 / _ratio(known, wanted)
    factors = {}
    for limb in dict.fromkeys(_LIMBS.tolist()):
        chosen = both & (limb == _LIMBS)
        ratio = same_height * wanted[chosen].sum() / known[chosen].sum() if chosen.any() else 1.0
        factors[limb] = float(np.clip(ratio, 1 / _LARGEST, _LARGEST))
    return factors


def _moves(joints: np.ndarray, factors: dict[str, float], height: float) -> np.ndarray:
    """float64 [F, 19, 2]: by how many pixels each joint moves, also where it is unseen."""
    places, moves = np.zeros_like(joints), np.zeros_like(joints)  # as seen from the neck
    for joint, parent, limb in _BONES:
        bone = _filled(joints[:, joint] - joints[:, parent])
        direct = joints[:, joint] - joints[:, _NECK]
        places[:, joint] = np.where(np.isnan(direct), places[:, parent] + bone, direct)
        moves[:, joint] = moves[:, parent] + (factors[limb] - 1) * bone
    ever = ~np.isnan(joints[..., 0]).all(axis=0)
    stands = next(([j for j in group if ever[j]] for group in _STANDS if ever[list(group)].any()), None)
    if stands is None:
        return moves
    below, change = places[:, stands, 1], moves[:, stands]
    lift = (below.max(axis=1, keepdims=True) - below) / (_LIFT * height or 1.0)
    carrying = np.exp(-lift) / np.exp(-lift).sum(axis=1, keepdims=True)
    aside = _steadied((carrying * change[..., 0]).sum(axis=1))
    down = (below + change[..., 1]).max(axis=1) - below.max(axis=1)
    return moves - np.stack([aside, down], axis=-1)[:, None]


def _filled(values: np.ndarray) -> np.ndarray:
    """Values [F, 2] with the gaps (NaN) bridged evenly over time; zeros if there is nothing but a gap.

    So what hangs on a joint does not jump whenever the detector loses that joint for a frame.
    """
    known = np.flatnonzero(~np.isnan(values[:, 0]))
    if not known.size:
        return np.zeros_like(values)
    times = np.arange(len(values))
    return np.stack([np.interp(times, known, axis[known]) for axis in values.T], axis=-1)


def _steadied(values: np.ndarray) -> np.ndarray:
    """Means of values [F] over up to `_STEADY` frames on either side, as many as there are on both.

    The weight may move from foot to foot at once where the detector confuses left and right; the body may not.
    Windows that are even on both sides leave a steady walk as it is.
    """
    last = len(values) - 1
    reach = [min(_STEADY, t, last - t) for t in range(len(values))]
    return np.array([values[t - r : t + r + 1].mean() for t, r in enumerate(reach)])


def _wrists_of_hands(persons: np.ndarray, joints: np.ndarray) -> tuple[int, ...]:
    """The wrist that each of the two hand lists hangs on: ComfyUI's SDPose has left and right swapped."""
    distance = np.zeros(2)
    for person, body in zip(persons, joints, strict=True):
        for side, part in enumerate(HANDS):
            root = person[PLACES[part]][0]
            if root[2] > MIN_SCORE and not np.isnan(body[list(_WRISTS)]).any():
                away = np.linalg.norm(body[list(_WRISTS)] - root[:2], axis=-1)
                distance += away[[side, 1 - side]]
    return _WRISTS if distance[0] <= distance[1] else _WRISTS[::-1]


def _carried(
    person: np.ndarray,
    body: np.ndarray,
    moves: np.ndarray,
    factors: dict[str, float],
    wrists: tuple[int, ...],
) -> np.ndarray:
    new = person.copy()

    def carry(points: np.ndarray, joint: int, limb: str) -> None:
        seen = points[:, 2] > MIN_SCORE
        if seen.any():
            places = points[seen, :2]
            pivot = places.mean(axis=0) if np.isnan(body[joint]).any() else body[joint]
            points[seen, :2] = places + moves[joint] + (factors[limb] - 1) * (places - pivot)

    points = new[PLACES[BODY]]
    points[:, :2] += np.where(points[:, 2:] > MIN_SCORE, moves[:_MIDDLE], 0.0)
    carry(new[PLACES[FACE]], _NOSE, "head")
    for part, wrist in zip(HANDS, wrists, strict=True):
        carry(new[PLACES[part]], wrist, "forearm")
    for foot, ankle in zip(np.split(new[PLACES[FEET]], 2), _ANKLES, strict=True):
        carry(foot, ankle, "shin")
    carry(new[PLACES[MID_HIP]], _MIDDLE, "trunk")
    before, after = _extent(person), _extent(new)
    if before is not None:
        new[PLACES[BOX]][:, :2] += after - before
    return new


def _extent(person: np.ndarray) -> np.ndarray | None:
    """[[x0, y0], [x1, y1]] around what is seen, or None."""
    points = person[: PLACES[BOX].start]
    seen = points[points[:, 2] > MIN_SCORE, :2]
    return np.stack([seen.min(axis=0), seen.max(axis=0)]) if len(seen) else None


def _placed(reference: Poses, width: int, height: int) -> Poses:
    """The reference's pose where a letterboxed picture of it lies on a canvas."""
    old = np.array(reference.size)
    factor = float((np.array([width, height]) / old).min())
    shift = (np.array([width, height]) - factor * old) / 2
    return replace(_mapped(reference, factor, shift), width=width, height=height)


def _neck(people: np.ndarray) -> np.ndarray:
    x, y, score = body_points(people[0])[_NECK] if len(people) else np.zeros(3)
    return np.array([x, y], np.float64) if score > MIN_SCORE else np.full(2, np.nan)


def _mapped(poses: Poses, factor: float, shift: np.ndarray) -> Poses:
    """The poses with every point that has a score at factor * point + shift, in pixels of the same canvas."""
    mapped = [people.copy() for people in poses.people]
    for people in mapped:
        found = people[..., 2] > 0
        people[found, :2] = factor * people[found, :2] + shift
    return replace(poses, people=mapped)
