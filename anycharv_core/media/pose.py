"""Skeletons: the POSE_KEYPOINT exchange format, and its drawing as the model family was trained on.

The drawing is the DWPose one (IDEA-Research/DWPose, as the official AnyCharV release carries it):
float64 keypoints divided by the canvas and multiplied back, then truncated, so that a picture drawn
here equals the official one in every pixel.
"""

import colorsys
import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ..errors import UserError
from ..files import atomic_path
from ..foreign import read_json

Pose = dict[str, Any]

MIN_SCORE = 0.3
BODY, FACE = "pose_keypoints_2d", "face_keypoints_2d"
HANDS = ("hand_left_keypoints_2d", "hand_right_keypoints_2d")
FEET, MID_HIP, BOX = "foot_keypoints_2d", "mid_hip_keypoints_2d", "box_keypoints_2d"

# What a person is made of, and the most points each part may have.
PARTS = {BODY: 18, FACE: 70, **dict.fromkeys(HANDS, 21), FEET: 6, MID_HIP: 1, BOX: 2}

_COUNTS = {part: (most,) for part, most in PARTS.items()} | {BODY: (18, 25), FACE: (68, 70)}
# OpenPose's BODY_25 is the 18 points with a mid hip inserted at 8 and the feet appended from 19.
_BODY_25_TO_18 = [*range(8), *range(9, 19)]
_REST_OF_BODY_25 = {MID_HIP: slice(8, 9), FEET: slice(19, 25)}
_LIMBS = (
    *((1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10), (1, 11), (11, 12), (12, 13)),
    *((1, 0), (0, 14), (14, 16), (0, 15), (15, 17)),
)
_FINGER_BONES = tuple((0 if tip % 4 == 1 else tip - 1, tip) for tip in range(1, 21))
# Far beyond any canvas, yet small enough for OpenCV's fixed-point arithmetic.
_MAX_COORDINATE = 1e6
_MAX_CANVAS = 16384
# Detectors place normalised points a little outside 0..1; no real skeleton fits within two pixels.
_MAX_NORMALISED = 2.0


def clean_pose(frame: Any, canvas: tuple[int, int] | None = None) -> Pose:
    """One frame, checked and in canonical form: the one every function here works on.

    Args:
        frame: `canvas_width` and `canvas_height` in pixels, and `people`, each with flat
            `[x, y, score, ...]` lists: 18 body points (OpenPose's BODY_25 is taken apart into these,
            the mid hip and the feet), 68 or 70 face points, 21 per hand, 6 of the feet (left big toe,
            small toe, heel, then right), 1 mid hip, and 2 corners of the detector's box, exclusive
            at the lower right; a list may be missing, None or empty. Points are pixels, or
            fractions of the canvas if every point seen (score > 0.3) is within +-2. All else, such
            as OpenPose's `person_id` or ComfyUI's `animals`, is left out.
        canvas: (width, height) in pixels for a frame that names no canvas, as OpenPose's do not.

    Returns:
        A new frame with exactly these keys; points in pixels, absent lists None. Every score is kept,
        also of points that count as unseen.

    Raises:
        UserError: the structure, a list's length, a number or the canvas is not as above.
    """
    if not isinstance(frame, dict):
        raise UserError("A pose frame must be an object with canvas_width, canvas_height and people.")
    width, height = (
        frame.get(key, fallback)
        for key, fallback in zip(("canvas_width", "canvas_height"), canvas or (None, None), strict=True)
    )
    for side in (width, height):
        if not isinstance(side, (int, float, np.integer)) or side % 1 or not 1 <= side <= _MAX_CANVAS:
            raise UserError(
                f"A pose frame needs its canvas size in whole pixels up to {_MAX_CANVAS} (canvas_width and "
                f"canvas_height in the file, or given by you), not {width} x {height}."
            )
    people = frame.get("people") or []
    if not isinstance(people, list) or not all(isinstance(person, dict) for person in people):
        raise UserError("A pose frame's people must be a list of objects that hold keypoint lists.")
    points = [_parts(person) for person in people]
    seen = [p[p[:, 2] > MIN_SCORE, :2] for person in points for p in person.values() if p is not None]
    largest = max((np.abs(p).max() for p in seen if p.size), default=math.inf)
    size = (width, height) if largest <= _MAX_NORMALISED else (1, 1)
    return _frame(int(width), int(height), points, size)


def draw_pose(frame: Pose) -> np.ndarray:
    """Draw one frame as the official DWPose code does, pixel for pixel.

    All bodies' limbs come first, dimmed to 0.6, then their joints, all left hands, all right hands
    and all faces, whose points are all drawn (so also the two pupils of OpenPose's 70). Points with
    a score of at most 0.3 are not drawn, nor hand and face points in or before the first row or column,
    nor feet, mid hip and box.

    Args:
        frame: as `clean_pose` takes it; without people the picture is black.

    Returns:
        uint8 [H, W, 3], RGB, of the frame's canvas size.

    Raises:
        UserError: see `clean_pose`.
    """
    frame = clean_pose(frame)
    width, height = frame["canvas_width"], frame["canvas_height"]
    drawn = {
        part: [_to_canvas(person[part], width, height) for person in frame["people"] if person[part]]
        for part in (BODY, FACE, *HANDS)
    }
    picture = np.zeros((height, width, 3), np.uint8)
    for (start, end), colour in zip(_LIMBS, _hues(18), strict=False):
        for body in drawn[BODY]:
            if body[start] and body[end]:
                cv2.fillConvexPoly(picture, _limb(body[start], body[end]), colour)
    picture = (picture * 0.6).astype(np.uint8)
    for joint, colour in enumerate(_hues(18)):
        for body in drawn[BODY]:
            if body[joint]:
                cv2.circle(picture, _pixel(body[joint]), 4, colour, -1)
    for hand in drawn[HANDS[0]] + drawn[HANDS[1]]:
        pixels = _inner_pixels(hand)
        for (start, end), colour in zip(_FINGER_BONES, _hues(20), strict=True):
            if pixels[start] and pixels[end]:
                cv2.line(picture, pixels[start], pixels[end], colour, 2)
        for pixel in filter(None, pixels):
            cv2.circle(picture, pixel, 4, (0, 0, 255), -1)
    for face in drawn[FACE]:
        for pixel in filter(None, _inner_pixels(face)):
            cv2.circle(picture, pixel, 3, (255, 255, 255), -1)
    return picture


def scale_pose(frame: Pose, width: int, height: int) -> Pose:
    """The same pose on a canvas of `width` x `height` pixels, each axis stretched on its own.

    Skeletons are redrawn at the model's size and never resized as pictures: the official strokes
    have a fixed width in pixels.

    Raises:
        UserError: see `clean_pose`.
    """
    frame = clean_pose(frame)
    points = [_parts(person) for person in frame["people"]]
    factors = width / frame["canvas_width"], height / frame["canvas_height"]
    return _frame(width, height, points, factors)


def only_person(frame: Pose, mask: np.ndarray) -> Pose:
    """The pose with nobody but the person whose body lies in the mask.

    Args:
        frame: as `clean_pose` takes it.
        mask: uint8 [H, W], 255 on the person; of any size, it covers the pose's whole canvas.

    Returns:
        The frame with the person who has most body points seen inside the mask, and of several the one with
        fewest outside; with nobody where no point is inside.

    Raises:
        UserError: see `clean_pose`.
    """
    frame = clean_pose(frame)
    scale = np.array([mask.shape[1] / frame["canvas_width"], mask.shape[0] / frame["canvas_height"]])
    best, most = [], (0, 0)
    for index, person in enumerate(frame["people"]):
        points = body_points(frame, index)
        pixels = (points[points[:, 2] > MIN_SCORE, :2] * scale).astype(int)
        on_canvas = ((pixels >= 0) & (pixels < mask.shape[::-1])).all(axis=1)
        inside = int((mask[pixels[on_canvas, 1], pixels[on_canvas, 0]] >= 128).sum())
        if inside and (inside, inside - len(pixels)) > most:
            best, most = [person], (inside, inside - len(pixels))
    return {**frame, "people": best}


def body_points(frame: Pose, person: int = 0) -> np.ndarray:
    """Body points of one person, counted from 0.

    Returns:
        float32 [18, 3]: x and y in pixels and the score; all 0 where the frame has no such body.

    Raises:
        UserError: see `clean_pose`.
    """
    people = clean_pose(frame)["people"]
    body = people[person][BODY] if person < len(people) else None
    return np.array(body or np.zeros(54), np.float32).reshape(18, 3)


def read_poses(path: str | Path, canvas: tuple[int, int] | None = None) -> list[Pose]:
    """Read the poses of a clip.

    Args:
        path: a JSON file with a list of frames or a single one, or a folder with OpenPose's
            `*_keypoints.json` files, taken in the order of their names.
        canvas: (width, height) in pixels for frames that name none.

    Returns:
        At least one frame, each in `clean_pose` form, all of one canvas size.

    Raises:
        UserError: nothing to read, not JSON, canvas sizes that differ, or see `clean_pose`.
    """
    path = Path(path)
    if path.is_dir():
        named = ((str(file), read_json(file)) for file in sorted(path.glob("*_keypoints.json")))
        return list(_sequence(named, canvas, path))
    content = read_json(path)
    frames = content if isinstance(content, list) else [content]
    named = ((f"{path}, frame {i}", frame) for i, frame in enumerate(frames))
    return list(_sequence(named, canvas, path))


def write_poses(path: str | Path, frames: Iterable[Pose]) -> None:
    """Write the poses of a clip as `read_poses` reads them; `path` is replaced whole or not at all.

    Raises:
        UserError: no frame, canvas sizes that differ, or see `clean_pose`.
    """
    named = ((f"Frame {i} for {path}", frame) for i, frame in enumerate(frames))
    # Frame by frame: the text of a long clip, and a second copy of its poses, would be hundreds of megabytes.
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for index, pose in enumerate(_sequence(named, None, path)):
            file.write(f"{', ' if index else '['}{json.dumps(pose)}")
        file.write("]")


def _sequence(
    named: Iterable[tuple[str, Any]], canvas: tuple[int, int] | None, path: str | Path
) -> Iterator[Pose]:
    """Each frame in `clean_pose` form; raises UserError as `read_poses` does."""
    size = None
    for name, frame in named:
        try:
            pose = clean_pose(frame, canvas)
        except UserError as error:
            raise UserError(f"{name}: {error}") from error
        own = pose["canvas_width"], pose["canvas_height"]
        size = size or own
        if size != own:
            raise UserError(
                f"{name}: its canvas is {'x'.join(map(str, own))} and the first frame's is "
                f"{'x'.join(map(str, size))}; all frames of a clip need one size."
            )
        yield pose
    if size is None:
        raise UserError(f"{path} holds no pose frames (a JSON list of frames, or *_keypoints.json in a folder).")


def _parts(person: dict[str, Any]) -> dict[str, np.ndarray | None]:
    parts = {part: _points(person.get(part), part) for part in PARTS}
    body = parts[BODY]
    if body is not None and len(body) == 25:
        parts[BODY] = body[_BODY_25_TO_18]
        for part, where in _REST_OF_BODY_25.items():
            # A list of its own says more: a file of two detectors' findings has it.
            if parts[part] is None:
                parts[part] = body[where]
    return parts


def _points(values: Any, part: str) -> np.ndarray | None:
    """float64 [points, 3], or None where the list is absent."""
    if values is None or (isinstance(values, list) and not values):
        return None
    try:
        flat = np.asarray(values)
    except ValueError:
        flat = np.empty(0, object)
    if flat.ndim != 1 or flat.dtype.kind not in "iuf":
        raise UserError(f"{part} must be a flat list of numbers x, y, score, x, y, score and so on.")
    if flat.size % 3 or flat.size // 3 not in _COUNTS[part]:
        counts = " or ".join(map(str, _COUNTS[part]))
        raise UserError(f"{part} must hold {counts} points of 3 numbers each, not {flat.size} numbers.")
    points = flat.astype(np.float64).reshape(-1, 3)
    if not (np.abs(points) <= _MAX_COORDINATE).all():
        raise UserError(f"{part} must hold finite numbers of at most {_MAX_COORDINATE:g} in size.")
    return points


def _frame(width: int, height: int, people: list[dict[str, Any]], factors: tuple[float, float]) -> Pose:
    scale = np.array([*factors, 1.0])
    lists = [
        {part: None if points is None else (points * scale).ravel().tolist() for part, points in person.items()}
        for person in people
    ]
    return {"canvas_width": width, "canvas_height": height, "people": lists}


def _to_canvas(flat: list[float], width: int, height: int) -> list[tuple[float, float] | None]:
    # Dividing and multiplying back is not the identity in floating point, and truncation shows it.
    points = zip(flat[::3], flat[1::3], flat[2::3], strict=True)
    return [(x / width * width, y / height * height) if score > MIN_SCORE else None for x, y, score in points]


def _pixel(point: tuple[float, float]) -> tuple[int, int]:
    return int(point[0]), int(point[1])


def _inner_pixels(points: list[tuple[float, float] | None]) -> list[tuple[int, int] | None]:
    pixels = [_pixel(point) if point else None for point in points]
    return [pixel if pixel and min(pixel) >= 1 else None for pixel in pixels]


def _limb(start: tuple[float, float], end: tuple[float, float]) -> np.ndarray:
    (x0, y0), (x1, y1) = start, end
    # Powers and not math.hypot, whose last bit differs: the half length is truncated.
    length = ((y0 - y1) ** 2 + (x0 - x1) ** 2) ** 0.5
    angle = math.degrees(math.atan2(y0 - y1, x0 - x1))
    middle = int((x0 + x1) / 2), int((y0 + y1) / 2)
    return cv2.ellipse2Poly(middle, (int(length / 2), 4), int(angle), 0, 360, 1)


def _hues(count: int) -> list[tuple[float, ...]]:
    # Unrounded, since OpenCV's own rounding of the halves is part of the official colours.
    return [tuple(255 * c for c in colorsys.hsv_to_rgb(i / count, 1.0, 1.0)) for i in range(count)]
