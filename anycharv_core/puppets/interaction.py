"""Interactions with their exact truth: another character does what somebody does with a thing, and keeps hold of
it.

Beside the task itself there are pairs of tasks that differ in one thing alone, so that a system which does not
read it gives both the same answer and is right exactly half the time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from ..media.imaging import Size
from ..media.masks import block_masks, box_masks
from ..media.pose import Poses
from ..opencv import cv2
from .bold import CLOTH, sample_bold_character
from .character import Character
from .interact import ACTS, Act, grown, sample_act
from .motion import depth_twin
from .render import Clip, Parts, render
from .task import Swap, copy_driving, pasted_reference, swap_of

GROWTH = 1.2  # of a truth that its mask does not cover
THIN, FAT = (0.8, 1.3)  # of a driver's limbs


@dataclass(frozen=True)
class Interaction(Swap):
    """One task. The reference is of the other character, with empty hands, in a scene of its own.

    mask: uint8 [F, H, W], 255 on the body to replace, as a system is given it; acted: whose poses, held thing and
    depth it is given, of which the driving clip is usually the picture; emptied: the truth with empty hands.
    """

    mask: np.ndarray
    acted: Clip
    emptied: np.ndarray

    @property
    def objects(self) -> np.ndarray:
        """uint8 [F, H, W], 255 on what is held."""
        return _parts(self.acted).objects

    @property
    def depth(self) -> np.ndarray:
        """uint16 [F, H, W], nearer being larger and 0 unknown."""
        return _parts(self.acted).depth_pictures()

    def poses(self) -> Poses:
        """POSE_KEYPOINT of every frame."""
        return self.acted.poses()


def sample_interaction(
    seed: int, frames: int, size: int, split: str = "heldout", flow: bool = False
) -> Interaction:
    """Interaction number `seed` (>= 0) of `split`: `frames` frames of `size` x `size` pixels."""
    act, other = _sampled(seed, frames, split)
    return _task(seed, act, other, (size, size), split, flow=flow)


def order_pair(seed: int, frames: int, size: int, split: str = "heldout") -> tuple[Interaction, Interaction]:
    """Two tasks with empty hands that differ in which limbs are in front: in the depth alone, of all that is
    given."""
    act, other = _sampled(seed, frames, split)
    act = _holding(act, "none")
    twin = replace(act, motion=depth_twin(act.motion))
    one, two = (_task(seed, each, other, (size, size), split) for each in (act, twin))
    return one, two


def object_pair(seed: int, frames: int, size: int, split: str = "heldout") -> tuple[Interaction, Interaction]:
    """Two tasks that differ in the colour of what is held, which a box around both hides."""
    act, other = _sampled(seed, frames, split)
    if act.character.held == "none":
        act = _holding(act, "ball")
    colour = max(CLOTH, key=lambda paint: float(np.linalg.norm(np.subtract(paint, act.character.held_colour))))
    twin = replace(act, character=replace(act.character, held_colour=colour))
    one, two = (_task(seed, each, other, (size, size), split) for each in (act, twin))
    box = box_masks(one.driving.mask)
    return replace(one, mask=box), replace(two, mask=box)


def outline_pair(seed: int, frames: int, size: int, split: str = "heldout") -> tuple[Interaction, Interaction]:
    """Two tasks of one truth, with a thin and with a fat driver: in the mask alone, where that hides the
    driver."""
    act, other = _sampled(seed, frames, split)
    act = _holding(act, "none")
    drivers = (replace(act, character=_stretched(act.character, factor)) for factor in (THIN, FAT))
    one, two = (_task(seed, each, other, (size, size), split) for each in drivers)
    return one, replace(two, acted=one.acted, pose=one.pose)


def grown_task(seed: int, frames: int, size: int, split: str = "heldout") -> Interaction:
    """A task with empty hands whose truth is larger than the mask that is given: scene, mask and the box, which
    has no margin here, are of a driver of another size."""
    act, other = _sampled(seed, frames, split)
    act = _holding(act, "none")
    larger = replace(act, motion=grown(act.motion, GROWTH))
    given, wanted = (_task(seed, each, other, (size, size), split) for each in (act, larger))
    return replace(wanted, driving=given.driving, mask=given.mask, box=block_masks(given.driving.mask, 1, 1))


def composite(task: Interaction) -> np.ndarray:
    """Baseline: the paper's (section 4.3) at its best, a perfect character in front of a perfect scene, whose
    hands are empty."""
    return task.emptied


INTERACTION_BASELINES: dict[str, Callable[..., np.ndarray]] = {
    "copy driving": copy_driving,
    "reference pasted into the box": pasted_reference,
    "character composited, hands empty": composite,
}


def contact_region(parts: Parts) -> np.ndarray:
    """bool [F, H, W]: pixels no more than two away from both body and held thing."""
    return _spread(parts.body > 0) & _spread(parts.objects > 0)


def _spread(region: np.ndarray) -> np.ndarray:
    square = np.ones((5, 5), np.uint8)
    return np.stack([cv2.dilate(frame.astype(np.uint8), square) for frame in region]) > 0


def _parts(clip: Clip) -> Parts:
    assert clip.parts is not None  # all clips of an interaction have them
    return clip.parts


def _sampled(seed: int, frames: int, split: str) -> tuple[Act, Character]:
    act = sample_act(2 * seed, frames, split, ACTS[seed % len(ACTS)])
    return act, replace(sample_bold_character(2 * seed + 1, split), held="none")


def _holding(act: Act, held: str) -> Act:
    return replace(act, character=replace(act.character, held=held))


def _stretched(character: Character, factor: float) -> Character:
    return replace(
        character, arm=factor * character.arm, leg=factor * character.leg, waist=factor * character.waist
    )


def _task(seed: int, act: Act, other: Character, size: Size, split: str, flow: bool = False) -> Interaction:
    def shown(character: Character) -> Clip:
        return render(character, act.motion, act.scene, size, flow, parts=True)

    driving, truth = shown(act.character), shown(act.performed_by(other))
    return Interaction(
        **vars(swap_of(driving, truth, other, seed, size, split)),
        mask=_parts(driving).body,
        acted=driving,
        emptied=truth.frames if act.character.held == "none" else shown(other).frames,
    )
