"""`anycharv bench puppets`: a model, or what another system wrote, beside the truth and the baselines."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..bench.exchange import of_folder, read_setup
from ..bench.lpips import load_lpips
from ..bench.puppets import (
    Look,
    Method,
    Progress,
    look_of,
    measure,
    of_codec,
    of_model,
    references,
    sheet_titles,
    tasks_of,
)
from ..bench.report import make_folder, markdown, write_report
from ..bench.tasks import Setup
from ..device import pick_device
from ..errors import UserError
from ..files import atomic_path
from ..inference.pipeline import Pipeline
from ..inference.shortcuts import NONE
from ..media.sheet import sheet
from .precision import precision_for
from .run import check_places, versions
from .sampling import SamplingOptions


@dataclass(frozen=True)
class PuppetJob(SamplingOptions):
    """What to score. `score`: a folder of tasks that another system has run, in place of `model`.

    None = the model's own setting, for the size that of the kind of task. task: the kind of
    `bench.tasks.KINDS`; None = the usual one of the model, or the folder's own. base: what a model of
    AnimateAnywhere was trained on.
    """

    out: Path
    model: str = "embedded"
    score: Path | None = None
    task: str | None = None
    clips: int = 64
    frames: int = 8
    size: int | None = None
    recipe: str = "default"
    vae: Path | None = None
    image_encoder: Path | None = None
    base: Path | None = None
    lpips_weights: Path | None = None
    device: str | None = None
    dtype: str = "fp32"
    compile: bool = False


def bench_puppets(job: PuppetJob, progress: Progress | None = None) -> tuple[dict[str, Any], str]:
    """Writes puppets.json, puppets.md and sheet.png to `job.out`; returns the report and the table.

    Raises UserError for anything the user can put right.
    """
    device = pick_device(job.device)
    peer = None if job.score is None else (job.score, read_setup(job.score))
    make_folder(job.out)
    check_places((job.out / name for name in ("puppets.json", "puppets.md", "sheet.png")), ())
    lpips = load_lpips(job.lpips_weights, device)
    elsewhere: tuple[str, ...] = ()
    looks: dict[str, Look] = {}
    if peer is not None:
        folder, setup = peer
        if job.task not in (None, setup.task):
            raise UserError(f"{folder} is of the task '{setup.task}', not '{job.task}'; leave --task out.")
        name = folder.resolve().name
        methods, elsewhere = references(setup.task) | {name: of_folder(folder)}, (name,)
    else:
        parts = job.model, job.vae, job.image_encoder
        precision = precision_for(job.dtype, *parts, device, base=job.base)
        pipe = Pipeline.from_pretrained(*parts, device, precision.dtype, job.compile, job.base)
        possible = tasks_of(pipe)
        if job.task not in (None, *possible):
            raise UserError(
                f"{job.model} can't be scored on the task '{job.task}'; use --task {' or '.join(possible)}."
            )
        setup = Setup.of(job.task or possible[0], job.clips, job.frames, job.size)
        pipe.system.latents_of(setup.frames)  # says so before the autoencoder is scored on them
        methods = references(setup.task)
        if setup.size % pipe.backend.multiple == 0:
            methods["the model's autoencoder"] = of_codec(pipe)
        model = _model(job, pipe)
        methods |= model
        if (look := look_of(pipe)) is not None:
            looks[list(model)[-1]] = look
    report, rows = measure(methods, setup, lpips, progress, elsewhere, looks)
    report["versions"] = versions()
    return report, publish(job.out, report, rows, methods)


def publish(out: Path, report: dict[str, Any], rows: list[list[Any]], methods: dict[str, Method]) -> str:
    """Writes what `measure` returned as puppets.json, puppets.md and sheet.png; returns the table."""
    setup = report["setup"]
    table = markdown(report["methods"], "method")
    heading = (
        f"PuppetBench, task '{setup['task']}', {setup['clips']} clips of {setup['frames']} frames of "
        f"{setup['size']}x{setup['size']} pixels. Mean over clips [95 % bootstrap interval].\n\n"
    )
    meanings = [f"- {name}: {meaning}." for name, meaning in report["metrics"].items()]
    regions = [f"- {name} region: {meaning}." for name, meaning in report["regions"].items()]
    write_report(out, "puppets", report, "\n".join([heading + table, *meanings, *regions, ""]))
    with atomic_path(out / "sheet.png") as temporary:
        sheet(rows, sheet_titles(methods, setup["task"])).save(temporary)
    return table


def _model(job: PuppetJob, pipe: Pipeline) -> dict[str, Method]:
    """The model as asked for, and in one step: what its further steps are worth."""
    pipe.system.recipe(job.recipe)  # says so before anything is made
    asked, guidance = job.sampling(pipe)
    taken = {name: value for name, value in asdict(job.shortcuts).items() if value != getattr(NONE, name)}
    taken |= {} if job.recipe == "default" else {"recipe": job.recipe}
    more = "".join(f", {name.replace('_', ' ')} {value}" for name, value in taken.items())
    return {
        f"{Path(job.model).stem}, {steps} step{'' if steps == 1 else 's'}, guidance {guidance:g}{more}": of_model(
            pipe, steps, guidance, job.seed, shortcuts=job.shortcuts, recipe=job.recipe
        )
        for steps in sorted({1, asked})
    }
