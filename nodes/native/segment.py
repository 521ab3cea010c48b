"""SAM 2 on ComfyUI's types, its weights in ComfyUI's hands."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.model_patcher
import torch
from torch import Tensor, nn

from ...anycharv_core.errors import UserError
from ...anycharv_core.preprocess.cache import weights_key
from ...anycharv_core.preprocess.segment import Segmenter, load_model
from ...anycharv_core.preprocess.shots import find_cuts
from .pictures import frame_boxes, rgb_frames
from .preprocess import frame_progress


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


def segment_people(images: Tensor, boxes: Any, model: str) -> Tensor:
    """MASK [F, H, W] of everybody in the boxes.

    boxes: as `boxes_by_person` takes them; model: folder of a SAM 2 video model.
    Raises UserError where boxes and images do not fit together or the model cannot be used.
    """
    frames = rgb_frames(images, "images")
    count = len(images)
    people = boxes_by_person(boxes, count)
    cuts = find_cuts(frames)
    segmenter = _segmenter(model, weights_key(Path(model)))
    comfy.model_management.load_models_gpu([segmenter.patcher])
    masks = torch.zeros(images.shape[:3])
    told = frame_progress(count * len(people))
    for number, person in enumerate(people):
        for index, mask in enumerate(segmenter.masks(frames, person, cuts)):
            masks[index][torch.from_numpy(mask) > 0] = 1
            told(number * count + index + 1)
    return masks


@lru_cache(maxsize=1)
def _segmenter(model: str, _version: Any) -> ComfySegmenter:
    """The loaded model, kept for the next run."""
    return ComfySegmenter(model)


def boxes_by_person(boxes: Any, count: int) -> list[list[tuple[float, float, float, float] | None]]:
    """For every person one box (x0, y0, x1, y1), or None, for each of `count` frames.

    boxes: for every frame a box, a list of boxes or an empty one. Boxes with one label are one person's; where
    labels are lacking or a frame has one twice, as those of detectors that label everybody "person", the first
    box of every frame is the first person's, and so on.

    Raises UserError for anything else, for another number of frames, and where there is no box at all.
    """
    given = [boxes] if isinstance(boxes, dict) else boxes
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
