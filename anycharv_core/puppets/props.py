"""Things that stand or move behind and in front of the puppet."""

from dataclasses import dataclass

import numpy as np

from .draw import Colour, Shape, ellipse, rectangle, shade, smooth, stroke, tint

MOVING = ("cloud", "bird", "car", "ball", "balloon", "kite")
OCCLUDING = ("pole", "bush", "fence", "ball", "leaf")
TOUCHED = ("bench", "wall")  # to sit on, its seat's middle at the origin, and to lean on, its face at x = 0


@dataclass(frozen=True)
class Prop:
    """One rigid object.

    Attributes:
        kind: one of `MOVING`, `OCCLUDING` or `TOUCHED`.
        start: position of its origin in scene units at the first frame.
        end: position at the last frame.
        size: scene units per unit of its shapes.
        turn: radians it turns over the clip.
        colour: main RGB colour.
    """

    kind: str
    start: tuple[float, float]
    end: tuple[float, float]
    size: float
    turn: float
    colour: Colour


def prop_matrices(prop: Prop, frames: int) -> np.ndarray:
    """Returns float64 [F,2,3], the map of the prop's shapes to scene units."""
    u = np.linspace(0, 1, frames) if frames > 1 else np.zeros(1)
    angle = prop.turn * u
    c, s = prop.size * np.cos(angle), prop.size * np.sin(angle)
    x, y = (a + (b - a) * u for a, b in zip(prop.start, prop.end, strict=True))
    return np.stack([np.stack([c, -s, x], axis=-1), np.stack([s, c, y], axis=-1)], axis=1)


def prop_shapes(prop: Prop, bone: int) -> list[Shape]:
    """Returns the prop's shapes on bone number `bone`, about one unit large."""
    colour, dark, light = prop.colour, shade(prop.colour, 0.25), tint(prop.colour, 0.4)
    match prop.kind:
        case "cloud":
            lobes = [(-0.55, 0.02, 0.3), (-0.15, -0.14, 0.4), (0.3, -0.05, 0.33), (0.62, 0.06, 0.22)]
            painted = [(ellipse(x, y, r, r * 0.8), colour) for x, y, r in lobes]
            painted.append((smooth(rectangle(-0.8, 0.02, 0.8, 0.26), 4), colour))
        case "bird":
            wings = [
                (-0.5, -0.3),
                (-0.2, -0.22),
                (0, 0.02),
                (0.2, -0.22),
                (0.5, -0.3),
                (0.25, -0.05),
                (0, 0.14),
            ]
            painted = [(smooth([*wings, (-0.25, -0.05)], 4), colour)]
        case "car":
            body = [(-0.62, 0.1), (-0.6, -0.1), (-0.36, -0.16), (-0.22, -0.38), (0.2, -0.38), (0.36, -0.14)]
            body += [(0.6, -0.08), (0.64, 0.1)]
            window = [(-0.27, -0.15), (-0.17, -0.31), (0.16, -0.31), (0.27, -0.15)]
            painted = [(smooth(body, 4), colour), (np.array(window), (206, 232, 244))]
            painted.append((rectangle(-0.02, -0.32, 0.02, -0.14), colour))
            for x in (-0.36, 0.36):
                painted += [
                    (ellipse(x, 0.1, 0.14, 0.14), (52, 52, 62)),
                    (ellipse(x, 0.1, 0.06, 0.06), (196, 200, 208)),
                ]
        case "ball":
            painted = [(ellipse(0, 0, 0.5, 0.5), colour)]
            painted += [(stroke([(-0.42, -0.1), (0, 0.06), (0.42, -0.1)], (0.1, 0.16, 0.1)), light)]
            painted += [(ellipse(-0.16, -0.28, 0.1, 0.07, -0.5), (255, 255, 255))]
        case "balloon":
            painted = [(stroke([(0, 0.5), (0.05, 0.8), (-0.04, 1.2)], (0.03,) * 3), (110, 104, 116))]
            painted += [(ellipse(0, 0, 0.42, 0.52), colour), (ellipse(-0.15, -0.2, 0.07, 0.13, 0.4), light)]
        case "kite":
            tail = [(0, 0.6), (0.12, 0.8), (-0.08, 1.0), (0.08, 1.25)]
            painted = [(stroke(tail, (0.03,) * 4), dark)]
            painted.append((np.array([(0, -0.5), (0.36, -0.05), (0, 0.6), (-0.36, -0.05)]), colour))
            painted.append((np.array([(0, -0.5), (0.36, -0.05), (0, -0.05)]), light))
        case "pole":
            painted = [
                (rectangle(-0.05, -2.0, 0.05, 1.2), colour),
                (rectangle(-0.05, -2.0, -0.015, 1.2), light),
            ]
            painted.append((rectangle(-0.06, 0.0, 0.06, 0.03), dark))
        case "bush":
            lobes = [
                (-0.4, 0.0, 0.3),
                (0.4, 0.02, 0.28),
                (0.0, -0.14, 0.38),
                (-0.2, 0.14, 0.4),
                (0.24, 0.16, 0.4),
            ]
            painted = [(ellipse(x, y, r, r), colour) for x, y, r in lobes]
            painted += [(ellipse(x, y, 0.07, 0.05, 0.4), light) for x, y in ((-0.3, 0), (0.05, -0.25), (0.3, 0.1))]
            painted += [(ellipse(x, y, 0.07, 0.05, 0.4), dark) for x, y in ((-0.1, 0.18), (0.15, 0.0), (0.5, 0.2))]
        case "fence":
            painted = [(rectangle(-6, y, 6, y + 0.14), dark) for y in (-0.1, 0.35)]
            for x in np.arange(-6, 6, 0.62):
                tip = [(x, 1.2), (x, -0.22), (x + 0.13, -0.4), (x + 0.26, -0.22), (x + 0.26, 1.2)]
                painted.append((np.array(tip), colour))
        case "leaf":
            blade = smooth([(-0.5, 0), (-0.15, -0.22), (0.3, -0.2), (0.55, 0), (0.3, 0.2), (-0.15, 0.22)])
            painted = [(blade, colour), (stroke([(-0.6, 0), (0, 0.01), (0.5, 0)], (0.05, 0.05, 0.02)), dark)]
        case "bench":
            painted = [(rectangle(x, 0.06, x + 0.1, 1.0), dark) for x in (-0.85, 0.75)]
            painted += [(rectangle(-1.0, 0.0, 1.0, 0.16), colour), (rectangle(-1.0, 0.0, 1.0, 0.05), light)]
        case "wall":
            painted = [(rectangle(0.0, -6.0, 1.6, 6.0), colour), (rectangle(0.0, -6.0, 0.12, 6.0), light)]
            painted += [(rectangle(0.12, y, 1.6, y + 0.04), dark) for y in np.arange(-6, 6, 0.6)]
        case unknown:
            raise KeyError(unknown)
    return [Shape(points, paint, bone) for points, paint in painted]
