"""What PuppetBench asks: held-out characters, motions and scenes, and every pixel of the right answer.

A task is of a puppet world's "heldout" split, of which no training data is drawn, and of one of the `KINDS`. In
a swap there are a reference picture and a driving clip with its exact mask, box and pose, and the truth shows the
reference's character in the driving clip's scene and motion; in a bold swap, small in a larger frame. In an
animation there are a picture of a character before a plain wall, and poses, and the truth shows that character
moving so before that wall, the camera at rest. In an interaction the driving character touches or holds something,
of which there are masks, and how near everything is; in the truth the other character does so. In a journey there
are a picture of a character, one of a place with nobody in it, and poses, and in the truth the camera goes with
the character through that place.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ..errors import UserError
from ..media.canvas import FRAME, PERSON
from ..puppets.interaction import INTERACTION_BASELINES, Interaction, contact_region, sample_interaction
from ..puppets.task import (
    ANIMATION_BASELINES,
    BASELINES,
    Animation,
    Swap,
    sample_animation,
    sample_bold_animation,
    sample_bold_swap,
    sample_swap,
)
from ..puppets.travel import Travel, sample_travel
from . import attention, interaction, travel

SMALLEST = 32  # pixels a side
SWAP, BOLD_SWAP, ANIMATION, BOLD_ANIMATION = "swap", "bold-swap", "animation", "bold-animation"
INTERACTION, TRAVEL = "interaction", "travel"
VERSION = 2  # of PuppetBench: 2 has bold swaps; the tasks of 1 are what they were


@dataclass(frozen=True)
class Kind:
    """What sets one kind of task apart from the other.

    sample(number, frames, size, flow=); baselines: answers that use no network; regions: what scores are taken
    over, in words and as masks(task), bool [F, H, W] each; pasted(task): the masks uint8 [F, H, W] by which a
    system pastes, None where nothing is pasted; shown: the frames that a system is given besides the reference,
    uint8 [F, H, W, 3], of which the first tell a task from every other; canvas: through which one a model of ours
    sees them (`Pipeline.__call__`); size: pixels a side where none is asked for; probes: further scores, in words:
    own(task, made) gives those of one answer, and paired(answer, pairs) those of answers to pairs of tasks, which
    are pairs(number, frames, size); looks: scores, in words, of where a model attends.
    """

    sample: Callable[..., Swap | Animation | Travel]
    baselines: Mapping[str, Callable[..., np.ndarray]]
    regions: Mapping[str, str]
    masks: Callable[..., dict[str, np.ndarray]]
    pasted: Callable[..., np.ndarray] | None
    shown: Mapping[str, Callable[..., np.ndarray]]
    canvas: str = FRAME
    size: int = 64
    named: bool = False
    probes: Mapping[str, str] = field(default_factory=dict)
    own: Callable[..., Mapping[str, float | str]] = lambda task, made: {}
    pairs: Callable[[int, int, int], Sequence[Any]] = lambda number, frames, size: ()
    paired: Callable[..., Mapping[str, float]] = lambda answer, pairs: {}
    looks: Mapping[str, str] = field(default_factory=dict)


def _swap_masks(swap: Swap) -> dict[str, np.ndarray]:
    box = swap.box > 0
    return {"character": swap.region, "box": box, "background": ~(box | swap.region)}


def _interaction_masks(task: Interaction) -> dict[str, np.ndarray]:
    parts = task.truth.parts
    assert parts is not None
    region, box = task.region, task.box > 0
    regions = {"character": region, "object": parts.objects > 0, "contact": contact_region(parts)}
    return regions | {"box": box, "scene": box & ~region, "background": ~(box | region)}


def _animation_masks(animation: Animation) -> dict[str, np.ndarray]:
    region = animation.region
    return {"character": region, "background": ~region, "frame": np.ones_like(region)}


def _travel_masks(task: Travel) -> dict[str, np.ndarray]:
    region = task.region
    assert task.truth.hands is not None
    regions = {"character": region, "hands": task.truth.hands > 0, "background": ~region}
    return regions | {"frame": np.ones_like(region)}


_SWAPS = Kind(
    sample=sample_swap,
    baselines=BASELINES,
    regions={
        "character": "every pixel of the driving or of the true character",
        "box": "the padded, steadied box around the driving character, the coarse mask of the paper's section 3.2",
        "background": "what is in neither; a perfect system leaves it alone",
    },
    masks=_swap_masks,
    pasted=lambda swap: swap.box,
    shown={"driving": lambda swap: swap.driving.frames, "pose": lambda swap: swap.pose},
)

_ANIMATIONS = Kind(
    sample=sample_animation,
    baselines=ANIMATION_BASELINES,
    regions={
        "character": "every pixel of the true character, or of the one in the reference, whose place must be "
        "filled with the scene",
        "background": "everything else, which but for the character's shadow is the reference's own",
        "frame": "every pixel",
    },
    masks=_animation_masks,
    pasted=None,
    shown={"pose": lambda animation: animation.pose},
)

KINDS = {
    SWAP: _SWAPS,
    # So small in their frames that a canvas has to follow them.
    BOLD_SWAP: replace(_SWAPS, sample=sample_bold_swap, canvas=PERSON, size=256, named=True),
    INTERACTION: replace(
        _SWAPS,
        sample=sample_interaction,
        baselines=INTERACTION_BASELINES,
        regions={
            **_SWAPS.regions,
            "object": "what the true character holds, where that is seen",
            "contact": "no more than two pixels from both that and the body",
            "scene": "the box off the driving and the true character",
        },
        masks=_interaction_masks,
        canvas=PERSON,
        size=128,
        probes=interaction.PROBES,
        own=interaction.own,
        pairs=interaction.asked,
        paired=interaction.probe,
    ),
    ANIMATION: _ANIMATIONS,
    BOLD_ANIMATION: replace(_ANIMATIONS, sample=sample_bold_animation, size=80),
    TRAVEL: Kind(
        sample=sample_travel,
        baselines=travel.TRAVEL_BASELINES,
        regions={
            "character": "every pixel of the true character",
            "hands": "every pixel of the true character's hands",
            "background": "everything else, with the character's shadow",
            "frame": "every pixel",
        },
        masks=_travel_masks,
        pasted=None,
        shown={
            "background": lambda task: np.repeat(task.background[None], len(task.pose), axis=0),
            "pose": lambda task: task.pose,
        },
        probes=travel.PAIRED | travel.OWN,
        own=travel.own,
        pairs=travel.twins,
        paired=travel.paired,
        looks=attention.MASSES,
    ),
}


@dataclass(frozen=True)
class Setup:
    """How many tasks of which kind, of how many frames, of how many pixels a side. Task n is the same in every
    longer run."""

    clips: int = 64
    frames: int = 8
    size: int = 64
    task: str = SWAP

    @classmethod
    def of(cls, task: str, clips: int, frames: int, size: int | None) -> Setup:
        """size: None = the kind's own."""
        kind = KINDS.get(task)
        return cls(clips, frames, size or (kind.size if kind else cls.size), task)

    def __post_init__(self) -> None:
        if min(self.clips, self.frames) < 1:
            raise UserError(f"{self.clips} clips of {self.frames} frames are too few; give 1 or more of each.")
        if self.size < SMALLEST:
            raise UserError(f"PuppetBench cannot score pictures of {self.size} pixels; give {SMALLEST} or more.")
        if self.task not in KINDS:
            raise UserError(f"PuppetBench has no task '{self.task}'; use one of {', '.join(map(repr, KINDS))}.")

    @property
    def kind(self) -> Kind:
        return KINDS[self.task]


@dataclass(frozen=True)
class Task:
    """`given` holds the truth too; `digest` tells versions of the puppet world apart by what a system is shown."""

    number: int
    given: Swap | Animation | Travel
    kind: Kind

    @property
    def name(self) -> str:
        return f"task_{self.number:04d}"

    @property
    def digest(self) -> str:
        first = next(iter(self.kind.shown.values()))(self.given)
        return hashlib.sha256(self.given.reference.tobytes() + first.tobytes()).hexdigest()[:16]


def tasks(setup: Setup, flow: bool = True) -> Iterator[Task]:
    """The tasks in turn, each rendered when it is asked for."""
    for number in range(setup.clips):
        given = setup.kind.sample(number, setup.frames, setup.size, flow=flow)
        yield Task(number, given, setup.kind)
