"""Skeletons, drawn as the model family was trained on.

The drawing is the DWPose one (IDEA-Research/DWPose, as the official AnyCharV release carries it): float64
keypoints divided by the canvas and multiplied back, then truncated, so that a picture drawn here equals the
official one in every pixel.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Iterator

import numpy as np

from ..opencv import cv2
from .pose import BODY, FACE, HANDS, MAX_COORDINATE, MIN_SCORE, PLACES, Poses

Point = tuple[float, float]

_LIMBS = (
    *((1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10), (1, 11), (11, 12), (12, 13)),
    *((1, 0), (0, 14), (14, 16), (0, 15), (15, 17)),
)
_FINGER_BONES = tuple((0 if tip % 4 == 1 else tip - 1, tip) for tip in range(1, 21))


def draw_poses(poses: Poses) -> Iterator[np.ndarray]:
    """Draw each frame as the official DWPose code does, pixel for pixel.

    All bodies' limbs come first, dimmed to 0.6, then their joints, all left hands, all right hands
    and all faces, whose points are all drawn (so also the two pupils of OpenPose's 70). Points with
    a score of at most 0.3 are not drawn, nor hand and face points in or before the first row or column,
    nor feet, mid hip and box.

    Yields:
        uint8 [H, W, 3], RGB, of the canvas's size; black where nobody is.
    """
    for people in poses.people:
        yield _drawn(people, poses.width, poses.height)


def _drawn(people: np.ndarray, width: int, height: int) -> np.ndarray:
    points = {
        part: [_shown(person[PLACES[part]], width, height) for person in people] for part in (BODY, FACE, *HANDS)
    }
    picture = np.zeros((height, width, 3), np.uint8)
    for (start, end), colour in zip(_LIMBS, _hues(18), strict=False):
        for body in points[BODY]:
            if start in body and end in body:
                cv2.fillConvexPoly(picture, _limb(body[start], body[end]), colour)
    picture = (picture * 0.6).astype(np.uint8)
    for joint, colour in enumerate(_hues(18)):
        for body in points[BODY]:
            if joint in body:
                cv2.circle(picture, _pixel(body[joint]), 4, colour, -1)
    for hand in points[HANDS[0]] + points[HANDS[1]]:
        pixels = _inner_pixels(hand)
        for (start, end), colour in zip(_FINGER_BONES, _hues(20), strict=True):
            if start in pixels and end in pixels:
                cv2.line(picture, pixels[start], pixels[end], colour, 2)
        for pixel in pixels.values():
            cv2.circle(picture, pixel, 4, (0, 0, 255), -1)
    for face in points[FACE]:
        for pixel in _inner_pixels(face).values():
            cv2.circle(picture, pixel, 3, (255, 255, 255), -1)
    return picture


def _shown(points: np.ndarray, width: int, height: int) -> dict[int, Point]:
    """Which of the points [n, 3] of a part are drawn, and where."""
    # Dividing and multiplying back is not the identity in floating point, and truncation shows it.
    places = points[:, :2] / (width, height) * (width, height)
    # A file's points are no larger, but scaling to another canvas or body may make them so.
    places = np.clip(places, -MAX_COORDINATE, MAX_COORDINATE)
    seen = (points[:, 2] > MIN_SCORE) & ~np.isnan(places).any(axis=1)
    return {index: (x, y) for index, (x, y) in enumerate(places.tolist()) if seen[index]}


def _pixel(point: Point) -> tuple[int, int]:
    return int(point[0]), int(point[1])


def _inner_pixels(points: dict[int, Point]) -> dict[int, tuple[int, int]]:
    pixels = {index: _pixel(point) for index, point in points.items()}
    return {index: pixel for index, pixel in pixels.items() if min(pixel) >= 1}


def _limb(start: Point, end: Point) -> np.ndarray:
    (x0, y0), (x1, y1) = start, end
    # Powers and not math.hypot, whose last bit differs: the half length is truncated.
    length = ((y0 - y1) ** 2 + (x0 - x1) ** 2) ** 0.5
    angle = math.degrees(math.atan2(y0 - y1, x0 - x1))
    middle = int((x0 + x1) / 2), int((y0 + y1) / 2)
    return np.asarray(cv2.ellipse2Poly(middle, (int(length / 2), 4), int(angle), 0, 360, 1))


def _hues(count: int) -> list[tuple[float, ...]]:
    # Unrounded, since OpenCV's own rounding of the halves is part of the official colours.
    return [tuple(255 * c for c in colorsys.hsv_to_rgb(i / count, 1.0, 1.0)) for i in range(count)]
