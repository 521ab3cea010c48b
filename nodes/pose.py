"""AnyCharVPoseDraw: keypoints -> the skeleton pictures the pose guider was trained on."""

from __future__ import annotations

from comfy_api.latest import io

from .types import CATEGORY, PoseKeypoint


class AnyCharVPoseDraw(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AnyCharVPoseDraw",
            display_name="AnyCharV Pose Draw",
            category=CATEGORY,
            description="Draws POSE_KEYPOINT, from DWPose or SDPose, exactly as AnyCharV's training data was "
            "drawn. Frames without hands, face or anybody are fine.",
            search_aliases=["dwpose", "openpose", "skeleton"],
            inputs=[
                PoseKeypoint.Input("keypoints", tooltip="One entry per frame, in pixels of its canvas."),
                io.Mask.Input(
                    "person",
                    optional=True,
                    tooltip="Mask of the person to keep, one per frame or one for all: of several people, the "
                    "one with most joints inside is drawn. Without it everybody is.",
                ),
                io.Int.Input(
                    "width",
                    default=0,
                    min=0,
                    max=16384,
                    step=8,
                    tooltip="Width of the pictures in pixels; 0 keeps the canvas of the keypoints.",
                ),
                io.Int.Input(
                    "height",
                    default=0,
                    min=0,
                    max=16384,
                    step=8,
                    tooltip="Height of the pictures in pixels; 0 keeps the canvas of the keypoints.",
                ),
            ],
            outputs=[io.Image.Output()],
        )

    @classmethod
    def execute(cls, keypoints, width: int, height: int, person=None) -> io.NodeOutput:
        import torch

        from .native.pictures import image_tensor
        from .native.poses import drawn_poses

        return io.NodeOutput(torch.cat([image_tensor(p) for p in drawn_poses(keypoints, person, width, height)]))
