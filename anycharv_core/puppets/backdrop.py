"""The still picture behind a puppet: sky and hills, a room, a street, a park, a stage, a beach."""

from collections.abc import Callable
from typing import TypeVar

import numpy as np

from .draw import Colour, Shape, ellipse, mix, rectangle, shade, smooth, tint

# Shapes reach this far to both sides, so that every picture format and camera move stays covered.
REACH = 2.0

Gradient = tuple[Colour, Colour]
_T = TypeVar("_T")

_SKIES: tuple[Gradient, ...] = (
    ((164, 208, 236), (228, 240, 242)),
    ((176, 200, 232), (250, 228, 214)),
    ((200, 216, 226), (238, 238, 230)),
    ((150, 200, 214), (232, 240, 222)),
    ((122, 134, 178), (228, 190, 190)),
)
_WALLS: tuple[Colour, ...] = (
    (222, 214, 200),
    (198, 212, 212),
    (226, 206, 196),
    (206, 204, 222),
    (208, 218, 196),
    (168, 182, 194),
)
_GREENS: tuple[Colour, ...] = ((168, 200, 148), (150, 190, 156), (188, 204, 142), (140, 180, 150))


def hills(rng: np.random.Generator, horizon: float) -> tuple[Gradient, list[Shape]]:
    """Sky above rows of hills and a meadow."""
    sky, green = _pick(rng, _SKIES), _pick(rng, _GREENS)
    x, y, radius = rng.uniform(-0.4, 0.4), rng.uniform(0.08, 0.25), rng.uniform(0.05, 0.09)
    shapes = [_dot(x, y, radius, tint(sky[1], 0.6))]
    for i in range(3):
        haze = mix(sky[1], shade(green, 0.12), 0.35 + 0.25 * i)
        shapes.append(_ridge(rng, horizon - 0.17 + 0.07 * i, 0.10 - 0.02 * i, haze))
    shapes.append(Shape(rectangle(-REACH, horizon, REACH, 2), green))
    return sky, shapes + _tufts(rng, horizon, shade(green, 0.12))


def park(rng: np.random.Generator, horizon: float) -> tuple[Gradient, list[Shape]]:
    """A lawn with a path and a row of trees."""
    sky, green = _pick(rng, _SKIES), _pick(rng, _GREENS)
    shapes = [_ridge(rng, horizon - 0.10, 0.05, mix(sky[1], shade(green, 0.2), 0.6))]
    shapes.append(Shape(rectangle(-REACH, horizon, REACH, 2), green))
    for x in np.arange(-REACH, REACH, 0.36):
        x += rng.uniform(-0.1, 0.1)
        height, leaf = rng.uniform(0.22, 0.42), mix(shade(green, rng.uniform(0.1, 0.3)), sky[1], 0.18)
        trunk = rectangle(x - 0.014, horizon - height * 0.6, x + 0.014, horizon + 0.03)
        shapes.append(Shape(trunk, (150, 122, 104)))
        if rng.random() < 0.5:
            crown = [(x - 0.12, horizon - 0.1), (x, horizon - height - 0.1), (x + 0.12, horizon - 0.1)]
            shapes.append(Shape(np.array(crown), leaf))
        else:
            shapes.append(_dot(x, horizon - height * 0.75, height * 0.36, leaf))
            shapes.append(_dot(x - height * 0.12, horizon - height * 0.82, height * 0.16, tint(leaf, 0.15)))
    path = smooth([(-REACH, 0.86), (0, 0.83), (REACH, 0.87), (REACH, 1.12), (0, 1.08), (-REACH, 1.12)], 8)
    return sky, [*shapes, *_tufts(rng, horizon, shade(green, 0.12)), Shape(path, (226, 214, 190))]


def room(rng: np.random.Generator, horizon: float) -> tuple[Gradient, list[Shape]]:
    """A papered wall with a window or a picture, a skirting board and a wooden floor."""
    wall = _pick(rng, _WALLS)
    wood = _pick(rng, ((206, 178, 146), (190, 170, 152), (176, 156, 140)))
    shapes, pitch = [], rng.uniform(0.10, 0.2)
    paper = rng.integers(3)
    for i, x in enumerate(np.arange(-REACH, REACH, pitch)):
        if paper == 0:
            shapes.append(Shape(rectangle(x, -2, x + pitch / 2, 2), shade(wall, 0.05)))
        elif paper == 1:
            rows = np.arange(-0.5, 1, pitch) + (i % 2) * pitch / 2
            shapes += [_dot(x, y, 0.014, shade(wall, 0.09)) for y in rows]
    for x in np.arange(-REACH, REACH, 0.8) + rng.uniform(0, 0.5):
        y, w, h = rng.uniform(0.08, 0.2), rng.uniform(0.10, 0.17), rng.uniform(0.10, 0.16)
        if rng.random() < 0.55:
            frame = rectangle(x - w - 0.02, y - 0.02, x + w + 0.02, y + 2 * h + 0.02)
            shapes.append(Shape(frame, tint(wall, 0.7)))
            shapes.append(Shape(rectangle(x - w, y, x + w, y + 2 * h), (186, 214, 228)))
            shapes.append(Shape(rectangle(x - 0.008, y, x + 0.008, y + 2 * h), tint(wall, 0.7)))
            shapes.append(Shape(rectangle(x - w, y + h - 0.008, x + w, y + h + 0.008), tint(wall, 0.7)))
        else:
            shapes.append(Shape(rectangle(x - w * 0.7, y, x + w * 0.7, y + h * 1.5), shade(wood, 0.3)))
            inner = rectangle(x - w * 0.7 + 0.015, y + 0.015, x + w * 0.7 - 0.015, y + h * 1.5 - 0.015)
            shapes.append(Shape(inner, tint(_pick(rng, _GREENS), 0.35)))
            shapes.append(_dot(x, y + h * 0.75, h * 0.35, shade(wall, 0.2)))
    shapes.append(Shape(rectangle(-REACH, horizon, REACH, 2), wood))
    for i, y in enumerate((0.04, 0.10, 0.18, 0.28)):
        shapes.append(Shape(rectangle(-REACH, horizon + y, REACH, horizon + y + 0.006), shade(wood, 0.13)))
        for x in np.arange(-REACH, REACH, 0.5) + 0.23 * i:
            joint = rectangle(x, horizon + y, x + 0.006, horizon + y * 1.3 + 0.03)
            shapes.append(Shape(joint, shade(wood, 0.13)))
    shapes.append(Shape(rectangle(-REACH, horizon - 0.025, REACH, horizon + 0.005), tint(wall, 0.6)))
    return (tint(wall, 0.15), wall), shapes


def street(rng: np.random.Generator, horizon: float) -> tuple[Gradient, list[Shape]]:
    """House fronts behind a pavement."""
    sky = _pick(rng, _SKIES)
    shapes, x = [], -REACH
    while x < REACH:
        width, height = rng.uniform(0.22, 0.4), rng.uniform(0.4, 0.75)
        front = mix(_pick(rng, _WALLS), _pick(rng, ((214, 160, 140), (150, 170, 190), (222, 200, 150))), 0.35)
        shapes.append(Shape(rectangle(x, horizon - height, x + width, horizon + 0.01), front))
        roof = rectangle(x, horizon - height - 0.02, x + width, horizon - height)
        shapes.append(Shape(roof, shade(front, 0.25)))
        for row in np.arange(horizon - height + 0.05, horizon - 0.18, 0.15):
            for column in np.arange(x + 0.04, x + width - 0.07, 0.11):
                window = rectangle(column, row, column + 0.055, row + 0.085)
                shapes.append(Shape(window, mix(front, (120, 150, 180), 0.6)))
        door = x + width * rng.uniform(0.2, 0.6)
        shapes.append(Shape(rectangle(door, horizon - 0.15, door + 0.075, horizon), shade(front, 0.4)))
        x += width
    shapes.append(Shape(rectangle(-REACH, horizon, REACH, 2), (198, 196, 196)))
    shapes.append(Shape(rectangle(-REACH, horizon, REACH, horizon + 0.018), (226, 224, 220)))
    for x in np.arange(-REACH, REACH, 0.3):
        slab = [(x, horizon + 0.02), (x + 0.008, horizon + 0.02), (x * 1.25 + 0.01, 1.5), (x * 1.25, 1.5)]
        shapes.append(Shape(np.array(slab), (182, 180, 182)))
    shapes.append(Shape(rectangle(-REACH, 1.0, REACH, 2), (150, 150, 158)))
    return sky, shapes


def stage(rng: np.random.Generator, horizon: float) -> tuple[Gradient, list[Shape]]:
    """A curtain with two spotlights above dark boards."""
    cloth = _pick(rng, ((120, 72, 92), (70, 84, 120), (88, 76, 120), (66, 100, 104)))
    shapes = []
    for x in np.arange(-REACH, REACH, 0.15):
        fold = [(x, -1), (x + 0.07, -1), (x + 0.085, horizon), (x - 0.01, horizon)]
        shapes.append(Shape(np.array(fold), shade(cloth, 0.28)))
        shapes.append(Shape(rectangle(x + 0.1, -1, x + 0.115, horizon), tint(cloth, 0.12)))
    for x in (rng.uniform(-0.4, -0.1), rng.uniform(0.1, 0.4)):
        shapes.append(Shape(ellipse(x * 0.4, 0.42, 0.34, 0.46, count=48), tint(cloth, 0.24)))
    shapes.append(Shape(rectangle(-REACH, horizon, REACH, 2), (116, 94, 88)))
    shapes.append(Shape(ellipse(0, 0.93, 0.62, 0.10, count=48), (150, 126, 114)))
    for y in (0.03, 0.085, 0.16):
        shapes.append(Shape(rectangle(-REACH, horizon + y, REACH, horizon + y + 0.006), (92, 74, 72)))
    return (shade(cloth, 0.2), cloth), shapes


def beach(rng: np.random.Generator, horizon: float) -> tuple[Gradient, list[Shape]]:
    """Sky, sea with crests and sand."""
    sky, sea = _pick(rng, _SKIES), _pick(rng, ((118, 180, 196), (110, 160, 190), (130, 190, 184)))
    shapes = [_dot(rng.uniform(-0.4, 0.4), rng.uniform(0.1, 0.25), 0.07, (255, 246, 214))]
    shapes.append(Shape(rectangle(-REACH, horizon - 0.2, REACH, 2), sea))
    for y in (0.16, 0.11, 0.05):
        for x in np.arange(-REACH, REACH, 0.28) + rng.uniform(0, 0.28):
            shapes.append(Shape(ellipse(x, horizon - y, 0.05, 0.006), tint(sea, 0.5)))
    sand = (234, 216, 180)
    shore = [(x, horizon + 0.012 * np.sin(x * 7)) for x in np.linspace(-REACH, REACH, 30)]
    shapes.append(Shape(np.array([*shore, (REACH, 2), (-REACH, 2)]) - (0, 0.015), (250, 248, 240)))
    shapes.append(Shape(np.array([*shore, (REACH, 2), (-REACH, 2)]), sand))
    return sky, shapes + _tufts(rng, horizon, shade(sand, 0.12))


BACKDROPS: dict[str, Callable[[np.random.Generator, float], tuple[Gradient, list[Shape]]]] = {
    "hills": hills,
    "park": park,
    "room": room,
    "street": street,
    "stage": stage,
    "beach": beach,
}


def _pick(rng: np.random.Generator, options: tuple[_T, ...]) -> _T:
    return options[rng.integers(len(options))]


def _dot(x: float, y: float, radius: float, colour: Colour) -> Shape:
    return Shape(ellipse(x, y, radius, radius), colour)


def _ridge(rng: np.random.Generator, y: float, height: float, colour: Colour) -> Shape:
    x = np.linspace(-REACH, REACH, 60)
    a, b, c, d = rng.uniform(0, 6), rng.uniform(2, 4), rng.uniform(0, 6), rng.uniform(5, 8)
    top = y - height * (0.6 * np.sin(b * x + a) + 0.3 * np.sin(d * x + c))
    return Shape(np.concatenate([np.stack([x, top], axis=-1), [(REACH, 2), (-REACH, 2)]]), colour)


def _tufts(rng: np.random.Generator, horizon: float, colour: Colour) -> list[Shape]:
    x, y = rng.uniform(-REACH, REACH, 90), horizon + 0.015 + 0.5 * rng.random(90) ** 1.3
    length = 0.008 + 0.02 * (y - horizon)
    return [Shape(ellipse(a, b, c, 0.004), colour) for a, b, c in zip(x, y, length, strict=True)]
