"""AnyCharVFindPeople: who is in the video, and the choice among them."""

from __future__ import annotations

import math
from typing import Any

from comfy_api.latest import io, ui
from torch import Tensor

from ..anycharv_core.errors import UserError
from ..anycharv_core.preprocess.choose import by_box, by_click, by_likeness, by_number, chosen_boxes
from ..anycharv_core.preprocess.contact_sheet import contact_sheet, sheet_frames
from ..anycharv_core.preprocess.find import find_people, in_order
from ..anycharv_core.preprocess.tracking import Track
from .pictures import frame_progress, image_tensor, image_uint8, rgb_frames
from .pose import parsed_poses
from .types import CATEGORY, PoseKeypoint


def _pixels(name: str, tooltip: str, default: int = 0) -> io.Int.Input:
    return io.Int.Input(name, default=default, min=0, max=16384, tooltip=tooltip)


def _frame() -> io.Int.Input:
    return io.Int.Input(
        "frame", default=0, min=0, max=2**31 - 1, tooltip="Number of the frame to look at, counted from 0."
    )


def ways_to_choose() -> list[io.DynamicCombo.Option]:
    return [
        io.DynamicCombo.Option(
            "number",
            [
                io.String.Input(
                    "people",
                    default="1",
                    tooltip="Number on the contact sheet, where 1 is the most prominent; '1,3' chooses several.",
                )
            ],
        ),
        io.DynamicCombo.Option(
            "click",
            [
                _frame(),
                _pixels("x", "Pixels from the left edge to a point on the person."),
                _pixels("y", "Pixels from the top edge to a point on the person."),
            ],
        ),
        io.DynamicCombo.Option(
            "box",
            [
                _frame(),
                _pixels("left", "Left edge of a box around the person, in pixels."),
                _pixels("top", "Top edge of a box around the person, in pixels."),
                _pixels("width", "Width of the box in pixels.", 256),
                _pixels("height", "Height of the box in pixels.", 512),
            ],
        ),
        io.DynamicCombo.Option(
            "likeness",
            [
                io.Image.Input(
                    "picture",
                    tooltip="Picture of the person, dressed as in the video; alpha leaves the background out.",
                )
            ],
        ),
    ]


class AnyCharVFindPeople(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AnyCharVFindPeople",
            display_name="AnyCharV Find People",
            category=CATEGORY,
            description="Follows everybody through the video, also behind others and across cuts, shows them "
            "numbered on a contact sheet, and gives the poses and boxes of those you choose.",
            search_aliases=[
                "person tracking",
                "choose person",
                "select person",
                "multiple people",
                "re-identification",
                "人物跟踪",
                "选择人物",
                "多人",
            ],
            is_output_node=True,
            has_intermediate_output=True,
            inputs=[
                io.Image.Input("images", tooltip="The frames of the video."),
                PoseKeypoint.Input(
                    "keypoints",
                    tooltip="Everybody in every frame, from AnyCharV DWPose, SDPose or another DWPose node.",
                ),
                io.DynamicCombo.Input(
                    "choose",
                    options=ways_to_choose(),
                    tooltip="Say who is meant by a number on the contact sheet, a point on the person, a box "
                    "around them, or a picture of them.",
                ),
            ],
            outputs=[
                PoseKeypoint.Output(
                    display_name="keypoints", tooltip="The chosen people alone, in pixels of the images."
                ),
                io.BoundingBox.Output(
                    display_name="boxes",
                    tooltip="For every frame the boxes of the chosen people in it, labelled with their numbers; "
                    "none where they are absent.",
                ),
                io.Image.Output(display_name="sheet", tooltip="The contact sheet."),
                io.Int.Output(display_name="people", tooltip="How many people the video shows."),
            ],
        )

    @classmethod
    def execute(cls, images: Tensor, keypoints: Any, choose: dict[str, Any]) -> io.NodeOutput:
        frames = rgb_frames(images, "images")
        height, width = images.shape[1:3]
        given = parsed_poses(keypoints)
        if len(given) != len(images):
            raise UserError(
                f"images has {len(images)} frames but keypoints has {len(given)}; find the poses in these same "
                "images."
            )
        findings = find_people(frames, in_order(given.scaled(width, height)), frame_progress(len(images)))
        tracks = findings.tracks
        if not tracks:
            raise UserError(
                "There is nobody in the keypoints: look at the skeletons of AnyCharV DWPose; its "
                "embedded model knows only puppets."
            )
        numbers = chosen(tracks, choose["choose"], choose)
        pictures = {i: image_uint8(images[i : i + 1], "images")[0, ..., :3] for i in sheet_frames(tracks)}
        sheet = contact_sheet(tracks, pictures)
        poses = findings.poses.only(*(tracks[number].people for number in numbers))
        of_each = [(str(number + 1), chosen_boxes(tracks[number])) for number in numbers]
        boxes = [
            [_as_dict(places[frame], label) for label, places in of_each if places[frame] is not None]
            for frame in range(len(images))
        ]
        shown = image_tensor(sheet)
        return io.NodeOutput(
            list(poses.keypoints()), boxes, shown, len(tracks), ui=ui.PreviewImage(shown, cls=cls)
        )


def chosen(tracks: list[Track], way: str, given: dict[str, Any]) -> list[int]:
    """The people meant, as indices of `tracks`; way, given: an option of `ways_to_choose` and its inputs' values.

    Raises UserError where nobody is meant.
    """
    if way == "number":
        return by_number(tracks, given["people"])
    if way == "click":
        return [by_click(tracks, given["frame"], given["x"], given["y"])]
    if way == "box":
        x0, y0 = given["left"], given["top"]
        return [by_box(tracks, given["frame"], (x0, y0, x0 + given["width"], y0 + given["height"]))]
    return [by_likeness(tracks, image_uint8(given["picture"][:1], "picture")[0])[0]]


def _as_dict(box: Any, label: str) -> dict[str, Any]:
    x, y = math.floor(box[0]), math.floor(box[1])
    return {"x": x, "y": y, "width": math.ceil(box[2]) - x, "height": math.ceil(box[3]) - y, "label": label}
