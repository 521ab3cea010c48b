"""Journeys: puppets whose camera follows from what they do, through places that have depth, with exact truth.

A place is a row of planes that face the camera (places.py), so that what a camera's way does to each is an affine
map, and every pixel's depth, flow and epipolar line is known. Feet stand on their floor: a person who walks and
yet stays in the middle says that the camera goes along, and one who stands and yet grows, that it comes near.
Nothing else moves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..media.cameras import Cameras, plane_maps
from ..media.imaging import Size
from ..media.masks import mask_box
from ..media.pose import Poses
from .bold import sample_bold_character
from .character import Character, Proportions
from .draw import composite
from .layers import chain, label_flow, paint, stack_labels, transform, window_of
from .motion import Angles, Motion, advance, dance_angles, mirrored, project, walk_angles, wave_angles
from .places import Plane, View, build_place
from .render import Clip, cast, frame_points, render_reference, shadows
from .rig import BONES, bone_matrices, build_rig, drawing_order
from .seeds import generator
from .task import pose_pictures

JOURNEYS = {
    "follow": 0.34,
    "dolly": 0.18,
    "approach": 0.18,
    "truck": 0.2,
    "static": 0.1,
}  # how often each is drawn
PERSON_DEPTH = 3.0  # body heights from the camera; of one who is approached or approaches, at the end
HORIZON = 0.52  # of the frame's height, from above
_PAST = 0.62  # body heights from the middle: as far as somebody may walk before a camera at rest
_STAYING, _GOING = ("truck", "static"), ("follow", "truck", "dolly")  # performances and ways that can be mixed
_HANDS = np.array([name.startswith("hand") for name in BONES])


@dataclass(frozen=True)
class Journey:
    """Who moves how, and the camera's way. motion: in body heights, x from where the camera looks at first, y down
    from the ground; depth: float64 [F], Z of the person; cameras: in frame heights (`seen_at`)."""

    kind: str
    motion: Motion
    depth: np.ndarray
    cameras: Cameras
    view: View

    @property
    def way(self) -> float:
        """How far the camera goes to a side at most."""
        return float(np.abs(self.cameras.T[:, 0]).max())

    def seen_at(self, size: Size) -> Cameras:
        """The cameras in pixels of frames of `size` (width, height)."""
        width, height = size
        K = self.cameras.K * np.array((height, height, 1.0))[:, None]
        K[:, 0, 2] += width / 2
        return replace(self.cameras, K=K)

    def mirrored(self) -> Journey:
        """The same way to the other side, through the same place."""
        return replace(
            self, motion=mirrored(self.motion), cameras=replace(self.cameras, T=self.cameras.T * (-1, 1, 1))
        )


@dataclass(frozen=True)
class Travel:
    """One task: the character of `reference`, RGBA uint8 [H, W, 4], goes on a journey that begins at `background`,
    uint8 [H, W, 3], of which nothing but its pose, uint8 [F, H, W, 3], tells.

    truth: the perfect answer, with its cameras, planes, plates and hands; kind: of `JOURNEYS`.
    """

    reference: np.ndarray
    background: np.ndarray
    truth: Clip
    pose: np.ndarray
    kind: str

    @property
    def region(self) -> np.ndarray:
        """bool [F, H, W]: pixels of the true character."""
        return self.truth.mask > 0

    def poses(self) -> Poses:
        """POSE_KEYPOINT of every frame."""
        return self.truth.poses()


def sample_travel(
    seed: int, frames: int, size: int | Size, split: str = "heldout", flow: bool = False, kind: str | None = None
) -> Travel:
    """Travel number `seed` (>= 0) of `split`: `frames` frames of `size` (pixels a side, or width and height).

    kind: one of `JOURNEYS`, None draws one.

    Raises:
        KeyError: `split` or `kind` is unknown.
        ValueError: `seed` is negative.
    """
    character, journey = _sampled(seed, frames, split, kind)
    return _task(seed, split, character, journey, size, flow)


def sample_wander(seed: int, frames: int, size: int | Size, split: str = "train", flow: bool = False) -> Travel:
    """A clip whose camera has nothing to do with who moves before it: what a model has seen that knows cameras and
    people, but not what one says about the other. Its background is the first frame, with the character in it."""
    rng = generator(split, "wander", seed)
    character = sample_bold_character(seed, split)
    doing, going = (
        journey_of(generator(split, "journey", int(n)), str(rng.choice(kinds)), frames, character.proportions)
        for n, kinds in zip(rng.integers(2**31, size=2), (_STAYING, _GOING), strict=True)
    )
    seen = replace(going, motion=doing.motion, depth=np.full(frames, going.depth[0]))
    travel = _task(seed, split, character, seen, size, flow)
    return replace(travel, background=travel.truth.frames[0], kind="wander")


def pan_twins(seed: int, frames: int, size: int | Size, split: str = "heldout") -> tuple[Travel, Travel]:
    """A walk that is followed, and its mirror image: in one place, from one first camera and plate."""
    character, journey = _sampled(seed, frames, split, "follow")
    one, two = (_task(seed, split, character, each, size) for each in (journey, journey.mirrored()))
    return one, two


def zoom_twins(seed: int, frames: int, size: int | Size, split: str = "heldout") -> tuple[Travel, Travel]:
    """A person who stands while the camera comes near, and one who walks up to it: always equally large and in one
    spot of the picture, in one place, from one first camera and plate."""
    one, two = (_task(seed, split, *_sampled(seed, frames, split, kind), size) for kind in ("dolly", "approach"))
    return one, two


def _sampled(seed: int, frames: int, split: str, kind: str | None) -> tuple[Character, Journey]:
    character = sample_bold_character(seed, split)
    rng = generator(split, "journey", seed)
    drawn = str(rng.choice(list(JOURNEYS), p=list(JOURNEYS.values())))
    return character, journey_of(rng, kind or drawn, frames, character.proportions)


def journey_of(rng: np.random.Generator, kind: str, frames: int, proportions: Proportions) -> Journey:
    """A journey of this kind, drawn from `rng`; KeyError: there is none."""
    view = View(rng.uniform(1.65, 1.9), rng.uniform(0.58, 0.66))
    return _MAKERS[kind](rng, kind, view, frames, proportions)


def _follow(rng: np.random.Generator, kind: str, view: View, frames: int, proportions: Proportions) -> Journey:
    """A walk to a side; "follow" has the camera go along, a little late."""
    angles = walk_angles(rng, frames)
    side, yaw = rng.choice((-1, 1)), rng.uniform(0.9, 1.4)
    way = advance(angles, proportions) * np.sin(yaw)
    lead, gain, depth = rng.uniform(0.0, 0.2), rng.uniform(0.22, 0.4), PERSON_DEPTH * rng.uniform(0.95, 1.15)
    camera = np.zeros(frames)
    if kind == "follow":
        for t in range(1, frames):
            camera[t] = camera[t - 1] + gain * (way[t] - camera[t - 1])
    else:
        lead = 0.5 * way[-1]
    return _journey(kind, view, angles, proportions, side * yaw, side * (way - lead), depth, side * camera)


def _nearing(rng: np.random.Generator, kind: str, view: View, frames: int, proportions: Proportions) -> Journey:
    """At the pace of a walk, the camera nears who stands ("dolly"), or the walker the camera ("approach"). Both
    draw the same, so that one seed's are twins."""
    angles = walk_angles(rng, frames)
    covered = advance(angles, proportions)
    x, end = rng.uniform(-0.15, 0.15), PERSON_DEPTH * rng.uniform(0.92, 1.05)
    distance = end + covered[-1] - covered
    if kind == "approach":
        return _journey(kind, view, angles, proportions, 0.0, np.full(frames, x), distance, np.zeros(frames))
    angles = (wave_angles if rng.random() < 0.5 else dance_angles)(rng, frames)
    journey = _journey(kind, view, angles, proportions, 0.0, np.full(frames, x), distance, np.zeros(frames))
    cameras = replace(journey.cameras, T=journey.cameras.T + np.outer(distance - distance[0], (0, 0, 1)))
    return replace(journey, depth=np.full(frames, distance[0]), cameras=cameras)


def _truck(rng: np.random.Generator, kind: str, view: View, frames: int, proportions: Proportions) -> Journey:
    """The camera slides to a side and back before who dances on the spot."""
    angles = dance_angles(rng, frames)
    reach, period = rng.choice((-1, 1)) * rng.uniform(0.5, 0.85), rng.uniform(18, 26)
    camera = reach * (0.5 - 0.5 * np.cos(np.pi * np.arange(frames) / period))
    x = np.full(frames, 0.5 * reach + rng.uniform(-0.1, 0.1))
    depth = PERSON_DEPTH * rng.uniform(0.95, 1.15)
    return _journey(kind, view, angles, proportions, rng.uniform(-0.6, 0.6), x, depth, camera)


def _static(rng: np.random.Generator, kind: str, view: View, frames: int, proportions: Proportions) -> Journey:
    """The camera rests; somebody walks past it, as long as that keeps them in the picture, or dances."""
    if rng.random() < 0.5:
        walk = _follow(rng, kind, view, frames, proportions)
        if np.abs(walk.motion.ground[:, 0]).max() < _PAST:
            return walk
    x, depth = np.full(frames, rng.uniform(-0.3, 0.3)), PERSON_DEPTH * rng.uniform(0.95, 1.15)
    angles, yaw = dance_angles(rng, frames), rng.uniform(-0.6, 0.6)
    return _journey(kind, view, angles, proportions, yaw, x, depth, np.zeros(frames))


_MAKERS: dict[str, Callable[..., Journey]] = {
    "follow": _follow,
    "dolly": _nearing,
    "approach": _nearing,
    "truck": _truck,
    "static": _static,
}


def _journey(
    kind: str,
    view: View,
    angles: Angles,
    proportions: Proportions,
    yaw: float,
    x: np.ndarray,
    depth: float | np.ndarray,
    camera: np.ndarray,
) -> Journey:
    """x: of the person [F]; depth: of the person, a number or [F]; camera: its x [F]."""
    frames = len(x)
    depth = np.broadcast_to(np.asarray(depth, float), frames)
    # A foot that steps towards the camera shows as much lower as the floor there does.
    pitch = view.height / float(depth.mean())
    motion = project(angles, proportions, yaw, np.ones(frames), x, np.zeros(frames), pitch)
    K = np.array([(view.focal, 0, 0), (0, view.focal, HORIZON), (0, 0, 1)])
    T = np.stack([-camera, np.full(frames, view.height), np.zeros(frames)], axis=-1)
    cameras = Cameras(np.repeat(K[None], frames, 0), np.repeat(np.eye(3)[None], frames, 0), T)
    return Journey(kind, motion, depth, cameras, view)


def _task(
    seed: int, split: str, character: Character, journey: Journey, size: int | Size, flow: bool = False
) -> Travel:
    size = (size, size) if isinstance(size, int) else size
    place = build_place(seed, split, journey.view, float(journey.depth[0]), journey.way, size[0] / size[1])
    truth = render_journey(character, journey, place, size, flow)
    assert truth.background is not None
    rgb, alpha = render_reference(character, seed, size, split)
    return Travel(
        reference=np.dstack([rgb, alpha]),
        background=truth.background[0],
        truth=truth,
        pose=pose_pictures(truth.poses(), size),
        kind=journey.kind,
    )


def render_journey(
    character: Character, journey: Journey, place: Sequence[Plane], size: Size, flow: bool = False
) -> Clip:
    """Renders `character` on a journey through a place, with all that `Clip` has of one; flow: if asked for."""
    width, height = size
    count, cameras, motion = len(journey.depth), journey.seen_at(size), journey.motion
    depths = np.array([plane.depth for plane in place])
    planes = plane_maps(cameras, depths)
    person = plane_maps(cameras, journey.depth[:, None])[:, 0]
    bones = chain(person[:, None], bone_matrices(motion))
    rig, shadow = build_rig(character, motion), shadows(motion, person)
    scenery = [shape for plane in place for shape in plane.shapes]

    plates = np.zeros((count, height, width, 3), np.uint8)
    frames = np.empty_like(plates)
    mask, hands, labels = np.zeros((3, count, height, width), np.uint8)
    for t in range(count):
        behind = paint(scenery, planes[t], size, labels=True)
        body = paint(
            drawing_order(rig, tuple(motion.arm_front[t]), bool(motion.right_leg_front[t])),
            bones[t],
            size,
            labels=True,
        )
        assert behind is not None
        composite(plates[t], behind)
        frames[t] = plates[t]
        cast(frames[t], shadow[t])
        if body is not None:
            composite(frames[t], body)
            window_of(mask[t], body)[:] = (body.rgba[..., 3] > 0) * np.uint8(255)
            window_of(hands[t], body)[:] = body.touched(_HANDS) * np.uint8(255)
        stack_labels(labels[t], ((behind, 0), (body, len(place))))

    keypoints = frame_points(transform(person[:, None], motion.joints.astype(float)), size)
    nobody = labels <= len(place)
    return Clip(
        frames=frames,
        mask=mask,
        keypoints=keypoints,
        boxes=np.array([mask_box(m) or (0, 0, 0, 0) for m in mask]),
        flow=label_flow(labels, np.concatenate([planes[:, :1], planes, bones], axis=1)) if flow else None,
        cameras=cameras,
        layers=np.where(nobody, labels - 1, len(place)).astype(np.uint8),
        depth=_depths(labels, cameras, depths, journey.depth),
        background=plates,
        hands=hands,
    )


def _depths(labels: np.ndarray, cameras: Cameras, planes: np.ndarray, person: np.ndarray) -> np.ndarray:
    """Distances along the axis float32 [F,H,W] of what has these labels: the planes from 1, then the person."""
    found = np.empty(labels.shape, np.float32)
    for t, forward in enumerate(cameras.T[:, 2]):
        known = np.append(planes, person[t]) + forward
        found[t] = known[np.minimum(labels[t].astype(int) - 1, len(planes))]
    return found
