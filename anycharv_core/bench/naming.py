"""What a result shows its character to wear, named from its pixels alone: the top's pattern, and four colours."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from ..opencv import cv2
from ..puppets import Clip, render
from ..puppets.bold import CLOTH, HAIR, SKIN
from ..puppets.character import BOLD_PATTERNS, Character
from ..puppets.draw import Colour
from ..puppets.worlds import WORLDS
from .metrics import lab

NAMED = ("pattern named", "hair named", "skin named", "top named", "trousers named")
PICTURES = 240  # of the training split, from which patterns are learned
# A torso as the classifier sees it: its columns span WIDE torso lengths.
_ROWS, _COLUMNS, _WIDE = 16, 12, 0.8
_WAVES = 10, 8  # of a torso, down and across
_FLOOR = 10.0  # squared Lab units: energies below it are grain
_SHRINKAGE = 0.1
_NECK, _HIPS = 1, (8, 11)  # OpenPose's numbers
_EXACT = 3  # levels: flat colours are exact but for rounding
_FEWEST = 12  # pixels of a part, below which its colour is mostly its edge


@dataclass(frozen=True)
class Patterns:
    """A linear classifier: scores = features @ weights + bias, one for each of `BOLD_PATTERNS`."""

    weights: np.ndarray
    bias: np.ndarray

    def name(self, frames: np.ndarray, keypoints: np.ndarray) -> str | None:
        """The pattern of the top in frames uint8 [F, H, W, 3] with body points [F, 18, 3]; None where no frame
        holds a torso."""
        torsos = [torso for each in zip(frames, keypoints, strict=True) if (torso := _torso(*each)) is not None]
        if not torsos:
            return None
        scores = np.stack([_energies(torso) for torso in torsos]) @ self.weights + self.bias
        return BOLD_PATTERNS[int(scores.mean(axis=0).argmax())]


@lru_cache(maxsize=4)
def learn_patterns(size: int, pictures: int = PICTURES) -> Patterns:
    """Linear discriminant analysis (Fisher 1936), its covariance shrunk to the diagonal, on true pictures of
    `size` pixels a side: bold characters of the training split, numbered from 0."""
    world = WORLDS["bold"]
    features, labels = [], []
    for number in range(pictures):
        character = world.character(number)
        motion = world.motion(number, 1, character.proportions)
        clip = render(character, motion, world.scene(number), (size, size))
        torso = _torso(clip.frames[0], clip.keypoints[0])
        if torso is not None:
            features.append(_energies(torso))
            labels.append(BOLD_PATTERNS.index(character.pattern))
    return _discriminant(np.stack(features), np.array(labels))


def wears(character: Character, truth: Clip, made: np.ndarray) -> dict[str, float]:
    """The scores `NAMED` of a clip made uint8 [F, H, W, 3], whose square `truth` shows a bold character.

    "pattern named": 1 or 0. Of the others each: the share of frames in which the median colour, over the pixels
    that have the part's flat colour in the truth, is nearest to the right one of the world's palette, in Lab.
    NaN where the truth does not show enough of it.
    """
    found = learn_patterns(truth.frames.shape[1]).name(made, truth.keypoints)
    scores = [math.nan if found is None else float(found == character.pattern)]
    parts = (
        (character.hair_colour, HAIR),
        (character.skin, SKIN),
        (character.top, CLOTH),
        (character.bottom_colour, CLOTH),
    )
    return dict(zip(NAMED, scores + [_colour(truth, made, *part) for part in parts], strict=True))


def _colour(truth: Clip, made: np.ndarray, colour: Colour, palette: tuple[Colour, ...]) -> float:
    right = []
    for true, mask, frame in zip(truth.frames, truth.mask, made, strict=True):
        part = (np.abs(true.astype(int) - colour).max(axis=-1) <= _EXACT) & (mask > 0)
        if part.sum() >= _FEWEST:
            seen = lab(np.median(frame[part], axis=0)[None, None])
            apart = np.linalg.norm(lab(np.array([palette])) - seen, axis=-1)
            right.append(palette[int(apart.argmin())] == colour)
    return float(np.mean(right)) if right else math.nan


def _torso(frame: np.ndarray, points: np.ndarray) -> np.ndarray | None:
    """uint8 [_ROWS, _COLUMNS, 3]: from the neck down to the middle of the hips, upright; None where one of them is
    not in the frame."""
    if points[[_NECK, *_HIPS], 2].min() <= 0:
        return None
    neck = points[_NECK, :2].astype(float)
    down = points[list(_HIPS), :2].mean(axis=0) - neck
    across = _WIDE * np.array((down[1], -down[0]))
    column, row = across / _COLUMNS, down / _ROWS
    # Centres of pixels: those of a frame lie half a pixel from its corner.
    first = neck - across / 2 + (column + row) / 2 - 0.5
    to_frame = np.stack([column, row, first], axis=1)
    return cv2.warpAffine(
        frame,
        to_frame,
        (_COLUMNS, _ROWS),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE,
    )


def _energies(torso: np.ndarray) -> np.ndarray:
    """The logarithm of a torso's power by wave: whatever the colours, and whichever is lighter."""
    waves = np.stack([cv2.dct(np.ascontiguousarray(channel)) for channel in np.moveaxis(lab(torso), -1, 0)])
    power = np.square(waves[:, : _WAVES[0], : _WAVES[1]]).sum(axis=0)
    return np.log(_FLOOR + power).ravel()[1:].astype(np.float64)


def _discriminant(features: np.ndarray, labels: np.ndarray) -> Patterns:
    means = np.stack([features[labels == number].mean(axis=0) for number in range(len(BOLD_PATTERNS))])
    apart = features - means[labels]
    covariance = apart.T @ apart / len(apart)
    covariance = (1 - _SHRINKAGE) * covariance + _SHRINKAGE * np.diag(np.diag(covariance))
    weights = np.linalg.solve(covariance, means.T)
    return Patterns(weights, -(means.T * weights).sum(axis=0) / 2)
