"""What each command of the command line does with its arguments; each returns its exit code.

What a command needs is imported when it runs, so that the others start without it.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import UserError

if TYPE_CHECKING:
    from .jobs.replace import Making


def say(sentence: str, code: int) -> int:
    """One line on stderr; returns `code`."""
    print(f"anycharv: {' '.join(sentence.split())}", file=sys.stderr)
    return code


def run_demo(args: argparse.Namespace) -> int:
    from .jobs.demo import run

    with _progress_bar("clips", "clip") as progress:
        run(args.out, args.clips, args.model, progress)
    print("\n".join(str(path) for path in sorted(args.out.iterdir()) if path.is_file()))
    return 0


def run_generate(args: argparse.Namespace) -> int:
    from .jobs.replace import Job, generate

    own = ("run", "cfg", "reference", "reference_mask", "prepared", "video", "mask", "pose")
    given = {name: value for name, value in vars(args).items() if name not in own}
    video, cast = _cast(args)
    job = Job(video=video, cast=cast, **given, guidance_scale=args.cfg)
    with _progress_bar("denoising", "call") as progress:
        report = generate(job, progress)
    return _made(job, report)


def run_animate(args: argparse.Namespace) -> int:
    from .jobs.animate import AnimateJob, animate

    given = {name: value for name, value in vars(args).items() if name not in ("run", "cfg")}
    job = AnimateJob(**given, guidance_scale=args.cfg)
    with _progress_bar("denoising", "call") as progress:
        report = animate(job, progress)
    return _made(job, report)


def _made(job: Making, report: dict[str, Any]) -> int:
    """Says what became of the sound, where that is not as expected, and where everything is."""
    if report["audio"] not in ("copied", "none", "none in the source"):
        print(report["audio"])
    for path in filter(None, (job.out, job.report, job.sheet)):
        print(path)
    return 0


def _cast(args: argparse.Namespace) -> tuple[Path, tuple[Any, ...]]:
    """The clip, and a Part for every reference, from the files named or from a prepared folder."""
    from .jobs.inputs import Part

    video, mask, pose = args.video, args.mask, args.pose
    if args.prepared:
        from .jobs.preprocess import read_prepared

        prepared = read_prepared(args.prepared)
        video = video or prepared.clip
        people = prepared.people
    else:
        missing = [f"--{name}" for name in ("video", "mask", "pose") if getattr(args, name) is None]
        if missing:
            raise UserError(
                f"{' and '.join(missing)} missing: give --video, --mask and --pose, or --prepared with the folder "
                "that 'anycharv preprocess' wrote."
            )
        people = [(mask, pose)]
    if len(args.reference) != len(people):
        raise UserError(
            f"There are {len(people)} people to replace and {len(args.reference)} references; give --reference "
            "once for each, in their order."
        )
    outlines = args.reference_mask or [None] * len(people)
    if len(outlines) != len(people):
        raise UserError(f"Give --reference-mask once for each of the {len(people)} references, or not at all.")
    if (mask or pose) and len(people) > 1:
        raise UserError("--mask and --pose speak of one person; leave them out for several prepared people.")
    rows = zip(args.reference, people, outlines, strict=True)
    return video, tuple(Part(r, mask or of[0], pose or of[1], outline) for r, of, outline in rows)


def run_preprocess(args: argparse.Namespace) -> int:
    from .jobs.preprocess import Preparation, preprocess

    given = {name: value for name, value in vars(args).items() if name not in ("run", "retarget")}
    with ExitStack() as stack:
        bars: dict[str, Any] = {}

        def progress(phase: str, done: int, total: int) -> None:
            if phase not in bars:
                bars[phase] = stack.enter_context(_progress_bar(phase, "frame"))
            bars[phase](done, total)

        report = preprocess(Preparation(**given, retarget=tuple(args.retarget)), progress)
    others = len(report["people"]) - len(report["chosen"])
    if others and not (args.people or args.click or args.box or args.like):
        print(f"{len(report['people'])} people are in the clip; people.png shows them, --people chooses.")
    if report["likeness"] is not None:
        number = report["chosen"][0]["number"]
        print(f"Person {number} looks most like {args.like}: {report['likeness']:.2f} of 1.")
    for path in sorted(args.out.rglob("*")):
        if path.is_file():
            print(path)
    return 0


def run_bench(args: argparse.Namespace) -> int:
    from .bench.exchange import export
    from .bench.tasks import SWAP, Setup
    from .jobs.bench import PuppetJob, bench_puppets

    with _progress_bar("clips", "clip") as progress:
        if args.export is not None:
            setup = Setup(args.clips, args.frames, args.size or Setup.size, args.task or SWAP)
            export(args.export, setup, progress)
            print(args.export)
            return 0
        own = ("run", "suite", "export", "cfg")
        given = {name: value for name, value in vars(args).items() if name not in own}
        _, table = bench_puppets(PuppetJob(**given, guidance_scale=args.cfg), progress)
    print(table)
    for name in ("puppets.json", "puppets.md", "sheet.png"):
        print(args.out / name)
    return 0


def run_evaluate(args: argparse.Namespace) -> int:
    from .jobs.evaluate import EvaluateJob, evaluate

    given = {name: value for name, value in vars(args).items() if name != "run"}
    with _progress_bar("pairs", "pair") as progress:
        _, table = evaluate(EvaluateJob(**given), progress)
    print(table)
    for name in ("evaluate.json", "evaluate.md"):
        print(args.out / name)
    return 0


def run_doctor(args: argparse.Namespace) -> int:
    from .jobs.doctor import examine

    return examine(args.models)


def run_convert(args: argparse.Namespace) -> int:
    from .checkpoints.checkpoint import LIBRARY_PARTS
    from .checkpoints.folders import read_library_part
    from .checkpoints.networks import build_networks
    from .checkpoints.single_file import write_single
    from .files import owned_folder
    from .jobs.replace import DTYPES
    from .systems import read_checkpoint, write_folder

    target, single = args.target, args.target.suffix == ".safetensors"
    _check_target(target, single, args.force, args.source)
    model = read_checkpoint(args.source)
    for part in LIBRARY_PARTS:
        if folder := getattr(args, part):
            model.configs[part], model.weights[part] = read_library_part(part, folder)
    build_networks(model, "meta")  # raises where the weights don't fit their configs
    dtype = DTYPES[args.dtype] if args.dtype else None
    if single:
        write_single(model, target, dtype)
    else:
        with owned_folder(target, [args.source]) as temporary:
            try:
                write_folder(model, temporary, dtype)
            except UserError as error:
                raise UserError(str(error).replace(str(temporary), str(target))) from error
    for path in [target] if single else sorted(p for p in target.rglob("*") if p.is_file()):
        print(f"{path}  {path.stat().st_size / 1e6:.2f} MB")
    return 0


def run_download(args: argparse.Namespace) -> int:
    # Its own bars would run through ours, and its remarks on every lost connection too.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    from .checkpoints import download
    from .checkpoints.places import models_folder

    sources, to = download.choose(args.what), models_folder(args.to)
    if args.offline:
        print("\n".join(download.by_hand(sources, to)))
        return 0
    items = download.plan(sources, to)
    print("\n".join(download.listing(items)), flush=True)
    if args.dry_run:
        return 0
    from tqdm import tqdm

    try:
        with tqdm(unit="B", unit_scale=True, disable=not sys.stderr.isatty()) as bar:

            def progress(done: int, total: int) -> None:
                bar.total = total
                bar.update(done - bar.n)

            fetched = download.fetch(items, to, progress)
    except KeyboardInterrupt:
        return say("stopped; run the same command again to go on where it stopped.", 130)
    print("\n".join(str(path) for path in fetched) or "Nothing to do.")
    return 0


def _check_target(target: Path, single: bool, force: bool, source: str) -> None:
    """Raises UserError unless `target` may be written; a folder is only ever replaced by `force`, and only if
    it holds nothing but what this command wrote."""
    if target.suffix in (".bin", ".ckpt", ".pt", ".pth"):
        raise UserError(f"{target} would be a folder; let a single file end in .safetensors.")
    if single or not target.is_dir():
        if target.exists() and not force:
            raise UserError(f"{target} exists; choose another name, or add --force to replace it.")
        if target.exists() and target.is_file() != single:
            raise UserError(f"{target} is not a {'file' if single else 'folder'}; choose another name.")
        return
    from .files import check_owned

    if any(target.iterdir()) and not force:
        raise UserError(f"{target} exists; choose another name, or add --force to replace it.")
    check_owned(target, [source])


@contextmanager
def _progress_bar(what: str, unit: str) -> Iterator[Any]:
    """progress(done, total), drawn on stderr where that is a terminal."""
    from tqdm import tqdm

    with tqdm(desc=what, unit=unit, disable=not sys.stderr.isatty()) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield progress
