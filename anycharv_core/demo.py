"""`anycharv demo`: the embedded model on held-out puppets, beside the exact truth."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from .files import atomic_path, write_error
from .metrics import psnr
from .pipeline import Pipeline
from .puppets.task import BASELINES, Swap, sample_swap
from .sheet import sheet, upscale
from .video import VideoWriter

FRAMES = 24
RATE = Fraction(12)
ZOOM = 4
COLUMNS = ("reference", "driving", "pose", "result", "truth", "driving", "pose", "result", "truth")


def run(out: Path, clips: int = 4, progress: Callable[[int, int], None] | None = None) -> dict[str, Any]:
    """Writes result.mp4, sheet.png and report.json to `out`, made if need be, and returns the report.

    The video shows the clips one after the other: driving clip, skeleton, result and truth side by side.
    progress(done, total) counts denoising calls. Raises UserError when `out` can't be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(out, error) from None
    started = time.perf_counter()
    pipe = Pipeline.from_pretrained("embedded")
    settings = pipe.settings
    width, _ = settings["size"]
    swaps = [sample_swap(seed, FRAMES, width) for seed in range(clips)]
    made = []
    for number, swap in enumerate(swaps):

        def advance(done: int, total: int, number: int = number) -> None:
            if progress is not None:
                progress(number * total + done, clips * total)

        output = pipe(
            swap.reference,
            swap.driving.frames,
            swap.box,
            swap.pose,
            steps=settings["steps"],
            guidance_scale=settings["guidance_scale"],
            progress=advance,
        )
        made.append(output.frames)

    report = {
        "settings": settings,
        "seconds": round(time.perf_counter() - started, 1),
        "region_psnr_db": [_scores(swap, frames) for swap, frames in zip(swaps, made, strict=True)],
    }
    names = report["region_psnr_db"][0]
    report["mean_region_psnr_db"] = {
        name: round(float(np.mean([row[name] for row in report["region_psnr_db"]])), 2) for name in names
    }
    _write_video(out / "result.mp4", swaps, made)
    with atomic_path(out / "sheet.png") as tmp:
        sheet([_row(swap, frames) for swap, frames in zip(swaps, made, strict=True)], COLUMNS).save(tmp)
    with atomic_path(out / "report.json") as tmp:
        tmp.write_text(json.dumps(report, indent=2) + "\n")
    return report


def _scores(swap: Swap, frames: np.ndarray) -> dict[str, float]:
    candidates = {"result": frames} | {name: baseline(swap) for name, baseline in BASELINES.items()}
    return {name: round(psnr(f, swap.truth.frames, swap.region), 2) for name, f in candidates.items()}


def _row(swap: Swap, frames: np.ndarray) -> list[np.ndarray]:
    cells = [upscale(swap.reference[..., :3], ZOOM)]
    for t in (FRAMES // 4, 3 * FRAMES // 4):
        shown = (swap.driving.frames[t], swap.pose[t], frames[t], swap.truth.frames[t])
        cells += [upscale(picture, ZOOM) for picture in shown]
    return cells


def _write_video(path: Path, swaps: list[Swap], made: list[np.ndarray]) -> None:
    size = ZOOM * made[0].shape[1]
    with VideoWriter(path, 4 * size, size, rate=RATE) as video:
        for swap, frames in zip(swaps, made, strict=True):
            for row in zip(swap.driving.frames, swap.pose, frames, swap.truth.frames, strict=True):
                video.write(np.concatenate([upscale(picture, ZOOM) for picture in row], axis=1))
