"""The folder that `anycharv preprocess` writes and `anycharv generate --prepared` reads."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError
from ..files import owned_folder
from ..foreign import read_json
from ..media.frames import Reopened
from ..media.mask_read import read_gray
from ..media.pose import Poses, write_poses
from ..preprocess.find import SHEET, FoundPeople
from ..preprocess.person import BOXES, MASKS
from ..preprocess.tracking import Track
from .inputs import Offered

POSES, REPORT = "pose.json", "report.json"
OBJECT_MASKS, DEPTH_PICTURES = "objects.mkv", "depth.mkv"


@dataclass(frozen=True)
class PreparedPerson:
    """Somebody chosen: the number on the contact sheet (None for the one inside masks that were given), the poses
    with nobody else in them, the folder with the masks, what to report of them, and further files."""

    number: int | None
    poses: Poses
    folder: Path
    counts: dict[str, int] = field(default_factory=dict)
    extras: tuple[Path, ...] = ()

    @property
    def masks(self) -> Reopened:
        """Fine masks uint8 [H, W] of every frame."""
        return self.region(exact=True)

    def offered(self, name: str) -> Reopened | None:
        """Pictures uint8 [H, W] of every frame, from a further file of the folder; None where there is none."""
        file = self.folder / name
        return Reopened(partial(read_gray, file), len(self.poses)) if file.is_file() else None

    def region(self, exact: bool) -> Reopened:
        """The masks, or coarse ones, uint8 [H, W] of every frame."""
        return Reopened(partial(read_gray, self.folder / (MASKS if exact else BOXES)), len(self.poses))


@dataclass(frozen=True)
class Prepared:
    """What a prepared folder holds. people: (coarse mask, pose) files of every person, in their order; offered:
    what else there is of each; cuts: the first frame of every shot but the first."""

    video: Path
    people: list[tuple[Path, Path]]
    offered: list[Offered]
    cuts: tuple[int, ...]


def person_folder(place: int) -> str:
    """Where the files of the person at `place`, from 0, lie in a prepared folder."""
    return f"person_{place + 1}" if place else "."


def read_prepared(folder: Path) -> Prepared:
    """Raises UserError where `folder` is not what `preprocess` wrote."""
    if not (folder / REPORT).is_file():
        raise UserError(f"{folder} has no {REPORT}; give the folder that 'anycharv preprocess --out' wrote.")
    report = read_json(folder / REPORT)
    try:
        places = [folder / person["folder"] for person in report["chosen"]]
        video = Path(report["clip"])
        cuts = tuple(int(cut) for cut in report["cuts"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{folder / REPORT} is not from 'anycharv preprocess'; prepare the video.") from error
    return Prepared(video, [(place / BOXES, place / POSES) for place in places], list(map(_offered, places)), cuts)


def _offered(place: Path) -> Offered:
    files = (place / name for name in (MASKS, OBJECT_MASKS, DEPTH_PICTURES))
    return Offered(*(file if file.is_file() else None for file in files))


def write_prepared(
    out: Path,
    inputs: Iterable[Path],
    video: str,
    found: FoundPeople,
    people: Sequence[PreparedPerson],
    **more: Any,
) -> dict[str, Any]:
    """Writes what was prepared of a video and returns the report. more: what to report besides; inputs: files that
    `out` must not hold. Raises UserError where `out` cannot be written or holds anything of others."""
    report = {
        "clip": video,
        "frames": len(found.timestamps),
        "size": list(found.size),
        "rate": found.rate,
        "cuts": found.findings.cuts,
        "people": [_described(number, track) for number, track in enumerate(found.findings.tracks, 1)],
        "chosen": [
            {"number": person.number, "folder": person_folder(place), **person.counts}
            for place, person in enumerate(people)
        ],
        **more,
    }
    with owned_folder(out, inputs) as temporary:
        shutil.copyfile(found.sheet, temporary / SHEET)
        for place, person in enumerate(people):
            folder = temporary / person_folder(place)
            folder.mkdir(exist_ok=True)
            write_poses(folder / POSES, person.poses)
            for file in (person.folder / MASKS, person.folder / BOXES, *person.extras):
                shutil.copyfile(file, folder / file.name)
        (temporary / REPORT).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return report


def _described(number: int, track: Track) -> dict[str, Any]:
    seen = np.flatnonzero(track.present)
    width, height = (track.boxes[seen, 2:] - track.boxes[seen, :2]).mean(axis=0)
    return {
        "number": number,
        "frames": len(seen),
        "first_frame": int(seen[0]),
        "last_frame": int(seen[-1]),
        "mean_size": [round(float(width)), round(float(height))],
    }
