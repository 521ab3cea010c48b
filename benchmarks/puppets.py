"""Scores the models of every training phase on held-out puppets, beside the baselines: the table of RESULTS.md.

    python -m benchmarks.puppets --stage1 MODEL --frames MODEL --model MODEL [--clips 64] --out DIR

--stage1 is the model after composition, --frames after frame-wise self-boosting, --model the finished one. The
metrics are those of `anycharv bench puppets`, which scores one model.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from anycharv_core import Pipeline
from anycharv_core.bench.job import publish
from anycharv_core.bench.lpips import load_lpips
from anycharv_core.bench.puppets import Setup, measure, of_codec, of_model, references
from anycharv_core.bench.report import make_folder
from anycharv_core.generate import versions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--stage1", type=Path)
    parser.add_argument("--frames", type=Path)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--clips", type=int, default=64)
    parser.add_argument("--frames-per-clip", type=int, default=6)
    parser.add_argument("--lpips-weights", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    make_folder(args.out)

    pipe = Pipeline.from_pretrained(args.model)
    size, guidance, shipped = (pipe.settings[name] for name in ("size", "guidance_scale", "steps"))
    methods = references() | {"codec ceiling": of_codec(pipe)}
    if args.stage1:
        first = Pipeline.from_pretrained(args.stage1)
        methods["stage 1, fine mask, 10 steps, guidance 1"] = of_model(first, 10, 1.0, fine=True, cut=True)
        for steps in (10, 1):
            methods[f"stage 1, box, {steps} steps, guidance 1"] = of_model(first, steps, 1.0, cut=True)
    if args.frames:
        frame_wise = Pipeline.from_pretrained(args.frames)
        methods["frame by frame, box, as shipped"] = of_model(frame_wise, shipped, guidance)
    for steps in (1, 10, 30):
        methods[f"stage 2, box, {steps} steps, guidance 1"] = of_model(pipe, steps, 1.0)
    methods["stage 2, box, 10 steps, guidance 3"] = of_model(pipe, 10, 3.0)
    as_shipped = f"stage 2, box, {shipped} steps, guidance {guidance:g}"
    methods.setdefault(as_shipped, of_model(pipe, shipped, guidance))

    def progress(done: int, total: int) -> None:
        print(f"\r{done}/{total}", end="", file=sys.stderr, flush=True)

    setup = Setup(args.clips, args.frames_per_clip, size[0])
    report, rows = measure(methods, setup, load_lpips(args.lpips_weights, "cpu"), progress)
    report["versions"] = versions()
    print(publish(args.out, report, rows, methods))


if __name__ == "__main__":
    main()
