"""The command line: `anycharv COMMAND`, its options and what it calls.

Exit codes: 0 done; 1 `doctor` found something missing; 2 something the user can put right, said in one
sentence on stderr; 130 stopped by Ctrl-C; 141 nobody reads the output any more. What a command needs, torch first
of all, is imported when it runs, so that the others and --help start without it.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NoReturn

from .errors import UserError
from .options import (
    add_device,
    add_lpips,
    add_render,
    add_sampling,
    adders,
    to_count,
    to_finite,
    to_number,
    to_numbers,
    to_path,
    to_rate,
)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see '{self.prog} --help'.")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code."""
    # Their remarks on versions and unused settings are nothing the user can act on.
    for name in ("TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY"):
        os.environ.setdefault(name, "error")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # Where the locale has no letter for what a file name or a licence holds.
            stream.reconfigure(errors="backslashreplace")
    try:
        args = _parser().parse_args(argv)
        code: int = args.run(args)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # What read the output, such as head, has enough; Python would say so once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except UserError as error:
        return _say(str(error), 2)
    except KeyboardInterrupt:
        return _say("stopped; unfinished files were removed.", 130)
    except ImportError as error:
        if (error.name or "").startswith("anycharv_core"):
            raise
        return _say(f"{error}; 'anycharv doctor' shows what is missing.", 2)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _say(f"{where}{error.strerror or error}; check the path and its permissions.", 2)


def _say(sentence: str, code: int) -> int:
    """One line on stderr; returns `code`."""
    print(f"anycharv: {' '.join(sentence.split())}", file=sys.stderr)
    return code


def _parser() -> argparse.ArgumentParser:
    from .checkpoints.download import NAMES

    parser = _Parser(prog="anycharv", description="Puts any character, given as one picture, into any video.")
    subcommands = parser.add_subparsers(metavar="command", required=True)

    for name, model, what in (
        ("demo", "embedded", "characters put into videos"),
        ("demo-animate", "embedded-animate", "pictures animated"),
        ("demo-animate2", "embedded-animate2", "characters who keep hold of what they touch"),
        ("demo-anywhere", "embedded-anywhere", "characters who walk through a picture, and the camera follows"),
    ):
        demo = subcommands.add_parser(name, help=f"make a video with the model '{model}'; needs no input: {what}")
        add, path = adders(demo)
        path("--out", "DIR", "default: %(default)s", default=Path("out", name))
        add("--clips", type=to_count, default=4, metavar="N", help="examples to make (default: %(default)s)")
        demo.set_defaults(run=_demo, model=model)

    make = subcommands.add_parser("generate", help="replace the masked person in a video with your character")
    add, path = adders(make)
    path(
        "--reference",
        "PNG",
        "picture of the character, best cut out; give it once for every person to replace",
        action="append",
        required=True,
    )
    path(
        "--reference-mask",
        "PNG",
        "white where the reference shows the character; once for every reference, or not at all",
        action="append",
    )
    path("--prepared", "DIR", "what 'anycharv preprocess' wrote: video, mask and pose")
    path("--video", "VIDEO", "the video to put the character into")
    path("--mask", "MASK", "video, PNG folder or JSON list of boxes")
    path("--pose", "POSE", "POSE_KEYPOINT JSON or skeleton video")
    path("--objects", "MASK", "what the person holds or touches, as --mask, for a model of Animate Anyone 2")
    path("--depth", "DEPTH", "grey video or PNG folder, brighter is nearer and black unknown, for such a model")
    add(
        "--model",
        metavar="MODEL",
        help="folder or .safetensors file (default: embedded, for puppets only)",
    )
    add(
        "--canvas",
        choices=("auto", "frame", "person"),
        default="auto",
        help="what the networks see: whole frames, or a window that follows the person (default: auto, which "
        "follows the person where that at least halves the background)",
    )
    add(
        "--context",
        type=to_finite,
        default=0.1,
        metavar="X",
        help="margin of that window around the person, relative to their size (default: %(default)s)",
    )
    add("--match-colour", action="store_true", help="shift the character's colours to those around the mask")
    add_render(make, cfg="3.0")
    make.set_defaults(run=_generate)

    move = subcommands.add_parser(
        "animate", help="animate the character of a picture, with a model of Animate Anyone or AnimateAnywhere"
    )
    add, path = adders(move)
    path(
        "--reference",
        "PNG",
        "picture of the character, with its background; cut out for AnimateAnywhere",
        required=True,
    )
    path("--pose", "POSE", "POSE_KEYPOINT JSON or skeleton video", required=True)
    add(
        "--model",
        metavar="MODEL",
        help="folder with denoising_unet.pth and the other files, or .safetensors file (default: "
        "embedded-animate, for puppets only)",
    )
    path(
        "--background",
        "PICTURE",
        "a place with nobody in it, through which AnimateAnywhere lets the character walk",
    )
    path("--base", "DIR", "CogVideoX1.5-5B-I2V, where a model of AnimateAnywhere does not hold it itself")
    path("--scene", "FILE", "video or picture to put the character in front of")
    path(
        "--reference-mask",
        "PNG",
        "white where the reference shows the character; a scene needs it, or transparency, or --mask",
    )
    path("--mask", "MASK", "where the character covers the scene, instead of keying by colour")
    add("--frames", type=to_number, metavar="N", help="make only the first N frames (default: all poses)")
    add(
        "--fps",
        type=to_rate,
        metavar="X",
        help="frames per second (default: the scene's or pose video's, else 24)",
    )
    add("--rescale", action="store_true", help="give the skeleton the character's proportions, size and place")
    path("--reference-pose", "POSE", "the character's POSE_KEYPOINT, to rescale to; implies --rescale")
    add(
        "--pose-model",
        metavar="DIR",
        help="without --reference-pose, what finds it, and people in --background: DWPose's folder or 'embedded'",
    )
    add_render(move, cfg="3.5, or 2.5 for AnimateAnywhere")
    move.set_defaults(run=_animate)

    ready = subcommands.add_parser("preprocess", help="pose, mask and box of the people you choose in a video")
    add, path = adders(ready)
    path("video", "VIDEO", "any video")
    path("--out", "DIR", "folder for pose.json, mask.mkv, box.mkv and more", required=True)
    add(
        "--people",
        metavar="N,N",
        help="whom to choose, by number in people.png (default: the most prominent person)",
    )
    add(
        "--click",
        type=to_numbers(3),
        metavar="F,X,Y",
        help="choose the person at this pixel of frame F, counted from 0",
    )
    add("--box", type=to_numbers(5), metavar="F,X0,Y0,X1,Y1", help="choose the person in this box of frame F")
    path("--like", "PNG", "choose the person who looks most like this picture")
    add("--pose-model", metavar="DIR", help="folder of DWPose's ONNX files, or 'embedded' (default: ComfyUI's)")
    path("--poses", "POSE", "POSE_KEYPOINT JSON made elsewhere, instead of running DWPose")
    add("--segmenter", metavar="DIR", help="SAM 2 video model: folder, hub id or 'embedded' (default: ComfyUI's)")
    path("--masks", "MASK", "masks made elsewhere, instead of running SAM 2")
    add(
        "--objects",
        type=to_numbers(3, 5),
        action="append",
        default=[],
        metavar="F,X,Y",
        help="also follow the thing at this pixel of frame F, or F,X0,Y0,X1,Y1 in this box, for Animate Anyone 2; "
        "give it once for each thing",
    )
    add(
        "--depth-model",
        metavar="MODEL",
        help="also estimate depth, with this model of transformers: folder or hub id, such as "
        "depth-anything/Depth-Anything-V2-Small-hf",
    )
    add("--smooth", action="store_true", help="steady the skeleton over time")
    path(
        "--retarget",
        "PNG",
        "give the skeleton the proportions of this character; give it once for every person chosen",
        action="append",
        default=[],
    )
    add_device(ready, "cpu", "cuda")
    ready.set_defaults(run=_preprocess)

    bench = subcommands.add_parser("bench", help="score a model, or any system's frames, where the truth is exact")
    add, path = adders(bench)
    add("suite", choices=("puppets",), metavar="puppets", help="held-out tasks of the puppet worlds")
    way = bench.add_mutually_exclusive_group()
    way.add_argument("--model", default="embedded", metavar="MODEL", help="folder or file (default: %(default)s)")
    way.add_argument(
        "--export", type=to_path, metavar="DIR", help="write the tasks for another system, and score nothing"
    )
    way.add_argument(
        "--score", type=to_path, metavar="DIR", help="score the frames that another system put into such a folder"
    )
    add(
        "--task",
        choices=("swap", "bold-swap", "animation", "bold-animation", "interaction", "travel"),
        help="kind of tasks (default: the model's; for --export, swap); with --score, the folder's own",
    )
    add("--clips", type=to_count, default=64, metavar="N", help="number of tasks (default: %(default)s)")
    add("--frames", type=to_count, default=8, metavar="N", help="frames of each task (default: %(default)s)")
    add("--size", type=to_count, metavar="N", help="width and height in pixels (default: the task's own)")
    add("--recipe", default="default", metavar="NAME", help="of the model's system (default: %(default)s)")
    path("--base", "DIR", "CogVideoX1.5-5B-I2V, where a model of AnimateAnywhere does not hold it itself")
    add_sampling(bench, cfg="3.0, 3.5 for Animate Anyone or 2.5 for AnimateAnywhere", dtype="fp32")
    add_lpips(bench)
    path(
        "--out",
        "DIR",
        "folder for puppets.json, puppets.md and sheet.png (default: %(default)s)",
        default=Path("out/bench"),
    )
    bench.set_defaults(run=_bench)

    compare = subcommands.add_parser("evaluate", help="score generated videos against real ones")
    add, path = adders(compare)
    path("real", "REAL_DIR", "videos, or folders of PNGs")
    path("generated", "GENERATED_DIR", "as many, with the same names, lengths and sizes")
    path("--masks", "DIR", "masks of what was replaced in each video, for background, seam and drift")
    path("--references", "DIR", "the reference picture of each video, for CLIP-I")
    path("--real-poses", "DIR", "POSE_KEYPOINT JSON of each real video, for the pose PCK")
    path("--generated-poses", "DIR", "the same for each generated video")
    add("--pose-model", metavar="DIR", help="DWPose's folder or 'embedded', to find the poses of both instead")
    add_lpips(compare)
    path("--clip-model", "DIR", "folder of transformers' CLIP, for CLIP-I")
    path("--fvd-model", "PATH", "I3D as TorchScript, or a folder of VideoMAE, for FVD")
    add_device(compare, "cpu", "cuda")
    path(
        "--out",
        "DIR",
        "folder for evaluate.json and evaluate.md (default: %(default)s)",
        default=Path("out/evaluate"),
    )
    compare.set_defaults(run=_evaluate)

    doctor = subcommands.add_parser(
        "doctor", help="show what is installed, which weights are found, and what to do"
    )
    doctor.add_argument(
        "--models",
        type=to_path,
        action="append",
        metavar="DIR",
        help="folder with models (default: $ANYCHARV_MODELS, and anycharv in ComfyUI's models folder)",
    )
    doctor.set_defaults(run=_doctor)

    convert = subcommands.add_parser("convert", help="turn a model folder into a single file, or back")
    add, path = adders(convert)
    add("source", metavar="SRC", help="model folder, .safetensors file or 'embedded'")
    path("target", "DST", "a file name ending in .safetensors, or a folder")
    add(
        "--dtype",
        choices=("fp32", "fp16", "bf16"),
        help="number format of the weights (default: each keeps its own)",
    )
    path("--vae", "DIR", "VAE to include instead of the model's own")
    path("--image-encoder", "DIR", "CLIP image encoder to include instead of the model's own")
    path("--base", "DIR", "CogVideoX1.5-5B-I2V, to include it in a model of AnimateAnywhere")
    add("--force", action="store_true", help="replace DST if it exists")
    convert.set_defaults(run=_convert)

    get = subcommands.add_parser(
        "download", help="fetch weights from the Hugging Face hub, or say how to get them"
    )
    add, path = adders(get)
    add("what", nargs="*", choices=NAMES, default="all", metavar="WHAT", help=f"any of {', '.join(NAMES)}")
    path("--to", "DIR", "models folder (default: ComfyUI's, where one is found)")
    add("--dry-run", action="store_true", help="fetch nothing, list files, sizes, places and licences")
    add("--offline", action="store_true", help="use no network, list which file to put where")
    get.set_defaults(run=_download)
    return parser


def _model(named: str | None, default: str) -> str:
    """The model named or, with a word on what it can do, the embedded one."""
    if named is not None:
        return named
    print(f"No --model is given, so '{default}' is used, which knows puppets only.", file=sys.stderr)
    return default


def _fields(args: argparse.Namespace, *others: str) -> dict[str, Any]:
    """The options that a job is made of: all but `others`."""
    return {name: value for name, value in vars(args).items() if name not in ("run", *others)}


def _list(paths: Iterable[Path]) -> int:
    """Prints where everything is."""
    for path in paths:
        print(path)
    return 0


def _demo(args: argparse.Namespace) -> int:
    from .jobs.demo import run

    with _progress_bar("examples", "example") as progress:
        run(args.out, args.clips, args.model, progress)
    return _list(path for path in sorted(args.out.iterdir()) if path.is_file())


def _generate(args: argparse.Namespace) -> int:
    from .jobs.replace import ReplaceJob, generate, people_of

    args.model = _model(args.model, "embedded")
    own = ("reference", "reference_mask", "video", "mask", "pose", "prepared", "objects", "depth")
    video, people, cuts = people_of(*(getattr(args, name) for name in own))
    job = ReplaceJob(video=video, people=people, cuts=cuts, **_fields(args, *own))
    return _make(job, generate)


def _animate(args: argparse.Namespace) -> int:
    from .jobs.animate import AnimateJob, animate

    args.model = _model(args.model, "embedded-animate")
    job = AnimateJob(**_fields(args))
    return _make(job, animate)


def _make(job: Any, make: Callable[[Any, Any], dict[str, Any]]) -> int:
    """Runs a `RenderJob`, and says what became of the sound, where that is not as expected, and where all is."""
    from .jobs.work import work_folder

    try:
        with _progress_bar("denoising", "call") as progress:
            report = make(job, progress)
    except KeyboardInterrupt:
        if not work_folder(job.out).exists():
            raise
        return _say("stopped; run the same command again to go on.", 130)
    if report["audio"] not in ("copied", "none", "none in the source"):
        print(report["audio"])
    return _list(filter(None, (job.out, job.report, job.sheet)))


def _preprocess(args: argparse.Namespace) -> int:
    from .jobs.preprocess import PreprocessJob, preprocess

    with ExitStack() as stack:
        bars: dict[str, Any] = {}

        def progress(phase: str, done: int, total: int) -> None:
            if phase not in bars:
                bars[phase] = stack.enter_context(_progress_bar(phase, "frame"))
            bars[phase](done, total)

        fields = _fields(args) | {"retarget": tuple(args.retarget), "objects": tuple(args.objects)}
        report = preprocess(PreprocessJob(**fields), progress)
    others = len(report["people"]) - len(report["chosen"])
    if others and not (args.people or args.click or args.box or args.like):
        print(f"{len(report['people'])} people are in the video; people.png shows them, --people chooses.")
    if report["likeness"] is not None:
        number = report["chosen"][0]["number"]
        print(f"Person {number} looks most like {args.like}: {report['likeness']:.2f} of 1.")
    return _list(path for path in sorted(args.out.rglob("*")) if path.is_file())


def _bench(args: argparse.Namespace) -> int:
    from .bench.exchange import export
    from .bench.tasks import SWAP, Setup
    from .jobs.bench import PuppetJob, bench_puppets

    with _progress_bar("tasks", "task") as progress:
        if args.export is not None:
            setup = Setup.of(args.task or SWAP, args.clips, args.frames, args.size)
            export(args.export, setup, progress)
            return _list([args.export])
        _, table = bench_puppets(PuppetJob(**_fields(args, "suite", "export")), progress)
    print(table)
    return _list(args.out / name for name in ("puppets.json", "puppets.md", "sheet.png"))


def _evaluate(args: argparse.Namespace) -> int:
    from .jobs.evaluate import EvaluateJob, evaluate

    with _progress_bar("pairs", "pair") as progress:
        _, table = evaluate(EvaluateJob(**_fields(args)), progress)
    print(table)
    return _list(args.out / name for name in ("evaluate.json", "evaluate.md"))


def _doctor(args: argparse.Namespace) -> int:
    from .jobs.doctor import examine

    return examine(args.models)


def _convert(args: argparse.Namespace) -> int:
    from .jobs.convert import ConvertJob, convert

    for path in convert(ConvertJob(**_fields(args))):
        print(f"{path}  {path.stat().st_size / 1e6:.2f} MB")
    return 0


def _download(args: argparse.Namespace) -> int:
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
    try:
        with _progress_bar(None, "B", unit_scale=True) as progress:
            fetched = download.fetch(items, to, progress)
    except KeyboardInterrupt:
        return _say("stopped; run the same command again to go on where it stopped.", 130)
    print("\n".join(str(path) for path in fetched) or "Nothing to do.")
    return 0


@contextmanager
def _progress_bar(what: str | None, unit: str, unit_scale: bool = False) -> Iterator[Any]:
    """progress(done, total), drawn on stderr where that is a terminal."""
    from tqdm import tqdm

    with tqdm(desc=what, unit=unit, unit_scale=unit_scale, disable=not sys.stderr.isatty()) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield progress
