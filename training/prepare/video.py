"""One video -> a tar of clips: what prepare_dataset runs for each, here or on another machine."""

from __future__ import annotations

import errno
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from anycharv_core.errors import UserError
from anycharv_core.files import atomic_path
from anycharv_core.jobs.inputs import mask_frames
from anycharv_core.media.cameras import Cameras
from anycharv_core.media.masks import mask_box
from anycharv_core.media.pose import Poses, person_in_mask, read_poses
from anycharv_core.media.video_read import VideoInfo, probe, read_frames
from anycharv_core.preprocess.cache import content_key
from anycharv_core.preprocess.choose import chosen_boxes
from anycharv_core.preprocess.find import Findings, Poser, find_people, in_order
from anycharv_core.preprocess.models import pose_files, segmenter_name
from anycharv_core.preprocess.tracking import spans
from training.data.camera_files import Source, read_cameras
from training.data.crops import (
    Size,
    Window,
    cut,
    cut_cameras,
    cut_nearest,
    cut_poses,
    nearest_bucket,
    person_window,
)
from training.data.shards import EXTRAS, FACTS, POSES, ClipWriter, write_tar

Box = tuple[float, float, float, float]
Row = dict[str, Any]

# A crop enlarged more than this to fill its bucket is too blurred to learn from.
MOST_ENLARGED = 2.0
# The share of a clip's frames that must show the person in the mask.
LEAST_SEEN = 0.9
# A reference shows at least this part of the person's median area in the clip; a clip offers so many at most.
CLEAR, REFERENCES = 0.5, 16
# What is wrong with the machine and not with the video.
_MACHINE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO, errno.ENOMEM, errno.EMFILE}
_MASK_FILES = (".mkv", ".mov", ".mp4", ".webm", "")


@dataclass(frozen=True)
class Settings:
    """How videos are prepared. pose_model, segmenter: as `anycharv preprocess` takes them; poses_dir, masks_dir:
    ready ones in their place, by the video's path without its suffix; objects_dir, depth_dir: in the same way,
    masks of what the person holds and grey depth, or none; cameras_dir: camera files of the videos that have
    one, as `read_cameras` takes them with the source `cameras_from`; buckets: sizes (width, height); min_frames,
    max_frames: bounds of a clip's length."""

    pose_model: str | None = None
    segmenter: str | None = None
    poses_dir: Path | None = None
    masks_dir: Path | None = None
    objects_dir: Path | None = None
    depth_dir: Path | None = None
    cameras_dir: Path | None = None
    cameras_from: Source | None = None
    buckets: tuple[Size, ...] = ((576, 1024), (1024, 576), (768, 768))
    min_frames: int = 24
    max_frames: int = 300
    device: str | None = None

    def __post_init__(self) -> None:
        if self.min_frames < 1 or self.max_frames < 2 * self.min_frames:
            raise UserError(
                f"Clips of {self.min_frames} to {self.max_frames} frames don't do: --max-frames must be at least "
                "twice --min-frames, or pieces of a long shot would be too short."
            )
        if (self.cameras_dir is None) != (self.cameras_from is None):
            raise UserError("Give --cameras-dir and --cameras-from together: files of the two sources differ.")


def prepare_video(source: Path, videos: Path, settings: Settings, parts: Path, known: frozenset[str]) -> Row:
    """Writes `parts`/HASH.tar and, as the sign that it is finished, HASH.json with the row that is returned.

    The row holds `source`, `stamp` (size and time of the file) and `video` (hash of its content), and `clips`
    unless the hash is among `known` or in `parts`; or else the `reason` for which the video cannot be used.

    Raises UserError for what is wrong with the machine or the models, such as a full disk.
    """
    row: Row = {"source": source.relative_to(videos).as_posix(), "stamp": stamp(source)}
    ready_to_look(settings)
    try:
        row["video"] = content_key(source)[:16]
        if row["video"] in known or (parts / f"{row['video']}.json").exists():
            return row
        with tempfile.TemporaryDirectory(dir=parts, prefix=".writing-") as scratch:
            row |= _prepared(source, row, settings, parts, Path(scratch))
    except UserError as error:
        if _of_the_machine(error):
            raise
        return {"source": row["source"], "stamp": row["stamp"], "reason": str(error)}
    with atomic_path(parts / f"{row['video']}.json") as temporary:
        temporary.write_text(json.dumps(row), encoding="utf-8")
    return row


def stamp(source: Path) -> list[int]:
    """Size and time of a file: as long as they stay, its content is taken to stay."""
    stat = source.stat()
    return [stat.st_size, stat.st_mtime_ns]


def pieces(present: Sequence[bool], cuts: Sequence[int], shortest: int, longest: int) -> list[tuple[int, int]]:
    """Runs of frames (start, stop) with the person, within one shot, of `shortest` to `longest` frames.

    Longer runs are cut into equal pieces.
    """
    found = []
    for start, stop in pairwise((0, *cuts, len(present))):
        for first, last in spans(np.asarray(present[start:stop], bool)):
            length = last - first
            if length >= shortest:
                ends = np.linspace(start + first, start + last, -(-length // longest) + 1).astype(int).tolist()
                found += list(pairwise(ends))
    return found


@dataclass
class _Person:
    """Whom the clips follow. boxes: in every frame of the video, or None; poses: of nobody else."""

    boxes: list[Box | None]
    poses: Poses


@dataclass
class _Draft:
    """A clip being written: its window in the frames, the size it is brought to, and what was measured."""

    start: int
    stop: int
    window: Window
    size: Size
    boxes: list[list[int] | None] = field(default_factory=list)
    areas: list[int] = field(default_factory=list)


def _prepared(source: Path, row: Row, settings: Settings, parts: Path, scratch: Path) -> Row:
    info = probe(source)
    ready = Path(row["source"]).with_suffix("")
    findings = find_people(read_frames(source), _poser(settings, ready, info))
    masks_file = settings.masks_dir and _mask_file(settings.masks_dir / ready)
    person = _person(source, findings, masks_file, info)
    present = [box is not None for box in person.boxes]
    runs = pieces(present, findings.cuts, settings.min_frames, settings.max_frames)
    if not runs:
        raise UserError(f"{source.name} shows nobody for {settings.min_frames} frames on end within one shot.")
    drafts = _drafts(runs, person.boxes, (info.width, info.height), settings.buckets)
    if masks_file:
        masks = iter(mask_frames(masks_file, (info.width, info.height)))
    else:
        masks = _segmenter(settings).masks(read_frames(source), person.boxes, findings.cuts)
    folders = {"objects": settings.objects_dir, "depth": settings.depth_dir}
    extras = {
        name: _as_many(_mask_file(folder / ready), info) for name, folder in folders.items() if folder is not None
    }
    cameras = _cameras(settings, ready, info)
    members: list[tuple[str, bytes | Path]] = []
    clips: list[Row] = []
    for draft, writer in _written(drafts, read_frames(source), masks, extras, scratch):
        clip = _described(draft, row["video"])
        if clip is None:
            continue
        fps = round(float(info.rate), 4)
        facts: Row = {
            **{name: clip[name] for name in ("size", "frames", "start", "window")},
            "fps": fps,
            "boxes": draft.boxes,
            "source": row["source"],
            "video": row["video"],
            "source_size": [info.width, info.height],
        }
        if cameras is not None:
            seen = cut_cameras(cameras.at(slice(draft.start, draft.stop)), draft.window, draft.size)
            facts["cameras"] = seen.packed().tolist()
        poses = cut_poses(person.poses.take(range(draft.start, draft.stop)), draft.window, draft.size)
        lines = "".join(json.dumps(_rounded(frame)) + "\n" for frame in poses.keypoints())
        members += [
            *((f"{clip['key']}.{member}", file) for member, file in writer.files.items()),
            (f"{clip['key']}.{POSES}", lines.encode()),
            (f"{clip['key']}.{FACTS}", json.dumps(facts).encode()),
        ]
        clips.append(clip)
    if not clips:
        raise UserError(f"The masks of {source.name} show the person in too few frames of every shot.")
    part = parts / f"{row['video']}.tar"
    write_tar(part, members)
    return {
        "clips": clips,
        "fps": round(float(info.rate), 4),
        "frames": info.frames,
        "shots": len(findings.cuts) + 1,
        "part_bytes": part.stat().st_size,
    }


def _poser(settings: Settings, ready: Path, info: VideoInfo) -> Poser:
    if settings.poses_dir is None:
        return _detector(settings).poses
    path = settings.poses_dir / ready.with_name(f"{ready.name}.json")
    poses = read_poses(path, (info.width, info.height))
    if len(poses) != info.frames:
        raise UserError(f"{path} holds {len(poses)} poses but the video has {info.frames} frames.")
    return in_order(poses.scaled(info.width, info.height))


def _cameras(settings: Settings, ready: Path, info: VideoInfo) -> Cameras | None:
    """Of all frames of the video, where there is a file of them."""
    if settings.cameras_dir is None or settings.cameras_from is None:
        return None
    path = settings.cameras_dir / ready.with_name(f"{ready.name}.txt")
    if not path.exists():
        return None
    cameras = read_cameras(path, (info.width, info.height), settings.cameras_from)
    if len(cameras) != info.frames:
        raise UserError(f"{path} holds {len(cameras)} cameras but the video has {info.frames} frames.")
    return cameras


def _mask_file(stem: Path) -> Path:
    # The name may hold further dots, which with_suffix would take for a suffix.
    for suffix in _MASK_FILES:
        path = stem.with_name(stem.name + suffix)
        if path.exists():
            return path
    raise UserError(f"{stem.parent} holds no masks for {stem.name} (a video or a folder of PNGs).")


def _as_many(file: Path, info: VideoInfo) -> Iterator[np.ndarray]:
    """The grey pictures of a file, one for every frame of the video, of its size. Raises UserError otherwise."""
    count = 0
    for picture in mask_frames(file, (info.width, info.height)):
        if picture.shape != (info.height, info.width):
            raise UserError(f"{file} is {picture.shape[1]}x{picture.shape[0]}, not of its video's size.")
        count += 1
        yield picture
    if count != info.frames:
        raise UserError(f"{file} holds {count} pictures but the video has {info.frames} frames.")


def _person(source: Path, findings: Findings, masks: Path | None, info: VideoInfo) -> _Person:
    """The person in the masks given, or else the most prominent person of the video."""
    if masks is None:
        if not findings.tracks:
            raise UserError(f"Nobody was found in {source.name}.")
        return _Person(chosen_boxes(findings.tracks[0]), findings.poses.only(findings.tracks[0].people))
    boxes: list[Box | None] = []
    people: list[int] = []
    frames = range(len(findings.poses))
    for frame, mask in zip(frames, mask_frames(masks, (info.width, info.height)), strict=False):
        if mask.shape != (info.height, info.width):
            raise UserError(f"{masks} is {mask.shape[1]}x{mask.shape[0]}, not of its video's size.")
        people.append(person_in_mask(findings.poses, frame, mask))
        boxes.append(mask_box(mask) if people[-1] >= 0 else None)
    if len(people) != info.frames:
        raise UserError(f"{masks} holds {len(people)} masks but the video has {info.frames} frames.")
    return _Person(boxes, findings.poses.only(np.array(people)))


def _drafts(
    runs: Sequence[tuple[int, int]], boxes: Sequence[Box | None], picture: Size, buckets: Sequence[Size]
) -> list[_Draft]:
    """Raises UserError where every crop would have to be enlarged too much."""
    size = nearest_bucket(picture, buckets)
    drafts = [
        _Draft(start, stop, person_window([box for box in boxes[start:stop] if box], picture, size), size)
        for start, stop in runs
    ]
    large = [draft for draft in drafts if _enlarged(draft) <= MOST_ENLARGED]
    if not large:
        x0, y0, x1, y1 = max((draft.window for draft in drafts), key=lambda w: w[2] - w[0])
        raise UserError(f"The largest crop around the person is {x1 - x0}x{y1 - y0}, too small for {size}.")
    return large


def _enlarged(draft: _Draft) -> float:
    return draft.size[0] / (draft.window[2] - draft.window[0])


def _written(
    drafts: Sequence[_Draft],
    frames: Iterator[np.ndarray],
    masks: Iterator[np.ndarray],
    extras: Mapping[str, Iterator[np.ndarray]],
    scratch: Path,
) -> Iterator[tuple[_Draft, ClipWriter]]:
    """Writes one clip after another into a folder of its own while the video passes once. extras: grey pictures of
    every frame, by the condition that they are."""
    stream = enumerate(zip(frames, masks, *extras.values(), strict=False))
    cuts = [cut_nearest if name == "depth" else cut for name in extras]
    for draft in drafts:
        folder = scratch / f"{draft.start:06d}"
        folder.mkdir()
        with ClipWriter(folder, draft.size, [EXTRAS[name] for name in extras]) as writer:
            for number, (frame, mask, *others) in stream:
                if number >= draft.start:
                    small = cut(mask, draft.window, draft.size)
                    more = [
                        taken(grey, draft.window, draft.size) for taken, grey in zip(cuts, others, strict=True)
                    ]
                    writer.write(cut(frame, draft.window, draft.size), small, *more)
                    box = mask_box(small)
                    draft.boxes.append(None if box is None else list(box))
                    draft.areas.append(int((small > 0).sum()))
                if number == draft.stop - 1:
                    break
        yield draft, writer


def _described(draft: _Draft, video: str) -> Row | None:
    """The clip's part of the manifest; None where its masks are empty too often."""
    areas = np.array(draft.areas)
    if (areas > 0).mean() < LEAST_SEEN:
        return None
    clear = np.flatnonzero(areas >= CLEAR * np.median(areas[areas > 0]))
    chosen = clear[np.linspace(0, len(clear) - 1, min(REFERENCES, len(clear))).round().astype(int)]
    heights = [box[3] - box[1] for box in draft.boxes if box]
    return {
        "key": f"{video}_{draft.start:06d}",
        "start": draft.start,
        "frames": draft.stop - draft.start,
        "size": list(draft.size),
        "window": list(draft.window),
        "references": chosen.tolist(),
        "person_height": round(float(np.median(heights)) / draft.size[1], 3),
        "enlarged": round(_enlarged(draft), 3),
    }


def _rounded(frame: Row) -> Row:
    """A POSE_KEYPOINT frame in hundredths of a pixel, which nothing drawn can tell, at a third of the size."""
    people = [
        {part: flat and [round(value, 2) for value in flat] for part, flat in person.items()}
        for person in frame["people"]
    ]
    return {**frame, "people": people}


def _of_the_machine(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, OSError) and error.errno in _MACHINE:
            return True
        error = error.__cause__
    return False


@lru_cache(maxsize=1)
def ready_to_look(settings: Settings) -> None:
    """Loads the models the settings ask for, so that what is wrong with them is not blamed on a video.

    Raises UserError where one is not there or is something else.
    """
    blank = np.zeros((64, 64, 3), np.uint8)
    if settings.poses_dir is None:
        _detector(settings).poses(blank[None])
    if settings.masks_dir is None:
        list(_segmenter(settings).masks([blank], [(16, 16, 48, 48)]))


@lru_cache(maxsize=1)
def _detector(settings: Settings) -> Any:
    from anycharv_core.preprocess.dwpose import DWPose

    return DWPose(*pose_files(settings.pose_model), settings.device)


@lru_cache(maxsize=1)
def _segmenter(settings: Settings) -> Any:
    from anycharv_core.preprocess.segment import Segmenter

    return Segmenter(segmenter_name(settings.segmenter), settings.device)
