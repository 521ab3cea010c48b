"""Files in, finished video out: the job behind `anycharv generate`.

The clip, its masks and its poses are read again whenever they are needed and are never wholly in memory.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

from . import __version__
from .doctor import OPENCV
from .errors import UserError
from .files import atomic_path
from .imaging import resize
from .masks import boxes_to_masks, read_boxes
from .pipeline import Pipeline, paste_weights
from .pose import Pose, draw_pose, read_poses, scale_pose
from .recipes import Size, get_recipe
from .sheet import sheet
from .video import VideoInfo, VideoWriter, probe, read_frames, read_gray

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
STEPS, GUIDANCE = 30, 3.0  # where neither the caller nor the model says otherwise
REPORTED = ("torch", "diffusers", "transformers", "numpy", "av")
SHEET_FRAMES, SHEET_CELL = 6, 290  # rows, and the longer side of a picture in pixels
SHEET_TITLES = ("reference", "driving", "pose", "output")

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Job:
    """What to make from which files, and how. None = the model's own setting, or nothing given.

    mask: a video, a folder of PNGs or a JSON list of boxes; pose: POSE_KEYPOINT JSON (a file, or
    OpenPose's folder) or a skeleton video; size: (width, height) in pixels the networks work at: a box the
    clip is fitted in by recipe "default", the exact size for "official"; device: None = CUDA where there
    is one, else the CPU; sheet: a PNG to draw a contact sheet to.
    """

    reference: Path
    video: Path
    mask: Path
    pose: Path
    out: Path
    reference_mask: Path | None = None
    model: str = "embedded"
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


class Reopened:
    """Frames that can be read any number of times: every loop calls `read` anew."""

    def __init__(self, read: Callable[[], Iterator[np.ndarray]]):
        self._read = read

    def __iter__(self) -> Iterator[np.ndarray]:
        return self._read()


@dataclass(frozen=True)
class Inputs:
    """The checked files of a job. reference: uint8 [H, W, 3 or 4]; reference_mask: uint8 [H, W] or None;
    pose: the skeletons, drawn on a canvas of the size asked for; they were made for `pose_size`."""

    info: VideoInfo
    reference: np.ndarray
    reference_mask: np.ndarray | None
    scene: Reopened
    mask: Reopened
    pose: Callable[[Size], Reopened]
    pose_size: Size


def generate(job: Job, progress: Progress | None = None) -> dict[str, Any]:
    """Runs the job: writes the video, its report beside it, and the sheet where one is asked for.

    The output has the clip's frame count, timestamps and audio, and with recipe "default" its size.
    progress(done, total) is called after every denoising call.

    Returns the report. Raises UserError for anything the user can put right; old files are then as
    they were.
    """
    started = time.perf_counter()
    seconds: dict[str, float] = {}
    _check_places(job)
    device = pick_device(job.device)
    with _phase(seconds, "check"):
        inputs = read_inputs(job)
    info = inputs.info
    with _explained_memory(), _phase(seconds, "load"):
        pipe = Pipeline.from_pretrained(job.model, job.vae, job.image_encoder, device, DTYPES[job.dtype])
    size = job.size or working_size(pipe.settings.get("size"), (info.width, info.height), pipe.multiple)
    steps = job.steps if job.steps is not None else pipe.settings.get("steps", STEPS)
    guidance = job.guidance_scale
    if guidance is None:
        guidance = pipe.settings.get("guidance_scale", GUIDANCE)
    recipe = get_recipe(job.recipe)
    canvas = recipe.canvas((info.width, info.height), inputs.pose_size, size, pipe.multiple)
    working = canvas.inner if recipe.paste_back else size or inputs.pose_size
    poses = inputs.pose(pose_canvas(working, pipe.settings.get("pose_scale", 1)))
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
    with _explained_memory(), writer:
        out = pipe(
            inputs.reference,
            inputs.scene,
            inputs.mask,
            poses,
            steps=steps,
            guidance_scale=guidance,
            seed=job.seed,
            size=size,
            recipe=job.recipe,
            progress=progress,
            reference_mask=inputs.reference_mask,
        )
        sampled = time.perf_counter()
        rows = zip(out.frames, inputs.scene, inputs.mask, strict=True)
        for index, (frame, original, mask) in enumerate(rows):
            writer.write(frame)
            if recipe.paste_back:
                equal = equal and background_equal(frame, original, mask)
            if index in chosen:
                driving.append(thumbnail(original))
                output.append(thumbnail(frame))
    seconds |= out.seconds
    seconds["write"] = time.perf_counter() - sampled - seconds["decode"]
    if job.sheet:
        skeletons = [thumbnail(frame) for i, frame in enumerate(poses) if i in chosen]
        write_sheet(job.sheet, inputs.reference, driving, skeletons, output)
    seconds["total"] = time.perf_counter() - started
    latent = out.latents.shape
    report = {
        "model": job.model,
        "settings": {
            "recipe": job.recipe,
            "steps": steps,
            "guidance_scale": guidance,
            "seed": job.seed,
            "size": list(size) if size else None,
            "dtype": job.dtype,
        },
        "inputs": {
            name: str(path)
            for name in ("reference", "reference_mask", "video", "mask", "pose", "vae", "image_encoder")
            if (path := getattr(job, name)) is not None
        },
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


def read_inputs(job: Job) -> Inputs:
    """Opens and checks every input file of the job, without weights.

    Raises UserError when one cannot be read, or when they don't fit together.
    """
    recipe = get_recipe(job.recipe)
    reference = read_reference(job.reference)
    outline = read_reference_mask(job.reference_mask, reference) if job.reference_mask else None
    info = probe(job.video)
    clip = info.width, info.height
    mask = mask_frames(job.mask, clip)
    _check_mask(job, mask, info, same_size=recipe.paste_back)
    poses, count, size = pose_frames(job.pose, clip)
    _check_count(job.pose, "poses", count, job, info)
    recipe.canvas(clip, size, job.size, 1)  # raises where proportions differ
    return Inputs(info, reference, outline, Reopened(partial(read_frames, job.video)), mask, poses, size)


def read_reference(path: Path) -> np.ndarray:
    """The character's picture, turned upright: uint8 [H, W, 3], or [H, W, 4] where it has transparency."""
    with _open_picture(path) as picture:
        transparent = "A" in picture.getbands() or "transparency" in picture.info
        pixels = np.asarray(picture.convert("RGBA" if transparent else "RGB"))
    if transparent and not pixels[..., 3].any():
        raise UserError(f"{path} is transparent everywhere; give a picture that shows the character.")
    return pixels


def read_reference_mask(path: Path, reference: np.ndarray) -> np.ndarray:
    """The character's outline in the reference picture: uint8 [H, W], 255 = character."""
    with _open_picture(path) as picture:
        mask = np.asarray(picture.convert("L"))
    if mask.shape != reference.shape[:2]:
        raise UserError(
            f"{path} is {mask.shape[1]}x{mask.shape[0]} but the reference is "
            f"{reference.shape[1]}x{reference.shape[0]}; give a mask of the reference's size."
        )
    if not mask.any():
        raise UserError(f"{path} is black everywhere; mark the character with white.")
    return mask


def mask_frames(path: Path, clip: Size) -> Reopened:
    """The masks of a clip of size `clip` from a box list (.json), a video, or a folder of PNGs."""
    if path.suffix.lower() != ".json":
        return Reopened(partial(read_gray, path))
    boxes = read_boxes(path)
    return Reopened(lambda: (boxes_to_masks([box], *clip)[0] for box in boxes))


def pose_frames(path: Path, clip: Size) -> tuple[Callable[[Size], Reopened], int, Size]:
    """How to get the skeleton pictures of a clip of size `clip` (drawn on a canvas of the size asked for),
    how many there are, and the size they were made for.

    `path`: POSE_KEYPOINT JSON, a folder of OpenPose's JSON files, or a video of skeletons drawn already.
    """
    if path.suffix.lower() != ".json" and not path.is_dir():
        info = probe(path)
        return lambda canvas: Reopened(partial(read_frames, path)), info.frames, (info.width, info.height)
    poses = read_poses(path, clip)

    def drawn(canvas: Size) -> Reopened:
        return Reopened(lambda: (draw_pose(scale_pose(pose, *canvas)) for pose in poses))

    return drawn, len(poses), _canvas_size(poses[0])


def background_equal(frame: np.ndarray, original: np.ndarray, mask: np.ndarray) -> bool:
    """Whether every pixel outside the padded and feathered mask is the original's, bit for bit."""
    outside = paste_weights(mask) == 0
    return bool((frame == original).all(axis=-1)[outside].all())


def pick_device(name: str | None) -> str:
    """`name`, or what is there: "cuda", else "cpu". Raises UserError where torch cannot use it."""
    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("torch finds no CUDA device; use --device cpu, or see 'anycharv doctor'.")
    if name == "mps" and not torch.backends.mps.is_available():
        raise UserError("torch finds no Apple GPU (mps); use --device cpu, or see 'anycharv doctor'.")
    return name


def device_name(device: str) -> str:
    if device == "cuda":
        return f"cuda: {torch.cuda.get_device_name()}"
    return f"{device}: {platform.processor() or platform.machine()}, {os.cpu_count()} cores"


def peak_memory(device: str) -> dict[str, int]:
    """Most bytes held so far, by the process (where the system tells) and on the GPU (where one is used)."""
    peak: dict[str, int] = {}
    with suppress(ImportError):  # Windows has no such module
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        peak["process"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    if device == "cuda":
        peak["cuda"] = torch.cuda.max_memory_allocated()
    return peak


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


def write_sheet(path: Path, reference: np.ndarray, *columns: list[np.ndarray]) -> None:
    """Draws a PNG with a row for each frame: the reference, then the thumbnails of `columns`."""
    picture = Image.fromarray(reference)
    if picture.mode == "RGBA":
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    character = thumbnail(np.asarray(picture))
    page = sheet([(character, *row) for row in zip(*columns, strict=True)], SHEET_TITLES)
    with atomic_path(path) as temporary:
        page.save(temporary, "PNG")


def _check_places(job: Job) -> None:
    """Raises UserError where an output could not be written, or would replace an input."""
    if job.out.suffix.lower() != ".mp4":
        raise UserError(f"The output {job.out} is an mp4 video; let its name end in .mp4.")
    if job.sheet and job.sheet.suffix.lower() != ".png":
        raise UserError(f"The sheet {job.sheet} is a PNG picture; let its name end in .png.")
    sources = (job.reference, job.reference_mask, job.video, job.mask, job.pose)
    for place in filter(None, (job.out, job.report, job.sheet)):
        if any(source and source.resolve() == place.resolve() for source in sources):
            raise UserError(f"{place} is one of the inputs and would be overwritten; choose another output.")
        with suppress(_OnlyTried), atomic_path(place):
            raise _OnlyTried


class _OnlyTried(Exception):
    """Ends an attempt to write that was only made to see whether it would work."""


def _check_mask(job: Job, masks: Iterable[np.ndarray], info: VideoInfo, same_size: bool) -> None:
    count, present = 0, False
    for mask in masks:
        if same_size and mask.shape != (info.height, info.width):
            raise UserError(
                f"{job.mask} is {mask.shape[1]}x{mask.shape[0]} but {job.video} is "
                f"{info.width}x{info.height}; give masks of the video's size."
            )
        count += 1
        present = present or bool((mask >= 128).any())
    _check_count(job.mask, "masks", count, job, info)
    if not present:
        raise UserError(f"{job.mask} marks nothing in any frame; mark the person to replace with white.")


def _check_count(path: Path, what: str, count: int, job: Job, info: VideoInfo) -> None:
    if count != info.frames:
        raise UserError(
            f"{path} holds {count} {what} but {job.video} has {info.frames} frames; give one for every frame."
        )


def _canvas_size(pose: Pose) -> Size:
    return pose["canvas_width"], pose["canvas_height"]


@contextmanager
def _open_picture(path: Path) -> Iterator[Image.Image]:
    if not path.is_file():
        raise UserError(f"{path} is not there or is not a file; check the path.")
    try:
        with Image.open(path) as opened:
            if opened.mode.startswith(("I", "F")):
                raise UserError(f"{path} has more than 8 bits a channel; save it as an ordinary PNG.")
            picture = ImageOps.exif_transpose(opened)
    except PermissionError as error:
        raise UserError(f"{path} may not be read; change its permissions.") from error
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} is not a picture that can be read; give a complete PNG or JPEG.") from error
    yield picture


@contextmanager
def _explained_memory() -> Iterator[None]:
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise UserError(
            "The memory is not enough for this clip; give a smaller --size, or --dtype fp16 on a GPU."
        ) from error


@contextmanager
def _phase(seconds: dict[str, float], name: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - started
