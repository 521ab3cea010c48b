"""`anycharv evaluate`: generated videos beside the real ones they should equal, pair by pair.

Frames are compared as float64 of 0 to 255. Published tables of this field were partly made on uint8 arrays, whose
differences wrap around: 250 - 5 squared is then small, and every PSNR too high.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..bench.clip_score import Embed, load_clip
from ..bench.clips import clip_frames, pairs, partner
from ..bench.drift import DRIFTS, DriftScore
from ..bench.fvd import WINDOW, Features, frechet_distance, load_features
from ..bench.lpips import Lpips, load_lpips
from ..bench.metrics import decibels
from ..bench.pck import ALPHA, pck
from ..bench.puppets import Progress
from ..bench.report import NOT_MEASURED, make_folder, markdown, summarise, write_report
from ..bench.seam import SEAMS, SeamScore
from ..device import pick_device
from ..errors import UserError
from ..media.frames import Reopened, Source, batched, together
from ..media.pose import Poses, read_poses
from ..systems.anycharv import ANYCHARV
from .inputs import mask_frames, read_reference
from .run import check_places, versions

METRICS = {
    "PSNR": "dB, from the squared error of all the video's frames; inf where the videos are equal",
    "SSIM": "torchmetrics, colour, Gaussian window of 1.5 px, mean over frames; 1 is equal",
    "LPIPS": "AlexNet, version 0.1, mean over frames; 0 is equal",
    "background PSNR": "dB over the pixels outside the mask; inf where they are all equal",
    "seam error": "root mean square difference, in levels, in a ring around the mask; 0 is equal",
    "seam jump": "change across the mask's edge, outside it, that the real video does not have, in levels a "
    "pixel, "
    "on the line around the mask where it is most; 0 is no seam",
    "identity drift": "Hellinger distance between the colours inside the mask in the video's last tenth and in "
    "its "
    "first, less the real video's own; 0 is none",
    "colour drift": "how far the mean colour inside the mask moves from the real video's meanwhile, in Lab; 0 is "
    "none",
    "sharpness drift": "how often squared gradients inside the mask double or halve relative to the real video's "
    "meanwhile; 0 is none",
    "CLIP-I": "cosine between CLIP's embeddings of the reference picture and of each generated frame, mean",
    "pose PCK": f"share of the real video's body points found within {ALPHA} of the person's size",
    "FVD": f"Frechet distance over all windows of {WINDOW} frames that follow one another; 0 is equal",
}
_SMALLEST = 11  # pixels a side: the window of SSIM
_MASKS = (".json", ".mkv", ".mp4", ".mov", ".webm", ".png")
_PICTURES = (".png", ".jpg", ".jpeg", ".webp")


@dataclass(frozen=True)
class EvaluateJob:
    """Folders of videos, paired by name, and what the metrics beyond PSNR and SSIM need, each None where it is
    not at hand: folders with a mask, a reference picture or poses for every video, by its name; weights by path;
    `pose_model`: DWPose's folder or "embedded", run on both sides in place of poses."""

    real: Path
    generated: Path
    out: Path
    masks: Path | None = None
    references: Path | None = None
    real_poses: Path | None = None
    generated_poses: Path | None = None
    pose_model: str | None = None
    lpips_weights: Path | None = None
    clip_model: Path | None = None
    fvd_model: Path | None = None
    device: str | None = None


@dataclass
class _Tools:
    """What was loaded; a text says why a metric will be missing."""

    torchmetrics: str | None
    lpips: Lpips | str
    embed: Embed | str
    features: Features | str
    poses: str | None
    detector: Any = None
    windows: tuple[list[np.ndarray], list[np.ndarray]] = field(default_factory=lambda: ([], []))


def evaluate(job: EvaluateJob, progress: Progress | None = None) -> tuple[dict[str, Any], str]:
    """Writes evaluate.json and evaluate.md to `job.out`; returns the report and the table.

    progress(done, total) counts pairs. Raises UserError for videos without a partner, of different lengths or
    sizes, and for anything else the user can put right; what is not given is not measured, and the report says so.
    """
    found = pairs(job.real, job.generated)
    make_folder(job.out)
    inputs = (job.real, job.generated, job.masks, job.references, job.real_poses, job.generated_poses)
    check_places((job.out / "evaluate.json", job.out / "evaluate.md"), inputs)
    tools = _load(job)
    values: dict[str, dict[str, float | str]] = {}
    for number, (name, (real, generated)) in enumerate(found.items(), 1):
        values[name] = _measure(job, tools, name, real, generated)
        if progress is not None:
            progress(number, len(found))
    summary = {metric: _summary([row[metric] for row in values.values()]) for metric in METRICS if metric != "FVD"}
    summary["FVD"] = _fvd(tools)
    table = markdown({"all": summary}, f"{len(found)} pairs")
    report = {"pairs": values, "summary": summary, "metrics": METRICS, "versions": versions()}
    meanings = "\n".join(f"- {name}: {meaning}." for name, meaning in METRICS.items())
    text = f"{table}\nMean over videos [95 % bootstrap interval].\n\n{meanings}\n"
    write_report(job.out, "evaluate", report, text)
    return report, table


def _load(job: EvaluateJob) -> _Tools:
    device = pick_device(job.device)
    embed: Embed | str = "give --clip-model, a folder of transformers' CLIP"
    if job.clip_model is not None:
        embed = load_clip(job.clip_model, device)
    if job.references is None:
        embed = "give --references, a folder with a picture of every video's character"
    features: Features | str = "give --fvd-model, I3D as TorchScript or a folder of VideoMAE"
    if job.fvd_model is not None:
        features = load_features(job.fvd_model, device)
    if (job.real_poses is None) != (job.generated_poses is None):
        raise UserError("Give --real-poses and --generated-poses together, or --pose-model.")
    detector, poses = None, None
    if job.pose_model is not None:
        from ..preprocess.dwpose import DWPose
        from ..preprocess.models import pose_files

        detector = DWPose(*pose_files(job.pose_model), device)
    elif job.real_poses is None:
        poses = "give --pose-model, or --real-poses and --generated-poses"
    missing = None if find_spec("torchmetrics") else "the package torchmetrics is not installed"
    return _Tools(missing, load_lpips(job.lpips_weights, device), embed, features, poses, detector)


def _measure(job: EvaluateJob, tools: _Tools, name: str, real: Path, generated: Path) -> dict[str, float | str]:
    """Every metric of one pair but FVD, whose windows go to `tools`; a text says why one is missing."""
    errors, similar, apart, alike = [], [], [], []
    outside_error, outside = 0.0, 0
    seam, drift = SeamScore(inside=False), DriftScore()
    character = None if isinstance(tools.embed, str) else tools.embed([_character(job, name)])[0]
    for batch in batched(_rows(job, name, real, generated), WINDOW):
        for truth, made, mask in batch:
            square = (made.astype(np.float64) - truth) ** 2
            errors.append(square.mean())
            if mask is not None:
                outside_error += float(square[mask < 128].sum())
                outside += 3 * int((mask < 128).sum())
                seam.add(made, truth, mask)
                drift.add(made, truth, mask)
            if tools.torchmetrics is None:
                similar.append(_ssim(made, truth))
            if not isinstance(tools.lpips, str):
                apart += tools.lpips(made[None], truth[None]).tolist()
            if character is not None and not isinstance(tools.embed, str):
                alike.append(float(tools.embed([made])[0] @ character))
        if not isinstance(tools.features, str) and len(batch) == WINDOW:
            truths, mades, _ = zip(*batch, strict=True)
            for kept, frames in zip(tools.windows, (truths, mades), strict=True):
                kept.append(tools.features(np.stack(frames)))
    masked: Mapping[str, float | str] = dict.fromkeys(
        ("background PSNR", *SEAMS, *DRIFTS), "give --masks, a folder with masks of every video"
    )
    if job.masks is not None:
        masked = {
            "background PSNR": decibels(outside_error / outside) if outside else math.nan,
            **dict(zip(SEAMS, seam.result(), strict=True)),
            **dict(zip(DRIFTS, drift.result(), strict=True)),
        }
    return {
        "PSNR": decibels(float(np.mean(errors))),
        "SSIM": tools.torchmetrics or float(np.mean(similar)),
        "LPIPS": tools.lpips if isinstance(tools.lpips, str) else float(np.mean(apart)),
        **masked,
        "CLIP-I": tools.embed if isinstance(tools.embed, str) else float(np.mean(alike)),
        "pose PCK": tools.poses or _pck(job, tools, name, real, generated),
    }


def _rows(
    job: EvaluateJob, name: str, real: Path, generated: Path
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray | None]]:
    """Real frame, generated frame and mask (None without masks), checked."""
    truths = Source(f"real video {real}", clip_frames(real), 3)
    others = [Source(f"generated video {generated}", clip_frames(generated), 3)]
    if job.masks is not None:
        path = partner(job.masks, name, _MASKS)
        others.append(Source(f"mask {path}", mask_frames(path, truths.size), None))
    width, height = truths.size
    for other in others:
        if other.size != truths.size:
            raise UserError(
                f"The {other.name} is {other.size[0]}x{other.size[1]} and {real} is {width}x{height}; bring them "
                "to one size, the same for every system you compare."
            )
    if min(truths.size) < _SMALLEST:
        raise UserError(f"{real} is smaller than {_SMALLEST} pixels, the window of SSIM; give larger videos.")
    for truth, made, *mask in together(truths, *others):
        yield truth, made, mask[0] if mask else None


def _ssim(made: np.ndarray, truth: np.ndarray) -> float:
    from torchmetrics.functional.image import structural_similarity_index_measure

    a, b = (torch.as_tensor(x).movedim(-1, 0)[None].double() for x in (made, truth))
    found = structural_similarity_index_measure(a, b, data_range=255.0)
    assert isinstance(found, torch.Tensor)
    return float(found)


def _character(job: EvaluateJob, name: str) -> np.ndarray:
    assert job.references is not None
    picture = read_reference(partner(job.references, name, _PICTURES))
    alpha = picture[..., 3] if picture.shape[2] == 4 else None
    return ANYCHARV.recipe("default").cut_out(picture[..., :3], alpha)


def _pck(job: EvaluateJob, tools: _Tools, name: str, real: Path, generated: Path) -> float:
    right, total = 0, 0
    sides = ((real, job.real_poses), (generated, job.generated_poses))
    poses = [_poses(tools, name, clip, folder) for clip, folder in sides]
    if len(poses[0]) != len(poses[1]):
        raise UserError(
            f"There are {len(poses[0])} real and {len(poses[1])} generated poses of '{name}'; give one for every "
            "frame."
        )
    real_poses, generated_poses = poses[0], poses[1].scaled(*poses[0].size)
    for one, other in zip(real_poses.people, generated_poses.people, strict=True):
        counted = pck(one, other)
        right, total = right + counted[0], total + counted[1]
    return right / total if total else math.nan


def _poses(tools: _Tools, name: str, clip: Path, folder: Path | None) -> Poses:
    if tools.detector is not None:
        return tools.detector.poses(Reopened(lambda: clip_frames(clip)))
    assert folder is not None
    first = next(clip_frames(clip))
    return read_poses(partner(folder, name, (".json",)), (first.shape[1], first.shape[0]))


def _summary(values: list[float | str]) -> dict[str, Any]:
    missing = next((value for value in values if isinstance(value, str)), None)
    return summarise(missing or [value for value in values if not isinstance(value, str)])


def _fvd(tools: _Tools) -> dict[str, Any]:
    if isinstance(tools.features, str):
        return {NOT_MEASURED: tools.features}
    if (count := len(tools.windows[0])) < 2:
        return {NOT_MEASURED: f"the videos hold {count} windows of {WINDOW} frames, and 2 are the fewest"}
    real, generated = (np.stack(windows) for windows in tools.windows)
    return {"mean": frechet_distance(real, generated), "windows": count, "features": real.shape[1]}
