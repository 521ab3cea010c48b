"""Whether a character is at the end of a video still who it was at the start."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from ..media.masks import mask_box
from ..preprocess.tracking import body_looks, looks_distance, mean_looks
from .metrics import lab

PART = 0.1  # of the frames that show the character: the first and the last of them are compared
DRIFTS = ("identity drift", "colour drift", "sharpness drift")  # what reports call the fields of a `Drift`
_DARKEST = 1.0  # squared levels a pixel: less is flat, and its logarithm says nothing


class Drift(NamedTuple):
    """The last tenth of a video against its first; all at least 0, and 0 for the truth.

    identity: Hellinger distance, 0 to 1, of the colours of head, upper and lower body, less what the truth's own
    are apart. colour: how far the character's mean colour has moved from the truth's in Lab (CIE76). sharpness:
    how often its squared gradients have doubled or halved relative to the truth's. NaN with fewer than two frames
    that show the character.
    """

    identity: float
    colour: float
    sharpness: float


class DriftScore:
    """The score of a video, frame by frame; a frame costs two kilobytes.

    What changes in the scene, such as light, changes the truth too and is no drift.
    """

    def __init__(self) -> None:
        self._looks: list[np.ndarray] = []
        self._colours: list[np.ndarray] = []
        self._gradients: list[float] = []

    def add(self, made: np.ndarray, truth: np.ndarray, mask: np.ndarray, points: np.ndarray | None = None) -> None:
        """Frames uint8 [H, W, 3], the character's mask [H, W] and, where known, their body points, float [18, 3]:
        OpenPose's x and y in pixels and scores. A frame with an empty mask is left out."""
        box = mask_box(mask)
        if box is None:
            return
        x0, y0, x1, y1 = box
        inside = mask >= 128
        pictures = made, truth
        self._looks.append(np.stack([body_looks(each, np.array(box), points, inside) for each in pictures]))
        crops = [each[y0:y1, x0:x1] for each in pictures]
        colours = [lab(crop)[inside[y0:y1, x0:x1]].mean(axis=0) for crop in crops]
        self._colours.append(colours[0] - colours[1])
        sharp = [_gradients(crop)[inside[y0:y1, x0:x1]].mean() for crop in crops]
        self._gradients.append(math.log2(max(sharp[0], _DARKEST) / max(sharp[1], _DARKEST)))

    def result(self) -> Drift:
        count = len(self._looks)
        if count < 2:
            return Drift(math.nan, math.nan, math.nan)
        part = max(1, round(PART * count))
        looks = np.stack(self._looks)
        apart = [
            float(looks_distance(mean_looks(side[:part])[None], mean_looks(side[-part:])[None])[0, 0])
            for side in (looks[:, 0], looks[:, 1])
        ]
        colours, gradients = np.stack(self._colours), np.array(self._gradients)
        return Drift(
            identity=max(0.0, apart[0] - apart[1]),
            colour=float(np.linalg.norm(colours[-part:].mean(axis=0) - colours[:part].mean(axis=0))),
            sharpness=float(abs(gradients[-part:].mean() - gradients[:part].mean())),
        )


def drift(made: np.ndarray, truth: np.ndarray, masks: np.ndarray, points: np.ndarray | None = None) -> Drift:
    """The score of a whole video uint8 [F, H, W, 3], masks [F, H, W] and points [F, 18, 3], see `DriftScore`."""
    score = DriftScore()
    for index, (one, true, mask) in enumerate(zip(made, truth, masks, strict=True)):
        score.add(one, true, mask, None if points is None else points[index])
    return score.result()


def _gradients(picture: np.ndarray) -> np.ndarray:
    """float64 [H, W]: squared differences to the next pixel, as `metrics.gradient_energy` takes them."""
    values = np.pad(picture.astype(np.float64), [(0, 1), (0, 1), (0, 0)], "edge")
    down, right = np.diff(values, axis=0)[:, :-1], np.diff(values, axis=1)[:-1]
    return (down**2 + right**2).mean(axis=-1)
