"""Acts: puppets that touch something. They sit on a bench, lean on a wall, carry a ball in both hands, or hold it.

Where they touch it is constructed: in every frame the seat lies under the hips, the wall against the shoulder, and
what is held in the hands. The seeds are this world's own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from .bold import CLOTH, sample_bold_character, sample_bold_motion, sample_bold_scene
from .character import Character, Proportions, pick
from .motion import HIP, SHOULDER, Angles, Motion, ease, project, scaled, standing
from .props import Prop
from .rig import BOTH_HANDS
from .scene import Scene
from .seeds import generator

ACTS = ("sit", "lean", "carry", "hold")
HEIGHTS = (0.34, 0.5)  # of the frame: how tall a performer would be standing
_HANDHELD = ("ball", "bag")


@dataclass(frozen=True)
class Act:
    """Who does what where. kind: one of `ACTS`; contact: float64 [F,2], where they touch it, in scene units."""

    kind: str
    character: Character
    motion: Motion
    scene: Scene
    contact: np.ndarray

    def performed_by(self, other: Character) -> Character:
        """The other character with what this one holds."""
        held = self.character
        return replace(other, held=held.held, held_colour=held.held_colour, side=held.side)


def sample_act(seed: int, frames: int, split: str = "train", kind: str | None = None) -> Act:
    """Act number `seed` (>= 0) of `split`, `frames` long; kind: one of `ACTS`, None draws one.

    Raises:
        KeyError: `split` or `kind` is unknown.
        ValueError: `seed` is negative.
    """
    rng = generator(split, "act", seed)
    drawn = ACTS[rng.integers(len(ACTS))]
    kind = kind or drawn
    character, scene = sample_bold_character(seed, split), sample_bold_scene(seed, split)
    camera = scene.camera[0]
    # What is touched stands still: a camera that turned away would lose it.
    scene = replace(scene, camera=(camera, camera), occluders=())
    held = "none" if kind in ("sit", "lean") and rng.random() < 0.4 else str(rng.choice(_HANDHELD))
    colour = pick(rng, CLOTH, away=((character.top, 110), (character.bottom_colour, 110)))
    character = replace(character, held=BOTH_HANDS if kind == "carry" else held, held_colour=colour)
    if kind == "hold":
        motion = sample_bold_motion(seed, frames, character.proportions, split)
        return Act(kind, character, motion, scene, motion.joints[:, 4 + 3 * character.side].astype(float))
    act: dict[str, Callable[..., tuple[Motion, np.ndarray]]] = {"sit": _sit, "lean": _lean, "carry": _carry}
    motion, contact = act[kind](rng, frames, character.proportions)
    if kind != "carry":
        size, paint = float(motion.scale[0]), pick(rng, CLOTH, away=((character.bottom_colour, 110),))
        x, y = contact[0].tolist()
        where = (x, y) if kind == "sit" else (x, 0.5)
        width = (0.34 if kind == "sit" else 0.2) * size
        prop = Prop({"sit": "bench", "lean": "wall"}[kind], where, where, width, 0.0, paint)
        scene = replace(scene, movers=(*scene.movers, prop))
    return Act(kind, character, motion, scene, contact)


def grown(motion: Motion, factor: float) -> Motion:
    """The motion `factor` times as large, on its ground."""
    return scaled(motion, factor, motion.ground)


def _still(rng: np.random.Generator, frames: int) -> tuple[np.ndarray, float, float, np.ndarray]:
    """Time in seconds, and a place that is kept: size, x and the ground's height by frame."""
    size, x, ground = rng.uniform(*HEIGHTS), rng.uniform(-0.15, 0.15), rng.uniform(0.86, 0.93)
    return np.arange(frames) / 16, size, x, np.full(frames, ground)


def _gesturing(rng: np.random.Generator, angles: Angles, t: np.ndarray, sides: tuple[int, ...] = (0, 1)) -> None:
    """Lifts arms before the body and lets them sink, now one and now the other; some go behind the back."""
    for side in sides:
        pace, begin = rng.uniform(0.25, 0.6), rng.uniform(0, 6)
        share = ease(0.5 + 0.8 * np.sin(2 * np.pi * pace * t + begin))[:, None]
        behind = rng.random() < 0.4
        target = (0.25, -0.75, -0.9, 1.1) if behind else (rng.uniform(0.2, 0.5), rng.uniform(0.6, 1.2), -0.9, 1.3)
        angles.arms[:, side] += share * (np.array(target) - angles.arms[:, side])


def _sit(rng: np.random.Generator, frames: int, proportions: Proportions) -> tuple[Motion, np.ndarray]:
    t, size, x, ground = _still(rng, frames)
    angles = standing(rng, t)
    bend = rng.uniform(1.35, 1.5)
    angles.legs[:] = (rng.uniform(0.1, 0.35), bend, bend)
    angles.trunk[:, 0] = 0.5 * angles.trunk[:, 0]
    _gesturing(rng, angles, t)
    yaw = rng.choice((-1, 1)) * rng.uniform(0.25, 0.8)
    motion = project(angles, proportions, yaw, np.full(frames, size), np.full(frames, x), ground)
    # The seat reaches the lower side of the thighs.
    under = np.array((0.0, 0.045 * size))
    return motion, motion.joints[:, HIP].mean(1) + under


def _lean(rng: np.random.Generator, frames: int, proportions: Proportions) -> tuple[Motion, np.ndarray]:
    t, size, x, ground = _still(rng, frames)
    angles = standing(rng, t)
    # To the person's left, which is on the right of the picture.
    angles.trunk[:] = (rng.uniform(0.1, 0.2), 0.03, 0.0)
    angles.legs[:, :, 0] = (0.16, -0.02)
    angles.legs[:, :, 1:] = (0.02, 0.04)
    angles.legs[:, 0, 1:] = (0.35, 0.7) if rng.random() < 0.5 else (0.02, 0.04)
    _gesturing(rng, angles, t, (0,))
    angles.arms[:, 1] = (0.02, -0.1, 0.0, 0.25)
    motion = project(
        angles, proportions, rng.uniform(-0.35, 0.35), np.full(frames, size), np.full(frames, x), ground
    )
    return motion, motion.joints[:, SHOULDER[1]] + np.array((0.032 * size, 0.0))


def _carry(rng: np.random.Generator, frames: int, proportions: Proportions) -> tuple[Motion, np.ndarray]:
    t, size, x, ground = _still(rng, frames)
    angles = standing(rng, t)
    lift = 0.25 * np.sin(2 * np.pi * rng.uniform(0.25, 0.6) * t + rng.uniform(0, 6))
    angles.arms[:] = np.stack(
        [
            np.full((frames, 2), rng.uniform(0.25, 0.4)),  # wrists as far apart as the ball is wide
            np.repeat((rng.uniform(0.25, 0.5) + lift)[:, None], 2, axis=1),
            np.zeros((frames, 2)),
            np.full((frames, 2), rng.uniform(1.0, 1.5)),
        ],
        axis=-1,
    )
    stride = rng.uniform(0.0, 0.08) * np.sin(2 * np.pi * rng.uniform(0.6, 1.0) * t)
    scale = size * (1 + 0.04 * np.sin(rng.uniform(0.5, 1.2) * t + rng.uniform(0, 6)))
    motion = project(angles, proportions, rng.uniform(-0.6, 0.6), scale, x + stride, ground)
    return motion, motion.joints[:, (4, 7)].mean(1).astype(float)
