"""Files in, finished video out: the job behind `anycharv generate`.

The video, its masks and its poses are read once to be encoded and once to be pasted into, and are never wholly in
memory.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..device import pick_device
from ..errors import UserError
from ..inference.encode import encode_scene
from ..inference.finish import PasteBack
from ..inference.phases import Phases
from ..inference.pipeline import check_steps
from ..media.frames import FrameStore, Source
from ..media.video_read import Video
from ..media.video_write import VideoWriter
from .inputs import Replacement, check_mask_size, open_replacement
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
    """Who is put into which video: of `people` there is at least one, and several go in one after the other, each
    into what the one before left."""

    video: Path
    people: tuple[Replacement, ...]
    model: str = "embedded"


class _Rows:
    """What the sheet shows of every frame as it is encoded."""

    def __init__(self) -> None:
        self.driving, self.poses = FrameStore(), FrameStore()

    def __call__(self, frame: np.ndarray, skeletons: Sequence[np.ndarray]) -> None:
        self.driving.append(thumbnail(frame))
        self.poses.append(thumbnail(np.maximum.reduce(skeletons)))


def people_of(
    references: Sequence[Path],
    reference_masks: Sequence[Path] | None,
    video: Path | None,
    mask: Path | None,
    pose: Path | None,
    prepared: Path | None,
) -> tuple[Path, tuple[Replacement, ...]]:
    """The video, and a `Replacement` for every reference, from the files named or from a prepared folder.

    Raises UserError, in terms of the command line's options, where they do not fit together.
    """
    if prepared:
        found = read_prepared(prepared)
        video = video or found.video
        people = found.people
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
    if (mask or pose) and len(people) > 1:
        raise UserError("--mask and --pose speak of one person; leave them out for several prepared people.")
    rows = zip(references, people, outlines, strict=True)
    return video, tuple(Replacement(r, mask or of[0], pose or of[1], outline) for r, of, outline in rows)


def generate(job: ReplaceJob, progress: Progress | None = None) -> dict[str, Any]:
    """Runs the job: writes the video, its report beside it, and the sheet where one is asked for.

    The output has the video's frame count, timestamps and audio, and with recipe "default" its size.
    progress(done, total) is called after every denoising call.

    Returns the report. Raises UserError for anything the user can put right; old files are then as
    they were.
    """
    files = (path for each in job.people for path in (each.reference, each.reference_mask, each.mask, each.pose))
    job.check_places((job.video, *files))
    device = pick_device(job.device)
    with explained_memory():
        return _generate(job, device, progress)


def _generate(job: ReplaceJob, device: str, progress: Progress | None) -> dict[str, Any]:
    started, phases = time.perf_counter(), Phases()
    with phases("check"):
        video = Video(job.video)
        opened = [open_replacement(files, video) for files in job.people]
    pipe, recipe = job.load("generate", device, phases)
    steps, guidance = pipe.system.sampling(pipe.settings, job.steps, job.guidance_scale)
    check_steps(steps)
    if recipe.paste_back:
        for each, files in zip(opened, job.people, strict=True):
            check_mask_size(each, files, video)
    elif len(job.people) > 1:
        raise UserError(f"The recipe {job.recipe} replaces one person only; use 'default' for several.")
    with phases("encode"):
        size = pipe.working_size(recipe, video.size, job.size)
        plan = pipe.plan(recipe, video.size, opened[0].skeletons.size, size)
        references = [pipe.refer(recipe, each.reference, each.reference_mask) for each in opened]
        scene = Source(f"video {job.video}", video, 3)
        streams = [
            (each.mask, each.poses(plan.drawing, files, video))
            for each, files in zip(opened, job.people, strict=True)
        ]
        rows = _Rows() if job.sheet else None
        encoded = pipe.encode(plan, scene, streams, rows)
        for one, files in zip(encoded, job.people, strict=True):
            if not any(one.present):
                raise UserError(f"{files.mask} marks nothing in any frame; mark the person to replace with white.")
    info = video.info
    writer = VideoWriter(
        job.out,
        *plan.canvas.source,
        info.timestamps,
        info.time_base,
        info.rate,
        audio_from=job.video if info.has_audio else None,
        sample_aspect=info.sample_aspect,
    )
    chosen = sheet_frames(info.frames) if job.sheet else ()
    output = []
    pasted = []
    with writer:
        frames: Iterable[np.ndarray] = scene
        for number, (one, reference) in enumerate(zip(encoded, references, strict=True)):
            if number:
                before = Source("video", frames, 3, replayed=True)
                with phases("encode"):
                    one = replace(one, scene=encode_scene(pipe.backend.encode, plan.canvas, before))
                frames = before
            made = pipe.prepared(recipe, reference, one)
            share = progress and _share(progress, number, len(encoded))
            latents = pipe.sample(made, pipe.noise(made, job.seed), steps, guidance, phases, share)
            finish = None
            if recipe.paste_back:
                finish = PasteBack(frames, opened[number].mask)
                pasted.append(finish)
            frames = pipe.decode(made, latents, finish, phases)
        with phases("write"):
            for index, frame in enumerate(frames):
                writer.write(frame)
                if index in chosen:
                    output.append(thumbnail(frame))
    if job.sheet and rows:
        columns = ([store[index] for index in chosen] for store in (rows.driving, rows.poses))
        write_sheet(job.sheet, SHEET_TITLES, [each.reference for each in opened], *columns, output)
    phases.seconds["total"] = time.perf_counter() - started
    inputs = paths(job, "video") | {
        "people": [paths(files, "reference", "reference_mask", "mask", "pose") for files in job.people]
    }
    facts = {
        "frames": info.frames,
        "source_size": [info.width, info.height],
        "network_size": list(plan.canvas.padded),
        "output_size": list(plan.canvas.source),
        "audio": writer.audio_note or ("copied" if info.has_audio else "none in the source"),
        "background_bit_equal": all(each.untouched for each in pasted) if recipe.paste_back else None,
    }
    settings = job.settings(steps, guidance, plan.size)
    return job.write_report(settings, inputs, facts, device, phases)


def _share(progress: Progress, number: int, people: int) -> Progress:
    """The progress of person `number` of `people` as progress of the whole job."""
    return lambda done, total: progress(number * total + done, people * total)
