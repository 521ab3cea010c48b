"""AnyCharVPoseRetarget: the person's motion in the character's proportions."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from .types import CATEGORY, PoseKeypoint


class AnyCharVPoseRetarget(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AnyCharVPoseRetarget",
            display_name="AnyCharV Pose Retarget",
            category=CATEGORY,
            description="Gives a person's skeletons the proportions of the character: the same motion, height and "
            "footing, with the character's limbs, shoulders and head.",
            search_aliases=["proportions", "body shape", "bone length"],
            inputs=[
                PoseKeypoint.Input("keypoints", tooltip="One person, from AnyCharV Find People."),
                PoseKeypoint.Input(
                    "reference",
                    tooltip="Keypoints of the character's picture, from AnyCharV DWPose; of several frames and "
                    "people the first is taken.",
                ),
            ],
            outputs=[PoseKeypoint.Output(display_name="keypoints", tooltip="As many frames, retargeted.")],
        )

    @classmethod
    def execute(cls, keypoints: Any, reference: Any) -> io.NodeOutput:
        from .native.preprocess import retarget_poses

        return io.NodeOutput(retarget_poses(keypoints, reference))
