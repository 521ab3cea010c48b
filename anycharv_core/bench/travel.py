"""Scores of journeys: whether the background goes where the poses say that the camera goes.

Twins (puppets/travel.py) are shown alike but for their poses, so that a system that does not read the camera off
them is right exactly half the time. That needs no sharp pictures; how far the background has moved needs some.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from ..media.cameras import Cameras
from ..opencv import cv2
from ..puppets.render import Clip
from ..puppets.travel import Travel, pan_twins, zoom_twins
from .interaction import nearer
from .metrics import psnr

Answer = Callable[[Travel], np.ndarray]
"""A system: its frames for a task, uint8 [F, H, W, 3]."""

PAIRED = {
    "pan choice": "of two tasks, a walk that the camera follows and its mirror image in one place, the share "
    "whose background is nearer to its own truth than to the other's; 0.5 is blind",
    "zoom choice": "the same of a person who stands while the camera comes near, and of one who walks up to it, "
    "always equally large",
}
OWN = {
    "moving PSNR": "dB over the background, of clips whose camera moves",
    "flow error": "how many pixels off their true place blocks of the first plate are found in the answer, in "
    "every fourth frame and the last, of all blocks that are found in the truth to a pixel; the same clips",
}
BLOCK = 8  # pixels a side
_EVERY = 4


def twins(seed: int, frames: int, size: int) -> tuple[tuple[Travel, Travel], ...]:
    """The pair number `seed` of every score of `PAIRED`."""
    return tuple(draw(seed, frames, size) for draw in (pan_twins, zoom_twins))


def paired(answer: Answer, pairs: Sequence[tuple[Travel, Travel]]) -> dict[str, float]:
    """The scores of `PAIRED` for what `twins` gives; NaN where the twins' truths are equal."""
    found = {}
    for name, (one, two) in zip(PAIRED, pairs, strict=True):
        plate, other = _background(one.truth), _background(two.truth)
        # Off both characters and their shadows, which alone would tell the twins apart.
        bare = (one.truth.frames == plate).all(-1) & (two.truth.frames == other).all(-1)
        found[name] = nearer(answer(one), answer(two), plate, other, bare)
    return found


def own(travel: Travel, made: np.ndarray) -> dict[str, float]:
    """The scores of `OWN` for one answer; NaN where the camera rests."""
    if not np.ptp(_cameras(travel.truth).T, axis=0).any():
        return dict.fromkeys(OWN, math.nan)
    return {
        "moving PSNR": psnr(made, travel.truth.frames, ~travel.region),
        "flow error": flow_error(travel, made),
    }


def flow_error(travel: Travel, made: np.ndarray) -> float:
    """The score that `OWN` describes: of blocks on one plane that are whole in both frames."""
    errors = []
    places = _blocks(travel.truth)
    frames = range(_EVERY, len(made), _EVERY)
    for t in sorted({*frames, len(made) - 1} - {0}):
        for x, y in places:
            there = _seen_again(travel.truth, x, y, t)
            template = travel.background[y : y + BLOCK, x : x + BLOCK]
            # Blocks of one colour, or that are found elsewhere as well, say nothing.
            if there is not None and math.dist(_find(travel.truth.frames[t], template), there) <= 1:
                errors.append(math.dist(_find(made[t], template), there))
    return float(np.mean(errors)) if errors else math.nan


def still_plate(travel: Travel) -> np.ndarray:
    """Baseline: the background as a still picture."""
    return np.repeat(travel.background[None], len(travel.pose), axis=0)


def warped_plate(travel: Travel) -> np.ndarray:
    """Baseline: the background moved as the true cameras and depths say, which no system is told."""
    truth, cameras = travel.truth, _cameras(travel.truth)
    assert truth.depth is not None
    height, width = truth.mask.shape[1:]
    columns, rows = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    pixels = np.stack([columns, rows], axis=-1)
    made = np.empty_like(truth.frames)
    for t in range(len(made)):
        x, y = np.moveaxis(_carried(cameras, t, 0, pixels, truth.depth[t]), -1, 0).astype(np.float32) - np.float32(
            0.5
        )
        made[t] = cv2.remap(travel.background, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return made


TRAVEL_BASELINES: dict[str, Callable[[Travel], np.ndarray]] = {
    "still plate": still_plate,
    "plate warped by the true cameras": warped_plate,
}


def _carried(cameras: Cameras, i: int, j: int, pixels: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """Where pixels [..., 2] of frame i, at a depth [...] of it, are in frame j."""
    rays = np.concatenate([pixels, np.ones_like(pixels[..., :1])], axis=-1) @ np.linalg.inv(cameras.K[i]).T
    world = (rays * depth[..., None] - cameras.T[i]) @ cameras.R[i]
    seen = (world @ cameras.R[j].T + cameras.T[j]) @ cameras.K[j].T
    return seen[..., :2] / seen[..., 2:]


def _blocks(truth: Clip) -> list[tuple[int, int]]:
    """Corners x, y of blocks of the first frame that show one plane and nobody."""
    assert truth.layers is not None
    mask, layers = truth.mask[0], truth.layers[0]
    height, width = mask.shape
    corners = [(x, y) for y in range(0, height - BLOCK + 1, BLOCK) for x in range(0, width - BLOCK + 1, BLOCK)]

    def plain(x: int, y: int) -> bool:
        block = (slice(y, y + BLOCK), slice(x, x + BLOCK))
        return not mask[block].any() and not np.ptp(layers[block])

    return [corner for corner in corners if plain(*corner)]


def _seen_again(truth: Clip, x: int, y: int, t: int) -> tuple[float, float] | None:
    """The corner of a block of the first frame in frame t; None where it is not all in the picture, or hidden."""
    cameras = _cameras(truth)
    assert truth.depth is not None and truth.layers is not None
    height, width = truth.mask.shape[1:]
    depth = truth.depth[0, y, x]
    middle = np.array([(x + BLOCK / 2, y + BLOCK / 2)])
    left, top = (_carried(cameras, 0, t, middle, np.array([depth]))[0] - BLOCK / 2).tolist()
    if not (0 <= left <= width - BLOCK and 0 <= top <= height - BLOCK):
        return None
    rows, columns = (slice(round(start), round(start) + BLOCK) for start in (top, left))
    hidden = truth.mask[t, rows, columns].any() or (truth.layers[t, rows, columns] != truth.layers[0, y, x]).any()
    return None if hidden else (left, top)


def _find(frame: np.ndarray, template: np.ndarray) -> tuple[float, float]:
    """The corner x, y of the place of a frame that looks most like a template, to a fraction of a pixel."""
    error = cv2.matchTemplate(frame.astype(np.float32), template.astype(np.float32), cv2.TM_SQDIFF)
    row, column = np.unravel_index(int(error.argmin()), error.shape)
    return column + _vertex(error[row], column), row + _vertex(error[:, column], row)


def _vertex(values: np.ndarray, least: np.intp) -> float:
    """How far beside its least value the parabola through that and its neighbours has its lowest point."""
    if not 0 < least < len(values) - 1:
        return 0.0
    before, here, behind = values[least - 1 : least + 2].astype(float).tolist()
    bend = before - 2 * here + behind
    return 0.5 * (before - behind) / bend if bend > 0 else 0.0


def _cameras(truth: Clip) -> Cameras:
    assert truth.cameras is not None  # all journeys have them
    return truth.cameras


def _background(truth: Clip) -> np.ndarray:
    assert truth.background is not None
    return truth.background
