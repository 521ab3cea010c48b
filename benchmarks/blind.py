"""What a model of Animate Anyone 2 chooses of two truths where it is not shown what tells them apart.

    python -m benchmarks.blind [--pairs 96] [--model embedded-animate2]

The pairs are those of PuppetBench's `order choice` and `object choice`, of one frame. Without depth, or without
objects, both tasks of a pair are the same to the model, so that 0.5 is what it has to come to.
"""

from __future__ import annotations

import argparse
import sys

import numpy as np

from anycharv_core import Pipeline
from anycharv_core.bench.interaction import choice
from anycharv_core.bench.puppets import of_model
from anycharv_core.bench.report import markdown, summarise
from anycharv_core.bench.tasks import INTERACTION, KINDS, Task
from anycharv_core.puppets.interaction import Interaction, object_pair, order_pair

CHOICES = {"order choice": order_pair, "object choice": object_pair}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=96)
    parser.add_argument("--model", default="embedded-animate2")
    args = parser.parse_args()
    pipe, kind = Pipeline.from_pretrained(args.model), KINDS[INTERACTION]
    model = of_model(pipe, pipe.settings["steps"], pipe.settings["guidance_scale"])
    reads = pipe.backend.extras
    shown = {"as shipped": reads} | {f"without {name}": reads - {name} for name in sorted(reads)}

    def answer(task: Interaction) -> np.ndarray:
        return model(Task(0, task, kind))

    scores: dict[str, dict[str, list[float]]] = {name: {score: [] for score in CHOICES} for name in shown}
    for seed in range(args.pairs):
        for score, pair in CHOICES.items():
            one, other = pair(seed, 1, kind.size)
            for name, extras in shown.items():
                pipe.backend.extras = extras
                scores[name][score].append(choice(answer(one), answer(other), one, other))
        print(f"\r{seed + 1}/{args.pairs}", end="", file=sys.stderr, flush=True)
    summaries = {
        name: {score: summarise(values) for score, values in each.items()} for name, each in scores.items()
    }
    print(markdown(summaries, "model"))


if __name__ == "__main__":
    main()
