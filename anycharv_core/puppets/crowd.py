"""Clips of several puppets with exact truth for each: for training and scoring how people are followed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..media.masks import mask_box
from ..media.pose import BODY, BOX, POINTS, Poses, pack_person
from .character import CLOTH, Character, sample_character
from .motion import Motion, sample_motion
from .props import Prop
from .render import Clip, render
from .scene import build_scene
from .seeds import DOMAIN_ID, SPLIT_ID

SITUATIONS = ("plain", "crossing", "prop", "exit", "cuts")

# A walker this far past the frame's edge, in frame heights, shows nothing, not even what it holds.
_OUTSIDE = 0.45


@dataclass(frozen=True)
class Crowd:
    """F frames of W x H pixels with P people; a person keeps the same number throughout, cuts included.

    Attributes:
        frames: uint8 [F,H,W,3] RGB.
        masks: uint8 [F,P,H,W], 255 on the pixels where person p is what one sees; disjoint between people.
        keypoints: float32 [F,P,18,3], as `Clip.keypoints`: inside the frame the score is 1, hidden or not.
        boxes: int64 [F,P,4] x0, y0, x1, y1 around the mask, ends exclusive; zeros where the mask is empty.
        cuts: first frame of every shot but the first, ascending.
    """

    frames: np.ndarray
    masks: np.ndarray
    keypoints: np.ndarray
    boxes: np.ndarray
    cuts: tuple[int, ...]

    @property
    def present(self) -> np.ndarray:
        """bool [F,P]: the person shows in the frame."""
        return (self.boxes[..., 2] > self.boxes[..., 0]) & (self.boxes[..., 3] > self.boxes[..., 1])

    def poses(self) -> Poses:
        """Of all frames, body points and boxes of the people who show, by their number."""
        height, width = self.frames.shape[1:3]
        frames = []
        for points, boxes, shown in zip(self.keypoints, self.boxes, self.present, strict=True):
            corners = np.insert(boxes[shown].reshape(-1, 2, 2), 2, 1, axis=-1)
            people = [pack_person({BODY: k, BOX: box}) for k, box in zip(points[shown], corners, strict=True)]
            frames.append(np.array(people).reshape(-1, POINTS, 3))
        return Poses(width, height, frames)


def sample_crowd(seed: int, situation: str, frames: int, size: int, split: str = "heldout") -> Crowd:
    """Crowd clip number `seed` (>= 0) of `situation` and `split`: `frames` frames of `size` x `size` pixels.

    plain: one to three people side by side. crossing: two walk past each other, one behind the other. prop:
    one of one or two people passes behind something wide, or it passes before them. exit: one of two leaves
    the picture and comes back. cuts: the same two people in two or three shots.

    Raises:
        ValueError: unknown situation, or a negative seed.
        KeyError: unknown split.
    """
    rng = np.random.default_rng([SPLIT_ID[split], DOMAIN_ID["crowd"], SITUATIONS.index(situation), seed])
    most = {"plain": 3, "crossing": 2, "prop": 2, "exit": 2, "cuts": 2}[situation]
    count = int(rng.integers(1, most + 1)) if situation in ("plain", "prop") else most
    people = [sample_character(int(rng.integers(2**31)), split) for _ in range(count)]
    lengths = _shot_lengths(rng, frames) if situation == "cuts" else [frames]
    shots = [_shot(rng, situation, people, length, size, split) for length in lengths]
    masks = np.concatenate([shot[1] for shot in shots])
    return Crowd(
        frames=np.concatenate([shot[0] for shot in shots]),
        masks=masks,
        keypoints=np.concatenate([shot[2] for shot in shots]),
        boxes=np.array([[mask_box(m) or (0, 0, 0, 0) for m in frame] for frame in masks], np.int64),
        cuts=tuple(int(cut) for cut in np.cumsum(lengths)[:-1]),
    )


def _shot_lengths(rng: np.random.Generator, frames: int) -> list[int]:
    count = min(int(rng.integers(2, 4)), max(frames // 4, 1))
    spread = rng.uniform(0.8, 1.2, count)
    ends = np.rint(np.cumsum(spread) / spread.sum() * frames).astype(int)
    return np.diff(ends, prepend=0).tolist()


def _shot(
    rng: np.random.Generator, situation: str, people: Sequence[Character], frames: int, size: int, split: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Frames [F,H,W,3], visible masks [F,P,H,W] and keypoints [F,P,18,3] of one shot."""
    # The scene's own props would add accidents to the situation asked for; `prop` brings its own.
    scene = replace(build_scene(rng), occluders=())
    u = np.linspace(0, 1, frames)
    direction = float(rng.choice((-1, 1)))
    match situation:
        case "crossing":
            reach = rng.uniform(0.25, 0.4)
            paths = [direction * reach * (2 * u - 1), -direction * reach * (2 * u - 1)]
        case "exit":
            gone = 0.5 + _OUTSIDE
            inside, other = rng.uniform(0.12, 0.28), rng.uniform(0.15, 0.3)
            # Away for about two fifths of the clip, in its middle.
            out = np.clip(2.2 * np.sin(np.pi * u) - 1.1, 0, 1)
            paths = [direction * (inside + (gone - inside) * out), np.full(frames, -direction * other)]
        case "prop":
            paths = [direction * rng.uniform(0.2, 0.35) * (2 * u - 1)]
            paths += [np.full(frames, rng.choice((-1, 1)) * rng.uniform(0.25, 0.35)) for _ in people[1:]]
            scene = replace(scene, occluders=(_obstacle(rng, direction),))
        case _:
            places = (np.arange(len(people)) + 0.5) / len(people) - 0.5
            paths = [np.full(frames, x + rng.uniform(-0.05, 0.05)) for x in rng.permutation(places)]
    walks = {"crossing": (0, 1), "exit": (0,), "prop": (0,)}.get(situation, ())
    smaller = 0.85 if len(people) > 2 else 1.0
    motions = []
    for i, (who, path) in enumerate(zip(people, paths, strict=True)):
        motion = _motion(rng, who, frames, split, path if i in walks else None)
        motions.append(_placed(motion, path, smaller * rng.uniform(0.75, 1.1)))
    # Who stands lower in the picture stands nearer.
    order = np.argsort([motion.ground[0, 1] for motion in motions]).tolist()
    clips = [render(who, motion, scene, (size, size)) for who, motion in zip(people, motions, strict=True)]
    return _overlaid(clips, order)


def _obstacle(rng: np.random.Generator, direction: float) -> Prop:
    colour = CLOTH[rng.integers(len(CLOTH))]
    kind = str(rng.choice(("pole", "bush", "ball")))
    x = rng.uniform(-0.1, 0.1)
    if kind == "pole":
        return Prop(kind, (x, 0.5), (x, 0.5), rng.uniform(1.2, 2.6), 0.0, colour)
    if kind == "bush":
        return Prop(kind, (x, 0.9), (x, 0.9), rng.uniform(0.35, 0.5), 0.0, (92, 140, 96))
    y = rng.uniform(0.5, 0.75)
    return Prop(kind, (0.7 * direction, y), (-0.7 * direction, y), rng.uniform(0.25, 0.4), 4.0 * direction, colour)


def _motion(rng: np.random.Generator, who: Character, frames: int, split: str, path: np.ndarray | None) -> Motion:
    """A performance on the spot, or with a `path` [F] a walk that faces where the path first leads."""
    if path is None:
        kind = str(rng.choice(("wave", "dance")))
        return sample_motion(int(rng.integers(2**31)), frames, who.proportions, split, kind)
    ahead = np.sign(path[len(path) // 3] - path[0])
    while True:
        motion = sample_motion(int(rng.integers(2**31)), frames, who.proportions, split, "walk")
        if motion.yaw * ahead >= 0:
            return motion


def _placed(motion: Motion, x: np.ndarray, factor: float) -> Motion:
    """The motion `factor` times as large, its ground point led along `x` [F] in scene units."""
    start = motion.ground[:, None]
    # What is nearer is larger and lower; 0.72 is about where the floors of the scenes begin.
    y = 0.72 + (motion.ground[:, 1] - 0.72) * factor
    ground = np.stack([x, y], axis=-1).astype(np.float32)
    joints = (motion.joints - start) * factor + ground[:, None]
    head = (motion.head - motion.ground) * factor + ground
    return replace(
        motion,
        joints=joints.astype(np.float32),
        head=head.astype(np.float32),
        ground=ground,
        scale=(motion.scale * factor).astype(np.float32),
    )


def _overlaid(clips: Sequence[Clip], order: Sequence[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lays clips of one scene over each other, `order` from the farthest to the nearest."""
    frames = clips[order[0]].frames.copy()
    masks = np.stack([clip.mask for clip in clips], axis=1)
    covered = masks[:, order[0]] > 0
    for i in order[1:]:
        own = masks[:, i] > 0
        # Off the people, clips of one scene differ by their shadows alone, and the darker one has it.
        both = np.minimum(frames, clips[i].frames)
        free = ~covered & ~own
        frames = np.where(own[..., None], clips[i].frames, np.where(free[..., None], both, frames))
        covered |= own
    for k, i in enumerate(order):
        for j in order[k + 1 :]:
            masks[:, i][masks[:, j] > 0] = 0
    return frames, masks, np.stack([clip.keypoints for clip in clips], axis=1)
