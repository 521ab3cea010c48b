"""A canvas that follows the person against one of whole frames, on puppets who are small in the picture.

    python -m benchmarks.canvas [--clips 8] [--frames 8] [--size 256x256] [--model embedded] [--out DIR]

The people of the clips, of the model's own world, have 15 to 40 % of the frame's height. The networks see as many
pixels either way, and the metrics are those of `anycharv bench puppets`, besides the seconds a clip takes.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from anycharv_core import Pipeline
from anycharv_core.bench.puppets import score
from anycharv_core.bench.report import make_folder, markdown, summarise
from anycharv_core.bench.tasks import KINDS, SWAP, Task
from anycharv_core.media.canvas import FRAME, PERSON
from anycharv_core.media.imaging import Size
from anycharv_core.media.masks import box_masks
from anycharv_core.media.sheet import sheet
from anycharv_core.puppets.motion import Motion
from anycharv_core.puppets.render import render, render_reference
from anycharv_core.puppets.task import Swap
from anycharv_core.puppets.worlds import WORLDS, World

HEIGHTS = (0.15, 0.40)
SHOWN = (
    "character PSNR",
    "character SSIM",
    "identity",
    "sharpness",
    "box PSNR",
    "seam error",
    "seam jump",
    "seconds",
)


def distant(motion: Motion, height: float, x: float, ground: float) -> Motion:
    """The motion of somebody `height` frame heights tall, around (x, ground) in scene units."""
    factor = height / float(motion.scale.mean())
    middle = np.array([motion.ground[:, 0].mean(), 0])
    place = ((motion.ground - middle) * (factor, 0) + (x, ground)).astype(np.float32)

    def moved(points: np.ndarray) -> np.ndarray:
        shape = (len(place),) + (1,) * (points.ndim - 2) + (2,)
        return (factor * (points - motion.ground.reshape(shape)) + place.reshape(shape)).astype(np.float32)

    scale = (factor * motion.scale).astype(np.float32)
    return replace(motion, joints=moved(motion.joints), head=moved(motion.head), ground=place, scale=scale)


def distant_swap(world: World, number: int, clips: int, frames: int, size: Size) -> Swap:
    """Held-out swap `number` of `clips`, who are evenly from the lowest to the highest of HEIGHTS tall."""
    driver, other = (world.character(2 * number + each, "heldout") for each in (0, 1))
    rng = np.random.default_rng(number)
    side = 0.3 * size[0] / size[1]
    motion = distant(
        world.motion(number, frames, driver.proportions, "heldout"),
        np.linspace(*HEIGHTS, clips)[number],
        rng.uniform(-side, side),
        rng.uniform(0.72, 0.93),
    )
    # Nothing in front: an object as large as the person would leave little of some of them.
    scene = replace(world.scene(number, "heldout"), occluders=())
    driving, truth = (render(each, motion, scene, size, flow=True) for each in (driver, other))
    picture, alpha = render_reference(other, number, (size[1], size[1]), "heldout")
    return Swap(np.dstack([picture, alpha]), driving, truth, np.zeros(0), box_masks(driving.mask), other)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--clips", type=int, default=8)
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--size", default="256x256")
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    width, height = map(int, re.split("x", args.size))
    pipe = Pipeline.from_pretrained(args.model)
    world = WORLDS[pipe.settings.get("world", "first")]
    settings = {name: pipe.settings[name] for name in ("steps", "guidance_scale")}
    asked = pipe.settings["size"][0], pipe.settings["size"][1]
    fitted = pipe.working_size(pipe.system.recipe("default"), (width, height), None)
    rows_shown: list[list[np.ndarray]] = []
    values: dict[str, dict[str, list[float]]] = {name: {} for name in ("copy driving", FRAME, PERSON)}
    for number in range(args.clips):
        swap = distant_swap(world, number, args.clips, args.frames, (width, height))
        task = Task(number, swap, KINDS[SWAP])
        shown = [swap.reference[..., :3] * (swap.reference[..., 3:] >= 128)]
        for name, rows in values.items():
            started = time.perf_counter()
            made = swap.driving.frames
            if name in (FRAME, PERSON):
                size = fitted if name == FRAME else asked
                given = {"scene": made, "mask": swap.box, "pose": swap.poses(), "size": size, "canvas": name}
                made = pipe(swap.reference, **given, **settings).frames
            spent = time.perf_counter() - started
            shown.append(made[len(made) // 2])
            for metric, value in (score(task, made, "not asked for") | {"seconds": spent}).items():
                if metric in SHOWN:
                    rows.setdefault(metric, []).append(float(value))
        rows_shown.append([*shown, swap.truth.frames[args.frames // 2]])
        print(f"\r{number + 1}/{args.clips}", end="", file=sys.stderr, flush=True)
    summaries = {name: {metric: summarise(rows[metric]) for metric in SHOWN} for name, rows in values.items()}
    table = markdown(summaries, "canvas")
    print(f"\n{table}")
    if args.out:
        make_folder(args.out)
        (args.out / "canvas.md").write_text(table, encoding="utf-8")
        titles = ("reference", "driving", "canvas: frame", "canvas: person", "truth")
        sheet(rows_shown, titles).save(args.out / "canvas.png")


if __name__ == "__main__":
    main()
