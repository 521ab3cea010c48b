"""Scores models on held-out puppets, beside the baselines and the exact truth: the tables of RESULTS.md.

    python -m benchmarks.puppets --stage1 MODEL --frames MODEL --model MODEL [--clips 64] --out DIR
    python -m benchmarks.puppets --model MODEL --model MODEL ... --out DIR

--stage1 is AnyCharV after composition, --frames after frame-wise self-boosting, --model a finished one. Given
several times, it stands models beside each other, of AnyCharV or of Animate Anyone, all for the same kind of task
and the same size. The metrics are those of `anycharv bench puppets`, which scores one model.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from anycharv_core import Pipeline
from anycharv_core.bench.lpips import load_lpips
from anycharv_core.bench.puppets import Method, measure, of_codec, of_model, references, tasks_of
from anycharv_core.bench.report import make_folder
from anycharv_core.bench.tasks import KINDS, Setup
from anycharv_core.jobs.bench import publish
from anycharv_core.jobs.run import versions
from anycharv_core.media.canvas import PERSON


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--stage1", type=Path)
    parser.add_argument("--frames", type=Path)
    parser.add_argument("--model", action="append")
    parser.add_argument("--clips", type=int, default=64)
    parser.add_argument("--frames-per-clip", type=int, default=6)
    parser.add_argument("--lpips-weights", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    make_folder(args.out)
    lpips = load_lpips(args.lpips_weights, "cpu")
    models = {name: Pipeline.from_pretrained(name) for name in args.model or ["embedded"]}
    made_for = {(tasks_of(pipe)[0], frame_size(pipe)) for pipe in models.values()}
    if len(made_for) > 1:
        parser.error(f"the models are made for different tasks or sizes: {sorted(made_for)}")
    ((task, size),) = made_for
    methods = references(task)
    if args.stage1:
        first = Pipeline.from_pretrained(args.stage1)
        methods["stage 1, fine mask, 10 steps, guidance 1"] = of_model(first, 10, 1.0, fine=True, cut=True)
        for steps in (10, 1):
            methods[f"stage 1, box, {steps} steps, guidance 1"] = of_model(first, steps, 1.0, cut=True)
    if args.frames:
        frame_wise = Pipeline.from_pretrained(args.frames)
        methods["frame by frame, box, as shipped"] = as_shipped(frame_wise)[1]
    for name, pipe in models.items():
        whose = f"{label(name)}, " if len(models) > 1 else ""
        methods |= runs(pipe, whose, "stage 2, box" if pipe.system.reads_scene else "animated")

    def progress(done: int, total: int) -> None:
        print(f"\r{done}/{total}", end="", file=sys.stderr, flush=True)

    setup = Setup(args.clips, args.frames_per_clip, size, task)
    report, rows = measure(methods, setup, lpips, progress)
    report["versions"] = versions()
    print(publish(args.out, report, rows, methods))


def frame_size(pipe: Pipeline) -> int:
    """Pixels a side of the frames to score a model on: where a canvas follows the character the kind's own, and
    elsewhere the model's."""
    kind = KINDS[tasks_of(pipe)[0]]
    return kind.size if kind.canvas == PERSON else pipe.settings["size"][0]


def runs(pipe: Pipeline, whose: str, how: str) -> dict[str, Method]:
    """A model at several numbers of steps, with guidance and as it is shipped, and what its autoencoder allows."""
    made = {f"{steps} steps, guidance 1": of_model(pipe, steps, 1.0) for steps in (1, 10, 30)}
    made["10 steps, guidance 3"] = of_model(pipe, 10, 3.0)
    settings, method = as_shipped(pipe)
    made[settings] = method
    ceiling = {f"{whose}codec ceiling": of_codec(pipe)}
    return ceiling | {f"{whose}{how}, {name}": each for name, each in made.items()}


def as_shipped(pipe: Pipeline) -> tuple[str, Method]:
    steps, guidance = pipe.settings["steps"], pipe.settings["guidance_scale"]
    return f"{steps} steps, guidance {guidance:g}", of_model(pipe, steps, guidance)


def label(model: str) -> str:
    """What tells the models of one run folder apart: the last two parts of the path."""
    return "/".join(Path(model).with_suffix("").parts[-2:])


if __name__ == "__main__":
    main()
