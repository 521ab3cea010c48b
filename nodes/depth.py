"""AnyCharVStructuredDepth, and the inputs of Animate Anyone 2: what the person holds, and how near they are."""

from __future__ import annotations

from functools import partial

import numpy as np
from comfy_api.latest import io
from torch import Tensor

from ..anycharv_core.errors import UserError
from ..anycharv_core.inference.backend import DEPTH, OBJECTS
from ..anycharv_core.media.canvas import Canvas
from ..anycharv_core.media.depth import place_depth, structured_depth
from ..anycharv_core.media.frames import Reopened, Source
from ..anycharv_core.media.imaging import Size, same_proportions
from .pictures import image_tensor, image_uint8, interruptible, mask_frames, rgb_frames
from .types import CATEGORY

NEAR = ["white", "black"]


def object_inputs() -> list[io.Input]:
    """What a node takes for a model of Animate Anyone 2."""
    return [
        io.Mask.Input(
            OBJECTS,
            optional=True,
            tooltip="For Animate Anyone 2: white on what the person holds or touches, which then stays; one per "
            "frame, or one for all.",
        ),
        io.Image.Input(
            DEPTH,
            optional=True,
            tooltip="For Animate Anyone 2: how near everything is, one grey picture per frame, white near and "
            "black unknown, from a depth node or AnyCharV Structured Depth. What lies along the skeleton is read.",
        ),
    ]


def object_source(mask: Tensor, frames: int, size: Size) -> Source:
    """MASK of objects, for each of so many frames, as `mask_frames` gives it."""
    return Source(OBJECTS, mask_frames(mask, frames, size, OBJECTS), None)


def depth_source(image: Tensor, frames: int, size: Size, near: str = NEAR[0]) -> Source:
    """IMAGE of depth -> uint16 [H, W] for each of so many frames, nearer being larger and 0 unknown, of `size`
    (width, height) where it has its proportions. near: what is near in it.

    Raises UserError where it is no such picture, or of another number of frames.
    """
    image_uint8(image[:1], DEPTH)
    if len(image) != frames:
        raise UserError(f"The video has {frames} frames but {DEPTH} has {len(image)}; give as many of both.")
    shown = image.shape[2], image.shape[1]
    fitted = shown != size and same_proportions(shown, size)

    def level(frame: Tensor) -> np.ndarray:
        if (frame[..., :3].amax(-1) - frame[..., :3].amin(-1)).max() > 0.02:
            raise UserError(f"{DEPTH} is in colours; give grey pictures, in which brightness is how near it is.")
        grey = frame[..., 0].clamp(0, 1)
        levels = ((grey if near == NEAR[0] else 1 - grey) * 65535).round().cpu().numpy().astype(np.uint16)
        return place_depth(levels, Canvas(shown, size, size)) if fitted else levels

    return Source(DEPTH, Reopened(partial(map, level, image), frames), None, deep=True)


class AnyCharVStructuredDepth(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AnyCharVStructuredDepth",
            display_name="AnyCharV Structured Depth",
            category=CATEGORY,
            description="Keeps of a depth picture what lies along the skeleton, in one range for the whole video: "
            "what Animate Anyone 2 reads to tell which limb is in front.",
            search_aliases=["depth anything", "depth map", "animate anyone 2", "深度图", "结构化深度"],
            inputs=[
                io.Image.Input(
                    DEPTH,
                    tooltip="Grey pictures of a depth node, such as Depth Anything V2 or DepthCrafter, one per "
                    "frame of pose.",
                ),
                io.Image.Input("pose", tooltip="Skeletons from AnyCharV Pose Draw."),
                io.Combo.Input(
                    "near",
                    options=NEAR,
                    default=NEAR[0],
                    tooltip="What is near in the depth pictures: white, as with most nodes, or black.",
                ),
            ],
            outputs=[io.Image.Output(tooltip="Grey pictures of pose's size; for AnyCharV Conditioning's depth.")],
        )

    @classmethod
    def execute(cls, depth: Tensor, pose: Tensor, near: str) -> io.NodeOutput:
        skeletons = np.stack(list(rgb_frames(pose, "pose")))
        size = skeletons.shape[2], skeletons.shape[1]
        source = depth_source(depth, len(skeletons), size, near)
        if source.size != size:
            raise UserError(
                f"The depth is {source.size} but the pose is {size} (width, height); give both of one video."
            )
        if not skeletons.any():
            raise UserError("pose shows no skeleton in any frame; wire in AnyCharV Pose Draw's pictures.")
        made = structured_depth(np.stack(list(interruptible(source))), skeletons)
        return io.NodeOutput(image_tensor(np.repeat(made[..., None], 3, axis=-1)))
