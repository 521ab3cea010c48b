"""AnyCharVPoseRetarget: the person's motion in the character's proportions, and size and place if wanted."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from .types import CATEGORY, PoseKeypoint

PLACES = ["the person's", "the character's", "the character's, stretched"]


class AnyCharVPoseRetarget(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AnyCharVPoseRetarget",
            display_name="AnyCharV Pose Retarget",
            category=CATEGORY,
            description="Gives a person's skeletons the proportions of the character: the same motion, height and "
            "footing, with the character's limbs, shoulders and head. For Animate Anyone it can also bring them "
            "to where the character stands.",
            search_aliases=["proportions", "body shape", "bone length", "rescale"],
            inputs=[
                PoseKeypoint.Input("keypoints", tooltip="One person, from AnyCharV Find People."),
                PoseKeypoint.Input(
                    "reference",
                    tooltip="Keypoints of the character's picture, from AnyCharV DWPose; of several frames and "
                    "people the first is taken.",
                ),
                io.Combo.Input(
                    "place",
                    options=PLACES,
                    default=PLACES[0],
                    optional=True,
                    tooltip="Whose height and place in the picture the skeletons get: the person's, who is "
                    "replaced in a scene, or the character's, who moves in the reference picture by Animate "
                    "Anyone. 'stretched' is for the recipe 'official', which stretches that picture.",
                ),
            ],
            outputs=[PoseKeypoint.Output(display_name="keypoints", tooltip="As many frames, retargeted.")],
        )

    @classmethod
    def execute(cls, keypoints: Any, reference: Any, place: str = PLACES[0]) -> io.NodeOutput:
        from .native.preprocess import retarget_poses

        moved = None if place == PLACES[0] else place == PLACES[1]
        return io.NodeOutput(retarget_poses(keypoints, reference, moved))
