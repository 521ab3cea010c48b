"""Everything that is measured on a card, in one run: the release, this project and its fast modes.

    python -m benchmarks.card --official DIR                     # 576x1024, 120 frames, 30 steps, float16 on cuda
    python -m benchmarks.card --official DIR --try               # the same on tiny networks, on the CPU

For each: seconds and peak memory of the whole job, after a short one (one window, 1 step) to warm up; and of a
short one of 2 steps operations a second against what a large matrix product reaches, and the time of kernels by
class. Weights and pictures are random, as in benchmarks.versus_official, whose --official is DIR. What fails is
printed, and the rest goes on.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from anycharv_core.device import device_name
from anycharv_core.inference.shortcuts import FAST, fast_steps
from anycharv_core.jobs.precision import DTYPES
from anycharv_core.options import to_count, to_number, to_path, to_size

from .versus_official import WINDOW, Release, Result, apart, forget_peak, ours_with, peak, pictures_of

SHORT = 2  # steps
# Parts of kernels' names, the first that fits decides.
CLASSES = {
    "attention": ("attention", "flash", "fmha", "sdpa", "softmax"),
    "layout": ("nchwtonhwc", "nhwctonchw", "convert", "transpose", "permute"),
    "convolution": ("conv", "cudnn", "winograd", "implicit", "xmma_fprop"),
    "matrix product": ("gemm", "nvjet", "addmm", "bmm", "aten::mm", "matmul", "cutlass", "splitk", "linear"),
    "normalisation": ("norm", "rowwisemoments", "computefusedparams"),
    "copy": ("copy", "catarray", "aten::cat", "memcpy", "memset", "contiguous"),
    "pointwise": ("elementwise", "aten::add", "aten::mul", "silu", "gelu"),
}

T = TypeVar("T")
Run = Callable[[dict[str, Any], int], Result]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--official", type=to_path, required=True, metavar="DIR", help="a copy of the release")
    add("--size", type=to_size, default=(576, 1024), metavar="WxH")
    add("--frames", type=to_number, default=120)
    add("--steps", type=to_count, default=30)
    add("--dtype", choices=tuple(DTYPES), default="fp16")
    add("--compile", action="store_true", help="ours compiled, too, which takes a minute or more")
    add(
        "--try",
        dest="dry",
        action="store_true",
        help="tiny networks, 128x128, 4 frames, 4 steps, float32 on the CPU",
    )
    args = parser.parse_args()
    if args.dry:
        args.size, args.frames, args.steps, args.dtype = (128, 128), 4, 4, "fp32"
    device, networks = ("cpu", "tiny") if args.dry else ("cuda", "sd15")
    warnings.simplefilter("ignore", FutureWarning)  # diffusers', on how the release calls it
    release = Release(args.official, networks, device, DTYPES[args.dtype])
    fast = fast_steps(args.steps)
    width, height = args.size
    print(
        f"{device_name(device)}, torch {torch.__version__}, {args.dtype}, {width}x{height}, {args.frames} frames, "
        f"{args.steps} steps, {networks}"
    )
    best = matmul(device, DTYPES[args.dtype], 512 if args.dry else 8192)
    print(f"matrix product: {best / 1e12:.1f} TFLOP/s", flush=True)
    short, whole = (pictures_of(args.size, count) for count in (min(WINDOW, args.frames), args.frames))
    ours = partial(ours_with, release)
    # How each is made, when it is its turn: a network in another layout takes memory of its own.
    runs: dict[str, tuple[Callable[[], Run], int, dict[str, Any]]] = {
        "official": (lambda: release, args.steps, whole),
        "ours": (ours, args.steps, whole),
        f"ours, --fast, {fast} steps": (partial(ours, shortcuts=FAST, canvas="frame"), fast, whole),
        f"ours, channels last, {SHORT} steps": (partial(ours, layout=torch.channels_last), SHORT, short),
    }
    if args.compile:
        runs[f"ours, --compile, {SHORT} steps"] = partial(ours, compile=True), SHORT, short
    seconds: dict[str, float] = {}
    results: dict[str, Result] = {}
    for name, (make, steps, pictures) in runs.items():
        run = make()
        with said(name):
            print(f"{name}: {timed(device, partial(run, short, 1))[0]:.2f} s to warm up", flush=True)
            forget_peak(device)
            seconds[name], results[name] = timed(device, partial(run, pictures, steps))
            print(f"{name}: {seconds[name]:.2f} s, peak {peak(device):.2f} GB", flush=True)
            if pictures is whole and "official" in seconds:
                print(f"    x{seconds['official'] / seconds[name]:.2f} of the release", flush=True)
        with said(f"{name}, one window"):
            spent = timed(device, partial(run, short, SHORT))[0]
            with FlopCounterMode(display=False) as counter:
                run(short, SHORT)
            rate = counter.get_total_flops() / spent
            print(
                f"{name}: one window, {SHORT} steps: {spent:.2f} s, {counter.get_total_flops() / 1e12:.1f} TFLOP, "
                f"{rate / 1e12:.2f} TFLOP/s, {rate / best:.0%}",
                flush=True,
            )
        with said(f"{name}, kernels"):
            kernels = by_class(device, partial(run, short, SHORT))
            print("    " + ", ".join(f"{kind} {share:.0%}" for kind, share in kernels), flush=True)
        if name == "ours" and len(results) == 2:
            print(f"ours against official: {apart(results['official'], results['ours'])}", flush=True)


@contextmanager
def said(part: str) -> Iterator[None]:
    """What torch cannot do in one part is printed in place of its numbers."""
    try:
        yield
    except RuntimeError as error:
        print(f"{part} FAILED: {error}", flush=True)


def timed(device: str, work: Callable[[], T]) -> tuple[float, T]:
    """Seconds until all of it is done, on the card, too, and what comes out."""
    began = time.perf_counter()
    made = work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began, made


def matmul(device: str, dtype: torch.dtype, side: int) -> float:
    """Operations a second of the best of some products of square matrices."""
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return 2 * side**3 / min(timed(device, partial(torch.matmul, a, b))[0] for _ in range(10))


def by_class(device: str, work: Callable[[], Any]) -> list[tuple[str, float]]:
    """Shares of the time of all kernels, or on a CPU of all operators, the largest first."""
    on_card = device == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if on_card else ProfilerActivity.CPU]) as found:
        work()
    spent: Counter[str] = Counter()
    for event in found.key_averages():
        if on_card and event.device_type != DeviceType.CUDA:
            continue  # what the processor did to start them
        name = event.key.lower()
        kind = next((kind for kind, parts in CLASSES.items() if any(part in name for part in parts)), "other")
        spent[kind] += event.self_device_time_total if on_card else event.self_cpu_time_total
    return [(kind, time / max(1, spent.total())) for kind, time in spent.most_common()]


if __name__ == "__main__":
    main()
