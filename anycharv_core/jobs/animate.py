"""A picture and poses in, finished video out: the job behind `anycharv animate`."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from itertools import islice, repeat
from pathlib import Path
from typing import Any

import numpy as np

from ..device import pick_device
from ..errors import UserError
from ..inference.latents import Latents
from ..inference.phases import Phases
from ..inference.pipeline import check_steps
from ..inference.skeletons import PointSkeletons
from ..media.canvas import CanvasPath
from ..media.colour import UNTAGGED, Colours, check_transfer
from ..media.frames import FrameStore, Reopened, Source
from ..media.imaging import Size
from ..media.png_write import PngWriter
from ..media.pose import read_poses
from ..media.video_read import VideoInfo, probe, read_frames
from ..media.video_write import VideoWriter
from ..preprocess.retarget import rescale
from ..systems.recipes import Recipe
from .inputs import (
    CountedSkeletons,
    FilmedSkeletons,
    mask_frames,
    open_skeletons,
    read_reference,
    read_reference_mask,
)
from .reference_pose import reference_pose
from .run import Progress, RenderJob, explained_memory, paths, sheet_frames, thumbnail, write_sheet

RATE = 24  # frames per second, where nothing that was given has a rate
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
SHEET_TITLES = ("reference", "pose", "output")


@dataclass(frozen=True, kw_only=True)
class AnimateJob(RenderJob):
    """Which picture is animated by which poses. None = nothing given.

    pose: POSE_KEYPOINT JSON, OpenPose's folder or a skeleton video; scene: a video or a picture to put the
    character in front of, mask: where it is shown then; frames: how many of the poses; fps: None = as the scene or
    the skeleton video has it. rescale: bring the skeleton to the character's proportions, size and place. These
    come from `reference_pose`, a POSE_KEYPOINT file, or else `pose_model` finds them, as in `PreprocessJob`.
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
    """The checked files, scene and mask as many frames as `frames`.

    timed: the video that gives the output its times and sound, or None; info: what that holds; colours, depth: of
    the scene.
    """

    reference: np.ndarray
    reference_mask: np.ndarray | None
    skeletons: CountedSkeletons
    frames: int
    scene: Source | None
    mask: Source | None
    timed: Path | None
    info: VideoInfo | None
    colours: Colours
    depth: int

    @property
    def has_audio(self) -> bool:
        """Whether the output gets the timed video's sound: not where it is cut short, as the sound would go on."""
        return self.info is not None and self.info.has_audio and self.info.frames == self.frames


def animate(job: AnimateJob, progress: Progress | None = None) -> dict[str, Any]:
    """Runs the job: writes the video, its report beside it, and the sheet where one is asked for.

    progress(done, total) is called after every denoising call. Returns the report. Raises UserError for anything
    the user can put right; old files are then as they were.
    """
    job.check_places((job.reference, job.reference_mask, job.reference_pose, job.pose, job.scene, job.mask))
    device = pick_device(job.device)
    with explained_memory():
        return _animate(job, device, progress)


def _animate(job: AnimateJob, device: str, progress: Progress | None) -> dict[str, Any]:
    started, phases = time.perf_counter(), Phases()
    with phases("check"):
        given = _read(job)
    pipe, recipe, precision = job.load("animate", device, phases)
    steps, guidance = pipe.system.sampling(pipe.settings, job.steps, job.guidance_scale)
    check_steps(steps)
    poses = FrameStore(pipe.folder) if job.sheet else None
    with phases("encode"):
        skeletons = _rescaled(job, recipe, given.skeletons)
        scene = given.scene.size if given.scene else None
        size = pipe.working_size(recipe, scene or skeletons.size, job.size)
        plan = pipe.plan(recipe, scene, skeletons.size, size)
        drawn = _first(skeletons.drawn(plan.drawing, CanvasPath(plan.canvas)), given.frames)
        pose = Source("pose", _noted(drawn, poses) if poses is not None else drawn, 3)
        made = pipe.prepare(plan, given.reference, given.scene, given.mask, pose, given.reference_mask)
    writer = _writer(job, given, plan.canvas.source)
    chosen = sheet_frames(given.frames) if job.sheet else ()
    output = []
    with writer:
        latents = Latents.begun(pipe.noise(made, job.seed), pipe.folder)
        pipe.sample(made, latents, steps, guidance, phases, progress)
        with phases("write"):
            for index, frame in enumerate(
                pipe.decode(made, latents, pipe.finish(made, given.scene, given.mask), phases, given.depth > 8)
            ):
                writer.write(frame)
                if index in chosen:
                    output.append(thumbnail(frame))
    if job.sheet and poses is not None:
        write_sheet(job.sheet, SHEET_TITLES, [given.reference], [poses[index] for index in chosen], output)
    phases.seconds["total"] = time.perf_counter() - started
    settings = job.settings(steps, guidance, plan.size, precision) | {
        "rescale": job.rescale or job.reference_pose is not None
    }
    inputs = paths(job, "reference", "reference_mask", "reference_pose", "pose", "scene", "mask")
    facts = {
        "frames": given.frames,
        "network_size": list(plan.canvas.padded),
        "output_size": list(plan.canvas.source),
        "written": writer.written,
        "audio": writer.audio_note or ("copied" if given.has_audio else "none"),
    }
    return job.write_report(settings, inputs, facts, device, phases)


def _read(job: AnimateJob) -> _Inputs:
    reference = read_reference(job.reference)
    outline = read_reference_mask(job.reference_mask, reference) if job.reference_mask else None
    still = job.scene is not None and job.scene.suffix.lower() in PICTURES
    info = probe(job.scene) if job.scene and not still else None
    timed = job.scene if info else None
    scene_size = (info.width, info.height) if info else None
    if job.scene and still:
        picture = read_reference(job.scene)[..., :3]
        scene_size = picture.shape[1], picture.shape[0]
    skeletons = open_skeletons(job.pose, scene_size)
    if info is None and isinstance(skeletons, FilmedSkeletons):
        info, timed = skeletons.info, job.pose
    if job.frames and skeletons.count < job.frames:
        raise UserError(
            f"{job.pose} holds {skeletons.count} poses but {job.frames} frames are asked for; give more poses or "
            "a smaller --frames."
        )
    frames = job.frames or skeletons.count
    scene = mask = None
    if job.scene and still:
        scene = Source("scene", Reopened(partial(repeat, picture, frames), frames), 3)
    elif job.scene and info:
        _check_length(job.scene, info.frames, frames, job)
        check_transfer(job.scene, info.colours)
        deep = Reopened(partial(read_frames, job.scene, deep=True))
        scene = Source("scene", _first(deep, frames), 3, deep=True)
    if job.mask:
        if scene_size is None:
            raise UserError("There is a mask but no scene; give --scene too, or leave --mask out.")
        masks = mask_frames(job.mask, scene_size)
        _check_length(job.mask, sum(1 for _ in masks), frames, job)
        mask = Source("mask", _first(masks, frames), None)
    colours, depth = (info.colours, info.depth) if job.scene and info else (UNTAGGED, 8)
    if job.fps is not None:
        info = timed = None
    return _Inputs(reference, outline, skeletons, frames, scene, mask, timed, info, colours, depth)


def _rescaled(job: AnimateJob, recipe: Recipe, skeletons: CountedSkeletons) -> CountedSkeletons:
    if not (job.rescale or job.reference_pose):
        return skeletons
    if not isinstance(skeletons, PointSkeletons):
        raise UserError(f"{job.pose} is a video, whose skeletons can't be rescaled; give POSE_KEYPOINT JSON.")
    if job.reference_pose:
        character = read_poses(job.reference_pose)
    else:
        character = reference_pose(job.reference, job.pose_model, job.device)
    return PointSkeletons(rescale(skeletons.poses, character, keep_aspect=recipe.keeps_aspect))


def _check_length(path: Path, count: int, frames: int, job: AnimateJob) -> None:
    if count < frames or (count > frames and not job.frames):
        raise UserError(
            f"{path} has {count} frames but there are {frames} poses; give as many, or choose with --frames."
        )


def _first(source: Iterable[np.ndarray], frames: int) -> Reopened:
    return Reopened(lambda: islice(iter(source), frames), frames)


def _noted(frames: Iterable[np.ndarray], thumbnails: FrameStore) -> Iterator[np.ndarray]:
    """Passes the frames on, and keeps what the sheet shows of them."""
    for frame in frames:
        thumbnails.append(thumbnail(frame))
        yield frame


def _writer(job: AnimateJob, given: _Inputs, size: Size) -> VideoWriter | PngWriter:
    seen = {"colours": given.colours, "depth": given.depth}
    if given.info is None:
        return job.writer(size, rate=Fraction(job.fps or RATE).limit_denominator(1001), **seen)
    return job.writer(
        size,
        timestamps=given.info.timestamps[: given.frames],
        time_base=given.info.time_base,
        rate=given.info.rate,
        audio_from=given.timed if given.has_audio else None,
        **seen,
    )
