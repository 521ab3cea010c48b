"""The puppet's body: bones that follow a motion and the flat shapes that hang on them."""

from dataclasses import dataclass

import numpy as np

from .character import Character
from .draw import Colour, Shape, band, ellipse, mix, rectangle, shade, smooth, stroke, tint
from .head import Painted, back_of_head, front_of_head
from .motion import ANKLE, ELBOW, HIP, KNEE, NECK, NOSE, SHOULDER, WRIST, Motion

_JOINTS = {"shoulder": SHOULDER, "elbow": ELBOW, "wrist": WRIST, "hip": HIP, "knee": KNEE, "ankle": ANKLE}
_SEGMENTS = {
    "upper_arm": (SHOULDER, ELBOW),
    "forearm": (ELBOW, WRIST),
    "thigh": (HIP, KNEE),
    "shin": (KNEE, ANKLE),
}
_PAIRED = (*_JOINTS, *_SEGMENTS, "hand", "foot", "held")
BONES = (*(f"{name}{side}" for name in _PAIRED for side in (0, 1)), "torso", "head", "skirt", "held_both")
_INDEX = {name: i for i, name in enumerate(BONES)}
# By bone: whether what hangs on it is a thing that is held.
HELD_BONES = np.array([name.startswith("held") for name in BONES])
BOTH_HANDS = "big ball"  # what `Character.held` says of something that takes both


@dataclass(frozen=True)
class Rig:
    """A character's shapes in drawing groups; `bone` of each shape indexes `BONES`.

    `carried` is held in both hands, before the trunk; `arms` and `legs` hold the right and the left limb;
    `near_side` is the one nearer to the camera (0 right).
    """

    behind: tuple[Shape, ...]
    arms: tuple[tuple[Shape, ...], tuple[Shape, ...]]
    skirt: tuple[Shape, ...]
    legs: tuple[tuple[Shape, ...], tuple[Shape, ...]]
    trunk: tuple[Shape, ...]
    head: tuple[Shape, ...]
    carried: tuple[Shape, ...]
    near_side: int


def bone_matrices(motion: Motion) -> np.ndarray:
    """Returns float64 [F,B,2,3], the affine map of every bone's frame to scene units.

    Joint, hand, foot and held frames are in body heights; limb segments and the torso have y 0..1 along
    the bone and x in body heights; the head is in head heights; the skirt spans midhip to knees with
    barycentric x (right knee) and y (left knee).
    """
    joints = motion.joints.astype(float)
    scale = motion.scale.astype(float)
    matrices = np.zeros((len(scale), len(BONES), 2, 3))

    def put(name: str, x_axis: np.ndarray, y_axis: np.ndarray, origin: np.ndarray) -> None:
        matrices[:, _INDEX[name]] = np.stack([x_axis, y_axis, origin], axis=-1)

    def upright(angle: np.ndarray, unit: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        c, s = unit * np.cos(angle), unit * np.sin(angle)
        return np.stack([c, s], axis=-1), np.stack([-s, c], axis=-1)

    def along(start: np.ndarray, end: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        y_axis = end - start
        length = np.linalg.norm(y_axis, axis=1)
        # A limb that points at the camera has no direction on screen.
        y_axis = np.where((length > 1e-4)[:, None], y_axis, (0.0, 1e-4))
        unit = y_axis / np.linalg.norm(y_axis, axis=1, keepdims=True)
        return np.stack([unit[:, 1], -unit[:, 0]], axis=-1) * scale[:, None], y_axis, unit * scale[:, None]

    level = np.zeros_like(scale)
    for side in (0, 1):
        for name, index in _JOINTS.items():
            put(f"{name}{side}", *upright(level, scale), joints[:, index[side]])
        for name, (start, end) in _SEGMENTS.items():
            x_axis, y_axis, _ = along(joints[:, start[side]], joints[:, end[side]])
            put(f"{name}{side}", x_axis, y_axis, joints[:, start[side]])
        wrist = joints[:, WRIST[side]]
        x_axis, _, y_axis = along(joints[:, ELBOW[side]], wrist)
        put(f"hand{side}", x_axis, y_axis, wrist)
        put(f"held{side}", *upright(level, scale), wrist + 0.035 * y_axis)
        put(f"foot{side}", *upright(motion.foot_angle[:, side].astype(float), scale), joints[:, ANKLE[side]])
    midhip = joints[:, HIP].mean(1)
    x_axis, y_axis, _ = along(joints[:, NECK], midhip)
    put("torso", x_axis, y_axis, joints[:, NECK])
    unit = scale * motion.proportions.head
    put("head", *upright(motion.head_angle.astype(float), unit), motion.head.astype(float))
    put("skirt", joints[:, KNEE[0]] - midhip, joints[:, KNEE[1]] - midhip, midhip)
    put("held_both", *upright(level, scale), joints[:, WRIST].mean(1))
    return matrices


def bone_ends() -> tuple[tuple[tuple[int, ...], ...], tuple[tuple[int, ...], ...]]:
    """For every bone the joints in whose middle it begins, and those in whose middle it ends."""
    starts: dict[str, tuple[int, ...]] = {"torso": (NECK,), "head": (NOSE,), "skirt": HIP, "held_both": WRIST}
    ends: dict[str, tuple[int, ...]] = {"torso": HIP, "skirt": KNEE}
    for side in (0, 1):
        starts |= {f"{name}{side}": (index[side],) for name, index in _JOINTS.items()}
        starts |= {f"{name}{side}": (start[side],) for name, (start, _) in _SEGMENTS.items()}
        starts |= {f"{name}{side}": (WRIST[side],) for name in ("hand", "held")}
        starts[f"foot{side}"] = (ANKLE[side],)
        ends |= {f"{name}{side}": (end[side],) for name, (_, end) in _SEGMENTS.items()}
    return tuple(starts[name] for name in BONES), tuple(ends.get(name, starts[name]) for name in BONES)


def build_rig(character: Character, motion: Motion) -> Rig:
    """Shapes `character` on the skeleton and viewing direction of `motion`."""
    head, back = (
        [Shape(s.points * character.head_scale, s.colour, s.bone) for s in _hang(painted, "head")]
        for painted in (
            front_of_head(character, motion.head_yaw),
            back_of_head(character, motion.head_yaw),
        )
    )
    carried, carried_behind = _held(character)
    both = character.held == BOTH_HANDS
    behind = back
    if carried_behind:
        behind = _hang(carried, f"held{character.side}") + behind
    arms = []
    for side in (0, 1):
        arm = _arm(character, motion, side)
        if side == character.side and not carried_behind and not both:
            arm = _hang(carried, f"held{side}") + arm
        arms.append(tuple(arm))
    return Rig(
        behind=tuple(behind),
        arms=(arms[0], arms[1]),
        skirt=tuple(_skirt_panel(character)),
        legs=(tuple(_leg(character, motion, 0)), tuple(_leg(character, motion, 1))),
        trunk=tuple(_trunk(character, motion)),
        head=tuple(head),
        carried=tuple(_hang(carried, "held_both") if both else ()),
        near_side=0 if motion.yaw > 0 else 1,
    )


def drawing_order(rig: Rig, arm_front: tuple[bool, bool], right_leg_front: bool) -> tuple[Shape, ...]:
    """Returns all shapes back to front for one frame of a motion."""
    sides = (1 - rig.near_side, rig.near_side)
    hidden = [shape for side in sides if not arm_front[side] for shape in rig.arms[side]]
    front = [shape for side in sides if arm_front[side] for shape in rig.arms[side]]
    far, near = (rig.legs[1], rig.legs[0]) if right_leg_front else rig.legs
    return (*rig.behind, *hidden, *rig.skirt, *far, *near, *rig.trunk, *rig.head, *rig.carried, *front)


def _hang(painted: Painted, bone: str) -> list[Shape]:
    return [Shape(points, colour, _INDEX[bone]) for points, colour in painted]


def _disc(radius: float) -> np.ndarray:
    return ellipse(0, 0, radius, radius, count=20)


def _taper(start: float, end: float, half_start: float, half_end: float) -> np.ndarray:
    """A strip of a limb from `start` to `end` (0..1 along it) with the given half widths."""
    return np.array([(-half_start, start), (half_start, start), (half_end, end), (-half_end, end)])


def _distance_shade(motion: Motion, side: int) -> float:
    """How much to darken a limb: the far side of a turned body is in its shade."""
    turned = np.sin(motion.yaw) * (1 if side == 1 else -1)
    return float(np.clip(turned, 0, 1)) * 0.28


def _arm(character: Character, motion: Motion, side: int) -> list[Shape]:
    dim = _distance_shade(motion, side)
    r = character.arm
    skin, cloth = shade(character.skin, dim), shade(character.top, dim + 0.07)
    second = shade(character.pattern_colour, dim + 0.07)
    names = [f"{name}{side}" for name in ("shoulder", "upper_arm", "elbow", "forearm", "wrist", "hand")]
    shoulder, upper, elbow, fore, wrist, hand = names
    thumb = 1 if side == 0 else -1
    half = [(r * 0.8, 0), (r, 0.022), (r * 0.55, 0.05)]
    palm = smooth([*half, *((-x, y) for x, y in reversed(half))])
    finger = ellipse(-thumb * r, 0.018, r * 0.38, 0.017, -thumb * 0.5)
    shapes = _hang([(palm, skin), (finger, skin)], hand)
    shapes += _hang([(_disc(r * 0.8), skin)], wrist)
    shapes += _hang([(_taper(0, 1, r * 0.95, r * 0.78), skin)], fore)
    if not character.long_sleeves:
        shapes += _hang([(_disc(r * 0.95), skin)], elbow)
        shapes += _hang([(_taper(0, 1, r, r * 0.95), skin)], upper)
        shapes += _hang([(_disc(r * 1.22), cloth)], shoulder)
        shapes += _hang([(_taper(0, 0.52, r * 1.22, r * 1.38), cloth)], upper)
        if character.pattern in ("stripes", "block"):
            shapes += _hang([(_taper(0.40, 0.52, r * 1.38, r * 1.4), second)], upper)
        if character.pattern == "bands":
            shapes += _hang([(_taper(0.18, 0.52, r * 1.3, r * 1.4), second)], upper)
        return shapes
    lower = second if character.pattern == "block" else cloth
    shapes += _hang([(_taper(0, 0.9, r * 1.18, r * 1.22), lower)], fore)
    shapes += _hang([(_taper(0.84, 0.94, r * 1.2, r * 1.2), shade(lower, 0.2))], fore)
    shapes += _hang([(_disc(r * 1.18), lower)], elbow)
    shapes += _hang([(_taper(0, 1, r * 1.22, r * 1.15), cloth)], upper)
    shapes += _hang([(_disc(r * 1.22), cloth)], shoulder)
    if character.pattern == "stripes":
        for start in (0.22, 0.68):
            shapes += _hang([(_taper(start, start + 0.22, r * 1.22, r * 1.17), second)], upper)
            shapes += _hang([(_taper(start - 0.06, start + 0.12, r * 1.19, r * 1.2), second)], fore)
    if character.pattern == "bands":
        shapes += _hang([(_taper(0.3, 0.72, r * 1.22, r * 1.17), second)], upper)
        shapes += _hang([(_taper(0.1, 0.5, r * 1.19, r * 1.2), second)], fore)
    return shapes


def _leg(character: Character, motion: Motion, side: int) -> list[Shape]:
    dim = _distance_shade(motion, side)
    r = character.leg
    skin, cloth = shade(character.skin, dim), shade(character.bottom_colour, dim)
    hip, thigh, knee, shin = (f"{name}{side}" for name in ("hip", "thigh", "knee", "shin"))
    bare = _hang([(_disc(r * 0.7), skin)], knee) + _hang([(_taper(0, 1, r * 0.95, r * 0.7), skin)], thigh)
    bare += _hang([(_taper(0, 1, r * 0.7, r * 0.48), skin)], shin)
    shoe = _shoe(character, motion, side, dim)
    match character.bottom:
        case "trousers":
            end = r * (0.66 + 0.5 * (character.flare - 1))
            legs = _hang([(_taper(0, 0.93, r * 0.82, end), cloth)], shin)
            legs += _hang([(_disc(r * 0.82), cloth)], knee)
            legs += _hang([(_taper(0.87, 0.94, end * 1.02, end * 1.02), shade(cloth, 0.18))], shin)
            legs += _hang([(_taper(0, 1, r * 1.08, r * 0.82), cloth)], thigh)
            return shoe + legs + _hang([(_disc(r * 1.08), cloth)], hip)
        case "shorts":
            leg = _taper(0, 0.72, r * 1.1, r * 1.12)
            return shoe + bare + _hang([(leg, cloth)], thigh) + _hang([(_disc(r * 1.1), cloth)], hip)
        case _:
            sock = _hang([(_taper(0.72, 1, r * 0.60, r * 0.52), tint(character.shoe, 0.6))], shin)
            panel = _taper(0, 0.8, r * 1.1, r * 1.1 * character.flare)
            whole = character.bottom_colour
            return bare + sock + shoe + _hang([(_disc(r * 1.1), whole)], hip) + _hang([(panel, whole)], thigh)


def _skirt_panel(character: Character) -> list[Shape]:
    """The cloth between the thighs; it lies under the legs because it vanishes when they cross."""
    if character.bottom != "skirt":
        return []
    hem = np.array([(0, 0), (0.8, 0), (0.44, 0.44), (0, 0.8)])
    return _hang([(hem, character.bottom_colour)], "skirt")


def _shoe(character: Character, motion: Motion, side: int, dim: float) -> list[Shape]:
    ankle, s = motion.proportions.ankle, np.sin(motion.yaw)
    colour = shade(character.shoe, dim)
    # Feet point a little outwards, which shows when they are seen from the front.
    toe = 0.085 * s + (0.022 if side == 1 else -0.022) * np.cos(motion.yaw)
    width = 0.033
    low, high = min(0.0, toe) - width, max(0.0, toe) + width
    instep = -ankle * 0.75
    top = [(-width * 0.9, instep), (width * 0.9, instep)]
    if toe > 0:
        upper = [*top, (high - 0.012, ankle * 0.15), (high, ankle * 0.75), (low, ankle * 0.75), (low, 0.0)]
    else:
        upper = [*top, (high, 0.0), (high, ankle * 0.75), (low, ankle * 0.75), (low + 0.012, ankle * 0.15)]
    sole = smooth(rectangle(low, ankle * 0.62, high, ankle * 1.02), 3)
    light = tint(colour, 0.75) if sum(character.shoe) < 560 else shade(colour, 0.35)
    return _hang([(sole, light), (smooth(upper, 4), colour)], f"foot{side}")


def _trunk(character: Character, motion: Motion) -> list[Shape]:
    p, c, s = motion.proportions, np.cos(motion.yaw), np.sin(motion.yaw)
    # The chest is about as deep as three fifths of its width.
    chest = np.hypot((p.shoulder + character.arm * 0.55) * c, 0.075 * s)
    hips = np.hypot((p.hip + character.leg * 1.02) * c, 0.068 * s)
    waist = (0.45 * chest + 0.55 * hips) * character.waist**0.5
    lean = 0.012 * s
    flank = [
        (chest * 0.38, -0.075, 0),
        (chest * 0.80, -0.035, 0),
        (chest, 0.14, 0),
        (chest * 0.94, 0.42, lean),
        (waist, 0.70, lean),
        (hips * 1.03, 0.98, 0),
    ]
    left = [(shift + x, y) for x, y, shift in flank]
    right = [(shift - x, y) for x, y, shift in reversed(flank)]
    top = smooth([(0, -0.02), *left, (0, 1.01), *right], 5)
    bottom, colour = character.bottom_colour, character.top
    half = [(hips, 0.84), (hips * 1.02, 1.06), (hips * 0.5, 1.2)]
    pelvis = smooth([*half, *((-x, y) for x, y in reversed(half))])
    shapes = _hang([(pelvis, bottom)], "torso")
    painted: Painted = [(top, colour)]
    second = character.pattern_colour
    match character.pattern:
        case "stripes":
            painted += [(band(top, y, y + 0.13), second) for y in (0.17, 0.44, 0.71)]
        case "bands":
            painted += [(band(top, y, y + 0.25), second) for y in (0.15, 0.63)]
        case "spots":
            for x, y in ((-0.5, 0.24), (0.5, 0.24), (0.0, 0.52), (-0.5, 0.8), (0.5, 0.8)):
                painted.append((ellipse(x * chest + lean, y, 0.036, 0.036 / p.torso), second))
        case "dots":
            aspect = 1 / p.torso
            for row, y in enumerate((0.2, 0.46, 0.72)):
                spots = (-0.5, 0.5) if row % 2 else (-0.9, 0.0, 0.9)
                for x in spots:
                    painted.append((ellipse(x * chest * 0.72 + lean, y, 0.021, 0.021 * aspect), second))
        case "block":
            painted.append((band(top, 0.5, 1.1), second))
    painted.append((band(top, 0.93, 1.1), shade(colour if character.pattern != "block" else second, 0.18)))
    shapes += _hang(painted, "torso")
    throat = smooth([(-0.042, -0.10), (0.042, -0.10), (0.040, 0.03), (0, 0.10), (-0.040, 0.03)])
    shapes += _hang([(throat, mix(character.skin, shade(character.skin, 0.5), 0.4))], "torso")
    return shapes


def _held(character: Character) -> tuple[Painted, bool]:
    """Shapes of the held object around the fist in body heights, and whether it belongs behind the body."""
    colour: Colour = character.held_colour
    dark, light = shade(colour, 0.25), tint(colour, 0.45)
    match character.held:
        case "balloon":
            string = stroke([(0, 0.03), (0.014, -0.15), (-0.01, -0.32), (0, -0.47)], (0.008,) * 4)
            skin = smooth([(0, -0.71), (0.1, -0.65), (0.1, -0.55), (0, -0.455), (-0.1, -0.55), (-0.1, -0.65)])
            knot = np.array([(0, -0.47), (0.018, -0.445), (-0.018, -0.445)])
            gloss = ellipse(-0.045, -0.64, 0.018, 0.034, 0.5)
            return [(string, (90, 84, 96)), (knot, dark), (skin, colour), (gloss, light)], True
        case "umbrella":
            # Long enough for the canopy to clear the head above a hanging arm.
            stick = stroke([(0, 0.06), (0, -0.3), (0, -0.66)], (0.015,) * 3)
            arch = np.linspace(0, np.pi, 25)
            scallop = np.linspace(-1, 1, 33)
            dome = np.stack([0.32 * np.cos(arch), -0.51 - 0.19 * np.sin(arch)], axis=-1)
            hem = np.stack([0.32 * scallop, -0.51 - 0.03 * np.abs(np.sin(2 * np.pi * scallop))], axis=-1)
            canopy = np.concatenate([dome, hem])
            half = [(0.1, -0.65), (0.155, -0.52), (0, -0.535)]
            panel = smooth([(0, -0.70), *half, *((-x, y) for x, y in reversed(half[:2]))])
            return [(stick, (92, 70, 60)), (canopy, colour), (panel, light)], True
        case "ball":
            ring = stroke([(-0.075, 0.03), (0, 0.055), (0.075, 0.03)], (0.02, 0.028, 0.02))
            gloss = ellipse(-0.03, 0, 0.02, 0.016)
            return [(ellipse(0, 0.035, 0.085, 0.085), colour), (ring, light), (gloss, light)], False
        case kind if kind == BOTH_HANDS:
            ring = stroke([(-0.125, -0.01), (0, 0.03), (0.125, -0.01)], (0.03, 0.045, 0.03))
            gloss = ellipse(-0.05, -0.065, 0.03, 0.022)
            return [(ellipse(0, 0, 0.145, 0.145), colour), (ring, light), (gloss, light)], False
        case "bag":
            handle = smooth([(0, -0.015), (0.045, 0.03), (0.05, 0.09), (-0.05, 0.09), (-0.045, 0.03)])
            inside = smooth([(0, 0.0), (0.032, 0.035), (0.036, 0.09), (-0.036, 0.09), (-0.032, 0.035)])
            half = [(0.078, 0.075), (0.095, 0.2), (0.08, 0.215)]
            body = smooth([*half, *((-x, y) for x, y in reversed(half))], 4)
            flap = smooth([(-0.078, 0.072), (0.078, 0.072), (0.075, 0.115), (0, 0.14), (-0.075, 0.115)], 4)
            return [(handle, dark), (inside, mix(dark, (0, 0, 0), 0.3)), (body, colour), (flap, dark)], False
        case _:
            return [], False
