"""Whether this project's networks give the same on another device, or in half precision, as they should.

    python -m benchmarks.parity --device cuda --official DIR      # the release on the same random weights there
    python -m benchmarks.parity --device cuda --recorded DIR      # recordings of the release on a CPU, in float32
    python -m benchmarks.parity --device cuda                     # the embedded model, against the CPU in float32

For each case the largest difference of the latents before decoding, as a share of their largest value, and of
the pictures. DIR of the recordings is the folder with `models` and `cases`. In float32 nothing is rounded to TF32.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from anycharv_core.device import device_name
from anycharv_core.inference.pipeline import Pipeline
from anycharv_core.jobs.precision import DTYPES
from anycharv_core.options import to_path

from .card import said
from .versus_official import Release, Result, apart, ours_with, pictures_of

SIZE = (128, 128)  # smaller ones leave the deepest level a pixel, and its norms two values: rounding then decides
CASES = ((4, 3.0), (30, 3.0), (30, 1.0))  # frames and guidance: one window, several, without guidance
STEPS = 4

Case = tuple[str, Result, Result]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--official", type=to_path, metavar="DIR", help="a copy of the release")
    add("--recorded", type=to_path, metavar="DIR", help="recordings of the release")
    add("--device", default="cpu")
    add("--dtype", choices=tuple(DTYPES), action="append", help="may be given several times (default: all)")
    args = parser.parse_args()
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    warnings.simplefilter("ignore", FutureWarning)  # diffusers', on how the release calls it
    print(f"{device_name(args.device)}, torch {torch.__version__}", flush=True)
    for name in args.dtype or DTYPES:
        if args.official:
            cases = against_release(args.official, args.device, DTYPES[name])
        elif args.recorded:
            cases = against_recordings(args.recorded, args.device, DTYPES[name])
        else:
            cases = against_cpu(args.device, DTYPES[name])
        with said(name):  # the release, for one, does not run in bfloat16
            for case, theirs, ours in cases:
                print(f"{name}, {case}: {apart(theirs, ours)}", flush=True)


def against_release(folder: Path, device: str, dtype: torch.dtype) -> Iterator[Case]:
    release = Release(folder, "tiny", device, dtype)
    ours = ours_with(release)
    for frames, guidance in CASES:
        pictures = pictures_of(SIZE, frames)
        results = (run(pictures, STEPS, guidance) for run in (release, ours))
        yield (f"{frames} frames, guidance {guidance:g}", *results)


def against_recordings(folder: Path, device: str, dtype: torch.dtype) -> Iterator[Case]:
    for place in sorted((folder / "cases").iterdir()):
        case = json.loads((place / "case.json").read_text(encoding="utf-8"))
        golden = load_file(place / "golden.safetensors")
        inputs = np.load(folder / case["inputs"])
        pipe = Pipeline.from_pretrained(folder / case["model"], device=device, dtype=dtype)
        made = pipe(
            *(inputs[name] for name in ("ref", "tgt", "mask", "pose")),
            steps=case["num_inference_steps"],
            guidance_scale=case["guidance_scale"],
            noise=golden["noise"][0].movedim(0, 1),
            recipe="official",
        )
        theirs = golden["final_latents"][0].movedim(0, 1), golden["video_uint8_thwc_every4"].numpy()
        yield place.name, theirs, (made.latents, np.asarray(made.frames)[::4])


def against_cpu(device: str, dtype: torch.dtype) -> Iterator[Case]:
    pipes = Pipeline.from_pretrained("embedded"), Pipeline.from_pretrained("embedded", device=device, dtype=dtype)
    for frames, guidance in CASES:
        pictures = pictures_of(SIZE, frames)
        made = [pipe(**pictures, steps=STEPS, guidance_scale=guidance) for pipe in pipes]
        yield (
            f"embedded, {frames} frames, guidance {guidance:g}",
            *((each.latents, np.asarray(each.frames)) for each in made),
        )


if __name__ == "__main__":
    main()
