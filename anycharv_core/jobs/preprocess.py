"""From a raw video to pose, mask and box of the people chosen: the job behind `anycharv preprocess`.

The video is read as a stream, several times over, and is never wholly in memory.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError
from ..files import check_owned, write_error
from ..media.imaging import Size
from ..media.video_read import read_frames
from ..media.video_write import write_masks
from ..preprocess.cache import cached, content_key, weights_key
from ..preprocess.choose import by_box, by_click, by_likeness, by_number, chosen_boxes
from ..preprocess.depth import DepthEstimator, depth_pictures
from ..preprocess.find import FoundPeople, find_in_video
from ..preprocess.models import pose_files, segmenter_name
from ..preprocess.person import MASKS, cached_person, pose_extent, poses_inside
from ..preprocess.retarget import retarget
from ..preprocess.segment import Segmenter
from ..preprocess.smoothing import smooth_poses
from ..preprocess.tracking import Track
from .inputs import mask_frames, read_reference
from .prepared import DEPTH_PICTURES, OBJECT_MASKS, PreparedPerson, write_prepared
from .reference_pose import reference_pose

Progress = Callable[[str, int, int], None]
"""(phase, frames done, frames in all)"""


@dataclass(frozen=True)
class PreprocessJob:
    """What to prepare from which video, and how.

    people: numbers from the contact sheet, "1,3"; click: frame, x, y; box: frame, x0, y0, x1, y1, frames
    counted from 0 and the rest in pixels; like: a picture of the person. At most one of the four; without any,
    the person inside `masks` where masks are given, else the most prominent one.
    pose_model: a folder with both ONNX files, or "embedded", None = ComfyUI's; poses: POSE_KEYPOINT JSON in its
    place; segmenter: a folder of a SAM2 video model, a hub id or "embedded", None = ComfyUI's; masks: a mask or
    alpha video, a folder of PNGs or a JSON list of boxes in its place; smooth: steady the skeleton over time;
    retarget: pictures of the characters to come, one for each person chosen; device: None = CUDA where there is
    one, else the CPU.
    objects: things to follow beside the one person chosen, each given as (frame, x, y) or (frame, x0, y0, x1, y1);
    depth_model: a folder or hub id of a depth estimation model, None = no depth.
    """

    video: Path
    out: Path
    people: str | None = None
    click: tuple[int, float, float] | None = None
    box: tuple[int, float, float, float, float] | None = None
    like: Path | None = None
    pose_model: str | None = None
    poses: Path | None = None
    segmenter: str | None = None
    masks: Path | None = None
    smooth: bool = False
    retarget: tuple[Path, ...] = ()
    objects: tuple[tuple[float, ...], ...] = ()
    depth_model: str | None = None
    device: str | None = None


def preprocess(job: PreprocessJob, progress: Progress | None = None) -> dict[str, Any]:
    """Finds the people of the video and writes pose, masks and boxes of those chosen to `job.out`.

    The folder takes its name when all is written. Poses, tracks and masks are cached by the content they came
    from (`cache.cache_folder`), so that a second run, or one with another choice, does only what is new.

    Returns the report. Raises UserError for anything the user can put right.
    """
    started = time.perf_counter()
    _check(job)
    found = find_in_video(
        job.video, job.pose_model, job.poses, job.device, progress and partial(progress, "people")
    )
    numbers, likeness = _choose(job, found.findings.tracks)
    if job.retarget and len(job.retarget) != len(numbers):
        raise UserError(f"{len(numbers)} people are chosen; give as many pictures to retarget to, or none.")
    if job.objects and len(numbers) > 1:
        raise UserError("--objects are what one person holds; choose one person, and prepare each into a folder.")
    people = [_prepare(job, found, number, place, progress) for place, number in enumerate(numbers)]
    return write_prepared(
        job.out,
        _inputs(job),
        str(job.video.resolve()),
        found,
        people,
        likeness=likeness,
        smooth=job.smooth,
        retarget=[str(path) for path in job.retarget],
        objects=[list(place) for place in job.objects],
        depth_model=job.depth_model,
        seconds=round(time.perf_counter() - started, 3),
    )


def _check(job: PreprocessJob) -> None:
    """Raises UserError where the job contradicts itself or would replace what it did not write."""
    ways = [name for name in ("people", "click", "box", "like") if getattr(job, name) is not None]
    if len(ways) > 1:
        raise UserError(f"{' and '.join(f'--{way}' for way in ways)} both choose people; give one of them.")
    if not job.video.is_file():
        raise UserError(f"{job.video} is not there or is not a file; check the path.")
    try:
        job.out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(job.out, error) from error
    check_owned(job.out, _inputs(job))
    # What is used only when all people were found should not be missed only then.
    if not job.poses:
        pose_files(job.pose_model)
    if not job.masks or job.objects:
        segmenter_name(job.segmenter)
    for picture in (*filter(None, [job.like]), *job.retarget):
        read_reference(picture)


def _inputs(job: PreprocessJob) -> list[Path]:
    given = (job.video, job.like, job.poses, job.masks, *job.retarget)
    models = (Path(model) for model in (job.pose_model, job.segmenter, job.depth_model) if model)
    return [*filter(None, given), *models]


def _choose(job: PreprocessJob, tracks: list[Track]) -> tuple[list[int | None], float | None]:
    """Numbers on the contact sheet, None for the person inside the masks given; and the likeness, 0 to 1, where
    a picture chose."""
    likeness = None
    if job.people is not None:
        indices = by_number(tracks, job.people)
    elif job.click is not None:
        indices = [by_click(tracks, *job.click)]
    elif job.box is not None:
        indices = [by_box(tracks, job.box[0], job.box[1:])]
    elif job.like is not None:
        index, likeness = by_likeness(tracks, read_reference(job.like))
        indices = [index]
    elif job.masks:
        return [None], None
    else:
        indices = [0]
    return [index + 1 for index in indices], likeness


def _prepare(
    job: PreprocessJob, found: FoundPeople, number: int | None, place: int, progress: Progress | None
) -> PreparedPerson:
    """Poses and masks of one person; `place` among those chosen, from 0."""
    findings, count = found.findings, len(found.timestamps)
    boxes: list[Any] = [None] * count
    if number is None:
        assert job.masks is not None
        poses = poses_inside(findings.poses, mask_frames(job.masks, found.size))
    else:
        track = findings.tracks[number - 1]
        poses, boxes = findings.poses.only(track.people), chosen_boxes(track)
    if job.smooth:
        present = np.array([0 if len(people) else -1 for people in poses.people])
        poses = smooth_poses(poses, [present], found.rate, findings.cuts)
    extents: list[Any] = [None] * count
    if job.retarget:
        poses = retarget(poses, reference_pose(job.retarget[place], job.pose_model, job.device))
        # A taller character leaves the box of the person whose place it takes.
        extents = [pose_extent(people) for people in poses.people]
    segmenter = "" if job.masks else segmenter_name(job.segmenter)

    def masks() -> Iterable[np.ndarray]:
        if job.masks:
            given: Iterable[np.ndarray] = _sized(mask_frames(job.masks, found.size), found.size, job.masks)
        else:
            given = Segmenter(segmenter, job.device).masks(read_frames(job.video), boxes, findings.cuts)
        return _counted(given, lambda done: progress("masks", done, count)) if progress else given

    sources = *_sources(job.masks or Path(segmenter)), segmenter or None
    folder, counts = cached_person(found, sources, boxes, extents, masks)
    person = PreparedPerson(number, poses, folder, counts)
    extras = [_objects(job, found, progress)] if job.objects else []
    extras += [_depth(job, found, person, progress)] if job.depth_model else []
    return replace(person, extras=tuple(extras))


def _objects(job: PreprocessJob, found: FoundPeople, progress: Progress | None) -> Path:
    """Masks of the things that the job names, followed from there to the end of the shot."""
    count = len(found.timestamps)
    for frame, *_ in job.objects:
        if frame >= count:
            raise UserError(f"--objects name frame {frame:g}, but the video has {count}, counted from 0.")
    segmenter = segmenter_name(job.segmenter)

    def followed(prompt: Sequence[float]) -> Iterator[np.ndarray]:
        places: list[Any] = [None] * count
        places[int(prompt[0])] = prompt[1:]
        return Segmenter(segmenter, job.device).masks(read_frames(job.video), places, found.findings.cuts, count)

    def make(folder: Path) -> None:
        streams = zip(*map(followed, job.objects), strict=True)
        masks: Iterable[np.ndarray] = map(np.maximum.reduce, streams)
        masks = _counted(masks, lambda done: progress("objects", done, count)) if progress else masks
        write_masks(folder / OBJECT_MASKS, masks, found.timestamps, found.time_base)

    key = content_key(found.key, *_sources(Path(segmenter)), segmenter, job.objects, found.findings.cuts)
    return cached("objects", key, make) / OBJECT_MASKS


def _depth(job: PreprocessJob, found: FoundPeople, person: PreparedPerson, progress: Progress | None) -> Path:
    """How near the person is in every frame."""
    assert job.depth_model is not None
    count, estimator = len(found.timestamps), DepthEstimator(job.depth_model, job.device)

    def make(folder: Path) -> None:
        frames: Iterable[np.ndarray] = read_frames(job.video)
        frames = _counted(frames, lambda done: progress("depth", done, count)) if progress else frames
        pictures = depth_pictures(estimator, frames, person.masks)
        write_masks(folder / DEPTH_PICTURES, pictures, found.timestamps, found.time_base)

    key = content_key(found.key, *_sources(Path(job.depth_model)), job.depth_model, person.folder / MASKS)
    return cached("depth", key, make) / DEPTH_PICTURES


def _sources(path: Path) -> tuple[object, ...]:
    """What stands for masks or a segmenter in a key: a file's content, a folder's files, a hub id itself."""
    if path.is_dir():
        return weights_key(path)
    return (path,) if path.is_file() else (str(path),)


def _sized(masks: Iterable[np.ndarray], size: Size, path: Path) -> Iterator[np.ndarray]:
    for mask in masks:
        if mask.shape != size[::-1]:
            raise UserError(
                f"{path} is {mask.shape[1]}x{mask.shape[0]} but the video is {size[0]}x{size[1]}; give masks of "
                "the video's size."
            )
        yield mask


def _counted(frames: Iterable[np.ndarray], progress: Callable[[int], None]) -> Iterator[np.ndarray]:
    for done, frame in enumerate(frames, 1):
        yield frame
        progress(done)
