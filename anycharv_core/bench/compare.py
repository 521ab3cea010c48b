"""Scores of a generated video beside the real one that it should equal: frames in, scores out.

Frames are compared as float64 of 0 to 255. Published tables of this field were partly made on uint8 arrays, whose
differences wrap around: 250 - 5 squared is then small, and every PSNR too high.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..media.frames import batched
from .clip_score import Embed
from .drift import DRIFTS, DriftScore
from .fvd import WINDOW, Features, frechet_distance
from .lpips import Lpips
from .metrics import decibels
from .pck import ALPHA
from .report import NOT_MEASURED
from .seam import SEAMS, SeamScore

METRICS = {
    "PSNR": "dB, from the squared error of all the video's frames; inf where the videos are equal",
    "SSIM": "torchmetrics, colour, Gaussian window of 1.5 px, mean over frames; 1 is equal",
    "LPIPS": "AlexNet, version 0.1, mean over frames; 0 is equal",
    "background PSNR": "dB over the pixels outside the mask; inf where they are all equal",
    "seam error": "root mean square difference, in levels, in a ring around the mask; 0 is equal",
    "seam jump": "change across the mask's edge, outside it, that the real video does not have, in levels a "
    "pixel, on the line around the mask where it is most; 0 is no seam",
    "identity drift": "Hellinger distance between the colours inside the mask in the video's last tenth and in "
    "its first, less the real video's own; 0 is none",
    "colour drift": "how far the mean colour inside the mask moves from the real video's meanwhile, in Lab; 0 is "
    "none",
    "sharpness drift": "how often squared gradients inside the mask double or halve relative to the real video's "
    "meanwhile; 0 is none",
    "CLIP-I": "cosine between CLIP's embeddings of the reference picture and of each generated frame, mean",
    "pose PCK": f"share of the real video's body points found within {ALPHA} of the person's size",
    "FVD": f"Frechet distance over all windows of {WINDOW} frames that follow one another; 0 is equal",
}
SMALLEST = 11  # pixels a side: the window of SSIM
MASKED = ("background PSNR", *SEAMS, *DRIFTS)  # what needs masks

Row = tuple[np.ndarray, np.ndarray, np.ndarray | None]
"""A frame of the real and one of the generated video, uint8 [H, W, 3], and the mask uint8 [H, W], or None."""


@dataclass(frozen=True)
class Networks:
    """What scores need beyond arithmetic; None = not at hand. ssim: whether torchmetrics is installed."""

    ssim: bool
    lpips: Lpips | None
    embed: Embed | None
    features: Features | None


class Windows:
    """The features of all whole windows of frames, of which FVD is a score: `real` and `generated` [D] each."""

    def __init__(self) -> None:
        self.real: list[np.ndarray] = []
        self.generated: list[np.ndarray] = []

    def fvd(self) -> dict[str, Any]:
        """As `summarise` has other scores, but for one value of all videos."""
        if (count := len(self.real)) < 2:
            return {NOT_MEASURED: f"the videos hold {count} windows of {WINDOW} frames, and 2 are the fewest"}
        real, generated = np.stack(self.real), np.stack(self.generated)
        return {"mean": frechet_distance(real, generated), "windows": count, "features": real.shape[1]}


def compare(
    rows: Iterable[Row], networks: Networks, character: np.ndarray | None, windows: Windows
) -> dict[str, float]:
    """Every score of one pair of videos that can be measured, by its name in `METRICS`, but for the pose's.

    rows: all with a mask or none; character: its picture, uint8 [H, W, 3], for CLIP-I. The features of the pair's
    windows are added to `windows`. NaN where there is nothing to measure a score on.
    """
    errors, similar, apart, alike = [], [], [], []
    outside_error, outside = 0.0, 0
    masked = False
    seam, drift = SeamScore(inside=False), DriftScore()
    embedded = networks.embed([character])[0] if networks.embed and character is not None else None
    for batch in batched(rows, WINDOW):
        for truth, made, mask in batch:
            square = (made.astype(np.float64) - truth) ** 2
            errors.append(square.mean())
            if mask is not None:
                masked = True
                outside_error += float(square[mask < 128].sum())
                outside += 3 * int((mask < 128).sum())
                seam.add(made, truth, mask)
                drift.add(made, truth, mask)
            if networks.ssim:
                similar.append(_ssim(made, truth))
            if networks.lpips:
                apart += networks.lpips(made[None], truth[None]).tolist()
            if networks.embed and embedded is not None:
                alike.append(float(networks.embed([made])[0] @ embedded))
        if networks.features and len(batch) == WINDOW:
            truths, mades, _ = zip(*batch, strict=True)
            windows.real.append(networks.features(np.stack(truths)))
            windows.generated.append(networks.features(np.stack(mades)))
    scores = {"PSNR": decibels(float(np.mean(errors)))}
    scores |= _means({"SSIM": similar, "LPIPS": apart, "CLIP-I": alike})
    if masked:
        background = decibels(outside_error / outside) if outside else math.nan
        scores |= dict(zip(MASKED, (background, *seam.result(), *drift.result()), strict=True))
    return scores


def _means(values: dict[str, Sequence[float]]) -> dict[str, float]:
    return {name: float(np.mean(each)) for name, each in values.items() if each}


def _ssim(made: np.ndarray, truth: np.ndarray) -> float:
    from torchmetrics.functional.image import structural_similarity_index_measure

    a, b = (torch.as_tensor(x).movedim(-1, 0)[None].double() for x in (made, truth))
    found = structural_similarity_index_measure(a, b, data_range=255.0)
    assert isinstance(found, torch.Tensor)
    return float(found)
