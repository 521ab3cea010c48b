"""PuppetBench's scores of models, of frames that others made, and of baselines, where the truth is exact."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from ..inference.anywhere import AnywhereBackend
from ..inference.pipeline import Pipeline
from ..inference.shortcuts import NONE, Shortcuts
from ..media.canvas import PERSON
from ..media.masks import box_masks
from ..media.sheet import upscale
from ..preprocess.tracking import body_looks, looks_distance
from ..puppets import Clip
from ..puppets.interaction import Interaction
from ..puppets.task import Swap
from ..puppets.travel import Travel
from .attention import masses
from .drift import DRIFTS, drift
from .lpips import Lpips
from .metrics import gradient_energy, psnr, ssim, warp_error
from .naming import NAMED, PICTURES, wears
from .report import Values, summarise
from .seam import SEAMS, seam
from .tasks import (
    ANIMATION,
    BOLD_ANIMATION,
    BOLD_SWAP,
    INTERACTION,
    KINDS,
    SWAP,
    TRAVEL,
    VERSION,
    Setup,
    Task,
    tasks,
)

METRICS = {
    "PSNR": "dB over the region named before it; higher is better, and 148.13 at most, where every pixel is equal",
    "character SSIM": "grey, Gaussian window of 1.5 px, over the character region; 1 is equal",
    "character LPIPS": "AlexNet, frames whose pixels outside the character region are the truth's; 0 is equal",
    "identity": "cosine between colour features of the true character's pixels, made and true: soft Lab "
    "histograms of head, upper and lower body; 1 is equal. It knows colours, not faces or shapes",
    "warp error": "mean difference in levels between a frame and the next one warped back along the true flow, "
    "over the true character; compare with the truth's own, as blur lowers it too",
    "sharpness": "squared gradients over the character region relative to the truth's; 1 is as sharp",
    "seam error": "root mean square difference to the truth, in levels, in a ring around the edge of the mask by "
    "which a swap is pasted; 0 is equal",
    "seam jump": "change across that edge that the truth does not have, in levels a pixel, on the line around the "
    "mask where it is most; 0 is no seam",
    "identity drift": "Hellinger distance between the colours of the true character's pixels in the last tenth of "
    "the clip and in the first, less the truth's own; 0 is none",
    "colour drift": "how far the mean colour of those pixels moves from the truth's meanwhile, in Lab; 0 is none",
    "sharpness drift": "how often their squared gradients double or halve relative to the truth's meanwhile; 0 is "
    "none",
    NAMED[0]: "share of clips whose top a linear classifier, fitted to the waves of the torso in "
    f"{PICTURES} true pictures of the training split, names plain, striped or dotted as it is",
    **dict.fromkeys(
        NAMED[1:],
        "share of frames where that part's median colour is nearest to the right one of the palette",
    ),
}
TRUTH = "truth"
SHEET_ROWS, SHEET_CELL = 6, 192

Method = Callable[[Task], np.ndarray]
"""A system: its frames for a task, uint8 [F, H, W, 3]."""
Look = Callable[[Task], Mapping[str, float]]
Progress = Callable[[int, int], None]


def tasks_of(pipe: Pipeline) -> tuple[str, ...]:
    """The kinds of task that a model can be scored on, the usual one first: of the world it was trained in."""
    if pipe.system.reads_background:
        return (TRAVEL,)
    kinds = (SWAP, BOLD_SWAP) if pipe.system.reads_scene else (ANIMATION, BOLD_ANIMATION)
    kinds = kinds[::-1] if pipe.settings.get("world") == "bold" else kinds
    return kinds if pipe.system.blocks is None else (INTERACTION, *kinds)


def of_model(
    pipe: Pipeline,
    steps: int,
    guidance: float,
    seed: int = 42,
    fine: bool = False,
    cut: bool = False,
    canvas: str | None = None,
    shortcuts: Shortcuts = NONE,
    recipe: str = "default",
) -> Method:
    """A model as a method for `tasks_of(pipe)`. It is given a swap's box and whole clip, as in use.

    fine: the driving character's exact mask in place of the box. cut: the masked part of the scene is black, as
    stage one is trained (eq. 2; the finished product sees the whole clip, eq. 3). canvas: as in
    `Pipeline.__call__`; None = the one of the kind of task. shortcuts: ways to be faster; recipe: of the system.
    """

    def run(task: Task, side: int, **scene: Any) -> np.ndarray:
        seen = canvas or task.kind.canvas
        # A canvas that follows has the model's own size, whatever that of the frames.
        size = tuple(pipe.settings.get("size", (side, side))) if seen == PERSON else (side, side)
        settings: dict[str, Any] = {"steps": steps, "guidance_scale": guidance, "seed": seed, "size": size}
        settings |= {} if shortcuts == NONE else {"shortcuts": shortcuts}
        settings |= {} if recipe == "default" else {"recipe": recipe}
        given = task.given
        frames = pipe(given.reference, **scene, pose=given.poses(), canvas=seen, **settings).frames
        assert isinstance(frames, np.ndarray)
        return frames

    def animate(task: Task) -> np.ndarray:
        return run(task, task.given.pose.shape[1])

    def travel(task: Task) -> np.ndarray:
        assert isinstance(task.given, Travel)
        return run(task, task.given.pose.shape[1], background=task.given.background)

    def swap(task: Task) -> np.ndarray:
        given = task.given
        assert isinstance(given, Swap)
        driving = given.driving
        mask = driving.mask if fine else given.box
        scene = driving.frames * (mask == 0)[..., None] if cut else driving.frames
        made = run(task, scene.shape[1], scene=scene, mask=mask)
        # What the feathered paste-back blended with black is the driving clip's again.
        return np.where((box_masks(mask, 0.0, 0) > 0)[..., None], made, driving.frames) if cut else made

    def interact(task: Task) -> np.ndarray:
        given = task.given
        assert isinstance(given, Interaction)
        extras = {name: getattr(given, name) for name in pipe.backend.extras}
        return run(task, given.pose.shape[1], scene=given.driving.frames, mask=given.mask, **extras)

    def replaced(task: Task) -> np.ndarray:
        return interact(task) if isinstance(task.given, Interaction) else swap(task)

    if pipe.system.reads_background:
        return travel
    return replaced if pipe.system.reads_scene else animate


def look_of(pipe: Pipeline) -> Look | None:
    """The scores of where a model attends, for a task; None for one of which there are none."""
    if not pipe.system.reads_background:
        return None

    def look(task: Task) -> Mapping[str, float]:
        assert isinstance(task.given, Travel)
        return masses(pipe, task.given)

    return look


def of_codec(pipe: Pipeline) -> Method:
    """The truth through the model's autoencoder: what it draws cannot be expected to score higher.

    Task sizes must be multiples of `pipe.backend.multiple`.
    """

    backend = pipe.backend

    def run(task: Task) -> np.ndarray:
        frames = task.given.truth.frames
        if isinstance(backend, AnywhereBackend):
            return backend.decode(backend.encode_clip(frames))
        return np.concatenate([backend.decode(backend.encode(frame[None])) for frame in frames])

    return run


def references(task: str = SWAP) -> dict[str, Method]:
    """The truth, which shows each metric's ceiling, and the baselines of a kind of task, which use no network."""

    def baseline(make: Callable[..., np.ndarray]) -> Method:
        return lambda task: make(task.given)

    made = {name: baseline(make) for name, make in KINDS[task].baselines.items()}
    return {TRUTH: lambda task: task.given.truth.frames} | made


def score(task: Task, made: np.ndarray, lpips: Lpips | str) -> dict[str, float | str]:
    """Every metric of `METRICS` for one clip `made`, uint8 [F, H, W, 3]; a text says why one is missing.

    PSNR is there for every region of the kind of task. NaN where the clip has no pixel to measure it on. The task
    must have its flow.
    """
    clip, masks = task.given.truth, task.kind.masks(task.given)
    truth, region = clip.frames, masks["character"]
    if isinstance(lpips, str):
        distance: float | str = lpips
    else:
        distance = float(lpips(np.where(region[..., None], made, truth), truth).mean())
    short = "one frame a clip has no motion; give --frames of 2 or more"
    steady: float | str = short
    drifts: dict[str, float] | dict[str, str] = dict.fromkeys(DRIFTS, short)
    if len(made) > 1:
        assert clip.flow is not None
        steady = warp_error(made, clip.flow, clip.mask > 0)
        drifts = dict(zip(DRIFTS, drift(made, truth, clip.mask, clip.keypoints), strict=True))
    pasted = task.kind.pasted
    seams = {} if pasted is None else dict(zip(SEAMS, seam(made, truth, pasted(task.given)), strict=True))
    return {f"{name} PSNR": _over(psnr, made, truth, mask) for name, mask in masks.items()} | {
        "character SSIM": _over(ssim, made, truth, region),
        "character LPIPS": distance,
        "identity": identity(clip, made),
        "warp error": steady,
        "sharpness": _over(gradient_energy, made, truth, region),
        **seams,
        **drifts,
        **(wears(task.given.character, clip, made) if task.kind.named and isinstance(task.given, Swap) else {}),
    }


def identity(clip: Clip, made: np.ndarray) -> float:
    """The mean over frames of the cosine described in `METRICS`; NaN where the character is never seen in the
    true `clip`."""
    alike = []
    rows = zip(made, clip.frames, clip.mask, clip.boxes, clip.keypoints, strict=True)
    for frame, true, mask, box, points in rows:
        if mask.any():
            looks = [body_looks(picture, box, points, mask > 0)[None] for picture in (frame, true)]
            # Every part's features have length 1, so the squared Hellinger distance is 1 - their cosine.
            alike.append(1 - float(looks_distance(*looks)[0, 0]) ** 2)
    return float(np.mean(alike)) if alike else math.nan


def measure(
    methods: Mapping[str, Method],
    setup: Setup,
    lpips: Lpips | str,
    progress: Progress | None = None,
    elsewhere: Collection[str] = (),
    looks: Mapping[str, Look] | None = None,
) -> tuple[dict[str, Any], list[list[np.ndarray]]]:
    """Scores every method on every task; progress(done, total) counts clips made.

    elsewhere: the methods whose frames were made elsewhere, of the tasks alone and not of their pairs. looks: what
    says where methods attend, of those that do.

    Returns:
        The report (see `METRICS`; "methods" holds `summarise`d scores, "clips" each clip's own, "seconds" each
        method's time in all), and rows for a contact sheet under `sheet_titles(methods, setup.task)`.
    """
    values: dict[str, dict[str, list[float] | str]] = {method: {} for method in methods}
    seconds = dict.fromkeys(methods, 0.0)
    rows: list[list[np.ndarray]] = []
    for task in tasks(setup):
        pictures = {}
        # Drawn once for all methods: it takes longer than to answer.
        pairs = task.kind.pairs(task.number, setup.frames, setup.size)
        for place, (name, method) in enumerate(methods.items()):
            started = time.perf_counter()
            made = method(task)
            seconds[name] += time.perf_counter() - started
            pictures[name] = made[setup.frames // 2]
            scores = {**score(task, made, lpips), **_probed(task, made, method, pairs, name in elsewhere)}
            scores |= _looked(task, (looks or {}).get(name))
            for metric, value in scores.items():
                if isinstance(value, str):
                    values[name][metric] = value
                else:
                    kept = values[name].setdefault(metric, [])
                    assert isinstance(kept, list)
                    kept.append(value)
            if progress is not None:
                progress(task.number * len(methods) + place + 1, setup.clips * len(methods))
        if task.number < SHEET_ROWS:
            rows.append(_sheet_row(task, pictures))
    report = {
        "benchmark": "PuppetBench",
        "puppetbench": VERSION,
        "setup": asdict(setup),
        "regions": setup.kind.regions,
        "metrics": {**METRICS, **setup.kind.probes, **setup.kind.looks},
        "methods": {name: _summaries(each) for name, each in values.items()},
        "clips": {
            name: {metric: kept for metric, kept in each.items() if not isinstance(kept, str)}
            for name, each in values.items()
        },
        "seconds": {name: round(spent, 1) for name, spent in seconds.items()},
    }
    return report, rows


def _probed(
    task: Task, made: np.ndarray, method: Method, pairs: Sequence[Any], elsewhere: bool
) -> Mapping[str, float | str]:
    """The scores of `Kind.probes`."""
    kind, own = task.kind, dict(task.kind.own(task.given, made))
    if elsewhere:
        why = "it needs answers to pairs of tasks, which are not exported"
        return {name: why for name in kind.probes if name not in own} | own
    return {**own, **kind.paired(lambda given: method(replace(task, given=given)), pairs)}


def _looked(task: Task, look: Look | None) -> Mapping[str, float | str]:
    """The scores of `Kind.looks`."""
    if look is None:
        return dict.fromkeys(task.kind.looks, "it is of a model of ours, whose attention is known")
    return look(task)


def sheet_titles(methods: Mapping[str, Method], task: str = SWAP) -> list[str]:
    return ["reference", *KINDS[task].shown, *(name for name in methods if name != TRUTH), TRUTH]


def _summaries(values: Mapping[str, Values]) -> dict[str, dict[str, Any]]:
    return {metric: summarise(each) for metric, each in values.items()}


def _sheet_row(task: Task, pictures: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    given, middle = task.given, len(task.given.pose) // 2
    row = [given.reference[..., :3], *(shown(given)[middle] for shown in task.kind.shown.values())]
    row += [picture for name, picture in pictures.items() if name != TRUTH] + [given.truth.frames[middle]]
    return [upscale(picture, max(1, SHEET_CELL // picture.shape[0])) for picture in row]


def _over(
    metric: Callable[[np.ndarray, np.ndarray, np.ndarray], float],
    made: np.ndarray,
    truth: np.ndarray,
    region: np.ndarray,
) -> float:
    return metric(made, truth, region) if region.any() else math.nan
