"""The held-out loss of a training against the images it has seen, on two logarithmic axes, as a picture.

    python -m benchmarks.learning_curve [TRAINING.json] [--phases compose compose_on] [--out docs/learning.png]

TRAINING.json is what `training.train` leaves beside its phases. Phases follow each other; the grey line goes on as
the last two points do.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from anycharv_core.checkpoints.places import EMBEDDED

SIZE, MARGIN = (800, 480), (70, 30, 30, 60)  # left, top, right and bottom, in pixels
INK, GREY, BLUE = (40, 40, 40), (215, 215, 215), (40, 90, 190)
AHEAD = 4.0  # times the images of the last point

Point = tuple[float, float]


def points_of(record: dict[str, Any], phases: list[str]) -> list[Point]:
    """(images seen, held-out loss) of the phases, one after the other."""
    points, before = [], 0
    for name in phases:
        phase = record["config"]["phases"][name]
        images = phase["batch"] * phase["frames"]
        rows = [row for row in record["log"][name] if "held_out" in row]
        points += [(before + images * row["step"], row["held_out"]) for row in rows]
        before += images * phase["steps"]
    return points


def ahead(points: list[Point]) -> Point:
    """Where the straight line through the last two points, on logarithmic axes, leads."""
    (x0, y0), (x1, y1) = points[-2:]
    slope = math.log(y1 / y0) / math.log(x1 / x0)
    return AHEAD * x1, y1 * AHEAD**slope


def ticks(low: float, high: float) -> list[float]:
    """Powers of ten, and twice and five times these, between the two."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    marks = (factor * 10.0**power for power in range(first, last + 1) for factor in (1, 2, 5))
    return [mark for mark in marks if low <= mark <= high]


def draw(points: list[Point]) -> Image.Image:
    picture = Image.new("RGB", SIZE, "white")
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(14)
    left, top, right, bottom = MARGIN
    end = ahead(points)
    everything = [*points, end]
    low = [min(each[axis] for each in everything) / 1.2 for axis in (0, 1)]
    high = [max(each[axis] for each in everything) * 1.2 for axis in (0, 1)]

    def place(point: Point) -> Point:
        part = [math.log(point[axis] / low[axis]) / math.log(high[axis] / low[axis]) for axis in (0, 1)]
        return left + part[0] * (SIZE[0] - left - right), SIZE[1] - bottom - part[1] * (SIZE[1] - top - bottom)

    for mark in ticks(low[0], high[0]):
        x = place((mark, low[1]))[0]
        pen.line([(x, top), (x, SIZE[1] - bottom)], GREY)
        pen.text((x, SIZE[1] - bottom + 8), f"{mark:,.0f}", INK, font, "ma")
    for mark in ticks(low[1], high[1]):
        y = place((low[0], mark))[1]
        pen.line([(left, y), (SIZE[0] - right, y)], GREY)
        pen.text((left - 8, y), f"{mark:g}", INK, font, "rm")
    pen.text(((left + SIZE[0] - right) / 2, SIZE[1] - 14), "images", INK, font, "ms")
    pen.text((left, top - 8), "held-out loss", INK, font, "ls")
    pen.line([place(point) for point in points], BLUE, 3)
    pen.line([place(points[-1]), place(end)], GREY, 3)
    for x, y in map(place, points):
        pen.ellipse((x - 4, y - 4, x + 4, y + 4), BLUE)
    return picture


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    own = EMBEDDED["embedded"].with_name("training.json")
    parser.add_argument("record", nargs="?", type=Path, default=own)
    parser.add_argument("--phases", nargs="+", default=["compose", "compose_on"])
    parser.add_argument("--out", type=Path, default=Path("docs/learning.png"))
    args = parser.parse_args()
    points = points_of(json.loads(args.record.read_text(encoding="utf-8")), args.phases)
    draw(points).save(args.out)
    for images, loss in points:
        print(f"{images:>12,} {loss:.4f}")
    print("{:>12,.0f} {:.4f}, if it goes on like that".format(*ahead(points)))


if __name__ == "__main__":
    main()
