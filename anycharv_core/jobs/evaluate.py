"""`anycharv evaluate`: generated videos beside the real ones they should equal, pair by pair."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from ..bench.clip_score import load_clip
from ..bench.compare import MASKED, METRICS, SMALLEST, Networks, Row, Windows, compare
from ..bench.fvd import load_features
from ..bench.lpips import load_lpips
from ..bench.pck import pck_of_video
from ..bench.puppets import Progress
from ..bench.report import NOT_MEASURED, make_folder, markdown, summarise, write_report
from ..bench.videos import pairs, partner, video_frames
from ..device import pick_device
from ..errors import UserError
from ..media.frames import Reopened, Source, together
from ..media.pose import Poses, read_poses
from ..systems.anycharv import ANYCHARV
from .inputs import mask_frames, read_reference
from .run import check_places, versions

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


@dataclass(frozen=True)
class _Tools:
    """What was loaded. missing: why a metric is not measured; detector: DWPose, None where poses are given."""

    networks: Networks
    missing: dict[str, str]
    detector: Any


def evaluate(job: EvaluateJob, progress: Progress | None = None) -> tuple[dict[str, Any], str]:
    """Writes evaluate.json and evaluate.md to `job.out`; returns the report and the table.

    progress(done, total) counts pairs. Raises UserError for videos without a partner, of different lengths or
    sizes, and for anything else the user can put right; what is not given is not measured, and the report says so.
    """
    found = pairs(job.real, job.generated)
    make_folder(job.out)
    inputs = (job.real, job.generated, job.masks, job.references, job.real_poses, job.generated_poses)
    check_places((job.out / "evaluate.json", job.out / "evaluate.md"), inputs)
    tools, windows = _load(job), Windows()
    values: dict[str, dict[str, float | str]] = {}
    for number, (name, (real, generated)) in enumerate(found.items(), 1):
        values[name] = _measure(job, tools, windows, name, real, generated)
        if progress is not None:
            progress(number, len(found))
    summary = {metric: _summary([row[metric] for row in values.values()]) for metric in METRICS if metric != "FVD"}
    summary["FVD"] = {NOT_MEASURED: tools.missing["FVD"]} if "FVD" in tools.missing else windows.fvd()
    table = markdown({"all": summary}, f"{len(found)} pairs")
    report = {"pairs": values, "summary": summary, "metrics": METRICS, "versions": versions()}
    meanings = "\n".join(f"- {name}: {meaning}." for name, meaning in METRICS.items())
    text = f"{table}\nMean over videos [95 % bootstrap interval].\n\n{meanings}\n"
    write_report(job.out, "evaluate", report, text)
    return report, table


def _load(job: EvaluateJob) -> _Tools:
    device = pick_device(job.device)
    missing = {}
    if not find_spec("torchmetrics"):
        missing["SSIM"] = "the package torchmetrics is not installed"
    lpips = load_lpips(job.lpips_weights, device)
    if isinstance(lpips, str):
        missing["LPIPS"] = lpips
    embed = load_clip(job.clip_model, device) if job.clip_model else None
    if job.references is None:
        missing["CLIP-I"] = "give --references, a folder with a picture of every video's character"
    elif embed is None:
        missing["CLIP-I"] = "give --clip-model, a folder of transformers' CLIP"
    features = load_features(job.fvd_model, device) if job.fvd_model else None
    if features is None:
        missing["FVD"] = "give --fvd-model, I3D as TorchScript or a folder of VideoMAE"
    if job.masks is None:
        missing |= dict.fromkeys(MASKED, "give --masks, a folder with masks of every video")
    if (job.real_poses is None) != (job.generated_poses is None):
        raise UserError("Give --real-poses and --generated-poses together, or --pose-model.")
    detector = None
    if job.pose_model is not None:
        from ..preprocess.dwpose import DWPose
        from ..preprocess.models import pose_files

        detector = DWPose(*pose_files(job.pose_model), device)
    elif job.real_poses is None:
        missing["pose PCK"] = "give --pose-model, or --real-poses and --generated-poses"
    networks = Networks("SSIM" not in missing, None if isinstance(lpips, str) else lpips, embed, features)
    return _Tools(networks, missing, detector)


def _measure(
    job: EvaluateJob, tools: _Tools, windows: Windows, name: str, real: Path, generated: Path
) -> dict[str, float | str]:
    """Every metric of one pair but FVD, whose windows are added to `windows`; a text says why one is missing."""
    character = None
    if job.references is not None and tools.networks.embed:
        character = _character(partner(job.references, name, _PICTURES))
    scores = compare(_rows(job, name, real, generated), tools.networks, character, windows)
    if "pose PCK" not in tools.missing:
        scores["pose PCK"] = _pck(job, tools, name, real, generated)
    return {metric: tools.missing.get(metric) or scores[metric] for metric in METRICS if metric != "FVD"}


def _rows(job: EvaluateJob, name: str, real: Path, generated: Path) -> Iterator[Row]:
    """Real frame, generated frame and mask (None without masks), checked."""
    truths = Source(f"real video {real}", video_frames(real), 3)
    others = [Source(f"generated video {generated}", video_frames(generated), 3)]
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
    if min(truths.size) < SMALLEST:
        raise UserError(f"{real} is smaller than {SMALLEST} pixels, the window of SSIM; give larger videos.")
    for truth, made, *mask in together(truths, *others):
        yield truth, made, mask[0] if mask else None


def _character(path: Path) -> np.ndarray:
    picture = read_reference(path)
    alpha = picture[..., 3] if picture.shape[2] == 4 else None
    return ANYCHARV.recipe("default").cut_out(picture[..., :3], alpha)


def _pck(job: EvaluateJob, tools: _Tools, name: str, real: Path, generated: Path) -> float:
    sides = ((real, job.real_poses), (generated, job.generated_poses))
    ours, theirs = (_poses(tools, name, video, folder) for video, folder in sides)
    if len(ours) != len(theirs):
        raise UserError(
            f"There are {len(ours)} real and {len(theirs)} generated poses of '{name}'; give one for every frame."
        )
    return pck_of_video(ours, theirs)


def _poses(tools: _Tools, name: str, video: Path, folder: Path | None) -> Poses:
    if tools.detector is not None:
        return tools.detector.poses(Reopened(lambda: video_frames(video)))
    assert folder is not None
    first = next(video_frames(video))
    return read_poses(partner(folder, name, (".json",)), (first.shape[1], first.shape[0]))


def _summary(values: list[float | str]) -> dict[str, Any]:
    missing = next((value for value in values if isinstance(value, str)), None)
    return summarise(missing or [value for value in values if not isinstance(value, str)])
