"""AnyCharVReferenceEncode: the character's picture and what reads it -> ANYCHARV_REFERENCE."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from comfy_api.latest import io
from torch import Tensor

from .pictures import image_uint8, reference_mask_uint8
from .types import CATEGORY, ReferenceNetType, ReferenceType


@dataclass(frozen=True)
class Reference:
    """ANYCHARV_REFERENCE: the picture uint8 [H, W, 3 or 4] and its mask uint8 [H, W] or None, as they were given,
    and what reads them once model, recipe and size of the video are known: the ReferenceNet's patcher, VAE and
    CLIP_VISION, or None where the model has none."""

    picture: np.ndarray
    mask: np.ndarray | None
    net: Any
    vae: Any
    clip_vision: Any


class AnyCharVReferenceEncode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AnyCharVReferenceEncode",
            display_name="AnyCharV Reference Encode",
            category=CATEGORY,
            description="Takes the picture of the character that is to appear in the video, and the networks that "
            "read it once AnyCharV Conditioning knows how.",
            search_aliases=["reference image", "ip adapter", "character picture", "参考图", "角色图片"],
            inputs=[
                ReferenceNetType.Input("reference_net", tooltip="From AnyCharV Loader."),
                io.Vae.Input("vae", tooltip="The VAE the model works with (SD1.5's for official weights)."),
                io.Image.Input(
                    "image",
                    tooltip="One picture of the character, best whole-body. Of a batch, the first is taken; "
                    "an alpha channel removes its background. Animate Anyone keeps the background it has.",
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="White on the character: the rest is made black, as in training. Takes the place "
                    "of an alpha channel. LoadImage's MASK output is the wrong way round: invert it.",
                ),
                io.ClipVision.Input(
                    "clip_vision",
                    optional=True,
                    tooltip="The image encoder the model was trained with; AnimateAnywhere has none.",
                ),
            ],
            outputs=[ReferenceType.Output(display_name="REFERENCE")],
        )

    @classmethod
    def execute(
        cls,
        reference_net: Any,
        vae: Any,
        image: Tensor,
        mask: Tensor | None = None,
        clip_vision: Any = None,
    ) -> io.NodeOutput:
        picture = image_uint8(image[:1], "image")[0]
        alpha = reference_mask_uint8(mask, picture, "mask")
        return io.NodeOutput(Reference(picture, alpha, reference_net, vae, clip_vision))
