"""A picture and poses in, finished video out: the job behind `anycharv animate`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from itertools import islice, repeat
from pathlib import Path
from typing import Any

import numpy as np

from ..device import device_name, peak_memory, pick_device
from ..errors import UserError
from ..inference.pipeline import Pipeline
from ..media.canvas import nearest_multiple
from ..media.frames import Reopened
from ..media.imaging import Size
from ..media.pose import Poses, read_poses
from ..media.video_read import VideoInfo, probe, read_frames
from ..media.video_write import VideoWriter
from ..systems.animate_anyone import ANIMATE_ANYONE
from .inputs import drawn_poses, holds_keypoints, mask_frames, pose_frames, read_reference, read_reference_mask
from .replace import (
    DTYPES,
    Making,
    Progress,
    check_places,
    explained_memory,
    paths,
    phase,
    pose_canvas,
    sheet_frames,
    thumbnail,
    versions,
    working_size,
    write_report,
    write_sheet,
)

RATE = 24  # frames per second, where nothing that was given has a rate
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
SHEET_TITLES = ("reference", "pose", "output")


@dataclass(frozen=True, kw_only=True)
class AnimateJob(Making):
    """Which picture moves by which poses. None = nothing given.

    pose: POSE_KEYPOINT JSON, OpenPose's folder or a skeleton video; scene: a video or a picture to put the
    character in front of, mask: where it is shown then; frames: how many of the poses; fps: None = as the scene or
    the skeleton video has it. rescale: bring the skeleton to the character's proportions, size and place, which
    `reference_pose` tells, a POSE_KEYPOINT file, or else the model `pose_model` finds, as in
    `preprocess.job.Preparation`.
    """

    reference: Path
    pose: Path
    model: str = "embedded-animate"
    scene: Path | None = None
    mask: Path | None = None
    reference_mask: Path | None = None
    frames: int | None = None
    fps: float | None = None
    rescale: bool = False
    reference_pose: Path | None = None
    pose_model: str | None = None


@dataclass(frozen=True)
class _Inputs:
    """The checked files. pose: skeletons on a canvas of the size asked for, made for `pose_size`; scene, mask:
    as many frames; clip: the video that gives the output its times and sound, or None."""

    reference: np.ndarray
    reference_mask: np.ndarray | None
    pose: Callable[[Size], Reopened]
    pose_size: Size
    frames: int
    scene: Reopened | None
    scene_size: Size | None
    mask: Reopened | None
    clip: Path | None
    info: VideoInfo | None


def animate(job: AnimateJob, progress: Progress | None = None) -> dict[str, Any]:
    """Runs the job: writes the video, its report beside it, and the sheet where one is asked for.

    progress(done, total) is called after every denoising call. Returns the report. Raises UserError for anything
    the user can put right; old files are then as they were.
    """
    started = time.perf_counter()
    seconds: dict[str, float] = {}
    sources = (job.reference, job.reference_mask, job.reference_pose, job.pose, job.scene, job.mask)
    check_places(job.out, job.report, job.sheet, sources)
    device = pick_device(job.device)
    recipe = ANIMATE_ANYONE.recipe(job.recipe)
    with phase(seconds, "check"):
        given = _read(job)
        recipe.canvas(given.scene_size, given.pose_size, job.size, 1)  # raises where proportions differ
    with explained_memory(), phase(seconds, "load"):
        pipe = Pipeline.from_pretrained(job.model, job.vae, job.image_encoder, device, DTYPES[job.dtype])
    pipe.system.check_command("animate", job.model)
    size = _working_size(job, pipe, given)
    sampling = job.sampling(pipe)
    canvas = recipe.canvas(given.scene_size, given.pose_size, size, pipe.multiple)
    drawn = given.pose(pose_canvas(canvas.inner, pipe.settings.get("pose_scale", 1) if size else 1))
    width, height = canvas.source
    writer = _writer(job, given, width, height)
    chosen = sheet_frames(given.frames) if job.sheet else ()
    output: list[np.ndarray] = []
    with explained_memory(), writer:
        out = pipe(
            given.reference,
            given.scene,
            given.mask,
            drawn,
            **sampling,
            seed=job.seed,
            size=size,
            recipe=job.recipe,
            progress=progress,
            reference_mask=given.reference_mask,
        )
        sampled = time.perf_counter()
        for index, frame in enumerate(out.frames):
            writer.write(frame)
            if index in chosen:
                output.append(thumbnail(frame))
    seconds |= out.seconds
    seconds["write"] = time.perf_counter() - sampled - out.seconds["decode"]
    if job.sheet:
        skeletons = [thumbnail(frame) for index, frame in enumerate(drawn) if index in chosen]
        write_sheet(job.sheet, SHEET_TITLES, [given.reference], skeletons, output)
    seconds["total"] = time.perf_counter() - started
    report = {
        "model": job.model,
        "settings": {
            "recipe": job.recipe,
            **sampling,
            "seed": job.seed,
            "size": list(size) if size else None,
            "rescale": job.rescale or job.reference_pose is not None,
            "dtype": job.dtype,
        },
        "inputs": paths(
            job, "reference", "reference_mask", "reference_pose", "pose", "scene", "mask", "vae", "image_encoder"
        ),
        "output": str(job.out),
        "sheet": str(job.sheet) if job.sheet else None,
        "frames": given.frames,
        "network_size": list(canvas.padded),
        "output_size": [width, height],
        "audio": writer.audio_note or ("copied" if _has_audio(given) else "none"),
        "seconds": {name: round(spent, 3) for name, spent in seconds.items()},
        "peak_memory_bytes": peak_memory(device),
        "device": device_name(device),
        "versions": versions(),
    }
    write_report(job.report, report)
    return report


def _read(job: AnimateJob) -> _Inputs:
    reference = read_reference(job.reference)
    outline = read_reference_mask(job.reference_mask, reference) if job.reference_mask else None
    still = job.scene is not None and job.scene.suffix.lower() in PICTURES
    info = probe(job.scene) if job.scene and not still else None
    clip = job.scene if info else None
    scene_size = (info.width, info.height) if info else None
    if still:
        picture = read_reference(job.scene)[..., :3]
        scene_size = picture.shape[1], picture.shape[0]
    if holds_keypoints(job.pose):
        poses = read_poses(job.pose, scene_size)
        pose, count, pose_size = drawn_poses(_rescaled(job, poses))
    else:
        if job.rescale or job.reference_pose:
            raise UserError(f"{job.pose} is a video, whose skeletons can't be rescaled; give POSE_KEYPOINT JSON.")
        pose, count, pose_size = pose_frames(job.pose, None)
        if info is None:
            info, clip = probe(job.pose), job.pose
    if job.frames and count < job.frames:
        raise UserError(
            f"{job.pose} holds {count} poses but {job.frames} frames are asked for; give more poses or a smaller "
            "--frames."
        )
    frames = job.frames or count
    scene = mask = None
    if still:
        scene = Reopened(partial(repeat, picture, frames))
    elif job.scene:
        _check_length(job.scene, info.frames, frames, job)
        scene = _first(Reopened(partial(read_frames, job.scene)), frames)
    if job.mask:
        if scene_size is None:
            raise UserError("There is a mask but no scene; give --scene too, or leave --mask out.")
        masks = mask_frames(job.mask, scene_size)
        _check_length(job.mask, sum(1 for _ in masks), frames, job)
        mask = _first(masks, frames)
    if job.fps is not None:
        info = clip = None
    return _Inputs(
        reference,
        outline,
        lambda size: _first(pose(size), frames),
        pose_size,
        frames,
        scene,
        scene_size,
        mask,
        clip,
        info,
    )


def _rescaled(job: AnimateJob, poses: Poses) -> Poses:
    if job.reference_pose:
        character = read_poses(job.reference_pose)
    elif job.rescale:
        from .preprocess import figure

        character = figure(job.reference, job.pose_model, job.device)
    else:
        return poses
    from ..preprocess.rescale import rescale

    return rescale(poses, character, keep_aspect=job.recipe != "official")


def _check_length(path: Path, count: int, frames: int, job: AnimateJob) -> None:
    if count < frames or (count > frames and not job.frames):
        raise UserError(
            f"{path} has {count} frames but there are {frames} poses; give as many, or choose with --frames."
        )


def _first(source: Iterable[np.ndarray], frames: int) -> Reopened:
    return Reopened(lambda: islice(iter(source), frames))


def _working_size(job: AnimateJob, pipe: Pipeline, given: _Inputs) -> Size | None:
    area = pipe.settings.get("size")
    if job.size or area is None:
        return job.size
    if job.recipe == "official":
        return tuple(area)
    fitted = working_size(area, given.scene_size or given.pose_size, pipe.multiple)
    return nearest_multiple(fitted, pipe.multiple)


def _writer(job: AnimateJob, given: _Inputs, width: int, height: int) -> VideoWriter:
    if given.info is None:
        rate = Fraction(job.fps or RATE).limit_denominator(1001)
        return VideoWriter(job.out, width, height, rate=rate)
    return VideoWriter(
        job.out,
        width,
        height,
        given.info.timestamps[: given.frames],
        given.info.time_base,
        given.info.rate,
        audio_from=given.clip if _has_audio(given) else None,
    )


def _has_audio(given: _Inputs) -> bool:
    """Whether the sound of the clip goes with the video; that of a clip cut short would outlast it."""
    return given.info is not None and given.info.has_audio and given.info.frames == given.frames
