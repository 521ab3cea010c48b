"""AnyCharVPuppetClip: an example to try everything on, with exact truth and without any file."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import numpy as np
import torch
from comfy_api.latest import InputImpl, Types, io

from ..anycharv_core.puppets.interaction import Interaction, sample_interaction
from ..anycharv_core.puppets.task import (
    Animation,
    Swap,
    sample_animation,
    sample_bold_animation,
    sample_bold_swap,
    sample_swap,
)
from ..anycharv_core.puppets.travel import Travel, sample_travel
from .pictures import image_tensor, mask_tensor
from .types import CATEGORY, PoseKeypoint

RATE = Fraction(24)
TASKS: dict[str, Callable[[int, int, int], Animation | Swap | Travel]] = {
    "swap": sample_swap,
    "animation": sample_animation,
    "bold swap": sample_bold_swap,
    "bold animation": sample_bold_animation,
    "interaction": sample_interaction,
    "travel": sample_travel,
}
USUAL = "swap"


class AnyCharVPuppetClip(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AnyCharVPuppetClip",
            display_name="AnyCharV Puppet Clip",
            category=CATEGORY,
            description="Renders a video of a puppet, its mask and keypoints, the picture of another puppet, "
            "and the truth: the same video with the other puppet in it. The embedded models know this world.",
            search_aliases=[
                "example",
                "test clip",
                "demo video",
                "示例",
                "测试视频",
            ],
            inputs=[
                io.Int.Input(
                    "seed",
                    default=3,
                    min=0,
                    max=2**31 - 1,
                    control_after_generate=False,
                    tooltip="Characters, motion and scene, none of which was in training.",
                ),
                io.Int.Input("frames", default=24, min=1, max=1024, tooltip="Frames at 24 a second."),
                io.Int.Input("size", default=256, min=64, max=1024, step=8, tooltip="Width and height in pixels."),
                io.Combo.Input(
                    "task",
                    options=list(TASKS),
                    default=USUAL,
                    optional=True,
                    tooltip="'swap' is for AnyCharV; in a 'bold swap' the puppets are bolder, and small, "
                    "so that a canvas follows them. 'animation' and 'bold animation' are for Animate Anyone: the "
                    "reference shows the video's own puppet standing in its scene, and the video is the truth. "
                    "'interaction' is for Animate Anyone 2: the puppet sits, leans, carries or holds something. "
                    "'travel' is for AnimateAnywhere: the reference shows the video's own puppet, which moves "
                    "through the place of the background; the camera goes as its motion implies, and the video "
                    "is the truth.",
                ),
            ],
            outputs=[
                io.Video.Output(display_name="video"),
                io.Image.Output(display_name="frames"),
                io.Mask.Output(display_name="mask"),
                PoseKeypoint.Output(display_name="keypoints"),
                io.Image.Output(display_name="reference"),
                io.Mask.Output(display_name="reference_mask"),
                io.Image.Output(display_name="truth"),
                io.Mask.Output(display_name="objects", tooltip="What the puppet holds, of an 'interaction'."),
                io.Image.Output(
                    display_name="depth", tooltip="How near it is, of an 'interaction'; white is near."
                ),
                io.Image.Output(
                    display_name="background",
                    tooltip="Where a 'travel' begins, with nobody there; for AnyCharV Conditioning.",
                ),
            ],
        )

    @classmethod
    def execute(cls, seed: int, frames: int, size: int, task: str = USUAL) -> io.NodeOutput:
        sample = TASKS[task](seed, frames, size)
        shown = sample.driving if isinstance(sample, Swap) else sample.truth
        cutout = sample.cutout if isinstance(sample, Animation) else sample.reference[..., 3]
        place = sample.background if isinstance(sample, Travel) else np.zeros_like(shown.frames[0])
        nothing = np.zeros_like(shown.mask)
        body, held, near = shown.mask, nothing, nothing
        if isinstance(sample, Interaction):
            body, held, near = sample.mask, sample.objects, sample.depth
        pictures = image_tensor(shown.frames)
        return io.NodeOutput(
            InputImpl.VideoFromComponents(Types.VideoComponents(images=pictures, frame_rate=RATE)),
            pictures,
            mask_tensor(body),
            list(sample.poses().keypoints()),
            image_tensor(sample.reference[..., :3]),
            mask_tensor([cutout]),
            image_tensor(sample.truth.frames),
            mask_tensor(held),
            (torch.from_numpy(near.astype(np.float32))[..., None] / 65535).expand(-1, -1, -1, 3),
            image_tensor(place),
        )
