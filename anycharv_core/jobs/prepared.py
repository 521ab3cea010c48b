"""The folder that `anycharv preprocess` writes and `anycharv generate --prepared` reads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError
from ..foreign import read_json
from ..preprocess.person import BOXES

POSES, REPORT = "pose.json", "report.json"


@dataclass(frozen=True)
class Prepared:
    """What a prepared folder holds. people: (coarse mask, pose) files of every person, in their order; cuts: the
    first frame of every shot but the first."""

    video: Path
    people: list[tuple[Path, Path]]
    cuts: tuple[int, ...]


def person_folder(place: int) -> str:
    """Where the files of the person at `place`, from 0, lie in a prepared folder."""
    return f"person_{place + 1}" if place else "."


def read_prepared(folder: Path) -> Prepared:
    """Raises UserError where `folder` is not what `preprocess` wrote."""
    report = read_json(folder / REPORT)
    try:
        places = [folder / person["folder"] for person in report["chosen"]]
        video = Path(report["clip"])
        cuts = tuple(int(cut) for cut in report["cuts"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{folder / REPORT} is not from 'anycharv preprocess'; prepare the video.") from error
    return Prepared(video, [(place / BOXES, place / POSES) for place in places], cuts)
