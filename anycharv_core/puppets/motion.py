"""How a puppet moves: joint angles over time, turned into joints by forward kinematics."""

from dataclasses import dataclass, replace

import numpy as np

from ..media.pose import MIRRORED_BODY
from .character import Proportions
from .seeds import generator

KINDS = ("walk", "wave", "dance")

NOSE, NECK = 0, 1
SHOULDER, ELBOW, WRIST = (2, 5), (3, 6), (4, 7)
HIP, KNEE, ANKLE = (8, 11), (9, 12), (10, 13)
EYE, EAR = (14, 15), (16, 17)
# Person's right, left; x of body space points to the person's left.
SIDES = (-1.0, 1.0)

# A camera slightly above the scene lets feet and hands that come forward show lower in the picture.
CAMERA_PITCH = 0.12

# Features of the skeleton's head: radians from the nose, height below the centre in head heights.
EYE_LONGITUDE, EYE_HEIGHT = 0.44, 0.06
EAR_LONGITUDE, EAR_HEIGHT = 1.45, 0.10
NOSE_HEIGHT = 0.18
HEAD_HALF_WIDTH = 0.42


@dataclass(frozen=True)
class Motion:
    """A performance of F frames in scene units: frame height 1, x 0 at the centre, y 0 top to 1 bottom.

    Attributes:
        joints: float32 [F,18,2], OpenPose-18 order.
        scale: float32 [F], scene units per body height.
        head: float32 [F,2], centre of the skull.
        head_angle: float32 [F], radians clockwise on screen.
        foot_angle: float32 [F,2], radians clockwise on screen, right and left foot.
        arm_front: bool [F,2], right and left arm in front of the trunk.
        right_leg_front: bool [F], the right leg is the nearer one.
        ground: float32 [F,2], point on the ground below the pelvis.
        depth: float32 [F,18], of the joints in body heights, nearer to the camera being larger, 0 at the pelvis.
        yaw: radians, 0 faces the camera and pi/2 the right edge of the picture.
        head_yaw: radians, as `yaw`, for the head.
        proportions: of the performer, to whom the bone lengths belong.
    """

    joints: np.ndarray
    scale: np.ndarray
    head: np.ndarray
    head_angle: np.ndarray
    foot_angle: np.ndarray
    arm_front: np.ndarray
    right_leg_front: np.ndarray
    ground: np.ndarray
    depth: np.ndarray
    yaw: float
    head_yaw: float
    proportions: Proportions


@dataclass(frozen=True)
class Angles:
    """Joint angles in radians over F frames; sides are right, left.

    trunk [F,3]: roll to the person's left, forward lean, shoulder twist. arms [F,2,4]: abduction, flexion,
    twist of the elbow plane from forwards to outwards, elbow bend. legs [F,2,3]: abduction, flexion, knee
    bend. feet [F,2]: toes down. head [F]: roll. hop [F]: height above the ground in body heights.
    """

    trunk: np.ndarray
    arms: np.ndarray
    legs: np.ndarray
    feet: np.ndarray
    head: np.ndarray
    hop: np.ndarray


def sample_motion(
    seed: int, frames: int, proportions: Proportions, split: str = "train", kind: str | None = None
) -> Motion:
    """Samples motion number `seed` (>= 0) of `split`, `frames` (>= 1) long, for a body of `proportions`.

    `kind` is "walk", "wave" or "dance"; None draws one. Time runs at about 16 frames per second.

    Raises:
        KeyError: `split` or `kind` is unknown.
        ValueError: `seed` is negative.
    """
    rng = generator(split, "motion", seed)
    drawn = KINDS[rng.integers(len(KINDS))]
    sampler = {"walk": _walk, "wave": _wave, "dance": _dance}[kind or drawn]
    return sampler(rng, frames, proportions)


def standing_motion(
    rng: np.random.Generator, proportions: Proportions, height: float, raised: int | None
) -> Motion:
    """Returns one frame of relaxed standing, `height` scene units tall, feet near the bottom of the frame.

    `raised` is the arm (0 right, 1 left) that holds something up, or None.
    """
    t = np.zeros(1)
    angles = standing(rng, t)
    angles.arms[:, :, 0] += rng.uniform(0, 0.25, 2)
    angles.arms[:, :, 3] += rng.uniform(0, 0.5, 2)
    if raised is not None:
        angles.arms[:, raised] = (0.40, 0.15, 1.2, 1.75)
    elif rng.random() < 0.25:
        angles.arms[:, rng.integers(2)] = _HAND_ON_HIP
    yaw = rng.uniform(-0.5, 0.5)
    return project(angles, proportions, yaw, np.full(1, height), np.zeros(1), np.full(1, 0.955))


_HAND_ON_HIP = (0.75, -0.2, -1.35, 1.75)


def walk_angles(rng: np.random.Generator, frames: int) -> Angles:
    """A walk; where its feet carry it, `advance` says."""
    t = np.arange(frames)
    period = rng.uniform(15, 22)
    stride, swing = rng.uniform(0.34, 0.50), rng.uniform(0.30, 0.65)
    turn = 2 * np.pi * (t / period + rng.random())
    phase = np.stack([turn, turn + np.pi], axis=1)
    rear = np.maximum(-np.sin(phase - 0.3), 0)
    return Angles(
        trunk=np.stack([0.03 * np.sin(turn), np.full(frames, rng.uniform(0.0, 0.10)), 0.2 * np.sin(turn)], axis=1),
        arms=np.stack(
            [
                np.full((frames, 2), rng.uniform(0.10, 0.24)),
                -swing * np.sin(phase),
                np.zeros((frames, 2)),
                rng.uniform(0.25, 0.9) - 0.2 * np.sin(phase),
            ],
            axis=-1,
        ),
        legs=np.stack(
            [
                np.full((frames, 2), 0.02),
                0.10 + stride * np.sin(phase),
                0.12 + 0.95 * np.maximum(np.cos(phase + 0.45), 0) ** 1.5,
            ],
            axis=-1,
        ),
        feet=0.75 * rear - 0.28 * np.maximum(np.sin(phase - 0.5), 0) ** 2,
        head=0.03 * np.sin(turn + 1),
        hop=np.zeros(frames),
    )


def _walk(rng: np.random.Generator, frames: int, proportions: Proportions) -> Motion:
    angles = walk_angles(rng, frames)
    covered = advance(angles, proportions)
    scale = np.full(frames, rng.uniform(0.50, 0.72))
    facing = 1 if rng.random() < 0.5 else -1
    travel = scale[0] * covered[-1]
    # Long clips would walk out of the picture: the longer the way, the more it comes towards the camera.
    yaw = min(rng.uniform(0.6, 1.35), np.arcsin(min(1.0, 0.85 / max(travel, 1e-6))))
    scale *= 1 + rng.uniform(0.04, 0.14) * np.cos(yaw) * np.linspace(-1, 1, frames)
    way = covered * np.sin(yaw) * scale
    # At most a tenth of the way lies past an edge of a square picture.
    start = rng.uniform(-0.5 - 0.1 * way[-1], 0.5 - 0.9 * way[-1])
    ground = np.full(frames, rng.uniform(0.88, 0.95))
    return project(angles, proportions, facing * yaw, scale, facing * (start + way), ground)


def advance(angles: Angles, proportions: Proportions) -> np.ndarray:
    """Distance covered up to each frame, in body heights, that keeps the lower foot in place."""
    _, ankle = _legs(angles, proportions)
    forward, down = ankle[..., 2], ankle[..., 1]
    planted = 1 / (1 + np.exp(np.clip((down[:, 1] - down[:, 0]) * 150, -30, 30)))
    weight = np.stack([planted, 1 - planted], axis=1)
    speed = -(np.diff(forward, axis=0) * weight[1:]).sum(1)
    return np.concatenate([[0.0], np.cumsum(speed)])


def wave_angles(rng: np.random.Generator, frames: int) -> Angles:
    """Standing, one hand raised and waved."""
    t = np.arange(frames) / 16
    angles = standing(rng, t)
    waving = int(rng.integers(2))
    lift = ease((t - rng.uniform(-0.6, 0.4)) / 0.6)[:, None]
    swing = np.sin(2 * np.pi * rng.uniform(1.0, 1.9) * t + rng.uniform(0, 6))
    raised = np.stack(
        [
            np.full(frames, rng.uniform(1.3, 2.1)) + 0.1 * swing,
            np.full(frames, rng.uniform(0.0, 0.3)),
            np.full(frames, 1.5),
            rng.uniform(0.65, 1.0) + rng.uniform(0.3, 0.5) * swing,
        ],
        axis=-1,
    )
    if rng.random() < 0.35:
        angles.arms[:, 1 - waving] = _HAND_ON_HIP
    angles.arms[:, waving] += lift * (raised - angles.arms[:, waving])
    angles.head[:] += 0.08 * swing * lift[:, 0]
    return angles


def _wave(rng: np.random.Generator, frames: int, proportions: Proportions) -> Motion:
    return _on_the_spot(rng, wave_angles(rng, frames), proportions, sway=0.015, turn=0.55)


def dance_angles(rng: np.random.Generator, frames: int) -> Angles:
    """Dancing on the spot from pose to pose, on a beat."""
    beat = np.arange(frames) / rng.uniform(8, 12) + rng.random()
    count = int(beat[-1]) + 2
    arms = np.stack(
        [
            rng.uniform(0.25, 2.5, (count, 2)),
            rng.uniform(-0.1, 0.7, (count, 2)),
            rng.choice([0.3, 1.4, 1.4, -1.2], (count, 2)),
            rng.uniform(0.35, 1.7, (count, 2)),
        ],
        axis=-1,
    )
    # Dancers often move both arms as mirror images.
    mirrored = rng.random(count) < 0.5
    arms[mirrored, 1] = arms[mirrored, 0]
    # An elbow turned inwards with the arm up would put the hand through the head.
    arms[..., 2] = np.where((arms[..., 2] < 0) & (arms[..., 0] > 1.1), 1.4, arms[..., 2])
    bend = rng.uniform(0.0, 0.75, (count, 2)) * (rng.random((count, 2)) < 0.7)
    legs = np.stack([rng.uniform(0.04, 0.34, (count, 2)), 0.55 * bend, bend], axis=-1)
    trunk = rng.uniform(-1, 1, (count, 3)) * (0.2, 0.05, 0.4) + (0, 0.05, 0)
    head = rng.uniform(-0.2, 0.2, count)
    bounce = 0.5 - 0.5 * np.cos(2 * np.pi * beat)
    angles = Angles(
        trunk=_keyed(trunk, beat),
        arms=_keyed(arms, beat),
        legs=_keyed(legs, beat) + bounce[:, None, None] * (0, 0.16, 0.3),
        feet=np.zeros((frames, 2)),
        head=_keyed(head, beat),
        hop=np.zeros(frames),
    )
    if rng.random() < 0.35:
        angles.hop[:] = 0.06 * np.maximum(np.cos(2 * np.pi * beat), 0)
        angles.feet[:] = (angles.hop * 6)[:, None]
    return angles


def _dance(rng: np.random.Generator, frames: int, proportions: Proportions) -> Motion:
    return _on_the_spot(rng, dance_angles(rng, frames), proportions, sway=0.05, turn=0.7)


def standing(rng: np.random.Generator, t: np.ndarray) -> Angles:
    """A relaxed pose that breathes and shifts its weight; `t` in seconds [F]."""
    frames = len(t)
    shift = np.sin(2 * np.pi * rng.uniform(0.2, 0.45) * t + rng.uniform(0, 6))
    arms = np.stack([rng.uniform(0.12, 0.3, 2), rng.uniform(0, 0.15, 2), np.zeros(2), rng.uniform(0.1, 0.5, 2)], 1)
    bend = np.stack([0.14 + 0.12 * shift, 0.14 - 0.12 * shift], axis=1)
    spread = np.broadcast_to(rng.uniform(0.05, 0.15, 2), (frames, 2))
    return Angles(
        trunk=np.stack([0.05 * shift, np.full(frames, 0.03), 0.1 * shift], axis=1),
        arms=arms + 0.04 * shift[:, None, None],
        legs=np.stack([spread, 0.5 * bend, bend], axis=-1),
        feet=np.zeros((frames, 2)),
        head=rng.uniform(-0.08, 0.08) - 0.05 * shift,
        hop=np.zeros(frames),
    )


def _on_the_spot(
    rng: np.random.Generator, angles: Angles, proportions: Proportions, sway: float, turn: float
) -> Motion:
    frames = len(angles.hop)
    t = np.arange(frames) / 16
    scale = rng.uniform(0.50, 0.74) * (1 + 0.05 * np.sin(rng.uniform(0.5, 1.2) * t + rng.uniform(0, 6)))
    x = rng.uniform(-0.18, 0.18) + sway * np.sin(2 * np.pi * rng.uniform(0.3, 0.6) * t + rng.uniform(0, 6))
    if rng.random() < 0.15:
        # Steps in from, or out past, an edge of the picture.
        x += rng.choice([-1, 1]) * 0.28 * (1 - ease(np.linspace(0, 1, frames)))[:: rng.choice([-1, 1])]
    ground = np.full(frames, rng.uniform(0.89, 0.96))
    return project(angles, proportions, rng.uniform(-turn, turn), scale, x, ground)


def scaled(motion: Motion, factor: float, anchor: np.ndarray) -> Motion:
    """The motion `factor` times as large about the points `anchor` [F,2] in scene units, which stay."""

    def placed(points: np.ndarray) -> np.ndarray:
        fixed = anchor.reshape(len(anchor), *(1,) * (points.ndim - 2), 2)
        return (fixed + factor * (points - fixed)).astype(np.float32)

    return replace(
        motion,
        joints=placed(motion.joints),
        head=placed(motion.head),
        ground=placed(motion.ground),
        scale=(factor * motion.scale).astype(np.float32),
    )


def depth_twin(motion: Motion) -> Motion:
    """The motion whose limbs are in front where they were behind, and look the same as skeletons and outlines."""
    depth = motion.depth.copy()
    arms, legs = [*ELBOW, *WRIST], [*HIP, *KNEE, *ANKLE]
    depth[:, arms] = 2 * depth[:, NECK, None] - depth[:, arms]
    depth[:, legs] = -depth[:, legs]
    return replace(motion, depth=depth, arm_front=~motion.arm_front, right_leg_front=~motion.right_leg_front)


def mirrored(motion: Motion) -> Motion:
    """The motion in a mirror at x 0: what was the right side is the left one."""
    turned = np.array((-1, 1), np.float32)
    return replace(
        motion,
        joints=motion.joints[:, MIRRORED_BODY] * turned,
        head=motion.head * turned,
        head_angle=-motion.head_angle,
        foot_angle=-motion.foot_angle[:, ::-1],
        arm_front=motion.arm_front[:, ::-1],
        right_leg_front=~motion.right_leg_front,
        ground=motion.ground * turned,
        depth=motion.depth[:, MIRRORED_BODY],
        yaw=-motion.yaw,
        head_yaw=-motion.head_yaw,
    )


def ease(u: np.ndarray) -> np.ndarray:
    u = np.clip(u, 0, 1)
    return u * u * (3 - 2 * u)


def _keyed(keys: np.ndarray, beat: np.ndarray) -> np.ndarray:
    """Eases between poses `keys` [K,...] that are reached on whole numbers of `beat` [F]."""
    index = beat.astype(int)
    weight = ease(beat - index).reshape(-1, *(1,) * (keys.ndim - 1))
    return keys[index] * (1 - weight) + keys[index + 1] * weight


def _limb(abduction: np.ndarray, flexion: np.ndarray, vector: np.ndarray) -> np.ndarray:
    """Turns limb-space vectors [F,2,3] (y along the limb, z forwards) into body space."""
    x, y, z = np.moveaxis(vector, -1, 0)
    y, z = y * np.cos(flexion) - z * np.sin(flexion), y * np.sin(flexion) + z * np.cos(flexion)
    x, y = x * np.cos(abduction) + y * np.sin(abduction), y * np.cos(abduction) - x * np.sin(abduction)
    return np.stack([x * SIDES, y, z], axis=-1)


def _segments(upper: np.ndarray, twist: np.ndarray, bend: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors [F,2,3] of the two segments of a limb; `upper` [F,2,2] is abduction and flexion."""
    straight = np.stack([np.zeros_like(bend), np.ones_like(bend), np.zeros_like(bend)], axis=-1)
    bent = np.stack([np.sin(twist) * np.sin(bend), np.cos(bend), np.cos(twist) * np.sin(bend)], axis=-1)
    abduction, flexion = upper[..., 0], upper[..., 1]
    return _limb(abduction, flexion, straight), _limb(abduction, flexion, bent)


def _legs(angles: Angles, proportions: Proportions) -> tuple[np.ndarray, np.ndarray]:
    """Knees and ankles [F,2,3] relative to the pelvis, in body heights."""
    # Knees bend the other way round.
    thigh, shin = _segments(angles.legs[..., :2], np.zeros_like(angles.feet), -angles.legs[..., 2])
    hip = np.stack([np.array(SIDES) * proportions.hip, np.zeros(2), np.zeros(2)], axis=-1)
    knee = hip + proportions.thigh * thigh
    return knee, knee + proportions.shin * shin


def project(
    angles: Angles,
    proportions: Proportions,
    yaw: float,
    scale: np.ndarray,
    x: np.ndarray,
    ground: np.ndarray,
    pitch: float = CAMERA_PITCH,
) -> Motion:
    """Forward kinematics and projection; `scale`, `x` and `ground` [F] in scene units; pitch: how much lower
    in the picture a body height nearer to the camera shows."""
    p, frames = proportions, len(scale)
    body = np.zeros((frames, 18, 3))
    roll, lean, twist = angles.trunk.T
    spine = np.stack([np.sin(roll), -np.cos(roll) * np.cos(lean), np.sin(lean)], axis=-1)
    body[:, NECK] = p.torso * spine
    lateral = np.stack([np.cos(roll) * np.cos(twist), np.sin(roll), -np.sin(twist)], axis=-1)
    upper, fore = _segments(angles.arms[..., :2], angles.arms[..., 2], angles.arms[..., 3])
    knee, ankle = _legs(angles, p)
    for i, side in enumerate(SIDES):
        body[:, HIP[i], 0] = side * p.hip
        body[:, KNEE[i]], body[:, ANKLE[i]] = knee[:, i], ankle[:, i]
        body[:, SHOULDER[i]] = body[:, NECK] + side * p.shoulder * lateral - 0.022 * spine
        body[:, ELBOW[i]] = body[:, SHOULDER[i]] + p.upper_arm * _rolled(upper[:, i], roll)
        body[:, WRIST[i]] = body[:, ELBOW[i]] + p.forearm * _rolled(fore[:, i], roll)

    c, s = np.cos(yaw), np.sin(yaw)
    across = body[..., 0] * c + body[..., 2] * s
    depth = body[..., 2] * c - body[..., 0] * s
    pelvis = -(ankle[..., 1].max(1) + p.ankle + angles.hop)
    image = np.stack([across, body[..., 1] + depth * pitch + pelvis[:, None]], axis=-1)
    root = np.stack([np.broadcast_to(x, frames), ground], axis=-1)
    joints = image * scale[:, None, None] + root[:, None]

    head_yaw = 0.6 * yaw
    head_angle = 0.5 * (roll * c + lean * s) + angles.head
    unit = scale * p.head
    reach = (p.neck + 0.5 * p.head) * scale
    head = joints[:, NECK] + reach[:, None] * np.stack([np.sin(head_angle), -np.cos(head_angle)], axis=-1)
    features = [(NOSE, 0.0, NOSE_HEIGHT)]
    for i, side in enumerate(SIDES):
        features += [(EYE[i], side * EYE_LONGITUDE, EYE_HEIGHT), (EAR[i], side * EAR_LONGITUDE, EAR_HEIGHT)]
    for joint, longitude, v in features:
        u = HEAD_HALF_WIDTH * np.sin(longitude + head_yaw)
        offset = (
            u * np.cos(head_angle) - v * np.sin(head_angle),
            u * np.sin(head_angle) + v * np.cos(head_angle),
        )
        joints[:, joint] = head + unit[:, None] * np.stack(offset, axis=-1)
        depth[:, joint] = depth[:, NECK] + p.head * HEAD_HALF_WIDTH * np.cos(longitude + head_yaw)

    arms = depth[:, ELBOW] + depth[:, WRIST] - 2 * depth[:, NECK, None]
    near = depth[:, KNEE] + depth[:, HIP]
    return Motion(
        joints=joints.astype(np.float32),
        scale=scale.astype(np.float32),
        head=head.astype(np.float32),
        head_angle=head_angle.astype(np.float32),
        foot_angle=(angles.feet * s).astype(np.float32),
        arm_front=arms > -0.02,
        right_leg_front=near[:, 0] > near[:, 1],
        ground=root.astype(np.float32),
        depth=depth.astype(np.float32),
        yaw=float(yaw),
        head_yaw=float(head_yaw),
        proportions=proportions,
    )


def _rolled(vector: np.ndarray, roll: np.ndarray) -> np.ndarray:
    """Turns body vectors [F,3] with the trunk, to the person's left by `roll` [F]."""
    x, y, z = vector.T
    return np.stack([x * np.cos(roll) - y * np.sin(roll), x * np.sin(roll) + y * np.cos(roll), z], axis=-1)
