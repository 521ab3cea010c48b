"""Scores of interactions that need no sharp pictures: a system answers tasks that differ in one thing alone.

Animate Anyone 2's parts decide about few pixels, so that a PSNR hardly tells them apart. A choice between two
truths does, and a system that is blind to what differs is right exactly half the time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ..puppets.interaction import Interaction, grown_task, object_pair, order_pair, outline_pair
from ..systems.animate_anyone_2 import CARRIED, WINDOW
from .metrics import warp_error

Answer = Callable[[Interaction], np.ndarray]
"""A system: its frames for a task, uint8 [F, H, W, 3]."""

PROBES = {
    "order choice": "of two tasks that differ in which limbs are in front, the share whose answer is nearer to "
    "its own truth than to the other's where these differ; 0.5 is blind",
    "object choice": "the same of two tasks that differ in the colour of what is held, which a box hides",
    "leak": "mean difference in levels, over the true character, of the answers for a thin and for a fat driver "
    "of one truth; 0 is none",
    "growth": "of a true character that is a fifth larger than the driver, the share of the pixels outside the "
    "driver's box that are nearer to the truth than to the scene",
    "joint error": "warp error from one window of a video to the next, less that inside windows; 0 is no seam",
}


class Asked(NamedTuple):
    """What is asked for the scores of one task: pairs that differ in one thing, and a task for `growth`."""

    order: tuple[Interaction, Interaction]
    held: tuple[Interaction, Interaction]
    outline: tuple[Interaction, Interaction]
    grown: Interaction


def asked(seed: int, frames: int, size: int) -> Asked:
    """Of task number `seed`."""
    order, held, outline = (pair(seed, frames, size) for pair in (order_pair, object_pair, outline_pair))
    return Asked(order, held, outline, grown_task(seed, frames, size))


def probe(answer: Answer, about: Asked) -> dict[str, float]:
    """The scores of `PROBES` but the last; NaN where a task has no pixel to tell by."""
    order, held = (choice(answer(one), answer(other), one, other) for one, other in (about.order, about.held))
    thin, fat = about.outline
    body = thin.truth.mask > 0
    apart = np.abs(answer(thin).astype(np.int16) - answer(fat))[body]
    return {
        "order choice": order,
        "object choice": held,
        "leak": float(apart.mean()) if body.any() else math.nan,
        "growth": growth(answer, about.grown),
    }


def own(task: Interaction, made: np.ndarray) -> dict[str, float | str]:
    """The last score of `PROBES`, of one answer."""
    assert task.truth.flow is not None
    return {"joint error": joint_error(made, task.truth.flow, task.truth.mask > 0)}


def choice(made: np.ndarray, other_made: np.ndarray, task: Interaction, other: Interaction) -> float:
    """0, 0.5 or 1: how many of two answers are nearer to their own truth than to the other's; one that is as near
    to both counts half. NaN where the truths are equal."""
    one, two = task.truth.frames, other.truth.frames
    return nearer(made, other_made, one, two, np.ones(one.shape[:-1], bool))


def nearer(
    made: np.ndarray, other_made: np.ndarray, one: np.ndarray, two: np.ndarray, region: np.ndarray
) -> float:
    """The same for truths `one` and `two`, uint8 [F, H, W, 3], over a region, bool [F, H, W]."""
    differ = (one != two).any(axis=-1) & region
    if not differ.any():
        return math.nan

    def right(answer: np.ndarray, own: np.ndarray, wrong: np.ndarray) -> float:
        near, far = (
            np.abs(answer[differ].astype(np.int16) - truth[differ]).sum(dtype=np.int64) for truth in (own, wrong)
        )
        return 0.5 if near == far else float(near < far)

    return (right(made, one, two) + right(other_made, two, one)) / 2


def growth(answer: Answer, task: Interaction) -> float:
    """The recall that `PROBES` describes."""
    outside = (task.truth.mask > 0) & (task.box == 0)
    if not outside.any():
        return math.nan
    made = answer(task)[outside].astype(np.int16)
    to_truth, to_scene = (
        np.abs(made - frames[outside]).sum(axis=-1) for frames in (task.truth.frames, task.driving.frames)
    )
    return float((to_truth < to_scene).mean())


def joint_error(made: np.ndarray, flow: np.ndarray, region: np.ndarray) -> float | str:
    """The score that `PROBES` describes, for frames, true flow and true character as `warp_error` takes them; a
    text says why there is none."""
    if len(made) <= WINDOW:
        return f"a clip of up to {WINDOW} frames has no joint; give --frames of more"
    steps = [warp_error(made[t : t + 2], flow[t : t + 1], region[t : t + 2]) for t in range(len(flow))]
    joints = range(WINDOW - 1, len(steps), WINDOW - CARRIED)
    inside = np.delete(steps, list(joints))
    return float(np.mean([steps[t] for t in joints]) - inside.mean())
