"""A picture and poses in, finished video out: the job behind `anycharv animate`."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np

from ..device import pick_device
from ..errors import UserError
from ..inference.phases import Phases
from ..inference.reference import scene_key, split_reference
from ..inference.shortcuts import check_cache
from ..inference.skeletons import PointSkeletons
from ..media.canvas import CanvasPath
from ..media.colour import UNTAGGED, check_transfer
from ..media.frames import FrameStore, Reopened, Source
from ..media.imaging import Size
from ..media.png_write import PngWriter
from ..media.pose import read_poses
from ..media.video_read import Video
from ..media.video_write import VideoWriter
from ..preprocess.retarget import rescale
from ..systems import System
from ..systems.recipes import Recipe
from .background import read_background
from .inputs import (
    AnySkeletons,
    FilmedSkeletons,
    length_of,
    length_of_masks,
    mask_frames,
    open_skeletons,
    read_reference,
    read_reference_mask,
)
from .lengths import KnownLength, Length, Mismatch, as_many, check_early
from .reference_pose import reference_pose
from .run import Progress, RenderJob, explained_memory, paths, sheet_frames, thumbnail, write_sheet
from .work import Work

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
    background: the picture of a place with nobody in it, for a model of AnimateAnywhere.
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
    background: Path | None = None


@dataclass(frozen=True)
class _Inputs:
    """The opened files. length: how many frames there are to be, to which scene, mask and `drawn` skeletons keep.

    timed: the video that gives the output its times and sound, or None; filmed: the scene, where it is a video.
    """

    reference: np.ndarray
    reference_mask: np.ndarray | None
    skeletons: AnySkeletons
    length: Length
    scene: Source | None
    mask: Source | None
    timed: Video | None
    filmed: Video | None
    background: np.ndarray | None

    @property
    def depth(self) -> int:
        """Bits of a colour in the scene, which is measured for it where it was not yet."""
        return self.filmed.info.depth if self.filmed else 8


def animate(job: AnimateJob, progress: Progress | None = None) -> dict[str, Any]:
    """Runs the job: writes the video, its report beside it, and the sheet where one is asked for.

    progress(done, total) is called after every denoising call. Returns the report. Raises UserError for anything
    the user can put right; old files are then as they were.
    """
    pictures = job.reference, job.reference_mask, job.background
    job.check_places((*pictures, job.reference_pose, job.pose, job.scene, job.mask))
    device = pick_device(job.device)
    with explained_memory(), ExitStack() as stack:
        return _animate(job, device, progress, stack)


def _animate(job: AnimateJob, device: str, progress: Progress | None, stack: ExitStack) -> dict[str, Any]:
    started, phases = time.perf_counter(), Phases()
    with phases("check"):
        given = _read(job)
    pipe, recipe, precision, state = job.load("animate", device, phases, partial(_check, job, given), stack)
    steps, guidance = job.sampling(pipe)
    poses = FrameStore(pipe.folder) if job.sheet else None
    with phases("encode"):
        skeletons = _rescaled(job, recipe, given.skeletons)
        scene = given.scene.size if given.scene else None
        size = pipe.working_size(recipe, scene or skeletons.size, job.size)
        plan = pipe.plan(recipe, scene, skeletons.size, size)
        drawn = skeletons.drawn(plan.drawing, CanvasPath(plan.canvas))
        if job.frames:
            drawn = as_many(drawn, given.length, _too_few(job), more=True)
        pose = Source("pose", _noted(drawn, poses) if poses is not None else drawn, 3)
        driving = given.scene, given.mask, pose
        made = pipe.prepare(plan, given.reference, *driving, given.reference_mask, background=given.background)
        info = given.timed.info if given.timed else None
    frames = len(made.video.poses)
    # The sound of a video cut short would outlast the output.
    sound = given.timed.path if given.timed and info and info.has_audio and info.frames == frames else None
    writer = _writer(job, given, state, frames, sound, plan.canvas.source)
    chosen = sheet_frames(frames) if job.sheet else ()
    output = []
    with writer:
        latents = state.latents(0, made.shape, pipe.noise(made, job.seed), job.shortcuts.parts)
        sampled = pipe.sample(made, latents, steps, guidance, phases, progress, job.shortcuts)
        finish = pipe.finish(made, given.scene, given.mask)
        with phases("write"):
            for index, frame in enumerate(pipe.decode(made, latents, finish, phases, given.depth > 8, sampled)):
                writer.write(frame)
                if index in chosen:
                    output.append(thumbnail(frame))
    if job.sheet and poses is not None:
        write_sheet(job.sheet, SHEET_TITLES, [given.reference], [poses[index] for index in chosen], output)
    phases.seconds["total"] = time.perf_counter() - started
    settings = job.settings(steps, guidance, plan.size, precision) | {
        "rescale": job.rescale or job.reference_pose is not None
    }
    inputs = paths(job, "reference", "reference_mask", "reference_pose", "pose", "scene", "mask", "background")
    facts = {
        "frames": frames,
        "network_size": list(plan.canvas.padded),
        "output_size": list(plan.canvas.source),
        "written": writer.written,
        "resumed_rounds": state.taken_up,
        "audio": writer.audio_note or ("copied" if sound else "none"),
    }
    return job.write_report(settings, inputs, facts, device, phases)


def _read(job: AnimateJob) -> _Inputs:
    """Opens the files, of which the first frames are decoded, and compares how many frames they say they hold."""
    reference = read_reference(job.reference)
    outline = read_reference_mask(job.reference_mask, reference) if job.reference_mask else None
    picture = filmed = scene_size = None
    if job.scene and job.scene.suffix.lower() in PICTURES:
        picture = read_reference(job.scene)[..., :3]
        scene_size = picture.shape[1], picture.shape[0]
    elif job.scene:
        filmed = Video(job.scene)
        scene_size = filmed.size
    skeletons = open_skeletons(job.pose, scene_size)
    timed = skeletons.video if isinstance(skeletons, FilmedSkeletons) else None
    length = length_of(skeletons)
    if job.frames:
        check_early(length, KnownLength(job.frames), _too_few(job), more=True)
        length = KnownLength(job.frames)
    more = job.frames is not None
    scene = mask = None
    if job.scene and picture is not None:
        scene = Source("scene", Reopened(partial(repeat, picture, length.total), length.total), 3)
    elif job.scene and filmed:
        timed = filmed
        check_transfer(filmed.path, filmed.colours)
        check_early(filmed, length, _uneven(job.scene), more)
        deep = Reopened(partial(filmed.frames, deep=True))
        scene = Source("scene", as_many(deep, length, _uneven(job.scene), more), 3, deep=True)
    if job.mask:
        if scene_size is None:
            raise UserError("There is a mask but no scene; give --scene too, or leave --mask out.")
        masks = mask_frames(job.mask, scene_size)
        check_early(length_of_masks(job.mask, masks), length, _uneven(job.mask), more)
        mask = Source("mask", as_many(masks, length, _uneven(job.mask), more), None)
    background = read_background(job.background, job.pose_model, job.device) if job.background else None
    timed = None if job.fps else timed
    return _Inputs(reference, outline, skeletons, length, scene, mask, timed, filmed, background)


def _check(job: AnimateJob, given: _Inputs, system: System, recipe: Recipe) -> None:
    """Raises UserError where the inputs do not fit together, or not to the recipe."""
    system.check_inputs(given.scene, given.mask, given.skeletons, recipe, given.background)
    if system.clips:
        check_cache(system.title, job.shortcuts)
        system.latents_of(given.length.total)
    if isinstance(given.skeletons, PointSkeletons):
        system.check_poses(given.skeletons.poses)
    if given.scene and not given.mask:
        scene_key(*split_reference(given.reference, given.reference_mask))
    if not (job.rescale or job.reference_pose):  # which bring the skeletons to another size
        recipe.canvas(given.scene.size if given.scene else None, given.skeletons.size, job.size, 1)


def _too_few(job: AnimateJob) -> Mismatch:
    return lambda count, frames: UserError(
        f"{job.pose} holds {count} poses but {frames} frames are asked for; give more poses or a smaller --frames."
    )


def _uneven(path: Path) -> Mismatch:
    return lambda count, frames: UserError(
        f"{path} has {count} frames but there are {frames} poses; give as many, or choose with --frames."
    )


def _rescaled(job: AnimateJob, recipe: Recipe, skeletons: AnySkeletons) -> AnySkeletons:
    if not (job.rescale or job.reference_pose):
        return skeletons
    if not isinstance(skeletons, PointSkeletons):
        raise UserError(f"{job.pose} is a video, whose skeletons can't be rescaled; give POSE_KEYPOINT JSON.")
    if job.reference_pose:
        character = read_poses(job.reference_pose)
    else:
        character = reference_pose(job.reference, job.pose_model, job.device)
    return PointSkeletons(rescale(skeletons.poses, character, keep_aspect=recipe.keeps_aspect))


def _noted(frames: Iterable[np.ndarray], thumbnails: FrameStore) -> Iterator[np.ndarray]:
    """Passes the frames on, and keeps what the sheet shows of them."""
    for frame in frames:
        thumbnails.append(thumbnail(frame))
        yield frame


def _writer(
    job: AnimateJob, given: _Inputs, state: Work, frames: int, sound: Path | str | None, size: Size
) -> VideoWriter | PngWriter:
    seen = {"colours": given.filmed.colours if given.filmed else UNTAGGED, "depth": given.depth}
    if given.timed is None:
        return job.writer(size, state, rate=Fraction(job.fps or RATE).limit_denominator(1001), **seen)
    info = given.timed.info
    return job.writer(
        size,
        state,
        timestamps=info.timestamps[:frames],
        time_base=info.time_base,
        rate=info.rate,
        audio_from=sound,
        **seen,
    )
