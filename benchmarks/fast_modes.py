"""What each fast mode gains and costs: the table of docs/performance.md.

    python -m benchmarks.fast_modes [--model MODEL] [--steps 30] [--guidance 3] [--clips 8] [--frames 4]

Gains are operations of the denoising UNet, counted for the released weights' size at 1024 x 576 and windows of 24
frames, and seconds of the processor here. Costs are in PSNR and SSIM over the characters of PuppetBench, beside
the same model without shortcuts on the same clips and seed. --only NAME runs the modes whose names contain it,
and the full one.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from anycharv_core import Pipeline
from anycharv_core.bench.metrics import psnr, ssim
from anycharv_core.bench.puppets import of_model, tasks_of
from anycharv_core.bench.tasks import Setup, tasks
from anycharv_core.device import device_name
from anycharv_core.inference.shortcuts import FAST, NONE, SHALLOW, Shortcuts, fast_steps
from anycharv_core.models import DenoisingUNet, ReferenceNet, UNetConfig
from anycharv_core.models.guidance import is_guided
from anycharv_core.models.schedule import NoiseSchedule
from anycharv_core.models.solvers import DPM, timesteps_of
from anycharv_core.options import to_count, to_finite
from anycharv_core.systems.animate_anyone import SD15, motion_additions

WIDTH, HEIGHT, FRAMES = 1024 // 8, 576 // 8, 24


def modes(steps: int) -> Iterator[tuple[str, int, Shortcuts]]:
    """Name, steps, shortcuts; the first one is the full one."""
    half, third = max(1, steps // 2), max(1, steps // 3)
    yield f"full: {steps} steps of DDIM", steps, NONE
    for low, high in ((0.2, 0.8), (0.3, 1.0), (0.0, 0.7)):
        yield f"guidance interval {low:g} to {high:g}", steps, Shortcuts(guidance_interval=(low, high))
    for every in (2, 3, 5):
        yield f"deep cache {every}", steps, Shortcuts(deep_cache=every)
    for fewer in (half, third):
        yield f"{fewer} steps of DDIM", fewer, NONE
        yield f"{fewer} steps of DPM-Solver++(2M)", fewer, Shortcuts(solver=DPM)
    yield "--fast", fast_steps(steps), FAST


class Released:
    """Operations of one window call of the released weights' size, counted without computing anything."""

    def __init__(self) -> None:
        additions = motion_additions(mid=True, positions=32) | {"use_inflated_groupnorm": True, "in_channels": 9}
        with torch.device("meta"):
            self.unet = DenoisingUNet(UNetConfig.from_dict(SD15 | additions))
            reference = ReferenceNet(UNetConfig.from_dict(SD15))
            tokens = reference(torch.empty(1, 4, HEIGHT, WIDTH), torch.empty(1, 768))
            self.image, self.bank = self.unet.project_image(torch.empty(1, 768)), self.unet.project_bank(tokens)
            self.cost = {(guided, whole): self._call(guided, whole) for guided in (0, 1) for whole in (0, 1)}

    def _call(self, guided: int, whole: int) -> int:
        rows = (1 + guided) * FRAMES
        x, pose = torch.empty(rows, 9, HEIGHT, WIDTH), torch.empty(rows, 320, HEIGHT, WIDTH)
        image = [row.repeat(1 + guided, 1) for row in self.image]
        deep = None if whole else torch.empty(rows, 320, HEIGHT, WIDTH)
        with FlopCounterMode(display=False) as counter:
            self.unet.denoise(
                x, torch.empty(1), image, pose, self.bank, FRAMES, FRAMES * guided, shallow=SHALLOW, deep=deep
            )
        return counter.get_total_flops()

    def per_window(self, steps: int, guidance: float, shortcuts: Shortcuts) -> int:
        """Of all steps of a window of FRAMES frames."""
        schedule = NoiseSchedule()
        times = timesteps_of(shortcuts.solver, steps, schedule)
        rows = zip(times, shortcuts.whole(steps, schedule), strict=True)
        return sum(
            self.cost[int(is_guided(guidance) and shortcuts.guides(t)), int(whole)] for (t, _), whole in rows
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", default="embedded")
    add("--steps", type=to_count, default=30)
    add("--guidance", type=to_finite, default=3.0)
    add("--clips", type=to_count, default=8)
    add("--frames", type=to_count, default=4)
    add("--only", default="", metavar="NAME")
    add("--threads", type=to_count, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    pipe, released = Pipeline.from_pretrained(args.model), Released()
    ways = [way for number, way in enumerate(modes(args.steps)) if not number or args.only in way[0]]
    chosen = list(tasks(Setup(args.clips, args.frames, pipe.settings["size"][0], tasks_of(pipe)[0]), flow=False))
    full: tuple[float, int] = (0.0, 0)
    baseline: list[float] = []
    print("| mode | TFLOP a window, released size | gain | CPU seconds | gain | character PSNR | cost | SSIM |")
    print("|---|---|---|---|---|---|---|---|")
    for name, steps, shortcuts in ways:
        method = of_model(pipe, steps, args.guidance, shortcuts=shortcuts)
        noise, alike, spent = [], [], 0.0
        for task in chosen:
            began = time.process_time()
            made = method(task)
            spent += time.process_time() - began
            truth, region = task.given.truth.frames, task.kind.masks(task.given)["character"]
            noise.append(psnr(made, truth, region))
            alike.append(ssim(made, truth, region))
        flops = released.per_window(steps, args.guidance, shortcuts)
        if not baseline:
            full, baseline = (spent, flops), noise
        cost = np.array(baseline) - noise
        spread = cost.std(ddof=1) / len(cost) ** 0.5 if len(cost) > 1 else 0.0
        print(
            f"| {name} | {flops / 1e12:,.0f} | x{full[1] / flops:.2f} | {spent:.1f} | x{full[0] / spent:.2f} "
            f"| {np.mean(noise):.2f} | {cost.mean():+.2f} ± {spread:.2f} | {np.mean(alike):.3f} |",
            flush=True,
        )
    print(
        f"\n{args.model}, {args.clips} clips of {args.frames} frames, guidance {args.guidance:g}, "
        f"{device_name('cpu')}, {args.threads} thread(s), torch {torch.__version__}"
    )


if __name__ == "__main__":
    main()
