"""Several characters put into one video, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from torch import Tensor

from ..errors import UserError
from ..media.camera import Box
from ..media.canvas import CanvasPath
from ..media.frames import Source, eight_bit
from ..media.imaging import Size
from ..systems.recipes import Recipe
from .encode import EncodedVideo, Person
from .finish import Finish, PasteBack, whole
from .latents import Latents
from .phases import Phases
from .pipeline import Pipeline
from .plan import Plan
from .reference import Reference
from .sampling import Progress
from .shortcuts import NONE, Shortcuts

Begin = Callable[[int, tuple[int, ...], Iterator[Tensor], int], Latents]
"""(number of the person, shape of the latents, noise, parts) -> the latents to go on from."""


def check_number(name: str, recipe: Recipe, people: int) -> None:
    """Raises UserError where the recipe of that name does not replace so many."""
    if people > 1 and not recipe.paste_back:
        raise UserError(f"The recipe {name} replaces one person only; use 'default' for several.")


def as_seen(
    pipe: Pipeline,
    plan: Plan,
    choice: str,
    context: float,
    cuts: Callable[[], Sequence[int]],
    mask: Source,
    boxes: Callable[[], Sequence[Box | None]],
    drawn: Callable[[Size, CanvasPath], Source],
    objects: Source | None = None,
    depth: Source | None = None,
) -> Person:
    """Somebody to replace, on the canvas that the networks see them on.

    choice, context, cuts: as `Pipeline.follow` takes them; boxes: of the masks, asked for only where the canvas
    may follow; drawn: as `Skeletons.drawn`. Raises UserError as `Pipeline.follow` does.
    """
    path = CanvasPath(plan.canvas)
    if pipe.can_follow(plan.recipe, choice):
        path = pipe.follow(plan, choice, context, boxes(), cuts)
    return Person(pipe.given_masks(mask), drawn(plan.drawn_at(path), path), path, objects, depth)


def put_in_turn(
    pipe: Pipeline,
    recipe: Recipe,
    frames: Iterable[np.ndarray],
    encoded: Sequence[EncodedVideo],
    references: Sequence[Reference],
    masks: Sequence[Source],
    begin: Begin,
    steps: int,
    guidance_scale: float,
    seed: int,
    phases: Phases,
    progress: Progress | None = None,
    deep: bool = False,
    shortcuts: Shortcuts = NONE,
) -> tuple[Iterable[np.ndarray], list[PasteBack]]:
    """The finished frames, which are sampled as they are asked for, and what pasted every person into them.

    frames: the scene [H, W, 3], which can be read again, uint16 where `deep`; encoded, references, masks: of every
    person, as `Pipeline.encode`, `refer` and `Pipeline.given_masks` give them. Each is put into the result of
    those before.
    """
    pasted = []
    for number, (one, reference) in enumerate(zip(encoded, references, strict=True)):
        if number:
            before = Source("video", frames, 3, replayed=True, deep=True, folder=pipe.folder)
            with phases("encode"):
                one = pipe.encode_again(one, eight_bit(before), masks[number])
            frames = before
        made = pipe.prepared(recipe, reference, one)
        share = progress and _share(progress, number, len(encoded))
        latents = begin(number, made.shape, pipe.noise(made, seed), shortcuts.parts)
        sampled = pipe.sample(made, latents, steps, guidance_scale, phases, share, shortcuts)
        finish: Finish = whole
        if recipe.paste_back:
            finish = PasteBack(frames, masks[number], recipe)
            pasted.append(finish)
        frames = pipe.decode(made, latents, finish, phases, deep, sampled)
    return frames, pasted


def _share(progress: Progress, number: int, people: int) -> Progress:
    """The progress of person `number` of `people` as progress of the whole job."""
    return lambda done, total: progress(number * total + done, people * total)
