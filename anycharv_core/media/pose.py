"""The poses of a video as arrays, and POSE_KEYPOINT, the JSON in which they come and go.

POSE_KEYPOINT is parsed once, where a file or a node hands it in (`read_poses`, `parse_poses`), and made once,
where it leaves (`write_poses`, `Poses.keypoints`); everything between works on `Poses`.
"""

from __future__ import annotations

import json
import math
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError
from ..files import atomic_path
from ..foreign import read_json, read_json_rows
from .frames import FrameStore
from .imaging import Size

# A point with a score of at most this counts as unseen.
MIN_SCORE = 0.3
BODY, FACE = "pose_keypoints_2d", "face_keypoints_2d"
HANDS = ("hand_left_keypoints_2d", "hand_right_keypoints_2d")
FEET, MID_HIP, BOX = "foot_keypoints_2d", "mid_hip_keypoints_2d", "box_keypoints_2d"

# What a person is made of, and the most points each part may have.
PARTS = {BODY: 18, FACE: 70, **dict.fromkeys(HANDS, 21), FEET: 6, MID_HIP: 1, BOX: 2}
POINTS = sum(PARTS.values())
# Where the points of each part stand among a person's POINTS.
PLACES = {
    part: slice(end - most, end)
    for (part, most), end in zip(PARTS.items(), accumulate(PARTS.values()), strict=True)
}

_COUNTS = {part: (most,) for part, most in PARTS.items()} | {BODY: (18, 25), FACE: (68, 70)}
# OpenPose's BODY_25 is the 18 points with a mid hip inserted at 8 and the feet appended from 19.
_BODY_25_TO_18 = [*range(8), *range(9, 19)]
_REST_OF_BODY_25 = {MID_HIP: slice(8, 9), FEET: slice(19, 25)}
# OpenPose-18 points that change places in a mirror; the rest lie in the middle.
MIRRORED_BODY = [0, 1, 5, 6, 7, 2, 3, 4, 11, 12, 13, 8, 9, 10, 15, 14, 17, 16]
ANKLES = [10, 13]
# Far beyond any canvas, yet small enough for OpenCV's fixed-point arithmetic.
MAX_COORDINATE = 1e6
_MAX_CANVAS = 16384
# More than anybody can tell apart in a picture; who is who costs the square of it.
_MAX_PEOPLE = 100
# Detectors place normalised points a little outside 0..1; no real skeleton fits within two pixels.
_MAX_NORMALISED = 2.0


def has_ankles(people: np.ndarray) -> bool:
    """Whether an ankle of one of these people [n, POINTS, 3] is seen."""
    return bool((people[:, PLACES[BODY]][:, ANKLES, 2] > MIN_SCORE).any())


@dataclass(frozen=True, eq=False)
class Poses:
    """Everybody's pose in every frame of a video.

    Attributes:
        width, height: the canvas in pixels, one for all frames. It covers the whole picture, of whatever size
            that is.
        people: for each frame float64 [people, POINTS, 3]: x, y in pixels of the canvas, and the score (seen if
            it exceeds MIN_SCORE), in the order of PARTS. BODY is OpenPose's 18 points; FACE 68 points, or 70 with
            the pupils; FEET left big toe, small toe and heel, then right; BOX the corners of the detector's box,
            exclusive at the lower right. Points that were not given are NaN. 3.3 kB a person, which `read_poses`
            keeps in a file where they are many; instances share these arrays, and nobody writes to them.
    """

    width: int
    height: int
    people: Sequence[np.ndarray]

    def __len__(self) -> int:
        """The number of frames."""
        return len(self.people)

    @property
    def size(self) -> Size:
        return self.width, self.height

    def take(self, frames: Iterable[int]) -> Poses:
        """The poses of these frames, in this order."""
        return replace(self, people=[self.people[frame] for frame in frames])

    def only(self, *tracks: np.ndarray) -> Poses:
        """The poses of nobody but the people on `tracks`, in their order.

        Args:
            tracks: per person int [F], the index into each frame's people, -1 where absent.
        """
        return replace(
            self,
            people=[
                people[[place for place in places if place >= 0]]
                for people, *places in zip(self.people, *tracks, strict=True)
            ],
        )

    def scaled(self, width: int, height: int) -> Poses:
        """The same poses on a canvas of `width` x `height` pixels, each axis stretched on its own.

        Skeletons are drawn at the network's size and never resized as pictures: the official strokes have a fixed
        width in pixels.
        """
        if (width, height) == self.size:
            return self
        factors = np.array([width / self.width, height / self.height, 1.0])
        return self.changed(partial(_scaled, factors), (width, height))

    def changed(self, change: Callable[[int, np.ndarray], np.ndarray], size: Size) -> Poses:
        """The poses that change(frame, its people) makes each time they are asked for. size: of their canvas."""
        return Poses(*size, _Changed(self.people, change))

    def keypoints(self) -> Iterator[dict[str, Any]]:
        """Each frame as POSE_KEYPOINT: `canvas_width`, `canvas_height`, and `people` with a flat list
        [x, y, score, ...] for every part of PARTS, None for a part that was not given."""
        for people in self.people:
            persons = [{part: _flat(person[place]) for part, place in PLACES.items()} for person in people]
            yield {"canvas_width": self.width, "canvas_height": self.height, "people": persons}

    def pack(self) -> dict[str, np.ndarray]:
        """Three arrays that hold all, for a file; `unpack` takes them."""
        return {
            "counts": np.array([len(people) for people in self.people], np.int64),
            "points": np.concatenate([np.empty((0, POINTS, 3)), *self.people]),
            "canvas": np.array(self.size, np.int64),
        }

    @classmethod
    def unpack(cls, arrays: Mapping[str, np.ndarray]) -> Poses:
        width, height = arrays["canvas"].tolist()
        return cls(width, height, np.split(arrays["points"], np.cumsum(arrays["counts"])[:-1]))


class _Changed(Sequence[np.ndarray]):
    """The people of every frame, made of others when they are asked for."""

    def __init__(self, people: Sequence[np.ndarray], change: Callable[[int, np.ndarray], np.ndarray]) -> None:
        self._people, self._change = people, change

    def __len__(self) -> int:
        return len(self._people)

    def __getitem__(self, place: Any) -> Any:
        frame = range(len(self))[place]
        return self._change(frame, self._people[frame])


class _Stored(Sequence[np.ndarray]):
    """The people of every frame, in a file where they are many."""

    def __init__(self) -> None:
        self._persons, self._ends = FrameStore(), array("q", [0])

    def append(self, people: np.ndarray) -> None:
        for person in people:
            self._persons.append(person)
        self._ends.append(len(self._persons))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, place: Any) -> Any:
        frame = range(len(self))[place]
        persons = range(self._ends[frame], self._ends[frame + 1])
        return self._persons.take(persons) if persons else np.empty((0, POINTS, 3))


def _scaled(factors: np.ndarray, frame: int, people: np.ndarray) -> np.ndarray:
    return people * factors


def pack_person(parts: Mapping[str, np.ndarray]) -> np.ndarray:
    """A person, float64 [POINTS, 3], from the points [n, 3] of some of PARTS; the rest are NaN."""
    person = np.full((POINTS, 3), np.nan)
    for part, points in parts.items():
        person[PLACES[part]][: len(points)] = points
    return person


def body_points(person: np.ndarray) -> np.ndarray:
    """float32 [18, 3] of a person [POINTS, 3]: x and y in pixels and the score; all 0 without a body."""
    return np.nan_to_num(person[PLACES[BODY]]).astype(np.float32)


def person_in_mask(poses: Poses, frame: int, mask: np.ndarray) -> int:
    """Whose body lies in a mask.

    Args:
        mask: uint8 [H, W], 255 on the person; of any size, it covers the poses' whole canvas.

    Returns:
        Index into the frame's people of who has most body points seen inside the mask, and of several of the one
        with fewest outside; -1 where no point is inside.
    """
    scale = np.array([mask.shape[1] / poses.width, mask.shape[0] / poses.height])
    best, most = -1, (0, 0)
    for index, person in enumerate(poses.people[frame]):
        points = body_points(person)
        pixels = (points[points[:, 2] > MIN_SCORE, :2] * scale).astype(int)
        on_canvas = ((pixels >= 0) & (pixels < mask.shape[::-1])).all(axis=1)
        inside = int((mask[pixels[on_canvas, 1], pixels[on_canvas, 0]] >= 128).sum())
        if inside and (inside, inside - len(pixels)) > most:
            best, most = index, (inside, inside - len(pixels))
    return best


def parse_poses(content: Any, canvas: Size | None = None, name: str = "The poses") -> Poses:
    """POSE_KEYPOINT, as detectors write it and ComfyUI's nodes hand it on.

    Args:
        content: a list of frames or a single one. A frame is an object with `canvas_width` and `canvas_height` in
            pixels, and `people`, each with flat `[x, y, score, ...]` lists for parts of PARTS (BODY may be
            OpenPose's BODY_25, which is taken apart); a list may be missing, None or empty. Points are pixels, or
            fractions of the canvas if every point seen is within +-2. All else, such as OpenPose's `person_id` or
            ComfyUI's `animals`, and people without any point, are left out.
        canvas: (width, height) in pixels for frames that name none, as OpenPose's do not.
        name: what errors call the content.

    Returns:
        At least one frame, on the first frame's canvas; the points of the others are scaled to it. Every score is
        kept, also of points that count as unseen.

    Raises:
        UserError: no frame; the structure, a list's length, a number, the canvas or the number of people is not
            as above; or canvases of different proportions.
    """
    frames = content if isinstance(content, list) else [content]
    return _joined(_named(frames, name), canvas, name, [])


def _named(frames: Iterable[Any], name: str) -> Iterator[tuple[str, Any]]:
    return ((f"{name}, frame {index}", frame) for index, frame in enumerate(frames))


def read_poses(path: str | Path, canvas: Size | None = None) -> Poses:
    """Read the poses of a video.

    Args:
        path: a JSON file as `parse_poses` takes it, or a folder with OpenPose's `*_keypoints.json` files, taken
            in the order of their names.
        canvas: (width, height) in pixels for frames that name none.

    Raises:
        UserError: nothing to read, not JSON, or see `parse_poses`.
    """
    path = Path(path)
    if path.is_dir():
        files = sorted(path.glob("*_keypoints.json"))
        return _joined(((str(file), read_json(file)) for file in files), canvas, str(path), _Stored())
    return _joined(_named(read_json_rows(path), str(path)), canvas, str(path), _Stored())


def write_poses(path: str | Path, poses: Poses) -> None:
    """Write the poses of a video as `read_poses` reads them; `path` is replaced whole or not at all.

    Raises:
        UserError: the file cannot be written.
    """
    # Frame by frame: the text of a long video would be hundreds of megabytes.
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for index, frame in enumerate(poses.keypoints()):
            file.write(f"{', ' if index else '['}{json.dumps(frame)}")
        file.write("]")


def _joined(
    named: Iterable[tuple[str, Any]], canvas: Size | None, source: str, people: list[np.ndarray] | _Stored
) -> Poses:
    """Named POSE_KEYPOINT frames on the canvas of the first. people: empty, to keep them in."""
    first: Poses | None = None
    for name, content in named:
        try:
            frame = _parsed(content, canvas)
        except UserError as error:
            raise UserError(f"{name}: {error}") from error
        first = first or frame
        if not _same_proportions(frame.size, first.size):
            raise UserError(
                f"{name}: its canvas is {frame.width}x{frame.height} and the first frame's is "
                f"{first.width}x{first.height}; all frames of a video need the same proportions."
            )
        people.append(frame.scaled(*first.size).people[0])
    if first is None:
        raise UserError(f"{source} holds no pose frames (a JSON list of frames, or *_keypoints.json in a folder).")
    return replace(first, people=people)


def _same_proportions(one: Size, other: Size) -> bool:
    """Whether one size is the other scaled, but for a side's rounding to whole pixels."""
    return abs(one[0] * other[1] - one[1] * other[0]) <= max(*one, *other)


def _parsed(frame: Any, canvas: Size | None) -> Poses:
    """A single POSE_KEYPOINT frame."""
    if not isinstance(frame, dict):
        raise UserError("A pose frame must be an object with canvas_width, canvas_height and people.")
    width, height = _canvas_size(frame, canvas)
    if "people" not in frame:
        raise UserError("A pose frame lists its people, be it none, and this one doesn't; give POSE_KEYPOINT.")
    people = frame.get("people") or []
    if not isinstance(people, list) or not all(isinstance(person, dict) for person in people):
        raise UserError("A pose frame's people must be a list of objects that hold keypoint lists.")
    if len(people) > _MAX_PEOPLE:
        raise UserError(
            f"A pose frame may have {_MAX_PEOPLE} people, and this one has {len(people)}; keep only those you "
            "need."
        )
    parts = [{part: _points(person.get(part), part) for part in PARTS} for person in people]
    persons = [_packed(person) for person in parts if any(points is not None for points in person.values())]
    points = np.array(persons).reshape(-1, POINTS, 3)
    seen = points[points[..., 2] > MIN_SCORE, :2]
    largest = np.abs(seen).max() if seen.size else math.inf
    if largest <= _MAX_NORMALISED:
        points *= (width, height, 1.0)
    return Poses(width, height, [points])


def _canvas_size(frame: dict[str, Any], canvas: Size | None) -> Size:
    fallback: tuple[Any, Any] = canvas or (None, None)
    width, height = frame.get("canvas_width", fallback[0]), frame.get("canvas_height", fallback[1])
    for side in (width, height):
        number = isinstance(side, (int, float, np.integer)) and not isinstance(side, bool)
        if not number or not 1 <= side <= _MAX_CANVAS or side % 1:
            raise UserError(
                f"A pose frame needs its canvas size in whole pixels up to {_MAX_CANVAS} (canvas_width and "
                f"canvas_height in the file, or given by you), not {width!s:.20} x {height!s:.20}."
            )
    return int(width), int(height)


def _points(values: Any, part: str) -> np.ndarray | None:
    """float64 [points, 3], or None where the list is absent."""
    if values is None or (isinstance(values, list) and not values):
        return None
    try:
        flat = np.asarray(values)
    except (ValueError, OverflowError):
        flat = np.empty(0, object)
    if flat.ndim != 1 or flat.dtype.kind not in "iuf":
        raise UserError(f"{part} must be a flat list of numbers x, y, score, x, y, score and so on.")
    if flat.size % 3 or flat.size // 3 not in _COUNTS[part]:
        counts = " or ".join(map(str, _COUNTS[part]))
        raise UserError(f"{part} must hold {counts} points of 3 numbers each, not {flat.size} numbers.")
    points = flat.astype(np.float64).reshape(-1, 3)
    if not (np.abs(points) <= MAX_COORDINATE).all():
        raise UserError(f"{part} must hold finite numbers of at most {MAX_COORDINATE:g} in size.")
    return points


def _packed(parts: dict[str, np.ndarray | None]) -> np.ndarray:
    given = {part: points for part, points in parts.items() if points is not None}
    if BODY in given and len(given[BODY]) == 25:
        body = given[BODY]
        # A list of its own says more: a file of two detectors' findings has it.
        given = {part: body[where] for part, where in _REST_OF_BODY_25.items()} | given
        given[BODY] = body[_BODY_25_TO_18]
    return pack_person(given)


def _flat(points: np.ndarray) -> list[float] | None:
    given = points[~np.isnan(points[:, 0])]
    return given.ravel().tolist() if len(given) else None
