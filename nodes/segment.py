"""AnyCharVSegment: boxes of a person -> the exact mask in every frame, by SAM 2 in ComfyUI's memory management."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.model_patcher
import folder_paths
import torch
from comfy_api.latest import io
from torch import Tensor, nn

from ..anycharv_core.errors import UserError
from ..anycharv_core.preprocess.models import EMBEDDED, segmenter_name
from ..anycharv_core.preprocess.sam2 import load_model
from ..anycharv_core.preprocess.segment import LONGEST_GAP, Segmenter
from ..anycharv_core.preprocess.shots import find_cuts
from .pictures import frame_boxes, frame_progress, rgb_frames
from .types import CATEGORY, fetching

MODELS = "sam2"
RELEASED = "sam2-hiera-large"  # as 'anycharv download sam2' names it


def segmenter_folders() -> dict[str, Path]:
    """SAM 2 video models, folders with a config.json, under models/sam2."""
    found: dict[str, Path] = {}
    for root in map(Path, folder_paths.get_folder_paths(MODELS)):
        for file in root.glob("*/**/config.json"):
            found.setdefault(file.parent.relative_to(root).as_posix(), file.parent)
    return dict(sorted(found.items()))


def segmenter_names() -> list[str]:
    """What a node offers: the one that can be fetched comes first even where it is missing, so that nobody gets
    the embedded one without having chosen it."""
    return [*(segmenter_folders() or [RELEASED]), EMBEDDED]


def missing_segmenter(model: str) -> str | None:
    """What to do where there is no `model`, or None where there is."""
    if model == EMBEDDED or model in segmenter_folders():
        return None
    return (
        f"models/{MODELS} holds no SAM 2 video model '{model}': {fetching('sam2')} and press R, or choose "
        f"'{EMBEDDED}', which knows puppets only."
    )


def segmenter_folder(model: str) -> str:
    """Where it lies. Raises UserError where it is missing."""
    if missing := missing_segmenter(model):
        raise UserError(missing)
    return segmenter_name(EMBEDDED if model == EMBEDDED else str(segmenter_folders()[model]))


def open_segmenter(folder: str) -> ComfySegmenter:
    """On the device where it works."""
    segmenter = ComfySegmenter(folder)
    comfy.model_management.load_models_gpu([segmenter.patcher])
    return segmenter


class AnyCharVSegment(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        names = segmenter_names()
        return io.Schema(
            node_id="AnyCharVSegment",
            display_name="AnyCharV Segment",
            category=CATEGORY,
            description="Cuts the chosen person out of every frame with SAM 2, which is given the person's box "
            "and bridges frames where the detector missed them. Cuts in the video are found and respected.",
            search_aliases=[
                "sam2",
                "segment anything",
                "video mask",
                "matting",
                "rotoscope",
                "视频分割",
                "抠像",
                "人物遮罩",
            ],
            inputs=[
                io.Image.Input("images", tooltip="The frames of the video."),
                io.MultiType.Input(
                    "boxes",
                    [io.BoundingBox, io.BoundingBoxes],
                    tooltip="From AnyCharV Find People: for every frame the boxes of the chosen people, matched "
                    "by their labels; or one box or none for every frame. What is in a single box, of the first "
                    "frame, is followed to the first cut.",
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
        return missing_segmenter(model) or True

    @classmethod
    def execute(cls, images: Tensor, boxes: Any, model: str) -> io.NodeOutput:
        folder = segmenter_folder(model)
        frames = rgb_frames(images, "images")
        people = boxes_by_person(boxes, len(images))
        gap = len(images) if isinstance(boxes, dict) else LONGEST_GAP
        cuts = find_cuts(frames)
        segmenter = open_segmenter(folder)
        masks = torch.zeros(images.shape[:3])
        progress = frame_progress(len(images) * len(people))
        for number, person in enumerate(people):
            for index, mask in enumerate(segmenter.masks(frames, person, cuts, gap)):
                masks[index][torch.from_numpy(mask) > 0] = 1
                progress(number * len(images) + index + 1)
        return io.NodeOutput(masks)


class _Held(nn.Module):
    """A transformers model as ComfyUI's patcher takes it: the patcher sets `device`, which there is read-only."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network


class ComfySegmenter(Segmenter):
    """A segmenter that is on the GPU while it works, and leaves it when others need the room."""

    def __init__(self, model: str):
        device = comfy.model_management.get_torch_device()
        super().__init__(model, str(device))
        self.patcher = comfy.model_patcher.CoreModelPatcher(
            _Held(load_model(model).to(self.dtype)),
            load_device=device,
            offload_device=comfy.model_management.unet_offload_device(),
        )

    @property
    def _model(self) -> Any:
        return self.patcher.model.network


def boxes_by_person(boxes: Any, count: int) -> list[list[tuple[float, float, float, float] | None]]:
    """For every person one box (x0, y0, x1, y1), or None, for each of `count` frames.

    boxes: for every frame a box, a list of boxes or an empty one; or one box, which is the first frame's. Boxes
    with one label are one person's; where labels are lacking or a frame has one twice, as those of detectors that
    label everybody "person", the first box of every frame is the first person's, and so on.

    Raises UserError for anything else, for another number of frames, and where there is no box at all.
    """
    given = [boxes, *[[]] * (count - 1)] if isinstance(boxes, dict) else boxes
    if not isinstance(given, list) or len(given) != count:
        found = f"boxes has {len(given)}" if isinstance(given, list) else f"boxes is {type(given).__name__}"
        raise UserError(
            f"images has {count} frames but {found}; wire in boxes for every frame, as AnyCharV Find People gives."
        )
    frames = [entry if isinstance(entry, list) else [entry] if entry else [] for entry in given]
    names = [[_label(box, place) for place, box in enumerate(frame)] for frame in frames]
    if any(len(set(row)) < len(row) for row in names):
        names = [list(range(len(row))) for row in names]
    people = list(dict.fromkeys(name for row in names for name in row))
    if not people:
        raise UserError("boxes holds no box in any frame; choose somebody who is in these frames.")
    lists = [
        [[b for b, n in zip(*both, strict=True) if n == name] for both in zip(frames, names, strict=True)]
        for name in people
    ]
    return [frame_boxes(person, count) for person in lists]


def _label(box: Any, place: int) -> Any:
    return box.get("label", place) if isinstance(box, dict) else place
