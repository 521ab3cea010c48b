"""AnyCharVBoxMask and AnyCharVMaskAugment: the coarse and the fine mask of the paper (section 3.2)."""

from __future__ import annotations

from typing import Any

import numpy as np
from comfy_api.latest import io
from torch import Tensor

from ..anycharv_core.media.masks import augment_mask, block_masks, box_masks, fill_absent, grow_boxes
from .pictures import interruptible, mask_tensor, masks_uint8, region_masks
from .types import CATEGORY

ABSENT = ["keep the frame", "hold the last box", "whole frame"]
KINDS = ["irregular border", "blocks"]


class AnyCharVBoxMask(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AnyCharVBoxMask",
            display_name="AnyCharV Box Mask",
            category=CATEGORY,
            description="Turns a tracker's mask or bounding boxes into the coarse box mask AnyCharV expects: "
            "the box hides the old outline, so that the new character can have another shape.",
            search_aliases=[
                "bounding box mask",
                "coarse mask",
                "grow mask",
                "方框遮罩",
                "边界框",
                "扩展遮罩",
            ],
            inputs=[
                io.MultiType.Input(
                    "region",
                    [io.Mask, io.BoundingBox, io.BoundingBoxes],
                    tooltip="MASK of the person, white on the person, per frame; or one box, a list of boxes "
                    "(one per frame) or a list of lists (the first of each frame is taken).",
                ),
                io.Image.Input(
                    "image",
                    optional=True,
                    tooltip="The frames the boxes belong to; gives their size. Needed for boxes only.",
                ),
                io.Float.Input(
                    "padding",
                    default=0.1,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Margin on each side, as a share of the box's width or height.",
                ),
                io.Int.Input(
                    "smooth",
                    default=2,
                    min=0,
                    max=60,
                    tooltip="Frames on either side over which the box is steadied. It never loses a pixel of "
                    "its own frame's mask. 0 for videos with cuts.",
                ),
                io.Int.Input(
                    "min_size",
                    default=0,
                    min=0,
                    max=4096,
                    advanced=True,
                    tooltip="Smallest width and height of a box in pixels; smaller ones grow around their middle.",
                ),
                io.Combo.Input(
                    "if_absent",
                    options=ABSENT,
                    default=ABSENT[0],
                    tooltip="What frames without the person get: nothing to replace, the nearest earlier box "
                    "(or the first later one), or the whole frame.",
                ),
            ],
            outputs=[io.Mask.Output()],
        )

    @classmethod
    def execute(
        cls, region: Any, padding: float, smooth: int, min_size: int, if_absent: str, image: Tensor | None = None
    ) -> io.NodeOutput:
        masks = box_masks(region_masks(region, image), padding, smooth)
        masks = grow_boxes(masks, min_size)
        if if_absent != ABSENT[0]:
            masks = fill_absent(masks, hold=if_absent == ABSENT[1])
        return io.NodeOutput(mask_tensor(masks))


class AnyCharVMaskAugment(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AnyCharVMaskAugment",
            display_name="AnyCharV Mask Augment",
            category=CATEGORY,
            description="Gives a fine mask the irregular border of the first training stage, or makes it of "
            "blocks, so that its outline does not betray the old character.",
            search_aliases=[
                "shape-agnostic mask",
                "block mask",
                "dilate mask",
                "遮罩增强",
                "块状遮罩",
                "膨胀遮罩",
            ],
            inputs=[
                io.Mask.Input("mask", tooltip="Fine mask, white on the person, one per frame."),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=4.0,
                    step=0.05,
                    tooltip="Irregular border: factor on how far it reaches out; 0 leaves the mask as it is.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=False,
                    tooltip="Irregular border: the same seed gives the same border.",
                ),
                io.Combo.Input(
                    "kind",
                    options=KINDS,
                    default=KINDS[0],
                    optional=True,
                    tooltip="An irregular border around the outline, as AnyCharV was trained with, or the blocks "
                    "of the person's box that the mask touches, as in Animate Anyone 2.",
                ),
                io.Int.Input(
                    "blocks",
                    default=10,
                    min=1,
                    max=128,
                    optional=True,
                    tooltip="Blocks: how many along the box's width, and as many along its height.",
                ),
                io.Int.Input(
                    "rows",
                    default=0,
                    min=0,
                    max=128,
                    optional=True,
                    tooltip="Blocks: how many along the box's height; 0 takes as many as along its width.",
                ),
            ],
            outputs=[io.Mask.Output()],
        )

    @classmethod
    def execute(
        cls, mask: Tensor, strength: float, seed: int, kind: str = KINDS[0], blocks: int = 10, rows: int = 0
    ) -> io.NodeOutput:
        if kind == KINDS[1]:
            return io.NodeOutput(mask_tensor(block_masks(masks_uint8(mask, "mask"), rows or blocks, blocks)))
        rng = np.random.default_rng(seed)
        masks = interruptible(masks_uint8(mask, "mask"))
        return io.NodeOutput(mask_tensor([augment_mask(each, rng, strength) for each in masks]))
