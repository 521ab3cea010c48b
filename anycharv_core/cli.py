"""The command line: `anycharv COMMAND`, each command with its options in `_parser`.

Exit codes: 0 done; 1 `doctor` found something missing; 2 something the user can put right, said in one
sentence on stderr; 130 stopped by Ctrl-C. torch is imported by the commands that need it, not by --help.
"""

from __future__ import annotations

import argparse
import math
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from . import commands
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
        return commands.say(str(error), 2)
    except KeyboardInterrupt:
        return commands.say("stopped; unfinished files were removed.", 130)
    except ImportError as error:
        if (error.name or "").startswith("anycharv_core"):
            raise
        return commands.say(f"{error}; 'anycharv doctor' tells what is missing.", 2)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return commands.say(f"{where}{error.strerror or error}; check the path and its permissions.", 2)


def _parser() -> argparse.ArgumentParser:
    from .checkpoints.download import NAMES

    parser = _Parser(prog="anycharv", description="Puts any character, given as one picture, into any video.")
    subcommands = parser.add_subparsers(metavar="command", required=True)

    for name, model, what in (
        ("demo", "embedded", "characters put into clips"),
        ("demo-animate", "embedded-animate", "pictures animated"),
    ):
        demo = subcommands.add_parser(name, help=f"make a video with the model '{model}', from nothing: {what}")
        add = demo.add_argument
        add("--out", type=Path, default=Path("out", name), metavar="DIR", help="default: %(default)s")
        add("--clips", type=_count, default=4, metavar="N", help="clips to make (%(default)s)")
        demo.set_defaults(run=commands.run_demo, model=model)

    make = subcommands.add_parser("generate", help="replace the masked person of a video by your character")
    add = make.add_argument
    add(
        "--reference",
        type=Path,
        action="append",
        required=True,
        metavar="PNG",
        help="the character, best cut out; once for every person to replace",
    )
    add(
        "--reference-mask",
        type=Path,
        action="append",
        metavar="PNG",
        help="white where the reference shows the character; once for every reference, or not at all",
    )
    add("--prepared", type=Path, metavar="DIR", help="what 'anycharv preprocess' wrote: video, mask and pose")
    add("--video", type=Path, metavar="VIDEO", help="the clip to put the character into")
    add("--mask", type=Path, metavar="MASK", help="video, PNG folder or JSON list of boxes")
    add("--pose", type=Path, metavar="POSE", help="POSE_KEYPOINT JSON or skeleton video")
    add("--model", default="embedded", metavar="MODEL", help="folder or .safetensors (default: %(default)s)")
    _add_making(make, cfg=3.0)
    make.set_defaults(run=commands.run_generate)

    move = subcommands.add_parser("animate", help="animate a picture, with a model of Animate Anyone")
    add = move.add_argument
    add("--reference", type=Path, required=True, metavar="PNG", help="the character, background and all")
    add("--pose", type=Path, required=True, metavar="POSE", help="POSE_KEYPOINT JSON or skeleton video")
    add(
        "--model",
        default="embedded-animate",
        metavar="MODEL",
        help="folder with denoising_unet.pth and more, or .safetensors (default: %(default)s)",
    )
    add("--scene", type=Path, metavar="FILE", help="video or picture to put the character in front of")
    add(
        "--reference-mask",
        type=Path,
        metavar="PNG",
        help="white where the reference shows the character; a scene needs it, or transparency, or --mask",
    )
    add("--mask", type=Path, metavar="MASK", help="where the character covers the scene, in place of keying")
    add("--frames", type=_number, metavar="N", help="make only the first N frames (default: all poses)")
    add("--fps", type=_rate, metavar="X", help="frames per second (default: the scene's or pose video's, else 24)")
    add("--rescale", action="store_true", help="give the skeleton the character's proportions, size and place")
    add("--reference-pose", type=Path, metavar="POSE", help="the character's POSE_KEYPOINT, and rescale to it")
    add("--pose-model", metavar="DIR", help="what finds it otherwise: DWPose's folder or 'embedded'")
    _add_making(move, cfg=3.5)
    move.set_defaults(run=commands.run_animate)

    ready = subcommands.add_parser("preprocess", help="pose, mask and box of the people you choose in a clip")
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
    add(
        "--retarget",
        type=Path,
        action="append",
        default=[],
        metavar="PNG",
        help="give the skeleton the proportions of this character; once for every person chosen",
    )
    add("--device", choices=("cpu", "cuda"), help="default: cuda where there is one, else cpu")
    ready.set_defaults(run=commands.run_preprocess)

    bench = subcommands.add_parser("bench", help="score a model, or any system's frames, where the truth is exact")
    add = bench.add_argument
    add("suite", choices=("puppets",), metavar="puppets", help="held-out swaps or animations of the puppet world")
    way = bench.add_mutually_exclusive_group()
    way.add_argument("--model", default="embedded", metavar="MODEL", help="folder or file (default: %(default)s)")
    way.add_argument("--export", type=Path, metavar="DIR", help="write the tasks for another system, and stop")
    way.add_argument("--score", type=Path, metavar="DIR", help="score the frames another system put beside them")
    add(
        "--task",
        choices=("swap", "animation"),
        help="kind of tasks to export (default: swap); a model and a folder to score have their own",
    )
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
    add(
        "--out",
        type=Path,
        default=Path("out/bench"),
        metavar="DIR",
        help="folder for puppets.json, puppets.md and sheet.png (default: %(default)s)",
    )
    bench.set_defaults(run=commands.run_bench)

    compare = subcommands.add_parser("evaluate", help="score generated clips against real ones")
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
    add(
        "--out",
        type=Path,
        default=Path("out/evaluate"),
        metavar="DIR",
        help="folder for evaluate.json and evaluate.md (default: %(default)s)",
    )
    compare.set_defaults(run=commands.run_evaluate)

    doctor = subcommands.add_parser("doctor", help="tell what is installed, which weights are found, what to do")
    doctor.add_argument(
        "--models",
        type=Path,
        action="append",
        metavar="DIR",
        help="folder with models (default: $ANYCHARV_MODELS and anycharv in ComfyUI's models)",
    )
    doctor.set_defaults(run=commands.run_doctor)

    convert = subcommands.add_parser("convert", help="turn a model folder into a single file, or back")
    add = convert.add_argument
    add("source", metavar="SRC", help="model folder, .safetensors file or 'embedded'")
    add("target", type=Path, metavar="DST", help="a name ending in .safetensors, or else a folder")
    add("--dtype", choices=("fp32", "fp16", "bf16"), help="default: every weight keeps its own")
    add("--vae", type=Path, metavar="DIR", help="VAE to put in, in place of the model's own")
    add("--image-encoder", type=Path, metavar="DIR", help="CLIP image encoder to put in")
    add("--force", action="store_true", help="replace DST if it exists")
    convert.set_defaults(run=commands.run_convert)

    get = subcommands.add_parser("download", help="fetch weights from the Hugging Face hub, or say how to")
    add = get.add_argument
    add("what", nargs="*", choices=NAMES, default="all", metavar="WHAT", help=f"any of {', '.join(NAMES)}")
    add("--to", type=Path, metavar="DIR", help="models folder (default: ComfyUI's, where one is found)")
    add("--dry-run", action="store_true", help="only list files, sizes, places and licences")
    add("--offline", action="store_true", help="without any network, say which file to put where")
    get.set_defaults(run=commands.run_download)
    return parser


def _add_making(parser: argparse.ArgumentParser, cfg: float) -> None:
    """The options of a `generate.Making`; cfg: the guidance scale of a model that names none."""
    add = parser.add_argument
    add("--vae", type=Path, metavar="DIR", help="VAE, in place of the model's own")
    add("--image-encoder", type=Path, metavar="DIR", help="CLIP image encoder, in place of the model's own")
    add("--size", type=_size, metavar="WxH", help="pixels the networks work at (default: the model's)")
    add("--steps", type=_count, metavar="N", help="denoising steps (default: the model's, else 30)")
    add("--cfg", type=_finite, metavar="X", help=f"guidance scale (default: the model's, else {cfg})")
    add("--seed", type=_seed, default=42, metavar="N", help="default: %(default)s")
    add("--recipe", default="default", metavar="NAME", help="'default' or 'official' (just as the release)")
    add("--device", choices=("cpu", "cuda", "mps"), help="default: cuda where there is one, else cpu")
    add("--dtype", choices=("fp32", "fp16", "bf16"), default="fp32", help="default: %(default)s")
    add("--sheet", type=Path, metavar="PNG", help="also draw a contact sheet")
    add("--out", type=Path, required=True, metavar="MP4", help="the finished video; a report goes beside it")


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
