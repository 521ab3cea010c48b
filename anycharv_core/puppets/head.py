"""The puppet's head: skull, face, hair and hat as flat shapes in head heights around the skull's centre."""

import numpy as np

from .character import Character
from .draw import Colour, ellipse, mix, rectangle, shade, smooth, stroke, tint
from .motion import EAR_HEIGHT, EAR_LONGITUDE, EYE_HEIGHT, EYE_LONGITUDE, HEAD_HALF_WIDTH, NOSE_HEIGHT

Painted = list[tuple[np.ndarray, Colour]]

# Height of the hairline (second row) by longitude from the nose in degrees (first row).
_CROPPED = ((0, 38, 58, 70, 84, 104, 118, 180), (-0.25, -0.22, -0.10, 0.06, -0.04, -0.02, 0.26, 0.34))
_TIED = ((0, 38, 60, 72, 95, 120, 180), (-0.30, -0.24, -0.08, 0.05, 0.00, 0.22, 0.34))
_FRAMING = ((0, 38, 54, 62, 180), (-0.24, -0.18, 0.0, 0.40, 0.44))
_HAIRLINE = {
    "bob": _FRAMING,
    "long": _FRAMING,
    "ponytail": _TIED,
    "pigtails": _TIED,
    "bun": _TIED,
    "afro": _TIED,
}


def back_of_head(character: Character, yaw: float) -> Painted:
    """Returns what hangs or stands behind the body: long hair, tails, buns."""
    w = HEAD_HALF_WIDTH * character.head_width
    colour = shade(character.hair_colour, 0.22)
    s = np.sin(yaw)
    # A tail straight behind a head seen from the front would be hidden.
    rear = -s if abs(s) > 0.2 else np.copysign(0.45, character.fringe)
    match character.hair:
        case "bob":
            edge = [(-w * 1.05, -0.1), (-w * 1.14, 0.42), (-w * 0.6, 0.56), (w * 0.6, 0.56), (w * 1.14, 0.42)]
            return [(smooth([*edge, (w * 1.05, -0.1)]) - (0.12 * s, 0), colour)]
        case "long":
            end = 1.15 + 0.3 * abs(character.fringe)
            edge = [(-w, -0.2), (-w * 1.16, 0.45), (-w * 1.2, end - 0.1), (-w * 0.5, end), (0, end - 0.05)]
            edge += [(w * 0.5, end), (w * 1.2, end - 0.1), (w * 1.16, 0.45), (w, -0.2)]
            return [(smooth(edge) - (0.22 * s, 0), colour)]
        case "ponytail":
            path = [(rear * 0.5, -0.36), (rear * 1.35, -0.34), (rear * 1.75, 0.05), (rear * 1.55, 0.65)]
            return [(stroke(path, (0.14, 0.30, 0.30, 0.08)), colour)]
        case "pigtails":
            tails = []
            for side in (-1, 1):
                x = w * np.sin(side * 1.75 + yaw) + 0.06 * side
                path = [(x, -0.05), (x + 0.16 * side, 0.12), (x + 0.2 * side, 0.42), (x + 0.08 * side, 0.72)]
                tails.append((stroke(path, (0.12, 0.24, 0.22, 0.06)), colour))
            return tails
        case "bun":
            return [(ellipse(-0.3 * s, -0.60, 0.21, 0.19), colour)]
        case "afro":
            return [(ellipse(-0.08 * s, -0.14, 0.66, 0.60), colour)]
        case "curly":
            turn = np.linspace(-0.25 * np.pi, 1.25 * np.pi, 11)
            centres = zip(1.02 * w * np.cos(turn), -0.1 - 0.42 * np.sin(turn), strict=True)
            return [(ellipse(x, y, 0.17, 0.17), colour) for x, y in centres]
        case _:
            return []


def front_of_head(character: Character, yaw: float) -> Painted:
    """Returns skull, ears, face, hair and hat, back to front."""
    painted = [_ear(character, yaw, side) for side in (-1, 1) if abs(side * EAR_LONGITUDE + yaw) > 1.6]
    painted.append((_skull(character), character.skin))
    painted += [_ear(character, yaw, side) for side in (-1, 1) if abs(side * EAR_LONGITUDE + yaw) <= 1.6]
    painted += _face(character, yaw)
    if character.hair != "bald":
        painted += _hair(character, yaw)
    return painted + _hat(character, yaw)


def _skull(character: Character) -> np.ndarray:
    outline = ellipse(0, 0, HEAD_HALF_WIDTH * character.head_width, 0.5, count=40)
    below = np.maximum(outline[:, 1], 0) / 0.5
    outline[:, 0] *= 1 - character.jaw * below**2
    return outline


def _ear(character: Character, yaw: float, side: int) -> tuple[np.ndarray, Colour]:
    x = HEAD_HALF_WIDTH * character.head_width * np.sin(side * EAR_LONGITUDE + yaw)
    return ellipse(x + 0.02 * side, EAR_HEIGHT, 0.075, 0.115), shade(character.skin, 0.10)


def _face(character: Character, yaw: float) -> Painted:
    def at(longitude: float) -> tuple[float, float]:
        return HEAD_HALF_WIDTH * np.sin(longitude + yaw), float(np.cos(longitude + yaw))

    skin, painted = character.skin, []
    blush, ink = mix(skin, (236, 84, 84), 0.32), (44, 32, 42)
    for side in (-1, 1):
        x, width = at(side * 0.62)
        painted.append((ellipse(x, 0.215, 0.085 * width, 0.06), blush))
    if character.glasses:
        rims = [at(side * EYE_LONGITUDE) for side in (-1, 1)]
        painted.append((rectangle(rims[0][0], EYE_HEIGHT - 0.03, rims[1][0], EYE_HEIGHT), ink))
        for radius, colour in ((0.142, ink), (0.117, mix(skin, (226, 242, 252), 0.6))):
            for x, width in rims:
                painted.append((ellipse(x, EYE_HEIGHT, radius * (0.3 + 0.7 * width), radius), colour))
    brow = shade(character.hair_colour, 0.25) if character.hair != "bald" else shade(skin, 0.6)
    for side in (-1, 1):
        x, width = at(side * EYE_LONGITUDE)
        painted.append((ellipse(x, EYE_HEIGHT, 0.066 * width + 0.01, 0.088), (255, 255, 255)))
        gaze = 0.018 * np.sin(yaw)
        painted.append((ellipse(x + gaze, EYE_HEIGHT + 0.006, 0.052 * width + 0.006, 0.076), ink))
        painted.append((ellipse(x + gaze + 0.016, EYE_HEIGHT - 0.028, 0.017, 0.02), (255, 255, 255)))
        lift = character.brow * 0.1
        inner, outer = x - side * 0.07 * width, x + side * 0.08 * width
        path = [(inner, -0.085 + lift), (x, -0.115), (outer, -0.09 - lift)]
        painted.append((stroke(path, (0.03, 0.04, 0.025)), brow))
    x, width = at(0.0)
    painted.append((ellipse(x + 0.05 * np.sin(yaw), NOSE_HEIGHT, 0.045, 0.036), shade(skin, 0.17)))
    x, width = x * 0.92, 0.4 + 0.6 * width
    lip = mix(shade(skin, 0.35), (170, 40, 50), 0.6)
    match character.mouth:
        case "smile":
            curve = [(-0.11, 0.285), (-0.06, 0.325), (0, 0.338), (0.06, 0.325), (0.11, 0.285)]
            painted.append((stroke(curve, (0.02, 0.03, 0.034, 0.03, 0.02)) * (width, 1) + (x, 0), lip))
        case "open":
            edge = [(-0.11, 0.28), (0, 0.292), (0.11, 0.28), (0.07, 0.36), (0, 0.385), (-0.07, 0.36)]
            painted.append((smooth(edge) * (width, 1) + (x, 0), (130, 34, 48)))
            painted.append((rectangle(-0.075, 0.288, 0.075, 0.312) * (width, 1) + (x, 0), (255, 255, 255)))
        case "calm":
            curve = [(-0.07, 0.31), (0, 0.318), (0.07, 0.31)]
            painted.append((stroke(curve, (0.02, 0.034, 0.02)) * (width, 1) + np.array((x, 0)), lip))
    return painted


def _hair(character: Character, yaw: float) -> Painted:
    w = HEAD_HALF_WIDTH * character.head_width
    lush = {"afro": 1.2, "curly": 1.14, "bob": 1.12, "long": 1.12}.get(character.hair, 1.07)
    angles, heights = _HAIRLINE.get(character.hair, _CROPPED)

    # From the left rim of what is seen to the right one.
    longitude = np.linspace(-np.pi / 2, np.pi / 2, 37) - yaw
    inner_y = np.interp(np.abs(np.degrees(longitude)), angles, heights)
    front = np.clip(1 - np.abs(longitude) / 0.9, 0, 1)
    if character.hair in ("spiky", "curly"):
        inner_y += 0.09 * front**0.3 * np.abs(np.sin(longitude * 5))
    else:
        inner_y += 0.16 * character.fringe * np.sin(longitude * 1.8) * np.sqrt(front)
    inner = np.stack([w * np.sin(longitude + yaw), inner_y], axis=-1)

    # Framing hair hangs straight, close hair follows the skull.
    jaw = 0.0 if character.hair in ("bob", "long") else 0.75

    def rim(side: int, low: float) -> np.ndarray:
        y = np.linspace(low, 0, 6, endpoint=False)
        x = side * w * lush * (1 - jaw * np.maximum(y, 0) ** 2)
        return np.stack([x, y], axis=-1)

    arch = np.linspace(0, np.pi, 25)
    crown = np.stack([w * lush * np.cos(arch), -0.5 * (lush + 0.02) * np.sin(arch)], axis=-1)
    if character.hair == "spiky":
        crown *= 1 + 0.13 * (np.arange(25) % 4 == 2)[:, None]
    right = rim(1, inner_y[-1]) if inner_y[-1] > 0 else np.empty((0, 2))
    left = rim(-1, inner_y[0])[::-1] if inner_y[0] > 0 else np.empty((0, 2))
    colour = character.hair_colour
    painted = [(np.concatenate([right, crown, left, inner]), colour)]
    if character.hair in ("bun", "ponytail"):
        painted.append((ellipse(-0.32 * np.sin(yaw), -0.5, 0.13, 0.06), shade(colour, 0.25)))
    shift = 0.1 * np.sin(yaw)
    arc = [(shift - w * 0.55, -0.33), (shift - w * 0.25, -0.42), (shift + w * 0.12, -0.45)]
    return [*painted, (stroke(arc, (0.025, 0.05, 0.02)), tint(colour, 0.22))]


def _hat(character: Character, yaw: float) -> Painted:
    w, s, colour = HEAD_HALF_WIDTH * character.head_width * 1.14, np.sin(yaw), character.hat_colour
    arch = np.linspace(0, np.pi, 21)
    dome = np.stack([w * np.cos(arch), -0.16 - 0.46 * np.sin(arch)], axis=-1)
    match character.hat:
        case "beanie":
            cuff = smooth(rectangle(-w * 1.06, -0.27, w * 1.06, -0.10), 4)
            return [
                (ellipse(0, -0.63, 0.11, 0.11), tint(colour, 0.55)),
                (dome, colour),
                (cuff, tint(colour, 0.35)),
            ]
        case "cap":
            peak = ellipse(0.30 * s * 1.9, -0.17, w * (0.86 - 0.1 * abs(s)), 0.085, angle=0.14 * s)
            return [(dome, colour), (peak, shade(colour, 0.28))]
        case "sunhat":
            return [
                (ellipse(0, -0.19, w * 1.75, 0.13), shade(colour, 0.16)),
                (dome * (0.92, 1), colour),
                (ellipse(0, -0.2, w * 0.92, 0.1), shade(colour, 0.45)),
                (ellipse(0, -0.155, w * 1.72, 0.085), colour),
            ]
        case _:
            return []
