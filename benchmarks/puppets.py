"""Scores trained models on held-out character swaps, whose truth is exact, beside three baselines.

    python -m benchmarks.puppets --stage1 MODEL --frames MODEL --model MODEL [--clips 64] --out FILE.json

--stage1 is the model after composition, --frames after frame-wise self-boosting, --model the finished one
(training/train.py leaves all three in its state folder). Prints a Markdown table; FILE.json has it too.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from anycharv_core import Pipeline
from anycharv_core.files import atomic_path
from anycharv_core.masks import box_masks
from anycharv_core.metrics import gradient_energy, psnr, ssim, warp_error
from anycharv_core.puppets.task import BASELINES, Swap, sample_swap

Method = Callable[[Swap], np.ndarray]


def scores(swap: Swap, made: np.ndarray) -> dict[str, float]:
    """PSNR and SSIM over the characters, PSNR in the box and outside it, sharpness relative to the truth."""
    truth, region, box = swap.truth.frames, swap.region, swap.box > 0
    return {
        "region PSNR": psnr(made, truth, region),
        "region SSIM": ssim(made, truth, region),
        "box PSNR": psnr(made, truth, box),
        "scene PSNR": psnr(made, truth, ~(box | region)),
        "gradient energy": gradient_energy(made, truth, region),
    }


def stage1(pipe: Pipeline, coarse: bool, steps: int, guidance: float) -> Method:
    """As trained (eq. 2): the masked part of the scene is black; the mask is fine or the box."""

    def run(swap: Swap) -> np.ndarray:
        masks = swap.box if coarse else swap.driving.mask
        scene = swap.driving.frames * (masks == 0)[..., None]
        made = pipe(swap.reference, scene, masks, swap.pose, steps=steps, guidance_scale=guidance).frames
        # What the feathered paste-back blended with black is the driving clip's again.
        return np.where((box_masks(masks, 0.0, 0) > 0)[..., None], made, swap.driving.frames)

    return run


def stage2(pipe: Pipeline, steps: int, guidance: float) -> Method:
    """The finished product (eq. 3): the whole driving clip as the scene, the box as the mask."""

    def run(swap: Swap) -> np.ndarray:
        return pipe(
            swap.reference, swap.driving.frames, swap.box, swap.pose, steps=steps, guidance_scale=guidance
        ).frames

    return run


def codec_ceiling(pipe: Pipeline) -> Method:
    """The truth through the autoencoder: nothing can score higher."""
    return lambda swap: pipe.decode(pipe.encode(swap.truth.frames))


def table(rows: dict[str, dict[str, float]]) -> str:
    columns = list(next(iter(rows.values())))
    lines = ["| method | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name, row in rows.items():
        lines.append(f"| {name} | " + " | ".join(f"{row[c]:.3f}" for c in columns) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--stage1", type=Path)
    parser.add_argument("--frames", type=Path)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--clips", type=int, default=64)
    parser.add_argument("--frames-per-clip", type=int, default=6)
    parser.add_argument("--warp-clips", type=int, default=16, help="24-frame clips for the warp error")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()

    pipe = Pipeline.from_pretrained(args.model)
    size, guidance, shipped = (pipe.settings[name] for name in ("size", "guidance_scale", "steps"))
    size = size[0]
    methods: dict[str, Method] = dict(BASELINES) | {"codec ceiling": codec_ceiling(pipe)}
    if args.stage1:
        first = Pipeline.from_pretrained(args.stage1)
        methods["stage 1, fine mask, 10 steps, guidance 1"] = stage1(first, False, 10, 1.0)
        methods["stage 1, box, 10 steps, guidance 1"] = stage1(first, True, 10, 1.0)
        methods["stage 1, box, 1 step, guidance 1"] = stage1(first, True, 1, 1.0)
    for steps in (1, 10, 30):
        methods[f"stage 2, box, {steps} steps, guidance 1"] = stage2(pipe, steps, 1.0)
    methods["stage 2, box, 10 steps, guidance 3"] = stage2(pipe, 10, 3.0)
    name = f"stage 2, box, as shipped: {shipped} steps, guidance {guidance:g}"
    methods[name] = stage2(pipe, shipped, guidance)

    swaps = [sample_swap(seed, args.frames_per_clip, size) for seed in range(args.clips)]
    rows: dict[str, dict[str, float]] = {}
    for name, method in methods.items():
        started = time.perf_counter()
        results = [scores(swap, method(swap)) for swap in swaps]
        rows[name] = {key: round(float(np.mean([r[key] for r in results])), 4) for key in results[0]}
        print(f"{name}: {rows[name]} ({time.perf_counter() - started:.0f} s)", flush=True)

    long = [sample_swap(seed, 24, size, flow=True) for seed in range(args.warp_clips)]
    warps: dict[str, float] = {"truth": _warp(long, lambda swap: swap.truth.frames)}
    for name, path in (("frame by frame", args.frames), ("with motion modules", args.model)):
        if path:
            warps[name] = _warp(long, stage2(Pipeline.from_pretrained(path), shipped, guidance))
    report = {
        "clips": args.clips,
        "frames per clip": args.frames_per_clip,
        "scores": rows,
        "warp error": {"clips": args.warp_clips, **warps},
    }
    with atomic_path(args.out) as tmp:
        tmp.write_text(json.dumps(report, indent=2) + "\n")
    print(table(rows), warps, sep="\n")


def _warp(swaps: list[Swap], method: Method) -> float:
    return round(float(np.mean([warp_error(method(s), s.truth.flow, s.truth.mask > 0) for s in swaps])), 3)


if __name__ == "__main__":
    main()
