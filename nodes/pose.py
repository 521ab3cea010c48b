"""AnyCharVPoseDraw and AnyCharVPoseRetarget: keypoints in other proportions, and as the pictures the pose guider
was trained on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from comfy_api.latest import io
from torch import Tensor

from ..anycharv_core.errors import UserError
from ..anycharv_core.media.pose import clean_pose, draw_pose, only_person, scale_pose
from ..anycharv_core.preprocess.rescale import rescale
from ..anycharv_core.preprocess.retarget import retarget
from .pictures import image_tensor, masks_uint8, same_length
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

        return io.NodeOutput(torch.cat([image_tensor(p) for p in drawn_poses(keypoints, person, width, height)]))


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
        first = clean_pose(pose_frames(reference)[0])
        character, poses = {**first, "people": first["people"][:1]}, pose_frames(keypoints)
        if place == PLACES[0]:
            return io.NodeOutput(retarget(poses, character))
        return io.NodeOutput(rescale(poses, character, keep_aspect=place == PLACES[1]))


def drawn_poses(keypoints: Any, person: Tensor | None, width: int, height: int) -> Iterator[np.ndarray]:
    """Skeletons uint8 [H, W, 3], one per frame of POSE_KEYPOINT.

    person: MASK of whom to draw, or None for everybody; width, height: of the pictures, 0 = the canvas's.
    Raises UserError where keypoints or mask are not what they should be.
    """
    frames = pose_frames(keypoints)
    masks: Any = [None] * len(frames)
    if person is not None:
        (masks,) = same_length(len(frames), person=masks_uint8(person, "person"))
    for frame, mask in zip(frames, masks, strict=True):
        pose = clean_pose(frame)
        if mask is not None:
            pose = only_person(pose, mask)
        yield draw_pose(scale_pose(pose, width or pose["canvas_width"], height or pose["canvas_height"]))


def pose_frames(keypoints: Any) -> list[Any]:
    """POSE_KEYPOINT as a list of frames. Raises UserError where there are none."""
    frames = keypoints if isinstance(keypoints, list) else [keypoints]
    if not frames or frames == [None]:
        raise UserError("keypoints has no frames; wire in what DWPose or SDPose found.")
    return frames
