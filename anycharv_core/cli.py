"""The command line: `anycharv COMMAND`, each command with its options in `_parser`.

Exit codes: 0 done; 1 `doctor` found something missing; 2 something the user can put right, said in one
sentence on stderr; 130 stopped by Ctrl-C. torch is imported by the commands that need it, not by --help.
"""

from __future__ import annotations

import argparse
import math
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NoReturn

from .errors import UserError


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see '{self.prog} --help'.")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code."""
    # Their remarks on versions and unused settings are nothing the user can act on.
    for name in ("TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY"):
        os.environ.setdefault(name, "error")
    try:
        args = _parser().parse_args(argv)
        return args.run(args)
    except UserError as error:
        return _say(str(error), 2)
    except KeyboardInterrupt:
        return _say("stopped; unfinished files were removed.", 130)
    except ImportError as error:
        if (error.name or "").startswith("anycharv_core"):
            raise
        return _say(f"{error}; 'anycharv doctor' tells what is missing.", 2)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _say(f"{where}{error.strerror or error}; check the path and its permissions.", 2)


def _say(sentence: str, code: int) -> int:
    print(f"anycharv: {' '.join(sentence.split())}", file=sys.stderr)
    return code


def _parser() -> argparse.ArgumentParser:
    from .download import NAMES

    parser = _Parser(prog="anycharv", description="Puts any character, given as one picture, into any video.")
    commands = parser.add_subparsers(metavar="command", required=True)

    demo = commands.add_parser("demo", help="make a video with the embedded model, from nothing")
    add = demo.add_argument
    add("--out", type=Path, default=Path("out/demo"), metavar="DIR", help="default: %(default)s")
    add("--clips", type=_count, default=4, metavar="N", help="clips to make (%(default)s)")
    demo.set_defaults(run=_demo)

    make = commands.add_parser("generate", help="replace the masked person of a video by your character")
    add = make.add_argument
    add("--reference", type=Path, action="append", required=True, metavar="PNG",
        help="the character, best cut out; once for every person to replace")
    add("--reference-mask", type=Path, action="append", metavar="PNG",
        help="white where the reference shows the character; once for every reference, or not at all")
    add("--prepared", type=Path, metavar="DIR", help="what 'anycharv preprocess' wrote: video, mask and pose")
    add("--video", type=Path, metavar="VIDEO", help="the clip to put the character into")
    add("--mask", type=Path, metavar="MASK", help="video, PNG folder or JSON list of boxes")
    add("--pose", type=Path, metavar="POSE", help="POSE_KEYPOINT JSON or skeleton video")
    add("--model", default="embedded", metavar="MODEL", help="folder or .safetensors (default: %(default)s)")
    add("--vae", type=Path, metavar="DIR", help="VAE, in place of the model's own")
    add("--image-encoder", type=Path, metavar="DIR", help="CLIP image encoder, in place of the model's own")
    add("--size", type=_size, metavar="WxH", help="pixels the networks work at (default: the model's)")
    add("--steps", type=_count, metavar="N", help="denoising steps (default: the model's, else 30)")
    add("--cfg", type=_finite, metavar="X", help="guidance scale (default: the model's, else 3.0)")
    add("--seed", type=_seed, default=42, metavar="N", help="default: %(default)s")
    add("--recipe", default="default", metavar="NAME", help="'default' or 'official' (just as the release)")
    add("--device", choices=("cpu", "cuda", "mps"), help="default: cuda where there is one, else cpu")
    add("--dtype", choices=("fp32", "fp16", "bf16"), default="fp32", help="default: %(default)s")
    add("--sheet", type=Path, metavar="PNG", help="also draw a contact sheet")
    add("--out", type=Path, required=True, metavar="MP4", help="the finished video; a report goes beside it")
    make.set_defaults(run=_generate)

    move = commands.add_parser("animate", help="animate a picture of a character, with a model of Animate Anyone")
    add = move.add_argument
    add("--reference", type=Path, required=True, metavar="PNG", help="the character, background and all")
    add("--pose", type=Path, required=True, metavar="POSE", help="POSE_KEYPOINT JSON or skeleton video")
    add("--model", required=True, metavar="MODEL", help="folder with denoising_unet.pth and more, or .safetensors")
    add("--scene", type=Path, metavar="FILE", help="video or picture to put the character in front of")
    add("--reference-mask", type=Path, metavar="PNG",
        help="white where the reference shows the character; a scene needs it, or transparency, or --mask")
    add("--mask", type=Path, metavar="MASK", help="where the character covers the scene, in place of keying")
    add("--frames", type=_number, metavar="N", help="make only the first N frames (default: all poses)")
    add("--fps", type=_rate, metavar="X", help="frames per second (default: the scene's or pose video's, else 24)")
    add("--rescale", action="store_true", help="give the skeleton the character's proportions, size and place")
    add("--reference-pose", type=Path, metavar="POSE", help="the character's POSE_KEYPOINT, and rescale to it")
    add("--pose-model", metavar="DIR", help="what finds it otherwise: DWPose's folder or 'embedded'")
    add("--vae", type=Path, metavar="DIR", help="VAE, in place of the model's own")
    add("--image-encoder", type=Path, metavar="DIR", help="CLIP image encoder, in place of the model's own")
    add("--size", type=_size, metavar="WxH", help="pixels the networks work at (default: the model's)")
    add("--steps", type=_count, metavar="N", help="denoising steps (default: the model's, else 30)")
    add("--cfg", type=_finite, metavar="X", help="guidance scale (default: the model's, else 3.0)")
    add("--seed", type=_seed, default=42, metavar="N", help="default: %(default)s")
    add("--recipe", default="default", metavar="NAME", help="'default' or 'official' (just as the release)")
    add("--device", choices=("cpu", "cuda", "mps"), help="default: cuda where there is one, else cpu")
    add("--dtype", choices=("fp32", "fp16", "bf16"), default="fp32", help="default: %(default)s")
    add("--sheet", type=Path, metavar="PNG", help="also draw a contact sheet")
    add("--out", type=Path, required=True, metavar="MP4", help="the finished video; a report goes beside it")
    move.set_defaults(run=_animate)

    ready = commands.add_parser("preprocess", help="pose, mask and box of the people you choose in a clip")
    add = ready.add_argument
    add("clip", type=Path, metavar="CLIP", help="any video")
    add("--out", type=Path, required=True, metavar="DIR", help="folder for pose.json, mask.mkv, box.mkv and more")
    add("--people", metavar="N,N", help="their numbers in people.png (default: the most prominent person)")
    add("--click", type=_numbers(3), metavar="F,X,Y", help="the person at this pixel of frame F, counted from 0")
    add("--box", type=_numbers(5), metavar="F,X0,Y0,X1,Y1", help="the person in this box of frame F")
    add("--like", type=Path, metavar="PNG", help="the person who looks most like this picture")
    add("--pose-model", metavar="DIR", help="DWPose's ONNX folder, or 'embedded' (default: ComfyUI's)")
    add("--poses", type=Path, metavar="POSE", help="POSE_KEYPOINT JSON made elsewhere, in place of DWPose")
    add("--segmenter", metavar="DIR", help="SAM2 video model: folder, hub id or 'embedded' (default: ComfyUI's)")
    add("--masks", type=Path, metavar="MASK", help="masks made elsewhere, in place of SAM2")
    add("--smooth", action="store_true", help="steady the skeleton over time")
    add("--retarget", type=Path, action="append", default=[], metavar="PNG",
        help="give the skeleton the proportions of this character; once for every person chosen")
    add("--device", choices=("cpu", "cuda"), help="default: cuda where there is one, else cpu")
    ready.set_defaults(run=_preprocess)

    bench = commands.add_parser("bench", help="score a model, or any system's frames, where the truth is exact")
    add = bench.add_argument
    add("suite", choices=("puppets",), metavar="puppets", help="held-out swaps of the puppet world")
    way = bench.add_mutually_exclusive_group()
    way.add_argument("--model", default="embedded", metavar="MODEL", help="folder or file (default: %(default)s)")
    way.add_argument("--export", type=Path, metavar="DIR", help="write the tasks for another system, and stop")
    way.add_argument("--score", type=Path, metavar="DIR", help="score the frames another system put beside them")
    add("--clips", type=_count, default=64, metavar="N", help="tasks (%(default)s)")
    add("--frames", type=_count, default=8, metavar="N", help="frames of each (%(default)s)")
    add("--size", type=_count, metavar="N", help="pixels a side (64)")
    add("--steps", type=_count, metavar="N", help="denoising steps (default: the model's, else 30)")
    add("--cfg", type=_finite, metavar="X", help="guidance scale (default: the model's, else 3.0)")
    add("--seed", type=_seed, default=42, metavar="N", help="default: %(default)s")
    add("--vae", type=Path, metavar="DIR", help="VAE, in place of the model's own")
    add("--image-encoder", type=Path, metavar="DIR", help="CLIP image encoder, in place of the model's own")
    add("--lpips-weights", type=Path, metavar="FILE", help="torchvision's alexnet-owt-7be5be79.pth, for LPIPS")
    add("--device", choices=("cpu", "cuda", "mps"), help="default: cuda where there is one, else cpu")
    add("--dtype", choices=("fp32", "fp16", "bf16"), default="fp32", help="default: %(default)s")
    add("--out", type=Path, default=Path("out/bench"), metavar="DIR",
        help="folder for puppets.json, puppets.md and sheet.png (default: %(default)s)")
    bench.set_defaults(run=_bench)

    compare = commands.add_parser("evaluate", help="score generated clips against the real ones of the same names")
    add = compare.add_argument
    add("real", type=Path, metavar="REAL_DIR", help="videos, or folders of PNGs")
    add("generated", type=Path, metavar="GENERATED_DIR", help="as many, of the same names, lengths and sizes")
    add("--masks", type=Path, metavar="DIR", help="what was replaced in each clip, for the background's PSNR")
    add("--references", type=Path, metavar="DIR", help="each clip's reference picture, for CLIP-I")
    add("--real-poses", type=Path, metavar="DIR", help="POSE_KEYPOINT JSON of each real clip, for the pose PCK")
    add("--generated-poses", type=Path, metavar="DIR", help="the same of each generated clip")
    add("--pose-model", metavar="DIR", help="DWPose's folder or 'embedded', run on both in place of poses")
    add("--lpips-weights", type=Path, metavar="FILE", help="torchvision's alexnet-owt-7be5be79.pth, for LPIPS")
    add("--clip-model", type=Path, metavar="DIR", help="transformers' CLIP, for CLIP-I")
    add("--fvd-model", type=Path, metavar="PATH", help="I3D as TorchScript or a folder of VideoMAE, for FVD")
    add("--device", choices=("cpu", "cuda"), help="default: cuda where there is one, else cpu")
    add("--out", type=Path, default=Path("out/evaluate"), metavar="DIR",
        help="folder for evaluate.json and evaluate.md (default: %(default)s)")
    compare.set_defaults(run=_evaluate)

    doctor = commands.add_parser("doctor", help="tell what is installed, which weights are found, what to do")
    doctor.add_argument(
        "--models",
        type=Path,
        action="append",
        metavar="DIR",
        help="folder with models (default: $ANYCHARV_MODELS and ~/comfy/ComfyUI/models/anycharv)",
    )
    doctor.set_defaults(run=_doctor)

    convert = commands.add_parser("convert", help="turn a model folder into a single file, or back")
    add = convert.add_argument
    add("source", metavar="SRC", help="model folder, .safetensors file or 'embedded'")
    add("target", type=Path, metavar="DST", help="a name ending in .safetensors, or else a folder")
    add("--dtype", choices=("fp32", "fp16", "bf16"), help="default: every weight keeps its own")
    add("--vae", type=Path, metavar="DIR", help="VAE to put in, in place of the model's own")
    add("--image-encoder", type=Path, metavar="DIR", help="CLIP image encoder to put in")
    add("--force", action="store_true", help="replace DST if it exists")
    convert.set_defaults(run=_convert)

    get = commands.add_parser("download", help="fetch weights from the Hugging Face hub, or say how to")
    add = get.add_argument
    add("what", nargs="*", choices=NAMES, default="all", metavar="WHAT", help=f"any of {', '.join(NAMES)}")
    add("--to", type=Path, metavar="DIR", help="models folder (default: ComfyUI's, where one is found)")
    add("--dry-run", action="store_true", help="only list files, sizes, places and licences")
    add("--offline", action="store_true", help="without any network, say which file to put where")
    get.set_defaults(run=_download)
    return parser


def _demo(args: argparse.Namespace) -> int:
    from .demo import run

    with _progress_bar("denoising", "call") as progress:
        run(args.out, args.clips, progress)
    print("\n".join(str(path) for path in sorted(args.out.iterdir()) if path.is_file()))
    return 0


def _generate(args: argparse.Namespace) -> int:
    from .generate import Job, generate

    own = ("run", "cfg", "reference", "reference_mask", "prepared", "video", "mask", "pose")
    given = {name: value for name, value in vars(args).items() if name not in own}
    video, cast = _cast(args)
    job = Job(video=video, cast=cast, **given, guidance_scale=args.cfg)
    with _progress_bar("denoising", "call") as progress:
        report = generate(job, progress)
    if report["audio"] not in ("copied", "none in the source"):
        print(report["audio"])
    for path in filter(None, (job.out, job.report, job.sheet)):
        print(path)
    return 0


def _animate(args: argparse.Namespace) -> int:
    from .animate import AnimateJob, animate

    given = {name: value for name, value in vars(args).items() if name not in ("run", "cfg")}
    job = AnimateJob(**given, guidance_scale=args.cfg)
    with _progress_bar("denoising", "call") as progress:
        report = animate(job, progress)
    if report["audio"] not in ("copied", "none"):
        print(report["audio"])
    for path in filter(None, (job.out, job.report, job.sheet)):
        print(path)
    return 0


def _cast(args: argparse.Namespace) -> tuple[Path, tuple[Any, ...]]:
    """The clip, and a Part for every reference, from the files named or from a prepared folder."""
    from .inputs import Part

    video, mask, pose = args.video, args.mask, args.pose
    if args.prepared:
        from .preprocess.job import read_prepared

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


def _preprocess(args: argparse.Namespace) -> int:
    from .preprocess.job import Preparation, preprocess

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


def _bench(args: argparse.Namespace) -> int:
    from .bench.exchange import export
    from .bench.job import PuppetJob, bench_puppets
    from .bench.puppets import Setup

    with _progress_bar("clips", "clip") as progress:
        if args.export is not None:
            export(args.export, Setup(args.clips, args.frames, args.size or Setup.size), progress)
            print(args.export)
            return 0
        own = ("run", "suite", "export", "cfg")
        given = {name: value for name, value in vars(args).items() if name not in own}
        _, table = bench_puppets(PuppetJob(**given, guidance_scale=args.cfg), progress)
    print(table)
    for name in ("puppets.json", "puppets.md", "sheet.png"):
        print(args.out / name)
    return 0


def _evaluate(args: argparse.Namespace) -> int:
    from .bench.evaluate import EvaluateJob, evaluate

    given = {name: value for name, value in vars(args).items() if name != "run"}
    with _progress_bar("pairs", "pair") as progress:
        _, table = evaluate(EvaluateJob(**given), progress)
    print(table)
    for name in ("evaluate.json", "evaluate.md"):
        print(args.out / name)
    return 0


def _doctor(args: argparse.Namespace) -> int:
    from .doctor import examine

    return examine(args.models)


def _convert(args: argparse.Namespace) -> int:
    from . import checkpoint as weights
    from .files import atomic_folder
    from .generate import DTYPES

    target, single = args.target, args.target.suffix == ".safetensors"
    _check_target(target, single, args.force)
    model = weights.read_checkpoint(args.source)
    for part in weights.LIBRARY_PARTS:
        if folder := getattr(args, part):
            model.configs[part], model.weights[part] = weights.read_library_part(part, folder)
    weights.build_networks(model, "meta")  # raises where the weights don't fit their configs
    dtype = DTYPES[args.dtype] if args.dtype else None
    if single:
        weights.write_single(model, target, dtype)
    else:
        with atomic_folder(target) as temporary:
            try:
                weights.write_folder(model, temporary, dtype)
            except UserError as error:
                raise UserError(str(error).replace(str(temporary), str(target))) from error
    for path in [target] if single else sorted(p for p in target.rglob("*") if p.is_file()):
        print(f"{path}  {path.stat().st_size / 1e6:.2f} MB")
    return 0


def _download(args: argparse.Namespace) -> int:
    # Its own bars would run through ours, and its remarks on every lost connection too.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    from . import download
    from .places import models_folder

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
        return _say("stopped; run the same command again to go on where it stopped.", 130)
    print("\n".join(str(path) for path in fetched) or "Nothing to do.")
    return 0


def _check_target(target: Path, single: bool, force: bool) -> None:
    """Raises UserError unless `target` may be written; a folder is only ever replaced by `force` if it
    holds nothing but a model."""
    if target.suffix in (".bin", ".ckpt", ".pt", ".pth"):
        raise UserError(f"{target} would be a folder; let a single file end in .safetensors.")
    if single or not target.is_dir():
        if target.exists() and not force:
            raise UserError(f"{target} exists; choose another name, or add --force to replace it.")
        if target.exists() and target.is_file() != single:
            raise UserError(f"{target} is not a {'file' if single else 'folder'}; choose another name.")
        return
    from .checkpoint import WRITTEN

    names = {path.name for path in target.iterdir()}
    others = sorted(names.difference(WRITTEN))
    if others:
        raise UserError(f"{target} also holds {others[0]}, which is no part of a model; choose a new folder.")
    if names and not force:
        raise UserError(f"{target} exists; choose another name, or add --force to replace it.")


@contextmanager
def _progress_bar(what: str, unit: str) -> Iterator[Any]:
    """progress(done, total), drawn on stderr where that is a terminal."""
    from tqdm import tqdm

    with tqdm(desc=what, unit=unit, disable=not sys.stderr.isatty()) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield progress


def _size(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d{1,5})[xX](\d{1,5})", text)
    size = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 0 < min(size) <= max(size) <= 16384:
        raise argparse.ArgumentTypeError(f"'{text}' is not a size; write it like 512x768")
    return size


def _numbers(count: int) -> Callable[[str], tuple[float, ...]]:
    """Reads `count` numbers with commas between them, the first of them the index of a frame."""

    def read(text: str) -> tuple[float, ...]:
        try:
            frame, *rest = text.split(",")
            numbers = (int(frame), *map(float, rest))
        except ValueError:
            numbers = ()
        if len(numbers) != count or not all(0 <= number < math.inf for number in numbers):
            raise argparse.ArgumentTypeError(f"'{text}' is not {count} numbers from 0 on with commas between them")
        return numbers

    return read


def _count(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and 1 <= int(text) <= 1000):
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number from 1 to 1000")
    return int(text)


def _number(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and 1 <= int(text) <= 10**6):
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number from 1 to a million")
    return int(text)


def _rate(text: str) -> float:
    value = _finite(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number from 1 to 1000")
    return value


def _seed(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and int(text) < 2**63):
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number from 0 to 2^63 - 1")
    return int(text)


def _finite(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < 1000:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number from 0 to 1000")
    return value
