"""People of a video, found, followed and cut out, for the nodes that are given a bare video."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import folder_paths
import numpy as np
from comfy_api.latest import InputImpl, io, ui

from ..anycharv_core.errors import UserError
from ..anycharv_core.foreign import read_picture
from ..anycharv_core.jobs.prepared import REPORT, PreparedPerson, read_prepared, write_prepared
from ..anycharv_core.media.pose import Poses, read_poses
from ..anycharv_core.media.pose_drawing import draw_poses
from ..anycharv_core.media.video_read import VideoInfo
from ..anycharv_core.media.video_write import VideoWriter
from ..anycharv_core.preprocess.cache import content_key, weights_key
from ..anycharv_core.preprocess.choose import by_number, chosen_boxes
from ..anycharv_core.preprocess.find import FoundPeople, Poser, find_in_frames, in_order
from ..anycharv_core.preprocess.person import cached_person
from .dwpose import missing_pose_model, open_poser, pose_model_files, pose_model_names
from .people import chosen, ways_to_choose
from .pictures import frame_progress, image_tensor
from .preview import marked
from .segment import missing_segmenter, open_segmenter, segmenter_folder, segmenter_names
from .types import CATEGORY, PreparedType
from .video import OpenedVideo, new_video, opened, temporary_folder

FOLDER = "anycharv_prepared"  # in ComfyUI's output folder
BIGGEST = "biggest"
NOBODY = (
    "Nobody was found in the video: look whether the pose model knows such people (the embedded one knows only "
    "puppets), or wire poses found by another node into pose."
)


def who_input(optional: bool = True) -> io.DynamicCombo.Input:
    return io.DynamicCombo.Input(
        "who",
        options=[io.DynamicCombo.Option(BIGGEST, []), *ways_to_choose()],
        optional=optional,
        tooltip="Who is meant, where mask or pose is not wired in: the most prominent person, or one chosen by a "
        "number on AnyCharV Find People's contact sheet, a point on them, a box around them, or a picture.",
    )


def first_input() -> io.Int.Input:
    return io.Int.Input(
        "frames",
        default=0,
        min=0,
        max=2**31 - 1,
        optional=True,
        tooltip="Only the first frames of the video, for a trial; 0 takes all.",
    )


def pose_model_input() -> io.Combo.Input:
    names = pose_model_names()
    return io.Combo.Input(
        "pose_model",
        options=names,
        default=names[0],
        optional=True,
        tooltip="Finds people and poses where none are wired in: 'dwpose' is the released pair of files in "
        "models/detection, which 'anycharv download pose' fetches; 'embedded' knows only puppets.",
    )


def model_inputs() -> list[io.Combo.Input]:
    names = segmenter_names()
    return [
        pose_model_input(),
        io.Combo.Input(
            "segmenter",
            options=names,
            default=names[0],
            optional=True,
            tooltip="Cuts people out where no mask is wired in: a folder of a SAM 2 video model under "
            "models/sam2, which 'anycharv download sam2' fetches; 'embedded' knows only puppets.",
        ),
    ]


def prepared_folders() -> list[str]:
    """The names under which AnyCharV Prepare Video has kept something."""
    root = Path(folder_paths.get_output_directory()) / FOLDER
    return sorted(path.parent.name for path in root.glob(f"*/{REPORT}"))


class AnyCharVPrepareVideo(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AnyCharVPrepareVideo",
            display_name="AnyCharV Prepare Video",
            category=CATEGORY,
            description="Finds, follows and cuts out the people of a video, and shows the video with masks and "
            "skeletons over it before anything is generated. What it finds can be kept for later.",
            search_aliases=[
                "preprocess video",
                "mask preview",
                "pose preview",
                "track person",
                "视频预处理",
                "遮罩预览",
            ],
            is_output_node=True,
            has_intermediate_output=True,
            inputs=[
                io.Video.Input("video", tooltip="The driving video; frames are read as they are needed."),
                who_input(optional=False),
                io.Int.Input(
                    "people",
                    default=1,
                    min=1,
                    max=10,
                    tooltip="How many of the most prominent people, where who is 'biggest'.",
                ),
                first_input(),
                *model_inputs(),
                io.String.Input(
                    "save_as",
                    default="",
                    optional=True,
                    tooltip="Keeps masks and poses in this folder of output/anycharv_prepared, for AnyCharV Load "
                    "Prepared and 'anycharv generate --prepared'; empty keeps nothing.",
                ),
            ],
            outputs=[
                PreparedType.Output(
                    display_name="prepared", tooltip="Masks and poses; for AnyCharV Replace Character."
                ),
                io.Video.Output(display_name="preview", tooltip="The video with masks and skeletons over it."),
                io.Image.Output(display_name="sheet", tooltip="Everybody in the video, numbered."),
                io.Int.Output(display_name="people", tooltip="How many people the video shows."),
            ],
        )

    @classmethod
    def validate_inputs(cls, pose_model: str, segmenter: str, who: Any = None) -> bool | str:
        return missing_pose_model(pose_model) or missing_segmenter(segmenter) or True

    @classmethod
    def execute(
        cls,
        video: Any,
        who: dict[str, Any],
        people: int,
        frames: int,
        pose_model: str,
        segmenter: str,
        save_as: str = "",
    ) -> io.NodeOutput:
        target = None if not save_as.strip() else _target(save_as.strip())
        with opened(video, frames) as source:
            found = find(source, pose_model)
            meant = choose(found, who, people if who["who"] == BIGGEST else None)
            made = [cut_out(source, found, index, segmenter) for index in meant]
            if target is not None:
                write_prepared(target, [], source.name, found, made)
            shown = _preview(source, made)
        sheet = image_tensor(np.array(read_picture(found.sheet, "RGB")))
        preview = ui.PreviewVideo([ui.SavedResult(shown.name, "", io.FolderType.temp)])
        count = len(found.findings.tracks)
        return io.NodeOutput(made, InputImpl.VideoFromFile(str(shown)), sheet, count, ui=preview)


class AnyCharVLoadPrepared(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AnyCharVLoadPrepared",
            display_name="AnyCharV Load Prepared",
            category=CATEGORY,
            description="Masks and poses that AnyCharV Prepare Video has kept, so that another character takes "
            "the same person's place without finding them again.",
            search_aliases=["load mask", "load pose", "reuse preprocessing", "加载遮罩", "加载姿态"],
            inputs=[
                io.Combo.Input(
                    "name",
                    options=prepared_folders(),
                    tooltip="A folder in output/anycharv_prepared. Press R after keeping another.",
                )
            ],
            outputs=[PreparedType.Output(display_name="prepared", tooltip="For AnyCharV Replace Character.")],
        )

    @classmethod
    def validate_inputs(cls, name: str) -> bool | str:
        if name in prepared_folders():
            return True
        return (
            f"output/{FOLDER} holds nothing called '{name}': keep something with AnyCharV Prepare Video's "
            "save_as, and press R."
        )

    @classmethod
    def fingerprint_inputs(cls, name: str) -> float:
        return (_target(name) / REPORT).stat().st_mtime

    @classmethod
    def execute(cls, name: str) -> io.NodeOutput:
        kept = read_prepared(_target(name))
        people = [
            PreparedPerson(number, read_poses(pose), mask.parent)
            for number, (mask, pose) in enumerate(kept.people, 1)
        ]
        return io.NodeOutput(people)


def _target(name: str) -> Path:
    """Where something of this name is kept. Raises UserError where it is no plain name."""
    if not re.fullmatch(r"[\w .-]*\w[\w .-]*", name):
        raise UserError(f"'{name}' is no name of a folder: use letters, digits, spaces, dots and dashes.")
    root = Path(folder_paths.get_output_directory()) / FOLDER
    root.mkdir(parents=True, exist_ok=True)
    return root / name


def _preview(video: OpenedVideo, people: Sequence[PreparedPerson]) -> Path:
    """A video in ComfyUI's temp folder with everybody's mask and skeleton over it, of even sides, as browsers want
    them."""
    path = new_video(temporary_folder())
    info = video.info
    width, height = (side - side % 2 or 1 for side in (info.width, info.height))
    with VideoWriter(
        path,
        width,
        height,
        info.timestamps,
        info.time_base,
        info.rate,
        sample_aspect=info.sample_aspect,
        audio_from=video.sound,
    ) as writer:
        streams = [stream for each in people for stream in (each.masks, draw_poses(each.poses))]
        for frame, *layers in zip(video.plain, *streams, strict=True):
            for mask, skeleton in zip(layers[::2], layers[1::2], strict=True):
                frame = marked(frame, mask, skeleton)
            writer.write(frame[:height, :width])
    return path


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


def choose(found: FoundPeople, who: dict[str, Any] | None, count: int | None) -> list[int]:
    """Indices of the people meant, for `count` characters, None = any number. Raises UserError where they are not
    as many."""
    tracks, way = found.findings.tracks, (who or {"who": BIGGEST})["who"]
    if who is None or way == BIGGEST:
        return by_number(tracks, range(1, (count or 1) + 1))
    meant = chosen(tracks, way, who)
    if count is not None and len(meant) != count:
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
    made, counts = cached_person(found, sources, boxes, [None] * len(boxes), masks)
    return PreparedPerson(index + 1, found.findings.poses.only(track.people), made, counts)


def _counted(masks: Iterable[np.ndarray], total: int) -> Iterator[np.ndarray]:
    progress = frame_progress(total)
    for done, mask in enumerate(masks, 1):
        yield mask
        progress(done)
