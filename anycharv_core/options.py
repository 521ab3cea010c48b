"""What the command line's options are made of.

Each function `to_...` reads a value, or says what is wrong with it; each `add_...` gives a parser the options that
several commands share.
"""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any


def to_path(text: str) -> Path:
    if not text:
        raise argparse.ArgumentTypeError("the path is empty; name a file or a folder")
    return Path(text)


def to_size(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d{1,5})[xX](\d{1,5})", text)
    size = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 0 < min(size) <= max(size) <= 16384:
        raise argparse.ArgumentTypeError(f"'{text}' is not a size; write it like 512x768")
    return size


def to_numbers(*counts: int) -> Callable[[str], tuple[float, ...]]:
    """Reads one of so many numbers with commas between them, the first of them the index of a frame."""

    wanted = " or ".join(map(str, counts))

    def read(text: str) -> tuple[float, ...]:
        try:
            frame, *rest = text.split(",")
            numbers = (int(frame), *map(float, rest))
        except ValueError:
            numbers = ()
        if len(numbers) not in counts or not all(0 <= number < math.inf for number in numbers):
            raise argparse.ArgumentTypeError(
                f"'{text}' is not {wanted} numbers from 0 on with commas between them"
            )
        return numbers

    return read


def to_whole(low: int, high: int, span: str) -> Callable[[str], int]:
    """Reads a whole number; span: how people are told which."""

    def read(text: str) -> int:
        if not (text.isascii() and text.isdecimal() and low <= int(text) <= high):
            raise argparse.ArgumentTypeError(f"'{text}' is not a whole number {span}")
        return int(text)

    return read


to_count = to_whole(1, 1000, "from 1 to 1000")
to_crf = to_whole(0, 51, "from 0 to 51")
to_number = to_whole(1, 10**6, "from 1 to a million")
to_seed = to_whole(0, 2**63 - 1, "from 0 to 2^63 - 1")


def to_rate(text: str) -> float:
    value = to_finite(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number from 1 to 1000")
    return value


def to_finite(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < 1000:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number from 0 to 1000")
    return value


def to_interval(text: str) -> tuple[float, float]:
    """Two noise levels, of which `Shortcuts` says what is wrong with them."""
    try:
        low, high = map(float, text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is not two numbers with a comma between them") from None
    return low, high


def adders(parser: argparse.ArgumentParser) -> tuple[Callable[..., Any], Callable[..., None]]:
    """What adds an argument to the parser, and what adds one that is a path."""

    def path(name: str, metavar: str, help: str, **settings: Any) -> None:
        parser.add_argument(name, type=to_path, metavar=metavar, help=help, **settings)

    return parser.add_argument, path


def add_lpips(parser: argparse.ArgumentParser) -> None:
    _, path = adders(parser)
    path("--lpips-weights", "FILE", "torchvision's alexnet-owt-7be5be79.pth, for LPIPS")


def add_render(parser: argparse.ArgumentParser, cfg: str) -> None:
    """The options of a `RenderJob`; cfg: the guidance scale of a model that names none."""
    add_sampling(parser, cfg, dtype="auto")
    add, path = adders(parser)
    add("--size", type=to_size, metavar="WxH", help="pixels the networks work at (default: the model's)")
    add(
        "--recipe",
        default="default",
        metavar="NAME",
        help="'default', or 'official', which works exactly as the release",
    )
    path("--sheet", "PNG", "also draw a contact sheet")
    add("--fresh", action="store_true", help="start over where a stopped run of the same command left off")
    path("--out", "PATH", "the finished video, or folder of PNGs; a report goes beside it", required=True)
    add(
        "--format",
        choices=("h264", "ffv1", "png"),
        default="h264",
        help="H.264 in .mp4; lossless: FFV1 in .mkv, or a folder of PNGs (default: %(default)s)",
    )
    add("--crf", type=to_crf, metavar="N", help="quality of H.264, 0 (best) to 51 (default: 17)")


def add_sampling(parser: argparse.ArgumentParser, cfg: str, dtype: str) -> None:
    """What a model is run with; cfg: as for `add_render`; dtype: the default."""
    add, path = adders(parser)
    path("--vae", "DIR", "VAE to use instead of the model's own")
    path("--image-encoder", "DIR", "CLIP image encoder to use instead of the model's own")
    add(
        "--steps",
        type=to_count,
        metavar="N",
        help="denoising steps (default: the model's, else 30, or 50 for AnimateAnywhere)",
    )
    add(
        "--cfg",
        dest="guidance_scale",
        type=to_finite,
        metavar="X",
        help=f"guidance scale (default: the model's, else {cfg})",
    )
    add("--seed", type=to_seed, default=42, metavar="N", help="default: %(default)s")
    add_shortcuts(parser)
    add_device(parser, "cpu", "cuda", "mps")
    add(
        "--dtype",
        choices=("auto", "fp32", "fp16", "bf16"),
        default=dtype,
        help="default: %(default)s; auto: bf16 if the device has it and the model tolerates it, else fp32",
    )
    add(
        "--compile",
        action="store_true",
        help="compile the UNet first: takes minutes, pays on long videos",
    )


def add_shortcuts(parser: argparse.ArgumentParser) -> None:
    """Ways to be faster, see docs/performance.md."""
    add, _ = adders(parser)
    add(
        "--fast",
        action="store_true",
        help="fewer steps unless --steps is given, and the three below at their best: see docs/performance.md",
    )
    add(
        "--guidance-interval",
        type=to_interval,
        metavar="LO,HI",
        help="guidance only at these noise levels, from 0 (clean) to 1 (noise alone) (default: 0,1)",
    )
    add(
        "--deep-cache",
        type=to_count,
        metavar="N",
        help="compute the deep blocks of the UNet at every N-th step only (default: 1)",
    )
    add("--solver", choices=("ddim", "dpm++2m"), help="default: ddim; dpm++2m needs fewer steps")


def add_device(parser: argparse.ArgumentParser, *names: str) -> None:
    parser.add_argument("--device", choices=names, help="default: cuda if there is one, else cpu")
