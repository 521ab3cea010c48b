"""Flat shapes and their rasterisation: polygons in, anti-aliased premultiplied layers out."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from ..opencv import cv2

SUPERSAMPLE = 3
SUBPIXEL_BITS = 4

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Shape:
    """One filled polygon: `points` float [N,2] in the frame of bone number `bone`, `colour` RGB 0..255."""

    points: np.ndarray
    colour: Colour
    bone: int = 0


@dataclass(frozen=True)
class Layer:
    """A rasterised window of the frame, its top left pixel at (`x`, `y`).

    `rgba` uint8 [h,w,4] is premultiplied; `fine` uint8 [h S,w S], S = `SUPERSAMPLE`, is 1 + the index into the
    `bones` given to `rasterise` of the shape at each part of a pixel and 0 where there is none; `labels` uint8
    [h,w] is the same at the pixel centres (both None unless asked for).
    """

    x: int
    y: int
    rgba: np.ndarray
    labels: np.ndarray | None
    fine: np.ndarray | None = None

    def touched(self, bones: np.ndarray) -> np.ndarray:
        """bool [h,w]: pixels that a visible part of a shape touches whose bone is one of `bones`, bool [B]."""
        assert self.fine is not None
        height, width = self.rgba.shape[:2]
        of_label = np.concatenate([[False], bones])
        return of_label[self.fine].reshape(height, SUPERSAMPLE, width, SUPERSAMPLE).any(axis=(1, 3))


def mix(first: Colour, second: Colour, amount: float) -> Colour:
    """Blends two RGB colours; `amount` 0 gives `first`, 1 gives `second`."""
    red, green, blue = (round(a + (b - a) * amount) for a, b in zip(first, second, strict=True))
    return red, green, blue


def shade(colour: Colour, amount: float) -> Colour:
    """Darkens an RGB colour towards a cool near-black by `amount` 0..1."""
    return mix(colour, (28, 22, 52), amount)


def tint(colour: Colour, amount: float) -> Colour:
    """Lightens an RGB colour towards white by `amount` 0..1."""
    return mix(colour, (255, 255, 255), amount)


def ellipse(x: float, y: float, rx: float, ry: float, angle: float = 0.0, count: int = 28) -> np.ndarray:
    """Returns an ellipse as float [count,2]; `angle` in radians turns it clockwise on screen."""
    turn = np.linspace(0, 2 * np.pi, count, endpoint=False)
    u, v = rx * np.cos(turn), ry * np.sin(turn)
    c, s = np.cos(angle), np.sin(angle)
    return np.stack([x + c * u - s * v, y + s * u + c * v], axis=-1)


def rectangle(x0: float, y0: float, x1: float, y1: float) -> np.ndarray:
    """Returns an axis-aligned rectangle as float [4,2]."""
    return np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], dtype=float)


def smooth(points: Sequence[tuple[float, float]] | np.ndarray, steps: int = 6) -> np.ndarray:
    """Returns the closed Catmull-Rom curve through `points` [N,2] as float [N*steps,2]."""
    p1 = np.asarray(points, dtype=float)[:, None]
    p0, p2, p3 = np.roll(p1, 1, axis=0), np.roll(p1, -1, axis=0), np.roll(p1, -2, axis=0)
    t = np.linspace(0, 1, steps, endpoint=False)[None, :, None]
    curve = p1 + 0.5 * t * (p2 - p0 + t * (2 * p0 - 5 * p1 + 4 * p2 - p3 + t * (3 * (p1 - p2) + p3 - p0)))
    return curve.reshape(-1, 2)


def stroke(points: Sequence[tuple[float, float]] | np.ndarray, widths: Sequence[float]) -> np.ndarray:
    """Returns an open path [N,2] thickened to the full `widths` [N] as one rounded closed polygon."""
    path = np.asarray(points, dtype=float)
    along = np.gradient(path, axis=0)
    along /= np.linalg.norm(along, axis=1, keepdims=True)
    half = np.asarray(widths, dtype=float)[:, None] / 2
    side = np.stack([-along[:, 1], along[:, 0]], axis=-1) * half
    start = path[:1] - along[:1] * half[:1]
    end = path[-1:] + along[-1:] * half[-1:]
    return smooth(np.concatenate([start, path + side, end, (path - side)[::-1]]), 4)


def band(points: np.ndarray, low: float, high: float) -> np.ndarray:
    """Returns the part of a polygon [N,2] with `low` <= y <= `high`, float [M,2]; M may be 0."""
    for level, sign in ((low, 1.0), (high, -1.0)):
        kept = []
        for a, b in zip(points, np.roll(points, -1, axis=0), strict=True):
            inside_a, inside_b = sign * (a[1] - level) >= 0, sign * (b[1] - level) >= 0
            if inside_a:
                kept.append(a)
            if inside_a != inside_b:
                kept.append(a + (b - a) * ((level - a[1]) / (b[1] - a[1])))
        points = np.array(kept).reshape(-1, 2)
    return points


def to_subpixels(shapes: Sequence[Shape], matrices: np.ndarray) -> list[list[np.ndarray]]:
    """Transforms shapes to the integer coordinates that `rasterise` fills.

    `matrices` float [F,B,2,3] maps bone frames to continuous pixels (pixel i covers i..i+1).
    Returns, for each of the F frames, one int32 [N,2] polygon per shape.
    """
    if not shapes:
        return [[] for _ in matrices]
    lengths = [len(shape.points) for shape in shapes]
    points = np.concatenate([shape.points for shape in shapes])
    bones = np.repeat([shape.bone for shape in shapes], lengths)
    polygons = []
    for frame in matrices:
        m = frame[bones]
        pixels = np.einsum("nij,nj->ni", m[:, :, :2], points) + m[:, :, 2]
        # OpenCV puts pixel centres at whole numbers.
        fine = np.rint((pixels * SUPERSAMPLE - 0.5) * (1 << SUBPIXEL_BITS)).astype(np.int32)
        polygons.append(_pieces(fine, lengths))
    return polygons


def _pieces(points: np.ndarray, lengths: Sequence[int]) -> list[np.ndarray]:
    """Cuts points [sum(lengths),2] into polygons."""
    ends = list(accumulate(lengths))
    return [points[end - length : end] for end, length in zip(ends, lengths, strict=True)]


def rasterise(
    polygons: Sequence[np.ndarray],
    colours: Sequence[Colour],
    bones: Sequence[int],
    size: tuple[int, int],
    labels: bool = False,
) -> Layer | None:
    """Paints polygons in order and returns the window they touch of a frame of `size` (width, height).

    A pixel has alpha > 0 exactly where some polygon covers part of it. Returns None when nothing is
    inside the frame.
    """
    if not polygons:
        return None
    points = np.concatenate(polygons)
    step = SUPERSAMPLE << SUBPIXEL_BITS
    # One spare pixel on each side: OpenCV rounds outlines outwards.
    x0, y0 = np.maximum(points.min(0) // step - 1, 0).tolist()
    x1, y1 = np.minimum(points.max(0) // step + 2, size).tolist()
    if x0 >= x1 or y0 >= y1:
        return None
    local = _pieces(points - np.array((x0 * step, y0 * step), np.int32), [len(p) for p in polygons])
    fine = np.zeros(((y1 - y0) * SUPERSAMPLE, (x1 - x0) * SUPERSAMPLE, 4), np.uint8)
    for polygon, colour in zip(local, colours, strict=True):
        cv2.fillPoly(fine, [polygon], (*colour, 255), cv2.LINE_8, SUBPIXEL_BITS)
    rgba = cv2.resize(fine, (x1 - x0, y1 - y0), interpolation=cv2.INTER_AREA)
    if not labels:
        return Layer(x0, y0, rgba, None)
    ids = np.zeros(fine.shape[:2], np.uint8)
    for polygon, bone in zip(local, bones, strict=True):
        cv2.fillPoly(ids, [polygon], bone + 1, cv2.LINE_8, SUBPIXEL_BITS)
    centre = SUPERSAMPLE // 2
    return Layer(x0, y0, rgba, ids[centre::SUPERSAMPLE, centre::SUPERSAMPLE], ids)


def composite(frame: np.ndarray, layer: Layer) -> None:
    """Puts a layer over `frame` uint8 [H,W,3] in place; pixels with alpha 0 keep their exact value."""
    height, width = layer.rgba.shape[:2]
    window = frame[layer.y : layer.y + height, layer.x : layer.x + width]
    product = window * (255 - layer.rgba[..., 3:]).astype(np.uint16) + np.uint16(128)
    window[:] = layer.rgba[..., :3] + ((product + (product >> 8)) >> 8).astype(np.uint8)
