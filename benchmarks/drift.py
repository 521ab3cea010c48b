"""Whether a character is at the end of a long video still who it was at the start, beside a chain of windows.

    python -m benchmarks.drift [--frames 24 240 2400] [--clips 2] [--size 256] [--out results.json]

Puppets move forwards and backwards through a shot until the video is long enough, so that its last tenth shows the
same poses as its first (but in one of a single window). The scores are those of `bench/drift.py`: 0 for the truth.
"chained" is what long videos are often made of: windows that don't overlap, each shown the character of the last
frame that the one before it made, cut out by the true mask, in place of the reference.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from anycharv_core import Pipeline
from anycharv_core.bench.drift import Drift, DriftScore
from anycharv_core.bench.report import markdown, summarise
from anycharv_core.media.camera import window_around
from anycharv_core.media.imaging import resample
from anycharv_core.media.masks import mask_box
from anycharv_core.models.windows import WINDOW
from anycharv_core.puppets.task import Swap, sample_bold_swap

SHOT = 121  # frames that are rendered; there and back again are 240

Method = Callable[[Pipeline, Swap, list[int]], Iterator[np.ndarray]]


def there_and_back(frames: int) -> list[int]:
    """The frame of the shot that each frame of the video is."""
    period = [*range(SHOT), *range(SHOT - 2, 0, -1)]
    return [period[index % len(period)] for index in range(frames)]


def in_one(pipe: Pipeline, swap: Swap, shown: list[int]) -> Iterator[np.ndarray]:
    """All of it at once, as `Pipeline` makes it."""
    return _made(pipe, swap.reference, swap, shown)


def chained(pipe: Pipeline, swap: Swap, shown: list[int]) -> Iterator[np.ndarray]:
    """Window by window, each with the character that the one before ended with."""
    reference = swap.reference
    for start in range(0, len(shown), WINDOW):
        window = shown[start : start + WINDOW]
        frame = reference
        for frame in _made(pipe, reference, swap, window):
            yield frame
        reference = _cut_out(frame, swap.truth.mask[window[-1]], reference.shape[0])


def _made(pipe: Pipeline, reference: np.ndarray, swap: Swap, shown: list[int]) -> Iterator[np.ndarray]:
    steps, guidance = pipe.system.sampling(pipe.settings)
    return iter(
        pipe(
            reference,
            (swap.driving.frames[index] for index in shown),
            (swap.box[index] for index in shown),
            swap.poses().take(shown),
            steps=steps,
            guidance_scale=guidance,
        ).frames
    )


def _cut_out(frame: np.ndarray, mask: np.ndarray, side: int) -> np.ndarray:
    """A reference uint8 [side, side, 4] of the character in a frame, as large in it as the shot's own is."""
    part = window_around(mask_box(mask) or (0, 0, mask.shape[1], mask.shape[0]), (side, side))
    return np.dstack([resample(picture, part, (side, side)) for picture in (frame, mask)])


METHODS: dict[str, Method] = {"as shipped": in_one, "chained": chained}


def measure(pipe: Pipeline, swap: Swap, frames: int, method: Method) -> Drift:
    """The drift of a video of this many frames."""
    score, points, shown = DriftScore(), swap.truth.keypoints, there_and_back(frames)
    for index, made in zip(shown, method(pipe, swap, shown), strict=True):
        score.add(made, swap.truth.frames[index], swap.truth.mask[index], points[index])
    return score.result()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, nargs="+", default=[24, 240, 2400])
    parser.add_argument("--clips", type=int, default=2)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    pipe = Pipeline.from_pretrained("embedded")
    found: dict[str, list[Drift]] = {f"{name}, {frames}": [] for name in METHODS for frames in args.frames}
    for number in range(args.clips):
        swap = sample_bold_swap(number, SHOT, args.size)
        for frames in args.frames:
            for name, method in METHODS.items():
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
