"""`anycharv demo` and its like: an embedded model on held-out puppets, beside the exact truth."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from itertools import count, cycle, islice
from pathlib import Path
from typing import Any

import numpy as np

from ..bench.metrics import psnr
from ..bench.puppets import of_model, tasks_of
from ..bench.report import make_folder
from ..bench.tasks import INTERACTION, TRAVEL, Setup, Task, tasks
from ..files import atomic_path
from ..inference.pipeline import Pipeline
from ..media.camera import window_around
from ..media.imaging import resample
from ..media.masks import mask_box
from ..media.sheet import sheet
from ..media.video_write import VideoWriter
from ..puppets.interaction import Interaction, order_pair, sample_interaction
from ..puppets.travel import JOURNEYS, Travel

FRAMES = 24
RATE = Fraction(12)
MOMENTS = ("first", "middle", "last")  # of a journey, that its sheet shows
TOUCHING, TWINS = (10, 1), 4  # interactions with a ball that stands out and a wall; one where depth shows most
SHOWN = 256  # pixels a side of a picture in the video and on the sheet

Part = tuple[float, float, float, float]


def run(
    out: Path, clips: int = 4, model: str = "embedded", progress: Callable[[int, int], None] | None = None
) -> dict[str, Any]:
    """Writes result.mp4, sheet.png and report.json to `out`, made if need be, and returns the report.

    The video shows `clips` tasks one after the other, side by side the reference, what else the model is shown
    (of a swap driving video and skeleton, of an animation the skeleton, of a journey background and skeleton),
    result and truth. progress(done, total) counts tasks. Raises UserError when `out` can't be written.
    """
    make_folder(out)
    started = time.perf_counter()
    pipe = Pipeline.from_pretrained(model)
    settings = pipe.settings
    setup = Setup.of(tasks_of(pipe)[0], clips, FRAMES, None)
    method = of_model(pipe, settings["steps"], settings["guidance_scale"])
    rows, scores = [], []
    titles = ["reference", *setup.kind.shown, "result", "truth"]
    with VideoWriter(out / "result.mp4", len(titles) * SHOWN, SHOWN, rate=RATE) as video:
        for task in _examples(setup):
            made = method(task)
            scores.append(_scores(task, made))
            for moment in range(FRAMES):
                video.write(np.concatenate(_side_by_side(task, made, moment), axis=1))
            travels = isinstance(task.given, Travel)
            rows.append(_journey_row(task, made) if travels else _sheet_row(task, made))
            if progress is not None:
                progress(task.number + 1, clips)
    report = {
        "task": setup.task,
        "settings": settings,
        "seconds": round(time.perf_counter() - started, 1),
        "region_psnr_db": scores,
        "mean_region_psnr_db": {
            name: round(float(np.mean([row[name] for row in scores])), 2) for name in scores[0]
        },
    }
    columns = [*titles, *(f"{title}, close" for title in titles[1:])]
    if setup.task == TRAVEL:
        columns = [*titles[:2], *(f"{title}, {moment}" for moment in MOMENTS for title in titles[2:])]
    with atomic_path(out / "sheet.png") as tmp:
        sheet(rows, columns).save(tmp)
    with atomic_path(out / "report.json") as tmp:
        tmp.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return report


def _examples(setup: Setup) -> Iterator[Task]:
    """The tasks of the bench; but of journeys one of each kind in turn, as most of its first have a camera at
    rest, and of interactions first those that show what the model reads."""
    if setup.task == TRAVEL:
        for number, kind in zip(range(setup.clips), cycle(JOURNEYS)):
            yield Task(number, setup.kind.sample(number, setup.frames, setup.size, kind=kind), setup.kind)
    elif setup.task == INTERACTION:
        for number, given in enumerate(islice(_interactions(setup), setup.clips)):
            yield Task(number, given, setup.kind)
    else:
        yield from tasks(setup, flow=False)


def _interactions(setup: Setup) -> Iterator[Interaction]:
    """Things that are touched, and two tasks of one pose, an arm in front in the one and behind in the other; then
    those of the bench."""
    frames, size = setup.frames, setup.size
    for number in TOUCHING:
        yield sample_interaction(number, frames, size)
    yield from order_pair(TWINS, frames, size)
    for number in count():
        if number not in TOUCHING:
            yield sample_interaction(number, frames, size)


def _side_by_side(task: Task, made: np.ndarray, moment: int, part: Part | None = None) -> list[np.ndarray]:
    """The reference, and `part` of all other pictures of a frame, by default all of it, as large as they are
    shown."""
    given = task.given
    side = given.reference.shape[0]
    videos = [*(frames(given) for frames in task.kind.shown.values()), made, given.truth.frames]
    row = [(given.reference[..., :3], None), *((frames[moment], part) for frames in videos)]
    return [resample(picture, seen or (0, 0, side, side), (SHOWN, SHOWN)) for picture, seen in row]


def _sheet_row(task: Task, made: np.ndarray) -> list[np.ndarray]:
    """The frame that shows most of the characters, whole and close."""
    region = task.given.region
    moment = int(region.sum(axis=(1, 2)).argmax())
    box = mask_box(region[moment]) or (0, 0, *region.shape[:0:-1])
    close = _side_by_side(task, made, moment, window_around(box, (SHOWN, SHOWN)))
    return [*_side_by_side(task, made, moment), *close[1:]]


def _journey_row(task: Task, made: np.ndarray) -> list[np.ndarray]:
    """Reference and background, then the first, middle and last frame, as the place has moved by then."""
    rows = [_side_by_side(task, made, moment) for moment in (0, FRAMES // 2, FRAMES - 1)]
    return [*rows[0][:2], *(picture for row in rows for picture in row[2:])]


def _scores(task: Task, made: np.ndarray) -> dict[str, float]:
    given = task.given
    # What a journey is compared with are places without a character.
    region = np.ones_like(given.region) if isinstance(given, Travel) else given.region
    candidates = {"result": made} | {name: make(given) for name, make in task.kind.baselines.items()}
    return {name: round(psnr(f, given.truth.frames, region), 2) for name, f in candidates.items()}
