"""Files in, finished video out: the job behind `anycharv generate`.

The clip, its masks and its poses are read again whenever they are needed and are never wholly in memory.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from .. import __version__
from ..device import device_name, peak_memory, pick_device
from ..errors import UserError
from ..files import atomic_path
from ..inference.pipeline import Pipeline, paste_weights
from ..media.frames import Reopened
from ..media.imaging import Size, resize
from ..media.sheet import sheet
from ..media.video_read import read_frames
from ..media.video_write import VideoWriter
from ..systems.anycharv import ANYCHARV
from .doctor import OPENCV
from .inputs import Part, read_inputs

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
REPORTED = ("torch", "diffusers", "transformers", "numpy", "av")
SHEET_FRAMES, SHEET_CELL = 6, 290  # rows, and the longer side of a picture in pixels
SHEET_TITLES = ("reference", "driving", "pose", "output")

Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class Making:
    """Which networks make a video, how, and where it goes. None = the model's own setting, or nothing given.

    size: (width, height) in pixels the networks work at: a box the frames are fitted in by recipe "default", the
    exact size for "official"; device: None = CUDA where there is one, else the CPU; sheet: a PNG to draw a
    contact sheet to.
    """

    out: Path
    model: str
    vae: Path | None = None
    image_encoder: Path | None = None
    size: Size | None = None
    steps: int | None = None
    guidance_scale: float | None = None
    seed: int = 42
    recipe: str = "default"
    device: str | None = None
    dtype: str = "fp32"
    sheet: Path | None = None

    @property
    def report(self) -> Path:
        return self.out.with_suffix(".report.json")

    def sampling(self, pipe: Pipeline) -> dict[str, Any]:
        """steps and guidance_scale as asked, or else as the model says, or else its system's."""
        steps, guidance_scale = pipe.system.sampling(pipe.settings, self.steps, self.guidance_scale)
        return {"steps": steps, "guidance_scale": guidance_scale}


@dataclass(frozen=True, kw_only=True)
class Job(Making):
    """Who is put into which clip: `cast` has at least one, and several go in one after the other, each into what
    the one before left."""

    video: Path
    cast: tuple[Part, ...]
    model: str = "embedded"


def generate(job: Job, progress: Progress | None = None) -> dict[str, Any]:
    """Runs the job: writes the video, its report beside it, and the sheet where one is asked for.

    The output has the clip's frame count, timestamps and audio, and with recipe "default" its size.
    progress(done, total) is called after every denoising call.

    Returns the report. Raises UserError for anything the user can put right; old files are then as
    they were.
    """
    started = time.perf_counter()
    seconds: dict[str, float] = {}
    parts = (path for part in job.cast for path in (part.reference, part.reference_mask, part.mask, part.pose))
    check_places(job.out, job.report, job.sheet, (job.video, *parts))
    device = pick_device(job.device)
    recipe = ANYCHARV.recipe(job.recipe)
    if len(job.cast) > 1 and not recipe.paste_back:
        raise UserError(f"The recipe {job.recipe} replaces one person only; use 'default' for several.")
    with phase(seconds, "check"):
        info, cast = read_inputs(job.video, job.cast, recipe, job.size)
    with explained_memory(), phase(seconds, "load"):
        pipe = Pipeline.from_pretrained(job.model, job.vae, job.image_encoder, device, DTYPES[job.dtype])
    pipe.system.check_command("generate", job.model)
    size = job.size or working_size(pipe.settings.get("size"), (info.width, info.height), pipe.multiple)
    sampling = job.sampling(pipe)
    canvas = recipe.canvas((info.width, info.height), cast[0].pose_size, size, pipe.multiple)
    working = canvas.inner if recipe.paste_back else size or cast[0].pose_size
    pose_size = pose_canvas(working, pipe.settings.get("pose_scale", 1))
    width, height = canvas.source
    # The writer is opened first, so that audio or timestamps mp4 cannot hold show before the long part.
    writer = VideoWriter(
        job.out,
        width,
        height,
        info.timestamps,
        info.time_base,
        info.rate,
        audio_from=job.video if info.has_audio else None,
        sample_aspect=info.sample_aspect,
    )
    equal = True
    chosen = sheet_frames(info.frames) if job.sheet else ()
    driving: list[np.ndarray] = []
    output: list[np.ndarray] = []
    with explained_memory(), writer:
        scene = Reopened(partial(read_frames, job.video))
        frames: Iterable[np.ndarray] = scene
        spent = []  # each part's seconds by phase, which still grow while its frames are decoded
        for number, part in enumerate(cast):
            out = pipe(
                part.reference,
                frames,
                part.mask,
                part.pose(pose_size),
                **sampling,
                seed=job.seed,
                size=size,
                recipe=job.recipe,
                progress=progress and _share(progress, number, len(cast)),
                reference_mask=part.reference_mask,
            )
            frames = out.frames
            spent.append(out.seconds)
        sampled = time.perf_counter()
        rows = zip(frames, scene, *(part.mask for part in cast), strict=True)
        for index, (frame, original, *masks) in enumerate(rows):
            writer.write(frame)
            if recipe.paste_back:
                equal = equal and background_equal(frame, original, masks)
            if index in chosen:
                driving.append(thumbnail(original))
                output.append(thumbnail(frame))
    seconds["write"] = time.perf_counter() - sampled - spent[-1]["decode"]
    for name in spent[0]:
        seconds[name] = sum(each[name] for each in spent)
    if job.sheet:
        drawn = zip(*(part.pose(pose_size) for part in cast), strict=True)
        skeletons = [thumbnail(np.maximum.reduce(frame)) for i, frame in enumerate(drawn) if i in chosen]
        references = [part.reference for part in cast]
        write_sheet(job.sheet, SHEET_TITLES, references, driving, skeletons, output)
    seconds["total"] = time.perf_counter() - started
    latent = out.latents.shape
    report = {
        "model": job.model,
        "settings": {
            "recipe": job.recipe,
            **sampling,
            "seed": job.seed,
            "size": list(size) if size else None,
            "dtype": job.dtype,
        },
        "inputs": paths(job, "video", "vae", "image_encoder")
        | {"cast": [paths(part, "reference", "reference_mask", "mask", "pose") for part in job.cast]},
        "output": str(job.out),
        "sheet": str(job.sheet) if job.sheet else None,
        "frames": info.frames,
        "source_size": [info.width, info.height],
        "network_size": [latent[3] * pipe.multiple, latent[2] * pipe.multiple],
        "output_size": [width, height],
        "audio": writer.audio_note or ("copied" if info.has_audio else "none in the source"),
        "background_bit_equal": equal if recipe.paste_back else None,
        "seconds": {name: round(spent, 3) for name, spent in seconds.items()},
        "peak_memory_bytes": peak_memory(device),
        "device": device_name(device),
        "versions": versions(),
    }
    write_report(job.report, report)
    return report


def working_size(area: list[int] | None, clip: Size, multiple: int) -> Size | None:
    """The (width, height) in pixels that a model made for pictures of `area` = [w, h] works on `clip` at.

    The clip keeps its proportions and is scaled, up or down, until it covers about w * h pixels, so that
    the networks see as much as they were trained on: for 64 x 64, a clip of 540 x 960 is worked on at
    48 x 85. Neither side becomes smaller than `multiple`, one latent pixel of the VAE. None, the clip's own
    size, where the model names no area.
    """
    if area is None:
        return None
    scale = max((area[0] * area[1] / (clip[0] * clip[1])) ** 0.5, multiple / min(clip))
    return round(clip[0] * scale), round(clip[1] * scale)


def pose_canvas(working: Size, scale: float) -> Size:
    """The size in pixels at which skeletons given as points are drawn for a clip worked on at `working`.

    `scale` is the model's "pose_scale": the released weights know skeletons drawn at the working size (1),
    smaller models draw them larger and bring them down, so that joints keep fractions of a pixel.
    """
    return round(scale * working[0]), round(scale * working[1])


def background_equal(frame: np.ndarray, original: np.ndarray, masks: Iterable[np.ndarray]) -> bool:
    """Whether every pixel outside all padded and feathered masks is the original's, bit for bit."""
    outside = np.all([paste_weights(mask) == 0 for mask in masks], axis=0)
    return bool((frame == original).all(axis=-1)[outside].all())


def versions() -> dict[str, str]:
    found = {"anycharv": __version__, "python": platform.python_version()}
    for name in (*REPORTED, *OPENCV):
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def write_report(path: Path, report: dict[str, Any]) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def sheet_frames(count: int) -> tuple[int, ...]:
    """Indices of up to SHEET_FRAMES frames spread evenly over a clip of `count`, its ends among them."""
    return tuple(sorted({round(i) for i in np.linspace(0, count - 1, min(count, SHEET_FRAMES))}))


def thumbnail(frame: np.ndarray) -> np.ndarray:
    """The frame, scaled to fit a cell of the sheet."""
    scale = SHEET_CELL / max(frame.shape[:2])
    return resize(frame, (max(1, round(frame.shape[1] * scale)), max(1, round(frame.shape[0] * scale))))


def write_sheet(
    path: Path, titles: Sequence[str], references: Sequence[np.ndarray], *columns: list[np.ndarray]
) -> None:
    """Draws a PNG with a row for each frame: the references in turn, then the thumbnails of `columns`."""
    characters = [thumbnail(_on_white(picture)) for picture in references]
    rows = zip(cycle(characters), *columns)
    page = sheet(list(rows), titles)
    with atomic_path(path) as temporary:
        page.save(temporary, "PNG")


def _on_white(reference: np.ndarray) -> np.ndarray:
    picture = Image.fromarray(reference)
    if picture.mode == "RGBA":
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    return np.asarray(picture)


def _share(progress: Progress, number: int, parts: int) -> Progress:
    """The progress of part `number` of `parts` as progress of the whole job."""
    return lambda done, total: progress(number * total + done, parts * total)


def paths(holder: Any, *names: str) -> dict[str, str]:
    """Those of the attributes that name a file, for a report."""
    return {name: str(path) for name in names if (path := getattr(holder, name)) is not None}


def check_places(out: Path, report: Path, drawn: Path | None, sources: Iterable[Path | None]) -> None:
    """Raises UserError where video, report or sheet could not be written, or would replace an input."""
    if out.suffix.lower() != ".mp4":
        raise UserError(f"The output {out} is an mp4 video; let its name end in .mp4.")
    if drawn and drawn.suffix.lower() != ".png":
        raise UserError(f"The sheet {drawn} is a PNG picture; let its name end in .png.")
    sources = tuple(sources)
    for place in filter(None, (out, report, drawn)):
        if any(source and source.resolve() == place.resolve() for source in sources):
            raise UserError(f"{place} is one of the inputs and would be overwritten; choose another output.")
        with suppress(_OnlyTried), atomic_path(place):
            raise _OnlyTried


class _OnlyTried(Exception):
    """Ends an attempt to write that was only made to see whether it would work."""


@contextmanager
def explained_memory() -> Iterator[None]:
    """Turns a full memory inside it into a UserError."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise UserError(
            "The memory is not enough for this clip; give a smaller --size, or --dtype fp16 on a GPU."
        ) from error


@contextmanager
def phase(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Notes the seconds spent inside it."""
    started = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - started
