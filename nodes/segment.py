"""AnyCharVSegment: boxes of a person -> the exact mask in every frame, by SAM 2."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import folder_paths
from comfy_api.latest import io

from .loader import EMBEDDED
from .types import CATEGORY

MODELS = "sam2"


def segmenter_folders() -> dict[str, Path]:
    """SAM 2 video models, folders with a config.json, under models/sam2."""
    found: dict[str, Path] = {}
    for root in map(Path, folder_paths.get_folder_paths(MODELS)):
        for file in root.glob("*/**/config.json"):
            found.setdefault(file.parent.relative_to(root).as_posix(), file.parent)
    return dict(sorted(found.items()))


class AnyCharVSegment(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        names = [*segmenter_folders(), EMBEDDED]
        return io.Schema(
            node_id="AnyCharVSegment",
            display_name="AnyCharV Segment",
            category=CATEGORY,
            description="Cuts the chosen person out of every frame with SAM 2, which is told the person's box and "
            "bridges frames where the detector missed them. Cuts in the clip are found and respected.",
            search_aliases=["sam2", "segment anything", "video mask", "matting", "rotoscope"],
            inputs=[
                io.Image.Input("images", tooltip="The frames of the clip."),
                io.MultiType.Input(
                    "boxes",
                    [io.BoundingBox, io.BoundingBoxes],
                    tooltip="From AnyCharV Find People: for every frame the boxes of the chosen people, matched "
                    "by their labels; or one box or none for every frame.",
                ),
                io.Combo.Input(
                    "model",
                    options=names,
                    default=names[0],
                    tooltip="A folder of a SAM 2 video model under models/sam2, which 'anycharv download sam2' "
                    "fetches; 'embedded' comes with this pack and knows only puppets.",
                ),
            ],
            outputs=[io.Mask.Output(tooltip="White on the chosen people, black in frames without them.")],
        )

    @classmethod
    def validate_inputs(cls, model: str) -> bool | str:
        if model == EMBEDDED or model in segmenter_folders():
            return True
        return (
            f"models/{MODELS} holds no SAM 2 video model '{model}': run 'anycharv download sam2' and press R, or "
            f"choose '{EMBEDDED}', which knows puppets only."
        )

    @classmethod
    def execute(cls, images, boxes: Any, model: str) -> io.NodeOutput:
        from ..anycharv_core.preprocess.models import segmenter_name
        from .native.segment import segment_people

        folder = EMBEDDED if model == EMBEDDED else str(segmenter_folders()[model])
        return io.NodeOutput(segment_people(images, boxes, segmenter_name(folder)))
