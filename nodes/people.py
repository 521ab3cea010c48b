"""AnyCharVFindPeople: who is in the clip, and which of them is meant."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io, ui

from .types import CATEGORY, PoseKeypoint


def _pixels(name: str, tooltip: str, default: int = 0) -> io.Int.Input:
    return io.Int.Input(name, default=default, min=0, max=16384, tooltip=tooltip)


def _frame() -> io.Int.Input:
    return io.Int.Input(
        "frame", default=0, min=0, max=2**31 - 1, tooltip="Number of the frame to look at, counted from 0."
    )


def _ways() -> list[io.DynamicCombo.Option]:
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
                    tooltip="Picture of the person, dressed as in the clip; alpha leaves the background out.",
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
            description="Follows everybody through the clip, also behind others and across cuts, shows them "
            "numbered on a contact sheet, and gives the poses and boxes of those you choose.",
            search_aliases=["person tracking", "choose person", "select person", "re-identification"],
            is_output_node=True,
            inputs=[
                io.Image.Input("images", tooltip="The frames of the clip."),
                PoseKeypoint.Input(
                    "keypoints",
                    tooltip="Everybody in every frame, from AnyCharV DWPose, SDPose or another DWPose node.",
                ),
                io.DynamicCombo.Input(
                    "choose",
                    options=_ways(),
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
                io.Int.Output(display_name="people", tooltip="How many people the clip shows."),
            ],
        )

    @classmethod
    def execute(cls, images, keypoints: Any, choose: dict[str, Any]) -> io.NodeOutput:
        from .native.preprocess import choose_people

        poses, boxes, sheet, count = choose_people(images, keypoints, choose)
        return io.NodeOutput(poses, boxes, sheet, count, ui=ui.PreviewImage(sheet, cls=cls))
