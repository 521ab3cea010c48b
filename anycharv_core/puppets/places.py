"""Places to travel through: scenery on planes that face the camera, from the sky to the ground before one's feet.

Scenery is designed on the first picture: u, v from the camera's axis, in frame heights, v down, so that v 0 is the
horizon. A plane's depth then says where in the world that is, and how fast it passes by. Every plane has marks of
its own all along, or motion along its edges could not be seen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

import numpy as np

from .bold import CLOTH
from .draw import Colour, Shape, ellipse, mix, rectangle, shade, tint
from .seeds import DOMAIN_ID, SPLIT_ID

# Of the planes behind, at and before a person's, in depths of that one; the sky's, in body heights.
NEARNESS = (4.5, 2.2, 1.45, 1.0, 0.78)
SKY_DEPTH = 50.0

Rng = np.random.Generator
_T = TypeVar("_T")

_SKIES: tuple[tuple[Colour, Colour], ...] = (
    ((92, 170, 226), (214, 238, 246)),
    ((250, 190, 150), (254, 236, 200)),
    ((120, 140, 214), (246, 206, 214)),
    ((96, 196, 206), (232, 246, 224)),
)
_GREENS: tuple[Colour, ...] = ((112, 178, 96), (86, 164, 116), (152, 190, 84))
_SANDS: tuple[Colour, ...] = ((240, 214, 156), (232, 196, 140), (244, 226, 188))
_STONES: tuple[Colour, ...] = ((188, 184, 190), (206, 188, 168), (160, 172, 186))
_BRIGHT = (*CLOTH[:2], *CLOTH[3:7])
_WAY = 3.0  # body heights to a side for which places are painted, even if fewer are seen
_DOWN = 3.0  # frame heights that a plane reaches below the horizon, whoever comes near


@dataclass(frozen=True)
class Plane:
    """depth: Z in body heights; shapes: back to front, in body heights, Y down from the ground."""

    depth: float
    shapes: tuple[Shape, ...]


@dataclass(frozen=True)
class View:
    """What the first picture is taken with: focal length in frame heights, and the camera's height above the
    ground in body heights."""

    focal: float
    height: float

    def ground(self, depth: float) -> float:
        """v of the ground at a depth."""
        return self.focal * self.height / depth


def build_place(seed: int, split: str, view: View, depth: float, way: float, aspect: float) -> tuple[Plane, ...]:
    """Place number `seed` (>= 0) of `split`, its planes from far to near, for a person at `depth`.

    way: how far the camera goes to either side at most, in body heights; aspect: width of a frame over its height.
    A place seen on a longer way is the same place, up to 3 body heights.
    """
    streams = [np.random.default_rng([SPLIT_ID[split], DOMAIN_ID["place"], seed, i]) for i in range(7)]
    kind, sky = _any(streams[6], tuple(_PAINTERS)), _any(streams[6], _SKIES)
    depths = (SKY_DEPTH, *(near * depth for near in NEARNESS))
    # Ground begins half-way, as depths go, between a plane and the one behind it.
    tops = [view.ground(float(np.sqrt(far * near))) for far, near in pairwise(depths)]
    painters = _PAINTERS[kind](streams[6], sky)
    planes = []
    for i, (plane_depth, paint, rng) in enumerate(zip(depths, (_sky(sky), *painters), streams, strict=False)):
        unit, middle = plane_depth / view.focal, 0.5 * aspect + 0.1
        painted = paint(rng, tops[i - 1] if i else 0.0, middle + _WAY * max(np.ceil(way / _WAY), 1) / unit)
        edge = middle + way / unit
        seen = [each for each in painted if each[0][:, 0].min() <= edge and each[0][:, 0].max() >= -edge]
        placed = tuple(Shape(points * unit - (0, view.height), colour, i) for points, colour in seen)
        planes.append(Plane(plane_depth, placed))
    return tuple(planes)


Painted = list[tuple[np.ndarray, Colour]]
Painter = Callable[[Rng, float, float], Painted]
"""Paints a plane whose ground, or skyline, begins at v, from -reach to reach."""


def _any(rng: Rng, options: Sequence[_T]) -> _T:
    return options[int(rng.integers(len(options)))]


def _along(rng: Rng, reach: float, pitch: float, jitter: float = 0.25) -> Iterator[float]:
    """Places about `pitch` apart, from the middle outwards, so that a longer reach only adds to them."""
    yield rng.uniform(-jitter, jitter) * pitch
    for i in range(1, int(reach / pitch) + 2):
        yield from (side * (i + rng.uniform(-jitter, jitter)) * pitch for side in (1, -1))


def _ground(top: float, reach: float, colour: Colour) -> Painted:
    return [(rectangle(-reach, top, reach, _DOWN), colour)]


def _ridge(rng: Rng, top: float, height: float, reach: float, colour: Colour) -> Painted:
    """Rolling land that rises up to `height` above `top`."""
    steps = int(reach / 0.04) + 2
    u = 0.04 * np.arange(-steps, steps + 1)
    (a, b), pace, other = rng.uniform(0, 6, 2), rng.uniform(5, 8), rng.uniform(11, 15)
    crest = top - height * (0.5 + 0.35 * np.sin(pace * u + a) + 0.15 * np.sin(other * u + b))
    return [(np.concatenate([np.stack([u, crest], -1), [(u[-1], _DOWN), (u[0], _DOWN)]]), colour)]


def _dots(
    rng: Rng, reach: float, pitch: float, rows: Sequence[float], size: float, colours: Sequence[Colour]
) -> Painted:
    """Rows of flat round marks."""
    return [
        (ellipse(u, v, size * rng.uniform(0.8, 1.25), 0.62 * size), _any(rng, colours))
        for v in rows
        for u in _along(rng, reach, pitch)
    ]


def _tiles(rng: Rng, top: float, reach: float, pitch: float, colours: Sequence[Colour]) -> Painted:
    """A floor of tiles side by side, in rows that grow nearer."""
    painted, rows = [], (top, top + 0.055, top + 0.125, top + 0.22, top + 0.34)
    for row, (v, below) in enumerate(pairwise(rows)):
        for i in range(-int(reach / pitch) - 1, int(reach / pitch) + 1):
            colour = colours[(i + row) % len(colours)]
            painted.append((rectangle(i * pitch, v, (i + 1) * pitch, below), colour))
    return painted


def _puff(u: float, v: float, size: float, colour: Colour) -> Painted:
    """Three discs: a cloud, a bush."""
    places = ((-0.75, 0.1, 0.62), (0.75, 0.15, 0.55), (0.0, -0.15, 0.85))
    return [(ellipse(u + size * x, v + size * y, size * r, 0.8 * size * r), colour) for x, y, r in places]


def _sky(colours: tuple[Colour, Colour]) -> Painter:
    def paint(rng: Rng, top: float, reach: float) -> Painted:
        bands = np.linspace(-0.62, 0.04, 12)
        painted = [(rectangle(-reach, -3, reach, 0.1), colours[0])]
        painted += [
            (rectangle(-reach, v, reach, 0.1), mix(*colours, amount))
            for v, amount in zip(bands, np.linspace(0, 1, 12).tolist(), strict=True)
        ]
        painted.append((ellipse(rng.uniform(-0.35, 0.35), rng.uniform(-0.42, -0.3), 0.07, 0.07), (255, 244, 196)))
        for u in _along(rng, reach, 0.34):
            painted += _puff(u, rng.uniform(-0.44, -0.2), rng.uniform(0.05, 0.075), tint(colours[1], 0.75))
        return painted

    return paint


def _tree(rng: Rng, u: float, foot: float, leaf: Colour) -> Painted:
    height = rng.uniform(0.24, 0.34)
    crown = rng.uniform(0.075, 0.1)
    painted = [(rectangle(u - 0.016, foot - 0.6 * height, u + 0.016, foot), (120, 84, 62))]
    if rng.random() < 0.5:
        spire = np.array(
            [(u - crown, foot - 0.25 * height), (u, foot - 1.15 * height), (u + crown, foot - 0.25 * height)]
        )
        painted.append((spire, leaf))
    else:
        painted.append((ellipse(u, foot - 0.75 * height, crown, 1.15 * crown), leaf))
    fruit = _any(rng, (*_BRIGHT, tint(leaf, 0.4)))
    for x, y in ((-0.35, -0.5), (0.3, -0.62), (0.0, -0.85)):
        painted.append((ellipse(u + x * crown, foot + y * height, 0.017, 0.017), fruit))
    return painted


def _house(rng: Rng, u: float, foot: float, width: float) -> Painted:
    height = rng.uniform(0.26, 0.44)
    wall = mix(_any(rng, CLOTH[:6]), (250, 236, 214), 0.35)
    painted = [(rectangle(u - width, foot - height, u + width, foot), wall)]
    roof = np.array(
        [(u - 1.12 * width, foot - height), (u, foot - height - 0.1), (u + 1.12 * width, foot - height)]
    )
    painted.append((roof, shade(wall, 0.45)))
    for v in np.arange(foot - height + 0.05, foot - 0.1, 0.11).tolist():
        for x in (-0.5, 0.5):
            window = rectangle(u + (x - 0.24) * width, v, u + (x + 0.24) * width, v + 0.06)
            painted.append((window, (255, 240, 190)))
    painted.append((rectangle(u - 0.2 * width, foot - 0.09, u + 0.2 * width, foot), shade(wall, 0.6)))
    return painted


def _parasol(rng: Rng, u: float, foot: float) -> Painted:
    one, two = _any(rng, _BRIGHT), CLOTH[6]
    v, r = foot - rng.uniform(0.2, 0.26), rng.uniform(0.1, 0.13)
    turn = np.linspace(np.pi, 2 * np.pi, 13)
    dome = np.stack([u + r * np.cos(turn), v + 0.75 * r * np.sin(turn)], -1)
    painted = [(rectangle(u - 0.009, v, u + 0.009, foot), (120, 84, 62)), (dome, one)]
    for i in (2, 6, 10):
        painted.append((np.concatenate([dome[i : i + 3], [(u + r * (i - 5) / 8, v)]]), two))
    painted.append((rectangle(u + 0.08, foot - 0.02, u + 0.2, foot + 0.012), one))
    return painted


def _meadow(rng: Rng, sky: tuple[Colour, Colour]) -> tuple[Painter, ...]:
    green = _any(rng, _GREENS)
    light, dark = tint(green, 0.22), shade(green, 0.18)

    def far(rng: Rng, top: float, reach: float) -> Painted:
        hill = mix(shade(green, 0.1), sky[1], 0.45)
        painted = _ridge(rng, top, 0.12, reach, hill)
        return painted + _dots(
            rng, reach, 0.17, (top + 0.02, top - 0.015), 0.022, (shade(hill, 0.22), tint(hill, 0.35))
        )

    def middle(rng: Rng, top: float, reach: float) -> Painted:
        painted = _ridge(rng, top, 0.015, reach, mix(green, sky[1], 0.12))
        for u in _along(rng, reach, 0.3):
            painted += _tree(
                rng, u, top + 0.02, _any(rng, (shade(green, 0.35), shade(green, 0.2), (214, 140, 62)))
            )
        return painted

    def near(rng: Rng, top: float, reach: float) -> Painted:
        painted = _ridge(rng, top, 0.02, reach, light)
        for u in _along(rng, reach, 0.42):
            painted += _puff(u, top + 0.005, rng.uniform(0.045, 0.06), dark)
        return painted + _dots(rng, reach, 0.13, (top + 0.035,), 0.018, (*_BRIGHT, CLOTH[6]))

    def own(rng: Rng, top: float, reach: float) -> Painted:
        painted = _ground(top, reach, green) + _tiles(rng, top, reach, 0.16, (green, mix(green, dark, 0.55)))
        return painted + _dots(rng, reach, 0.19, (top + 0.03,), 0.016, (CLOTH[6], CLOTH[1]))

    def front(rng: Rng, top: float, reach: float) -> Painted:
        painted = _ridge(rng, top, 0.012, reach, dark)
        return painted + _dots(rng, reach, 0.18, (top + 0.03, top + 0.12), 0.026, _BRIGHT)

    return far, middle, near, own, front


def _beach(rng: Rng, sky: tuple[Colour, Colour]) -> tuple[Painter, ...]:
    sand, sea = _any(rng, _SANDS), _any(rng, ((54, 148, 190), (46, 160, 168), (74, 132, 200)))
    dark = shade(sand, 0.16)

    def far(rng: Rng, top: float, reach: float) -> Painted:
        painted = []
        for u in _along(rng, reach, 0.55):
            painted.append((ellipse(u, top, 0.12, 0.075), mix((92, 150, 120), sky[1], 0.3)))
        painted += _ground(top - 0.012, reach, sea)
        painted += _dots(rng, reach, 0.15, (top + 0.012, top + 0.035), 0.03, (tint(sea, 0.5), shade(sea, 0.25)))
        for u in _along(rng, reach, 0.48):
            sail = np.array([(u, top - 0.12), (u + 0.055, top), (u, top)])
            hull = np.array(
                [
                    (u - 0.04, top + 0.004),
                    (u + 0.065, top + 0.004),
                    (u + 0.04, top + 0.022),
                    (u - 0.02, top + 0.022),
                ]
            )
            painted += [(sail, CLOTH[6]), (hull, _any(rng, _BRIGHT))]
        return painted

    def middle(rng: Rng, top: float, reach: float) -> Painted:
        painted = _ridge(rng, top - 0.012, 0.012, reach, (250, 248, 240)) + _ridge(
            rng, top, 0.012, reach, tint(sand, 0.3)
        )
        for u in _along(rng, reach, 0.4):
            painted += _parasol(rng, u, top + 0.03)
        return painted

    def near(rng: Rng, top: float, reach: float) -> Painted:
        painted = _ridge(rng, top, 0.02, reach, sand)
        for u in _along(rng, reach, 0.36):
            blades = [
                (u - 0.04, top - 0.08),
                (u, top - 0.02),
                (u + 0.01, top - 0.11),
                (u + 0.03, top - 0.02),
                (u + 0.07, top - 0.07),
            ]
            painted.append((np.array([*blades, (u + 0.035, top + 0.02), (u - 0.015, top + 0.02)]), (104, 160, 92)))
        return painted + _dots(rng, reach, 0.16, (top + 0.035,), 0.02, (dark, *_BRIGHT))

    def own(rng: Rng, top: float, reach: float) -> Painted:
        painted = _ground(top, reach, sand) + _tiles(
            rng, top, reach, 0.16, (tint(sand, 0.25), mix(sand, dark, 0.6))
        )
        return painted + _dots(rng, reach, 0.21, (top + 0.03,), 0.016, (CLOTH[5], CLOTH[6], CLOTH[0]))

    def front(rng: Rng, top: float, reach: float) -> Painted:
        painted = _ridge(rng, top, 0.012, reach, dark)
        return painted + _dots(rng, reach, 0.18, (top + 0.035, top + 0.12), 0.028, (*_BRIGHT, CLOTH[6]))

    return far, middle, near, own, front


def _town(rng: Rng, sky: tuple[Colour, Colour]) -> tuple[Painter, ...]:
    stone, green = _any(rng, _STONES), _any(rng, _GREENS)
    dark = shade(stone, 0.3)

    def far(rng: Rng, top: float, reach: float) -> Painted:
        painted = []
        haze = mix((96, 110, 150), sky[1], 0.45)
        for u in _along(rng, reach, 0.13, 0.12):
            height = rng.uniform(0.06, 0.24)
            painted.append((rectangle(u - 0.055, top - height, u + 0.055, top + 0.1), haze))
            for v in np.arange(top - height + 0.02, top - 0.01, 0.05).tolist():
                painted.append((rectangle(u - 0.03, v, u + 0.03, v + 0.02), tint(haze, 0.45)))
        return painted + _ground(top - 0.01, reach, shade(haze, 0.1))

    def middle(rng: Rng, top: float, reach: float) -> Painted:
        painted = _ground(top - 0.01, reach, mix(stone, green, 0.4))
        for u in _along(rng, reach, 0.32, 0.1):
            painted += _house(rng, u, top + 0.01, rng.uniform(0.1, 0.13))
        return painted + _dots(rng, reach, 0.14, (top + 0.035,), 0.016, (dark, CLOTH[6]))

    def near(rng: Rng, top: float, reach: float) -> Painted:
        painted = _ground(top, reach, green)
        for u in _along(rng, reach, 0.44):
            painted += _puff(u, top, rng.uniform(0.045, 0.055), shade(green, 0.3))
            painted.append((ellipse(u, top - 0.02, 0.018, 0.018), _any(rng, _BRIGHT)))
        return painted + _dots(rng, reach, 0.13, (top + 0.035,), 0.017, (*_BRIGHT, CLOTH[6]))

    def own(rng: Rng, top: float, reach: float) -> Painted:
        return _ground(top, reach, stone) + _tiles(rng, top, reach, 0.16, (tint(stone, 0.3), shade(stone, 0.12)))

    def front(rng: Rng, top: float, reach: float) -> Painted:
        painted = _ground(top, reach, tint(stone, 0.55)) + _ground(top + 0.025, reach, dark)
        for u in _along(rng, reach, 0.24, 0.0):
            painted.append((rectangle(u, top + 0.06, u + 0.12, top + 0.09), CLOTH[1]))
        return painted

    return far, middle, near, own, front


_PAINTERS: dict[str, Callable[[Rng, tuple[Colour, Colour]], tuple[Painter, ...]]] = {
    "meadow": _meadow,
    "beach": _beach,
    "town": _town,
}
