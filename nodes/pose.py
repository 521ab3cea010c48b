"""AnyCharVPoseDraw and AnyCharVPoseRetarget: keypoints in other proportions, and as the pictures the pose guider
was trained on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from comfy_api.latest import io
from torch import Tensor

from ..anycharv_core.errors import UserError
from ..anycharv_core.inference.skeletons import PictureSkeletons, PointSkeletons, Skeletons
from ..anycharv_core.media.frames import Source
from ..anycharv_core.media.pose import Poses, parse_poses, person_in_mask
from ..anycharv_core.media.pose_drawing import draw_poses
from ..anycharv_core.media.video_read import VideoInfo
from ..anycharv_core.preprocess.retarget import rescale, retarget
from .pictures import image_tensor, image_uint8, interruptible, masks_uint8, rgb_frames, same_length
from .types import CATEGORY, PoseKeypoint

PLACES = ["the person's", "the character's", "the character's, stretched"]


class AnyCharVPoseDraw(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AnyCharVPoseDraw",
            display_name="AnyCharV Pose Draw",
            category=CATEGORY,
            description="Draws POSE_KEYPOINT, from DWPose or SDPose, exactly as AnyCharV's training data was "
            "drawn. Frames without hands, face or anybody are fine.",
            search_aliases=[
                "dwpose",
                "openpose",
                "skeleton",
                "draw keypoints",
                "绘制姿态",
                "骨骼图",
            ],
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
    def execute(cls, keypoints: Any, width: int, height: int, person: Tensor | None = None) -> io.NodeOutput:
        poses = parsed_poses(keypoints)
        if person is not None:
            (masks,) = same_length(len(poses), person=masks_uint8(person, "person"))
            poses = poses.only(np.array([person_in_mask(poses, frame, mask) for frame, mask in enumerate(masks)]))
        drawn = interruptible(draw_poses(poses.scaled(width or poses.width, height or poses.height)))
        return io.NodeOutput(torch.cat([image_tensor(picture) for picture in drawn]))


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
            search_aliases=[
                "proportions",
                "body shape",
                "bone length",
                "rescale",
                "pose alignment",
                "姿态对齐",
                "身材比例",
                "骨骼长度",
            ],
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
        poses, shown = parsed_poses(keypoints), parsed_poses(reference)
        character = replace(shown, people=[shown.people[0][:1]])
        if place == PLACES[0]:
            moved = retarget(poses, character)
        else:
            moved = rescale(poses, character, keep_aspect=place == PLACES[1])
        return io.NodeOutput(list(moved.keypoints()))


def parsed_poses(keypoints: Any) -> Poses:
    """POSE_KEYPOINT of one or more frames. Raises UserError where there are none, or see `parse_poses`."""
    if keypoints is None or keypoints in ([], [None]):
        raise UserError("keypoints has no frames; wire in what DWPose or SDPose found.")
    return parse_poses(keypoints, name="keypoints")


def given_poses(pose: Any, info: VideoInfo) -> Skeletons:
    """The skeletons of a video, wired in as keypoints or as pictures. Raises UserError for another number than its
    frames."""
    given = pose if isinstance(pose, Tensor) else parsed_poses(pose)
    if isinstance(given, Tensor):
        image_uint8(given[:1], "pose")
    if len(given) != info.frames:
        raise UserError(f"The video has {info.frames} frames but pose has {len(given)}; give as many of both.")
    if isinstance(given, Tensor):
        return PictureSkeletons(Source("pose", rgb_frames(given, "pose"), 3))
    return PointSkeletons(given)
