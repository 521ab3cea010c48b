"""What every job shares: the places it writes to, the report, the sheet, the number format, a full memory."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from importlib import metadata
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .. import __version__
from ..device import device_name, peak_memory
from ..errors import UserError
from ..files import atomic_path, owned_folder
from ..inference.memory import FULL_MEMORY, is_full_memory
from ..inference.phases import Phases
from ..inference.pipeline import Pipeline
from ..inference.shortcuts import NONE, check_shortcuts
from ..media.colour import eight_bits
from ..media.imaging import Size, resize
from ..media.png_write import PNG, PngWriter
from ..media.sheet import sheet
from ..media.video_read import VIDEOS
from ..media.video_write import CRF, FFV1, H264, WORST_CRF, VideoWriter
from ..systems import SYSTEMS, System, recognise
from ..systems.recipes import Recipe
from .doctor import OPENCV
from .precision import Precision, precision_for
from .sampling import SamplingOptions
from .work import Work, identity, work

# The ending of the output's name, None for a folder, and what it is.
FORMATS = {H264: (".mp4", "an mp4 video"), FFV1: (".mkv", "a Matroska video"), PNG: (None, "a folder of PNGs")}
REPORTED = ("torch", "diffusers", "transformers", "numpy", "av")
SHEET_FRAMES, SHEET_CELL = 6, 290  # rows, and the longer side of a picture in pixels

UNDECIDING = ("out", "sheet", "format", "crf", "fresh")  # fields of a job that no latent depends on

Progress = Callable[[int, int], None]
"""(done, total)"""


@dataclass(frozen=True, kw_only=True)
class RenderJob(SamplingOptions):
    """Which networks make a video, how, and where it goes. None = the model's own setting, or nothing given.

    size: (width, height) in pixels the networks work at: a box the frames are fitted in by recipe "default", the
    exact size for "official"; base: what a model of AnimateAnywhere was trained on; device: None = CUDA where
    there is one, else the CPU; dtype: a name of `precision.DTYPES`, or "auto", see `precision_for`;
    compile: as for `Pipeline.from_pretrained`;
    sheet: a PNG to draw a contact sheet to; format: one of `FORMATS`; crf: the quality of H.264, 0 (best) to 51;
    fresh: what a stopped run left behind is not taken up.
    """

    out: Path
    model: str
    vae: Path | None = None
    image_encoder: Path | None = None
    base: Path | None = None
    size: Size | None = None
    recipe: str = "default"
    device: str | None = None
    dtype: str = "fp32"
    compile: bool = False
    sheet: Path | None = None
    format: str = H264
    crf: int | None = None
    fresh: bool = False

    @property
    def report(self) -> Path:
        """The JSON beside the video."""
        stem = self.out.name if self.format == PNG else self.out.stem
        return self.out.with_name(f"{stem}.report.json")

    def check_places(self, inputs: Iterable[Path | None]) -> None:
        """Raises UserError where video, report or sheet could not be written, or would replace an input."""
        if self.format not in FORMATS:
            raise UserError(f"There is no format '{self.format}'; use one of {', '.join(map(repr, FORMATS))}.")
        ending, what = FORMATS[self.format]
        if ending is not None and self.out.suffix.lower() != ending:
            raise UserError(f"The output {self.out} is {what}; let its name end in {ending}, or change --format.")
        if ending is None and self.out.suffix.lower() in (*VIDEOS, ".png"):
            raise UserError(f"The output {self.out} is {what}; let its name not end in {self.out.suffix}.")
        if self.out.name in ("", ".."):
            raise UserError(
                f"The output {self.out} has no name, which the report beside it takes; name the folder itself."
            )
        if self.crf is not None and self.format != H264:
            raise UserError(f"--crf is the quality of H.264, but {self.format} loses nothing; leave it out.")
        if self.crf is not None and not 0 <= self.crf <= WORST_CRF:
            raise UserError(
                f"The CRF is {self.crf}; give a whole number from 0 (best) to {WORST_CRF}, {CRF} is usual."
            )
        if self.sheet and self.sheet.suffix.lower() != ".png":
            raise UserError(f"The sheet {self.sheet} is a PNG picture; let its name end in .png.")
        inputs = list(inputs)
        if ending is None:
            with suppress(_OnlyTried), owned_folder(self.out, filter(None, inputs)):
                raise _OnlyTried
        check_places((self.out if ending else None, self.report, self.sheet), inputs)

    def writer(self, size: Size, state: Work, **announced: Any) -> VideoWriter | PngWriter:
        """What writes frames of this size to `out`, by way of the folder of `state`. announced: times, sound and
        colours, as `VideoWriter` takes them."""
        announced["until_then"] = state.unfinished(FORMATS[self.format][0] or "")
        if self.format == PNG:
            return PngWriter(self.out, *size, **announced)
        return VideoWriter(
            self.out, *size, codec=self.format, crf=CRF if self.crf is None else self.crf, **announced
        )

    def load(
        self,
        command: str,
        device: str,
        phases: Phases,
        check: Callable[[System, Recipe], None],
        stack: ExitStack,
    ) -> tuple[Pipeline, Recipe, Precision, Work]:
        """The pipeline of the job's model, which must be one for `command`, the job's recipe for it, the number
        format that it computes in, and what is kept of the job until `stack` is left, see `work`.

        check: is called before the weights are read, for the model's system if its config tells it, else for every
        one that has the command, of which one must pass, and again as soon as the first two are known. Raises
        UserError as it and `work` do, and for a model or recipe that is none.
        """
        systems = [system for system in SYSTEMS.values() if system.command == command]
        known = recognise(self.model)
        if known is not None:
            known.check_command(command, self.model)
            systems = [known]
        able = [system for system in systems if self.recipe in system.recipes]
        if not able:
            systems[0].recipe(self.recipe)  # says so before the weights are read
        recorded = any(system.recipes[self.recipe].recorded for system in able)
        check_shortcuts(recorded, self.shortcuts)
        _check_early([(system, system.recipes[self.recipe]) for system in able], check)
        with phases("load"):
            given = self.model, self.vae, self.image_encoder
            precision = precision_for(self.dtype, *given, device, recorded, self.base)
            decides = identity(self, UNDECIDING, dtype=precision.name, device=device, versions=versions())
            state = stack.enter_context(work(self.out, decides, self.fresh))
            pipe = Pipeline.from_pretrained(*given, device, precision.dtype, self.compile, self.base)
        pipe.folder = Path(os.path.realpath(self.out)).parent
        pipe.system.check_command(command, self.model)
        recipe = pipe.system.recipe(self.recipe)
        if len(systems) > 1:
            check(pipe.system, recipe)
        return pipe, recipe, precision, state

    def settings(
        self, steps: int, guidance_scale: float, size: Size | None, precision: Precision
    ) -> dict[str, Any]:
        """What was decided, for the report."""
        return {
            "recipe": self.recipe,
            "steps": steps,
            "guidance_scale": guidance_scale,
            "seed": self.seed,
            "size": list(size) if size else None,
            "dtype": precision.name,
            **({"compile": True} if self.compile else {}),
            **({} if self.shortcuts == NONE else asdict(self.shortcuts)),
        } | ({} if precision.why is None else {"dtype_because": precision.why})

    def write_report(
        self, settings: dict[str, Any], inputs: dict[str, Any], facts: dict[str, Any], device: str, phases: Phases
    ) -> dict[str, Any]:
        """Writes and returns the report: settings, inputs, findings, time and memory."""
        report = {
            "model": self.model,
            "settings": settings,
            "inputs": inputs | paths(self, "vae", "image_encoder", "base"),
            "output": str(self.out),
            "sheet": str(self.sheet) if self.sheet else None,
            **facts,
            "seconds": {name: round(spent, 3) for name, spent in phases.seconds.items()},
            "peak_memory_bytes": peak_memory(device),
            "device": device_name(device),
            "versions": versions(),
        }
        with atomic_path(self.report) as temporary:
            temporary.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        return report


def _check_early(able: Sequence[tuple[System, Recipe]], check: Callable[[System, Recipe], None]) -> None:
    """Raises what `check` does where it does so for all systems that the model may be of."""
    errors = []
    for system, recipe in able:
        try:
            check(system, recipe)
        except UserError as error:
            errors.append(error)
    if len(errors) == len(able):
        raise errors[0]


def check_places(places: Iterable[Path | None], inputs: Iterable[Path | None]) -> None:
    """Raises UserError where one of `places` could not be written, would replace an input, or lies in a folder
    that is an input, where it would be read as a part of it."""
    # Path.resolve raises for a symbolic link that leads back to itself, before Python 3.13.
    taken = {os.path.realpath(path): path for path in inputs if path}
    for place in filter(None, places):
        target = os.path.realpath(place)
        if target in taken:
            raise UserError(f"{place} is one of the inputs and would be overwritten; choose another output.")
        if folder := taken.get(str(Path(target).parent)):
            raise UserError(f"{place} lies in {folder}, which is an input; choose another folder.")
        with suppress(_OnlyTried), atomic_path(place):
            raise _OnlyTried


class _OnlyTried(Exception):
    """Ends an attempt to write that was only made to see whether it would work."""


@contextmanager
def explained_memory() -> Iterator[None]:
    """Turns running out of memory inside it into a UserError."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_full_memory(error):
            raise
        raise UserError(FULL_MEMORY) from error


def paths(holder: Any, *names: str) -> dict[str, str]:
    """The attributes of `holder` that name a file, for a report."""
    return {name: str(path) for name in names if (path := getattr(holder, name)) is not None}


def versions() -> dict[str, str]:
    """Of this package, Python, and the packages that decide what comes out."""
    found = {"anycharv": __version__, "python": platform.python_version()}
    for name in (*REPORTED, *OPENCV):
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def sheet_frames(count: int) -> tuple[int, ...]:
    """Indices of up to SHEET_FRAMES frames spread evenly over a video of `count`, its ends among them."""
    return tuple(sorted({round(i) for i in np.linspace(0, count - 1, min(count, SHEET_FRAMES))}))


def thumbnail(frame: np.ndarray) -> np.ndarray:
    """A frame [H, W, 3], as uint8 scaled to fit a cell of the sheet."""
    scale = SHEET_CELL / max(frame.shape[:2])
    height, width = (max(1, round(side * scale)) for side in frame.shape[:2])
    return resize(eight_bits(frame), (width, height))


def write_sheet(
    path: Path, titles: Sequence[str], references: Sequence[np.ndarray], *columns: Sequence[np.ndarray]
) -> None:
    """Draws a PNG with a row for each frame: the references in turn, then the thumbnails of `columns`."""
    characters = [thumbnail(_on_white(picture)) for picture in references]
    page = sheet(list(zip(cycle(characters), *columns)), titles)
    with atomic_path(path) as temporary:
        page.save(temporary, "PNG")


def _on_white(reference: np.ndarray) -> np.ndarray:
    picture = Image.fromarray(reference)
    if picture.mode == "RGBA":
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    return np.asarray(picture)
