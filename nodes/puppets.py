"""AnyCharVPuppetClip: an example to try everything on, with exact truth and without any file."""

from __future__ import annotations

from comfy_api.latest import io

from .types import CATEGORY, PoseKeypoint

TASKS = ["swap", "animation"]


class AnyCharVPuppetClip(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AnyCharVPuppetClip",
            display_name="AnyCharV Puppet Clip",
            category=CATEGORY,
            description="Renders a clip of a puppet, its mask and keypoints, the picture of another puppet, "
            "and the truth: the same clip with the other puppet in it. The embedded models know this world.",
            search_aliases=["example", "test clip"],
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
                    options=TASKS,
                    default=TASKS[0],
                    optional=True,
                    tooltip="'swap' is for AnyCharV. 'animation' is for Animate Anyone: the reference shows the "
                    "clip's own puppet standing in its scene, and the clip is the truth.",
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
            ],
        )

    @classmethod
    def execute(cls, seed: int, frames: int, size: int, task: str = TASKS[0]) -> io.NodeOutput:
        from .native.puppets import puppet_clip

        return io.NodeOutput(*puppet_clip(seed, frames, size, animation=task == TASKS[1]))
