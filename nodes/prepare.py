"""People of a video, found, followed and cut out, for the nodes that are given a bare video."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from comfy_api.latest import io

from ..anycharv_core.errors import UserError
from ..anycharv_core.media.frames import Reopened
from ..anycharv_core.media.pose import Poses
from ..anycharv_core.media.video_read import VideoInfo, read_gray
from ..anycharv_core.preprocess.cache import content_key, weights_key
from ..anycharv_core.preprocess.choose import by_number, chosen_boxes
from ..anycharv_core.preprocess.find import FoundPeople, Poser, find_in_frames, in_order
from ..anycharv_core.preprocess.person import BOXES, MASKS, cached_person
from .dwpose import open_poser, pose_model_files, pose_model_names
from .people import chosen, ways_to_choose
from .pictures import frame_progress
from .segment import open_segmenter, segmenter_folder, segmenter_names
from .video import OpenedVideo

BIGGEST = "biggest"
NOBODY = (
    "Nobody was found in the video: look whether the pose model knows such people (the embedded one knows only "
    "puppets), or wire poses found by another node into pose."
)


def who_input() -> io.DynamicCombo.Input:
    return io.DynamicCombo.Input(
        "who",
        options=[io.DynamicCombo.Option(BIGGEST, []), *ways_to_choose()],
        optional=True,
        tooltip="Who is meant, where mask or pose is not wired in: the most prominent person, or one chosen by a "
        "number on AnyCharV Find People's contact sheet, a point on them, a box around them, or a picture.",
    )


def model_inputs() -> list[io.Combo.Input]:
    pose, segment = pose_model_names(), segmenter_names()
    return [
        io.Combo.Input(
            "pose_model",
            options=pose,
            default=pose[0],
            optional=True,
            tooltip="Finds people and poses where none are wired in: 'dwpose' is the released pair of files in "
            "models/detection, which 'anycharv download pose' fetches; 'embedded' knows only puppets.",
        ),
        io.Combo.Input(
            "segmenter",
            options=segment,
            default=segment[0],
            optional=True,
            tooltip="Cuts people out where no mask is wired in: a folder of a SAM 2 video model under "
            "models/sam2, which 'anycharv download sam2' fetches; 'embedded' knows only puppets.",
        ),
    ]


@dataclass(frozen=True)
class PreparedPerson:
    """Somebody of a video: the number on its contact sheet, the poses with nobody else in them, and the folder of
    the masks."""

    number: int
    poses: Poses
    folder: Path

    @property
    def boxes(self) -> Reopened:
        """Coarse masks uint8 [H, W] of every frame."""
        return Reopened(partial(read_gray, self.folder / BOXES), len(self.poses))

    @property
    def masks(self) -> Reopened:
        """Fine masks uint8 [H, W] of every frame."""
        return Reopened(partial(read_gray, self.folder / MASKS), len(self.poses))


def find(video: OpenedVideo, pose_model: str, given: Poses | None = None) -> FoundPeople:
    """Everybody in the video, from the cache or found now. given: poses in place of the model's.

    Raises UserError where the model is missing, or nobody is seen.
    """
    progress = frame_progress(video.info.frames)
    if given is None:
        files = pose_model_files(pose_model)
        key = content_key(*video.content, *map(weights_key, files))
    else:
        key = content_key(*video.content, *(people.tobytes() for people in given.people))

    def poser(info: VideoInfo) -> Poser:
        return open_poser(files) if given is None else in_order(given.scaled(info.width, info.height))

    return find_in_frames(key, video.plain, lambda: video.info, poser, NOBODY, lambda done, total: progress(done))


def choose(found: FoundPeople, who: dict[str, Any] | None, count: int) -> list[int]:
    """Indices of the people meant, for `count` characters. Raises UserError where they are not as many."""
    tracks, way = found.findings.tracks, (who or {"who": BIGGEST})["who"]
    if who is None or way == BIGGEST:
        return by_number(tracks, range(1, count + 1))
    meant = chosen(tracks, way, who)
    if len(meant) != count:
        raise UserError(
            f"who chooses {len(meant)} of the people but there are pictures of {count} characters: choose as many "
            "by number, such as '1,2', or wire in as many pictures."
        )
    return meant


def cut_out(video: OpenedVideo, found: FoundPeople, index: int, segmenter: str) -> PreparedPerson:
    """One of those found, whose masks come from the cache or are made now. Raises UserError where the model is
    missing."""
    track = found.findings.tracks[index]
    boxes = chosen_boxes(track)
    folder = segmenter_folder(segmenter)

    def masks() -> Iterable[np.ndarray]:
        made = open_segmenter(folder).masks(video.plain, boxes, found.findings.cuts)
        return _counted(made, video.info.frames)

    # As the command line's key, so that neither does what the other has done.
    sources = *weights_key(Path(folder)), folder
    made, _ = cached_person(found, sources, boxes, [None] * len(boxes), masks)
    return PreparedPerson(index + 1, found.findings.poses.only(track.people), made)


def _counted(masks: Iterable[np.ndarray], total: int) -> Iterator[np.ndarray]:
    progress = frame_progress(total)
    for done, mask in enumerate(masks, 1):
        yield mask
        progress(done)
