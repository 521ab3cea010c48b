"""PuppetBench for systems of any kind: the tasks as files, and the frames that come back.

    FOLDER/bench.json            kind of task, clips, frames, size, and a digest of every task
    FOLDER/README.md             this layout, for the people who run the other system
    FOLDER/task_0000/reference.png   the character: RGBA, or with its scene for an animation
                     poses.json  POSE_KEYPOINT of every frame; skeletons/ the same drawn, as PNGs
        swap:        driving/    PNGs of the driving video, exact; driving.mp4 the same as H.264
                     masks/      PNGs, white on the driving character; boxes.json its padded box for every frame
        interaction: the same, masks/ on the body alone, and objects/ white on what it touches; depth/ brighter the
                     nearer, black where nothing is known
        animation:   reference_mask.png   white on the character
        travel:      background.png       the place as its camera sees it first, with nobody in it
    FOLDER/task_0000/frames/     to be written: one PNG for every pose, or a video frames.mp4 (.mkv, ...)

The truth is not among them: scoring renders it again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import UserError
from ..files import atomic_folder
from ..foreign import read_json
from ..media.masks import mask_box
from ..media.pose import write_poses
from ..media.video_read import VIDEOS
from ..media.video_write import VideoWriter, write_masks
from ..puppets.interaction import Interaction
from ..puppets.task import Swap
from ..puppets.travel import Travel
from .puppets import Method, Progress
from .tasks import ANIMATION, BOLD_ANIMATION, BOLD_SWAP, INTERACTION, SWAP, TRAVEL, Setup, Task, tasks
from .videos import partner, video_frames

RATE = Fraction(12)
_INDEX, _MADE = "bench.json", "frames"
_SWAP = """# PuppetBench tasks

For every folder here put the character of `reference.png` (RGBA) in the place of the person in the driving
video. `driving/` holds its exact frames, `driving.mp4` the same as H.264; `masks/` are white on that person,
`boxes.json` is a padded box, [x0, y0, x1, y1] in pixels, for every frame; `poses.json` is POSE_KEYPOINT,
`skeletons/` its drawings.
"""
_INTERACTION = """What the person holds stays, and is held by the character: `objects/` is white on it. `masks/`
are white on the body alone. `depth/` is brighter the nearer body and thing are, and black elsewhere: it tells
which limb is in front.
"""
_ANIMATION = """# PuppetBench tasks

For every folder here make the character of `reference.png` move as `poses.json` says (POSE_KEYPOINT, drawn in
`skeletons/`). It goes where the skeleton is, at the skeleton's size; the scene stays as it is, and also fills the
place where the character stood. `reference_mask.png` is white on the character.
"""
_TRAVEL = """# PuppetBench tasks

For every folder here make the character of `reference.png` (RGBA) move as `poses.json` says (POSE_KEYPOINT, drawn
in `skeletons/`), in the place of `background.png`, which is what the camera sees first, without the character. The
camera goes where the skeletons imply: along with who walks and yet stays in the picture, nearer to who stands and
yet grows.
"""
_ASKED = {
    SWAP: _SWAP,
    BOLD_SWAP: _SWAP,
    INTERACTION: _SWAP + _INTERACTION,
    ANIMATION: _ANIMATION,
    BOLD_ANIMATION: _ANIMATION,
    TRAVEL: _TRAVEL,
}
_WANTED = """
Write `frames/000000.png`, `frames/000001.png` and so on beside them, of the skeletons' size, one for every
skeleton, or a video `frames.mkv` or `frames.mp4` (lossy compression lowers the score). Then run
`anycharv bench puppets --score THIS_FOLDER`.
"""


def export(folder: Path, setup: Setup, progress: Progress | None = None) -> None:
    """Writes the tasks to a new or empty `folder`; raises UserError where that is not possible."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists and is not an empty folder; choose a new one for the tasks.")
    with atomic_folder(folder) as temporary:
        digests = {}
        for task in tasks(setup, flow=False):
            _write_task(temporary / task.name, task)
            digests[task.name] = task.digest
            if progress is not None:
                progress(task.number + 1, setup.clips)
        index = asdict(setup) | {"tasks": digests}
        (temporary / _INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
        (temporary / "README.md").write_text(_ASKED[setup.task] + _WANTED, encoding="utf-8")


def read_setup(folder: Path) -> Setup:
    """The setup that `folder` was exported with. Raises UserError where it was not."""
    if not (folder / _INDEX).is_file():
        raise UserError(f"{folder} has no {_INDEX}; give the folder that 'anycharv bench puppets --export' made.")
    index = read_json(folder / _INDEX)
    try:
        # Folders that were written before there were animations do not say what they are.
        clips, frames, size = (int(index[key]) for key in ("clips", "frames", "size"))
        return Setup(clips, frames, size, index.get("task", SWAP))
    except (KeyError, TypeError, ValueError):
        raise UserError(
            f"{folder / _INDEX} is not what 'anycharv bench puppets --export' writes; score the folder it made."
        ) from None


def of_folder(folder: Path) -> Method:
    """What another system wrote for the tasks exported to `folder`, as a method.

    The method raises UserError for frames that are missing, or of another count or size, and for a task that was
    made by another version of the puppet world.
    """
    digests = read_json(folder / _INDEX).get("tasks", {})

    def run(task: Task) -> np.ndarray:
        if digests.get(task.name) != task.digest:
            raise UserError(
                f"{folder / task.name} was exported by another version, whose puppets differ; export and run the "
                "tasks again."
            )
        place = partner(folder / task.name, _MADE, VIDEOS)
        frames = np.stack(list(video_frames(place)))
        expected = task.given.pose.shape
        if frames.shape != expected:
            raise UserError(
                f"{place} holds {_said(frames.shape)}; the task has {_said(expected)}: give one of that size for "
                "every pose."
            )
        return frames

    return run


def _said(shape: tuple[int, ...]) -> str:
    return f"{shape[0]} frames of {shape[2]}x{shape[1]}"


def _write_task(folder: Path, task: Task) -> None:
    given = task.given
    folder.mkdir()
    Image.fromarray(given.reference).save(folder / "reference.png")
    _write_pngs(folder / "skeletons", given.pose)
    write_poses(folder / "poses.json", given.poses())
    if isinstance(given, Swap):
        _write_driving(folder, given)
    elif isinstance(given, Travel):
        Image.fromarray(given.background).save(folder / "background.png")
    else:
        Image.fromarray(given.cutout).save(folder / "reference_mask.png")


def _write_driving(folder: Path, swap: Swap) -> None:
    _write_pngs(folder / "driving", swap.driving.frames)
    height, width = swap.driving.frames.shape[1:3]
    with VideoWriter(folder / "driving.mp4", width, height, rate=RATE) as video:
        for frame in swap.driving.frames:
            video.write(frame)
    if isinstance(swap, Interaction):
        write_masks(folder / "objects", swap.objects)
        write_masks(folder / "depth", (swap.depth >> 8).astype(np.uint8))
    write_masks(folder / "masks", swap.mask if isinstance(swap, Interaction) else swap.driving.mask)
    boxes = [mask_box(box) for box in swap.box]
    (folder / "boxes.json").write_text(json.dumps(boxes) + "\n", encoding="utf-8")


def _write_pngs(folder: Path, frames: Iterable[np.ndarray]) -> None:
    folder.mkdir()
    for index, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / f"{index:06d}.png")
