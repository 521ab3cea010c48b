"""PuppetBench: held-out characters, motions and scenes, and every pixel of the right answer.

A task is a swap of the puppet world's "heldout" split, of which no training data is drawn: a reference picture,
a driving clip with its exact mask, box and pose, and the truth, which shows the reference's character in the
driving clip's scene and motion.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np

from ..errors import UserError
from ..masks import box_masks
from ..metrics import gradient_energy, psnr, ssim, warp_error
from ..pipeline import Pipeline
from ..pose import draw_pose, scale_pose
from ..preprocess.looks import body_looks, looks_distance
from ..puppets.task import BASELINES, Swap, sample_swap
from ..sheet import upscale
from .lpips import Lpips
from .report import Values, summarise

REGIONS = {
    "character": "every pixel of the driving or of the true character",
    "box": "the padded, steadied box around the driving character, the coarse mask of the paper's section 3.2",
    "background": "what is in neither; a perfect system leaves it alone",
}
METRICS = {
    "character PSNR": "dB over the character region; higher is better",
    "character SSIM": "grey, Gaussian window of 1.5 px, over the character region; 1 is equal",
    "character LPIPS": "AlexNet, frames whose pixels outside the character region are the truth's; 0 is equal",
    "background PSNR": "dB over the background; capped at 148.13, which says that every pixel is equal",
    "identity": "cosine between colour features of the true character's pixels, made and true: soft Lab "
    "histograms of head, upper and lower body; 1 is equal. It knows colours, not faces or shapes",
    "warp error": "mean difference in levels between a frame and the next one warped back along the true flow, "
    "over the true character; compare with the truth's own, as blur lowers it too",
    "box PSNR": "dB over the box",
    "sharpness": "squared gradients over the character region relative to the truth's; 1 is as sharp",
}
TRUTH = "truth"
SHEET_ROWS, SHEET_CELL = 6, 192
SMALLEST = 32  # pixels a side


@dataclass(frozen=True)
class Setup:
    """How many tasks, of how many frames, of how many pixels a side. Task n is the same in every longer run."""

    clips: int = 64
    frames: int = 8
    size: int = 64

    def __post_init__(self) -> None:
        if min(self.clips, self.frames) < 1:
            raise UserError(f"{self.clips} clips of {self.frames} frames are too few; give 1 or more of each.")
        if self.size < SMALLEST:
            raise UserError(f"PuppetBench cannot score pictures of {self.size} pixels; give {SMALLEST} or more.")


@dataclass(frozen=True)
class Task:
    number: int
    swap: Swap

    @property
    def name(self) -> str:
        return f"task_{self.number:04d}"

    @property
    def digest(self) -> str:
        """Tells two versions of the puppet world apart by what a system is shown."""
        shown = self.swap.reference.tobytes() + self.swap.driving.frames.tobytes()
        return hashlib.sha256(shown).hexdigest()[:16]


Method = Callable[[Task], np.ndarray]
"""A system: its frames for a task, uint8 [F, H, W, 3]."""
Progress = Callable[[int, int], None]


def tasks(setup: Setup, flow: bool = True) -> Iterator[Task]:
    """The tasks in turn, each rendered when it is asked for."""
    for number in range(setup.clips):
        yield Task(number, sample_swap(number, setup.frames, setup.size, flow=flow))


def of_model(
    pipe: Pipeline, steps: int, guidance: float, seed: int = 42, fine: bool = False, cut: bool = False
) -> Method:
    """A model as a method.

    fine: the driving character's exact mask in place of the box. cut: the masked part of the scene is black, as
    stage one is trained (eq. 2); the finished product sees the whole clip (eq. 3).
    """

    def run(task: Task) -> np.ndarray:
        driving = task.swap.driving
        mask = driving.mask if fine else task.swap.box
        scene = driving.frames * (mask == 0)[..., None] if cut else driving.frames
        side = round(driving.frames.shape[1] * pipe.settings.get("pose_scale", 1))
        pose = np.stack([draw_pose(scale_pose(each, side, side)) for each in driving.poses()])
        made = pipe(task.swap.reference, scene, mask, pose, steps=steps, guidance_scale=guidance, seed=seed).frames
        # What the feathered paste-back blended with black is the driving clip's again.
        return np.where((box_masks(mask, 0.0, 0) > 0)[..., None], made, driving.frames) if cut else made

    return run


def of_codec(pipe: Pipeline) -> Method:
    """The truth through the model's autoencoder: what it draws cannot be expected to score higher.

    Task sizes must be multiples of `pipe.multiple`.
    """
    return lambda task: np.concatenate([pipe.decode(pipe.encode(frame[None])) for frame in task.swap.truth.frames])


def references() -> dict[str, Method]:
    """The truth, which shows each metric's ceiling, and the baselines that use no network."""

    def baseline(make: Callable[[Swap], np.ndarray], task: Task) -> np.ndarray:
        return make(task.swap)

    return {TRUTH: lambda task: task.swap.truth.frames} | {
        name: partial(baseline, make) for name, make in BASELINES.items()
    }


def score(swap: Swap, made: np.ndarray, lpips: Lpips | str) -> dict[str, float | str]:
    """Every metric of `METRICS` for one clip `made`, uint8 [F, H, W, 3]; a text says why one is missing.

    NaN where the clip has no pixel to measure it on. The swap must have its flow.
    """
    truth, region, box = swap.truth.frames, swap.region, swap.box > 0
    background = ~(box | region)
    if isinstance(lpips, str):
        distance: float | str = lpips
    else:
        distance = float(lpips(np.where(region[..., None], made, truth), truth).mean())
    steady: float | str = "one frame a clip has no motion; give --frames of 2 or more"
    if len(made) > 1:
        steady = warp_error(made, swap.truth.flow, swap.truth.mask > 0)
    return {
        "character PSNR": _over(psnr, made, truth, region),
        "character SSIM": _over(ssim, made, truth, region),
        "character LPIPS": distance,
        "background PSNR": _over(psnr, made, truth, background),
        "identity": identity(swap, made),
        "warp error": steady,
        "box PSNR": _over(psnr, made, truth, box),
        "sharpness": _over(gradient_energy, made, truth, region),
    }


def identity(swap: Swap, made: np.ndarray) -> float:
    """The mean over frames of the cosine described in `METRICS`; NaN where the true character is never seen."""
    alike, clip = [], swap.truth
    rows = zip(made, clip.frames, clip.mask, clip.boxes, clip.keypoints, strict=True)
    for frame, true, mask, box, points in rows:
        if mask.any():
            looks = [body_looks(picture, box, points, mask > 0)[None] for picture in (frame, true)]
            # Every part's features have length 1, so the squared Hellinger distance is 1 - their cosine.
            alike.append(1 - float(looks_distance(*looks)[0, 0]) ** 2)
    return float(np.mean(alike)) if alike else math.nan


def measure(
    methods: Mapping[str, Method], setup: Setup, lpips: Lpips | str, progress: Progress | None = None
) -> tuple[dict[str, Any], list[list[np.ndarray]]]:
    """Scores every method on every task; progress(done, total) counts clips made.

    Returns:
        The report (see `METRICS`; "methods" holds `summarise`d scores, "clips" each clip's own, "seconds" each
        method's time in all), and rows for a contact sheet under `sheet_titles(methods)`.
    """
    values: dict[str, dict[str, list[float] | str]] = {
        method: {metric: [] for metric in METRICS} for method in methods
    }
    seconds = dict.fromkeys(methods, 0.0)
    rows: list[list[np.ndarray]] = []
    for task in tasks(setup):
        pictures = {}
        for place, (name, method) in enumerate(methods.items()):
            started = time.perf_counter()
            made = method(task)
            seconds[name] += time.perf_counter() - started
            pictures[name] = made[setup.frames // 2]
            for metric, value in score(task.swap, made, lpips).items():
                if isinstance(value, str):
                    values[name][metric] = value
                else:
                    values[name][metric].append(value)
            if progress is not None:
                progress(task.number * len(methods) + place + 1, setup.clips * len(methods))
        if task.number < SHEET_ROWS:
            rows.append(_sheet_row(task, pictures))
    report = {
        "benchmark": "PuppetBench",
        "setup": asdict(setup),
        "regions": REGIONS,
        "metrics": METRICS,
        "methods": {name: _summaries(each) for name, each in values.items()},
        "clips": {
            name: {metric: kept for metric, kept in each.items() if not isinstance(kept, str)}
            for name, each in values.items()
        },
        "seconds": {name: round(spent, 1) for name, spent in seconds.items()},
    }
    return report, rows


def sheet_titles(methods: Mapping[str, Method]) -> list[str]:
    return ["reference", "driving", *(name for name in methods if name != TRUTH), TRUTH]


def _summaries(values: Mapping[str, Values]) -> dict[str, dict[str, Any]]:
    return {metric: summarise(each) for metric, each in values.items()}


def _sheet_row(task: Task, pictures: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    swap, middle = task.swap, len(task.swap.pose) // 2
    shown = [swap.reference[..., :3], swap.driving.frames[middle]]
    shown += [picture for name, picture in pictures.items() if name != TRUTH] + [swap.truth.frames[middle]]
    return [upscale(picture, max(1, SHEET_CELL // picture.shape[0])) for picture in shown]


def _over(
    metric: Callable[[np.ndarray, np.ndarray, np.ndarray], float],
    made: np.ndarray,
    truth: np.ndarray,
    region: np.ndarray,
) -> float:
    return metric(made, truth, region) if region.any() else math.nan
