"""What is to know of a clip before anybody is chosen, kept so that no other choice costs it again."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from PIL import Image

from ..errors import UserError
from ..foreign import read_json
from ..media.pose import read_poses
from ..media.video_read import VideoInfo, probe, read_frames
from .cache import content_key, kept, weights_key
from .dwpose import DWPose
from .find import Findings, Poser, find_people, in_order
from .models import pose_files
from .people import contact_sheet, sheet_frames

SHEET = "people.png"


@dataclass(frozen=True)
class Look:
    """A clip's findings, timing and contact sheet. key: of the content all this was made from."""

    key: str
    findings: Findings
    sheet: Path
    size: tuple[int, int]
    rate: float
    timestamps: list[int]
    time_base: Fraction


def look_at(
    clip: Path,
    pose_model: str | None,
    poses: Path | None,
    device: str | None,
    progress: Callable[[int, int], None] | None = None,
) -> Look:
    """Poses, tracks and shots of a clip, from the cache or made now; progress(done, total) counts frames.

    pose_model: see `models.pose_files`; poses: POSE_KEYPOINT JSON in its place; device: see `DWPose`.
    Raises UserError where nobody is seen, or where the poses don't fit the clip.
    """
    files = () if poses else pose_files(pose_model)
    key = content_key(clip, *map(weights_key, files), *filter(None, [poses]))

    def make(folder: Path) -> None:
        info = probe(clip)
        poser = _poses_of(poses, info) if poses else DWPose(*files, device).poses
        count = progress and (lambda done: progress(done, info.frames))
        findings = find_people(read_frames(clip), poser, count)
        if not findings.tracks:
            raise UserError(f"Nobody was found in {clip}; bring poses made elsewhere (--poses).")
        findings.save(folder)
        _write_sheet(folder / SHEET, clip, findings)
        timing = {"rate": float(info.rate), "time_base": str(info.time_base), "timestamps": info.timestamps}
        (folder / "timing.json").write_text(json.dumps(timing), encoding="utf-8")

    folder = kept("people", key, make)
    findings, timing = Findings.load(folder), read_json(folder / "timing.json")
    return Look(
        key,
        findings,
        folder / SHEET,
        findings.poses.size,
        timing["rate"],
        timing["timestamps"],
        Fraction(timing["time_base"]),
    )


def _poses_of(path: Path, info: VideoInfo) -> Poser:
    """The poses of a file in place of a network."""
    poses = read_poses(path, (info.width, info.height))
    if len(poses) != info.frames:
        raise UserError(
            f"{path} holds {len(poses)} poses but the clip has {info.frames} frames; give one for every frame."
        )
    return in_order(poses.scaled(info.width, info.height))


def _write_sheet(path: Path, clip: Path, findings: Findings) -> None:
    wanted = set(sheet_frames(findings.tracks))
    shown = {index: frame for index, frame in enumerate(read_frames(clip)) if index in wanted}
    Image.fromarray(contact_sheet(findings.tracks, shown)).save(path)
