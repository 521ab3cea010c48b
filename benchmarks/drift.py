"""Whether a character is at the end of a long video still who it was at the start, beside a chain of windows.

    python -m benchmarks.drift [--model NAME] [--frames 24 240 2400] [--clips 2] [--size 256] [--out results.json]

Puppets move forwards and backwards through a shot until the video is long enough, so that the last tenth of 240
frames shows the same poses as the first. The scores are those of `bench/drift.py`: 0 for the truth.

Of "embedded" the puppets are bold swaps. "chained" is what long videos are often made of: windows that don't
overlap, each shown the character of the last frame that the one before it made, cut out by the true mask, in place
of the reference. Of "embedded-animate2" they are interactions, and its two ways to make long videos are compared:
windows that begin with the last frame of the one before ("chained", its recipe "default"), and windows that are
averaged ("overlapping").
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from anycharv_core import Pipeline
from anycharv_core.bench.drift import Drift, DriftScore
from anycharv_core.bench.report import markdown, summarise
from anycharv_core.media.camera import window_around
from anycharv_core.media.canvas import PERSON
from anycharv_core.media.imaging import resample
from anycharv_core.media.masks import mask_box
from anycharv_core.models.windows import WINDOW
from anycharv_core.puppets.interaction import Interaction, sample_interaction
from anycharv_core.puppets.task import Swap, sample_bold_swap

SHOT = 121  # frames that are rendered; there and back again are 240

Method = Callable[[Pipeline, Swap, list[int]], Iterator[np.ndarray]]


def there_and_back(frames: int) -> list[int]:
    """The frame of the shot that each frame of the video is."""
    period = [*range(SHOT), *range(SHOT - 2, 0, -1)]
    return [period[index % len(period)] for index in range(frames)]


def in_one(pipe: Pipeline, swap: Swap, shown: list[int], recipe: str = "default") -> Iterator[np.ndarray]:
    """All of it at once, as `Pipeline` makes it by a recipe."""
    return _made(pipe, swap.reference, swap, shown, recipe)


def chained(pipe: Pipeline, swap: Swap, shown: list[int]) -> Iterator[np.ndarray]:
    """Window by window, each with the character that the one before ended with."""
    reference = swap.reference
    for start in range(0, len(shown), WINDOW):
        window = shown[start : start + WINDOW]
        frame = reference
        for frame in _made(pipe, reference, swap, window):
            yield frame
        reference = _cut_out(frame, swap.truth.mask[window[-1]], reference.shape[0])


def _made(
    pipe: Pipeline, reference: np.ndarray, swap: Swap, shown: list[int], recipe: str = "default"
) -> Iterator[np.ndarray]:
    steps, guidance = pipe.system.sampling(pipe.settings)
    masks = swap.mask if isinstance(swap, Interaction) else swap.box
    streams = {name: getattr(swap, name) for name in pipe.backend.extras}
    return iter(
        pipe(
            reference,
            (swap.driving.frames[index] for index in shown),
            (masks[index] for index in shown),
            swap.poses().take(shown),
            steps=steps,
            guidance_scale=guidance,
            size=tuple(pipe.settings["size"]),
            canvas=PERSON,
            recipe=recipe,
            **{name: map(frames.__getitem__, shown) for name, frames in streams.items()},
        ).frames
    )


def _cut_out(frame: np.ndarray, mask: np.ndarray, side: int) -> np.ndarray:
    """A reference uint8 [side, side, 4] of the character in a frame, as large in it as the shot's own is."""
    part = window_around(mask_box(mask) or (0, 0, mask.shape[1], mask.shape[0]), (side, side))
    return np.dstack([resample(picture, part, (side, side)) for picture in (frame, mask)])


@dataclass(frozen=True)
class World:
    """sample(number, frames, size): what a model is shown there; methods: the ways to make a long video of it."""

    sample: Callable[[int, int, int], Swap]
    size: int
    methods: Mapping[str, Method]


WORLDS = {
    "embedded": World(sample_bold_swap, 256, {"as shipped": in_one, "chained": chained}),
    "embedded-animate2": World(
        sample_interaction, 128, {"chained": in_one, "overlapping": partial(in_one, recipe="overlapping")}
    ),
}


def measure(pipe: Pipeline, swap: Swap, frames: int, method: Method) -> Drift:
    """The drift of a video of this many frames."""
    score, points, shown = DriftScore(), swap.truth.keypoints, there_and_back(frames)
    for index, made in zip(shown, method(pipe, swap, shown), strict=True):
        score.add(made, swap.truth.frames[index], swap.truth.mask[index], points[index])
    return score.result()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=WORLDS, default="embedded")
    parser.add_argument("--frames", type=int, nargs="+", default=[24, 240, 2400])
    parser.add_argument("--clips", type=int, default=2)
    parser.add_argument("--size", type=int, help="of the world that the model was made for by default")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    pipe, world = Pipeline.from_pretrained(args.model), WORLDS[args.model]
    found: dict[str, list[Drift]] = {f"{name}, {frames}": [] for name in world.methods for frames in args.frames}
    for number in range(args.clips):
        swap = world.sample(number, SHOT, args.size or world.size)
        for frames in args.frames:
            for name, method in world.methods.items():
                found[f"{name}, {frames}"].append(measure(pipe, swap, frames, method))
                print(number, frames, name, found[f"{name}, {frames}"][-1], file=sys.stderr, flush=True)
    summaries: dict[str, dict[str, Any]] = {
        name: {
            field: summarise([getattr(each, field) for each in drifts])
            for field in ("identity", "colour", "sharpness")
        }
        for name, drifts in found.items()
    }
    print(markdown(summaries, "frames"))
    if args.out:
        args.out.write_text(json.dumps(summaries, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
