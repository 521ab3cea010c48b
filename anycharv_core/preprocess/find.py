"""Finding people: everybody's pose, who is who over time, and where the shots begin."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors.numpy import load_file, save

from ..errors import UserError
from ..foreign import read_json
from ..media.frames import Reopened, batched
from ..media.imaging import Size
from ..media.pose import Poses, read_poses
from ..media.video_read import VideoInfo, probe, read_frames
from .cache import cached, content_key, weights_key
from .contact_sheet import contact_sheet, sheet_frames
from .dwpose import DWPose
from .models import EMBEDDED, pose_files
from .shots import ShotDetector
from .tracking import Observation, Track, observe, track

SHEET = "people.png"
BATCH = 8  # frames the networks see at once
_TRACK = ("boxes", "people", "looks")

Poser = Callable[[np.ndarray], Poses]
"""Frames uint8 [F, H, W, 3] -> the poses of everybody in each, on a canvas of the frames' size."""


@dataclass(frozen=True)
class Findings:
    """What a video shows. poses: of every frame; tracks: the people, most prominent first; cuts: the first frame
    of every shot but the first."""

    poses: Poses
    tracks: list[Track]
    cuts: list[int]

    def save(self, folder: Path) -> None:
        # Not by safetensors' own writer, whose error for a full disk is none of the system's.
        (folder / "poses.safetensors").write_bytes(save(self.poses.pack()))
        held = {"cuts": np.array(self.cuts, np.int64)}
        for number, person in enumerate(self.tracks):
            held |= {f"{number}.{name}": getattr(person, name) for name in _TRACK}
        (folder / "tracks.safetensors").write_bytes(save(held))

    @classmethod
    def load(cls, folder: Path) -> Findings:
        held = load_file(folder / "tracks.safetensors")
        count = sum(name.endswith(".boxes") for name in held)
        tracks = [Track(**{name: held[f"{number}.{name}"] for name in _TRACK}) for number in range(count)]
        return cls(Poses.unpack(load_file(folder / "poses.safetensors")), tracks, held["cuts"].tolist())


def find_people(
    frames: Iterable[np.ndarray], poser: Poser, progress: Callable[[int], None] | None = None
) -> Findings:
    """Reads `frames`, uint8 [H, W, 3], once, a few at a time; progress(done) is called after each few.

    Raises UserError where there is no frame, and what `poser` raises.
    """
    poses: list[Poses] = []
    observations: list[Observation] = []
    shots = ShotDetector()
    for batch in batched(frames, BATCH):
        poses.append(poser(np.stack(batch)))
        for frame, people in zip(batch, poses[-1].people, strict=True):
            shots.feed(frame)
            observations.append(observe(frame, people))
        if progress:
            progress(len(observations))
    if not poses:
        raise UserError("The video has no frames; give at least one.")
    cuts = shots.finish()
    whole = replace(poses[0], people=[people for batch in poses for people in batch.people])
    return Findings(whole, track(observations, cuts), cuts)


def in_order(poses: Poses) -> Poser:
    """Hands out poses found before, for frames that come in the same order."""
    rest = iter(range(len(poses)))
    return lambda frames: poses.take(islice(rest, len(frames)))


@dataclass(frozen=True)
class FoundPeople:
    """The people of a video file. key: of the content all this was made from; sheet: a PNG to choose from; size:
    (width, height) in pixels; rate: frames per second; timestamps: of every frame, in time_base seconds."""

    key: str
    findings: Findings
    sheet: Path
    size: Size
    rate: float
    timestamps: list[int]
    time_base: Fraction


def find_in_video(
    video: Path,
    pose_model: str | None,
    poses: Path | None,
    device: str | None,
    progress: Callable[[int, int], None] | None = None,
) -> FoundPeople:
    """Poses, tracks and shots of a video file, from the cache or found now; progress(done, total) counts frames.

    pose_model: see `models.pose_files`; poses: POSE_KEYPOINT JSON in its place; device: see `DWPose`.
    Raises UserError where nobody is seen, or where the poses don't fit the video.
    """
    files: tuple[Path, ...] = () if poses else pose_files(pose_model)
    key = content_key(video, *map(weights_key, files), *filter(None, [poses]))

    def poser(info: VideoInfo) -> Poser:
        return _poses_of(poses, info) if poses else DWPose(files[0], files[1], device).poses

    frames = Reopened(partial(read_frames, video))
    blind = " by the embedded network, which knows puppets only; give --pose-model or"
    nobody = f"Nobody was found in {video}{blind if pose_model == EMBEDDED and not poses else '; give'} --poses."
    return find_in_frames(key, frames, partial(probe, video), poser, nobody, progress)


def find_in_frames(
    key: str,
    frames: Iterable[np.ndarray],
    measure: Callable[[], VideoInfo],
    poser: Callable[[VideoInfo], Poser],
    nobody: str,
    progress: Callable[[int, int], None] | None = None,
) -> FoundPeople:
    """As `find_in_video`, in frames uint8 [H, W, 3] that can be read again.

    key: of their content and of what finds poses; measure, poser: are only called where the cache has nothing;
    nobody: the sentence where there is nobody in them.
    """

    def make(folder: Path) -> None:
        info = measure()

        def count(done: int) -> None:
            if progress:
                progress(done, info.frames)

        findings = find_people(frames, poser(info), count)
        if not findings.tracks:
            raise UserError(nobody)
        findings.save(folder)
        _write_sheet(folder / SHEET, frames, findings)
        timing = {"rate": float(info.rate), "time_base": str(info.time_base), "timestamps": info.timestamps}
        (folder / "timing.json").write_text(json.dumps(timing), encoding="utf-8")

    folder = cached("people", key, make)
    findings, timing = Findings.load(folder), read_json(folder / "timing.json")
    size, time_base = findings.poses.size, Fraction(timing["time_base"])
    return FoundPeople(key, findings, folder / SHEET, size, timing["rate"], timing["timestamps"], time_base)


def _poses_of(path: Path, info: VideoInfo) -> Poser:
    """The poses of a file in place of a network."""
    poses = read_poses(path, (info.width, info.height))
    if len(poses) != info.frames:
        raise UserError(
            f"{path} holds {len(poses)} poses but the video has {info.frames} frames; give one for every frame."
        )
    return in_order(poses.scaled(info.width, info.height))


def _write_sheet(path: Path, frames: Iterable[np.ndarray], findings: Findings) -> None:
    wanted = set(sheet_frames(findings.tracks))
    shown = {index: frame for index, frame in enumerate(frames) if index in wanted}
    Image.fromarray(contact_sheet(findings.tracks, shown)).save(path)
