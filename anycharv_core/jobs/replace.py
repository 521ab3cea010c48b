"""Files in, finished video out: the job behind `anycharv generate`.

The video, its masks and its poses are read once to be encoded and once to be pasted into, and are never wholly in
memory.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from ..device import pick_device
from ..errors import UserError
from ..inference.people import as_seen, check_number, put_in_turn
from ..inference.phases import Phases
from ..inference.reference import refer
from ..media.camera import CONTEXT, Box
from ..media.canvas import AUTO
from ..media.colour import check_transfer
from ..media.frames import FrameStore, Reopened, Source
from ..media.imaging import resize
from ..media.masks import mask_box
from ..media.video_read import Video
from ..preprocess.shots import find_cuts
from ..systems import System
from ..systems.recipes import Recipe
from .inputs import Offered, Replacement, ReplacementInputs, check_mask_size, open_replacement
from .prepared import read_prepared
from .run import (
    Progress,
    RenderJob,
    explained_memory,
    paths,
    sheet_frames,
    thumbnail,
    write_sheet,
)

SHEET_TITLES = ("reference", "driving", "pose", "output")


@dataclass(frozen=True, kw_only=True)
class ReplaceJob(RenderJob):
    """Who is put into which video.

    people: one or more, put in one after the other, each into the result of the one before; canvas, context,
    match_colour: as in `Pipeline.__call__`; cuts: the first frame of every shot but the first, None = found
    where they matter.
    """

    video: Path
    people: tuple[Replacement, ...]
    model: str = "embedded"
    canvas: str = AUTO
    context: float = CONTEXT
    match_colour: bool = False
    cuts: tuple[int, ...] | None = None


class _Rows:
    """What the sheet shows of every frame as it is encoded."""

    def __init__(self, folder: Path | None) -> None:
        self.driving, self.poses = FrameStore(folder), FrameStore(folder)

    def __call__(self, frame: np.ndarray, skeletons: Sequence[np.ndarray]) -> None:
        self.driving.append(thumbnail(frame))
        # Drawn for whole frames they have one size, and where they were drawn for a window the frame's.
        size = skeletons[0].shape[1], skeletons[0].shape[0]
        self.poses.append(thumbnail(np.maximum.reduce([resize(each, size) for each in skeletons])))


def people_of(
    references: Sequence[Path],
    reference_masks: Sequence[Path] | None,
    video: Path | None,
    mask: Path | None,
    pose: Path | None,
    prepared: Path | None,
    objects: Path | None = None,
    depth: Path | None = None,
) -> tuple[Path, tuple[Replacement, ...], tuple[int, ...] | None]:
    """The video, a `Replacement` for every reference, from the files named or from a prepared folder, and the cuts
    where they are known.

    Raises UserError, in terms of the command line's options, where they do not fit together.
    """
    cuts, offered = None, [Offered()]
    if prepared:
        found = read_prepared(prepared)
        cuts = found.cuts if video is None else None
        # ComfyUI prepares videos that it holds in memory, too.
        if video is None and not found.video.is_file():
            raise UserError(
                f"{prepared} was made of a video that is no file here, '{found.video}'; give it as --video."
            )
        video = video or found.video
        people, offered = found.people, found.offered
    elif video and mask and pose:
        people = [(mask, pose)]
    else:
        given = {"--video": video, "--mask": mask, "--pose": pose}
        raise UserError(
            f"{' and '.join(name for name, path in given.items() if path is None)} missing: give --video, --mask "
            "and --pose, or --prepared with the folder that 'anycharv preprocess' wrote."
        )
    if len(references) != len(people):
        raise UserError(
            f"There are {len(people)} people to replace and {len(references)} references; give --reference "
            "once for each, in their order."
        )
    outlines: Sequence[Path | None] = reference_masks or [None] * len(people)
    if len(outlines) != len(people):
        raise UserError(f"Give --reference-mask once for each of the {len(people)} references, or not at all.")
    if (mask or pose or objects or depth) and len(people) > 1:
        raise UserError(
            "--mask, --pose, --objects and --depth are for one person; leave them out for several prepared people."
        )
    given = {name: None for name, path in (("mask", mask), ("objects", objects), ("depth", depth)) if path}
    rows = zip(references, people, outlines, offered, strict=True)
    made = (
        Replacement(each, mask or of[0], pose or of[1], outline, objects, depth, replace(more, **given))
        for each, of, outline, more in rows
    )
    return video, tuple(made), cuts


def generate(job: ReplaceJob, progress: Progress | None = None) -> dict[str, Any]:
    """Runs the job: writes the video, its report beside it, and the sheet where one is asked for.

    The output has the video's frame count, timestamps and audio, and with recipe "default" its size.
    progress(done, total) is called after every denoising call.

    Returns the report. Raises UserError for anything the user can put right; old files are then as
    they were.
    """
    # Which of what is offered will be read depends on the model, and that is not known yet.
    given = (path for each in job.people for path in (*each.files.values(), *vars(each.offered).values()))
    job.check_places((job.video, *given))
    device = pick_device(job.device)
    with explained_memory(), ExitStack() as stack:
        return _generate(job, device, progress, stack)


def _generate(job: ReplaceJob, device: str, progress: Progress | None, stack: ExitStack) -> dict[str, Any]:
    started, phases = time.perf_counter(), Phases()
    with phases("check"):
        video = Video(job.video)
        check_transfer(video.path, video.colours)
        opened = [open_replacement(files, video) for files in job.people]
    check = partial(_check, job, video, opened)
    pipe, recipe, precision, state = job.load("generate", device, phases, check, stack)
    recipe = recipe.matching_colour() if job.match_colour else recipe
    steps, guidance = job.sampling(pipe)
    suiting = [files.suiting(pipe.backend.extras, pipe.cuts) for files in job.people]
    with phases("check"):
        opened = [
            each if files == before else open_replacement(files, video)
            for each, files, before in zip(opened, suiting, job.people, strict=True)
        ]
    with phases("encode"):
        size = pipe.working_size(recipe, video.size, job.size)
        plan = pipe.plan(recipe, video.size, opened[0].skeletons.size, size, job.size)
        references = [refer(recipe, each.reference, each.reference_mask) for each in opened]
        scene = Source(f"video {job.video}", video, 3)
        cuts = cache(lambda: find_cuts(scene) if job.cuts is None else job.cuts)
        seen = partial(as_seen, pipe, plan, job.canvas, job.context, cuts)
        streams = []
        for each, files in zip(opened, suiting, strict=True):
            pipe.check_extras(video.size, each.objects, each.depth)
            drawn = partial(each.poses, files=files, video=video)
            streams.append(seen(each.mask, partial(_boxes, each.unchecked), drawn, each.objects, each.depth))
        rows = _Rows(pipe.folder) if job.sheet else None
        encoded = pipe.encode(recipe, scene, streams, rows)
        for one, files in zip(encoded, suiting, strict=True):
            if not any(one.present):
                raise UserError(f"{files.mask} marks nothing in any frame; mark the person to replace with white.")
    info = video.info
    writer = job.writer(
        plan.canvas.source,
        state,
        timestamps=info.timestamps,
        time_base=info.time_base,
        rate=info.rate,
        audio_from=job.video if info.has_audio else None,
        sample_aspect=info.sample_aspect,
        colours=info.colours,
        depth=info.depth,
    )
    chosen = sheet_frames(info.frames) if job.sheet else ()
    output = []
    with writer:
        frames, pasted = put_in_turn(
            pipe,
            recipe,
            Reopened(lambda: video.frames(deep=True)),
            encoded,
            references,
            [each.mask for each in streams],
            state.latents,
            steps,
            guidance,
            job.seed,
            phases,
            progress,
            deep=info.depth > 8,
            shortcuts=job.shortcuts,
        )
        with phases("write"):
            for index, frame in enumerate(frames):
                writer.write(frame)
                if index in chosen:
                    output.append(thumbnail(frame))
    if job.sheet and rows:
        columns = ([store[index] for index in chosen] for store in (rows.driving, rows.poses))
        write_sheet(job.sheet, SHEET_TITLES, [each.reference for each in opened], *columns, output)
    phases.seconds["total"] = time.perf_counter() - started
    inputs = paths(job, "video") | {"people": [paths(files, *files.files) for files in suiting]}
    facts = {
        "frames": info.frames,
        "source_size": [info.width, info.height],
        "canvas": [one.path.shows for one in encoded],
        "network_size": list(encoded[0].path.canvas.padded),
        "output_size": list(plan.canvas.source),
        "audio": writer.audio_note or ("copied" if info.has_audio else "none in the source"),
        "written": writer.written,
        "resumed_rounds": state.taken_up,
        "background_bit_equal": all(each.untouched for each in pasted) if recipe.paste_back else None,
    }
    settings = job.settings(steps, guidance, plan.size, precision) | {
        "canvas": job.canvas,
        "context": job.context,
        "match_colour": job.match_colour,
    }
    return job.write_report(settings, inputs, facts, device, phases)


def _boxes(masks: Iterable[np.ndarray]) -> list[Box | None]:
    return [mask_box(mask) for mask in masks]


def _check(
    job: ReplaceJob, video: Video, opened: Sequence[ReplacementInputs], system: System, recipe: Recipe
) -> None:
    """Raises UserError where the sizes of the inputs do not fit together, or not to the recipe."""
    if job.match_colour:
        recipe.matching_colour()
    check_number(job.recipe, recipe, len(job.people))
    if recipe.paste_back:
        for each, files in zip(opened, job.people, strict=True):
            check_mask_size(each, files, video)
    recipe.canvas(video.size, opened[0].skeletons.size, job.size, 1)
