"""AnyCharVDWPose: the skeletons of everybody in a video, by the two released DWPose networks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import comfy.model_management
import folder_paths
import numpy as np
from comfy_api.latest import io
from torch import Tensor

from ..anycharv_core.errors import UserError
from ..anycharv_core.media.frames import batched
from ..anycharv_core.media.pose import Poses
from ..anycharv_core.media.pose_drawing import draw_poses
from ..anycharv_core.preprocess.dwpose import DWPose
from ..anycharv_core.preprocess.find import BATCH, Poser, find_people
from ..anycharv_core.preprocess.models import DETECTOR, EMBEDDED, WHOLE_BODY, pose_files
from ..anycharv_core.preprocess.smoothing import smooth_poses
from .pictures import frame_progress, image_tensor, interruptible, rgb_frames
from .types import CATEGORY, PoseKeypoint, fetching

MODELS = "detection"
PAIR = "dwpose"

# Bytes that ComfyUI frees on the GPU before onnxruntime, which cannot ask for them itself, opens its networks.
_ONNX_MEMORY = 2 * 2**30
# min_cutoff and beta of `smooth_poses` at the middle of the node's scale, a decade below and above which it ends.
_SMOOTHING = 2.0, 30.0


def pose_folders() -> dict[str, Path]:
    """Folders with DWPose's two files below models/detection; that folder itself is called "dwpose"."""

    found: dict[str, Path] = {}
    for root in map(Path, folder_paths.get_folder_paths(MODELS)):
        for file in root.glob(f"**/{DETECTOR}"):
            if file.with_name(WHOLE_BODY).is_file():
                name = PAIR if file.parent == root else file.parent.relative_to(root).as_posix()
                found.setdefault(name, file.parent)
    return dict(sorted(found.items(), key=lambda entry: (entry[0] != PAIR, entry[0])))


def pose_model_names() -> list[str]:
    """What a node offers: the released pair comes first even where it is missing, so that nobody gets the embedded
    one without having chosen it."""
    return [*(pose_folders() or [PAIR]), EMBEDDED]


def missing_pose_model(model: str) -> str | None:
    """What to do where there is no `model`, or None where there is."""
    if model == EMBEDDED or model in pose_folders():
        return None
    return (
        f"models/{MODELS} holds no DWPose files for '{model}': {fetching('pose')} and press R, or choose "
        f"'{EMBEDDED}', which knows puppets only."
    )


def pose_model_files(model: str) -> tuple[Path, Path]:
    """Its detector and its pose network. Raises UserError where they are missing."""
    if missing := missing_pose_model(model):
        raise UserError(missing)
    return pose_files(EMBEDDED if model == EMBEDDED else str(pose_folders()[model]))


def open_poser(files: tuple[Path, Path]) -> Poser:
    """Opened for one run alone: ComfyUI neither sees nor can free what onnxruntime holds."""
    device = comfy.model_management.get_torch_device()
    if device.type == "cuda":
        comfy.model_management.free_memory(_ONNX_MEMORY, device)
    look = DWPose(*files, str(device)).poses

    def poses(frames: np.ndarray) -> Poses:
        found = [look(frame[None]) for frame in interruptible(frames)]
        return replace(found[0], people=[people for each in found for people in each.people])

    return poses


class AnyCharVDWPose(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        names = pose_model_names()
        return io.Schema(
            node_id="AnyCharVDWPose",
            display_name="AnyCharV DWPose",
            category=CATEGORY,
            description="Finds everybody in a video and reads their body, feet, hands and face by DWPose, whose "
            "skeletons AnyCharV was trained on.",
            search_aliases=[
                "pose estimation",
                "openpose",
                "skeleton",
                "keypoints",
                "yolox",
                "姿态检测",
                "骨骼",
                "关键点",
            ],
            inputs=[
                io.Image.Input("images", tooltip="The frames of the video, or one picture."),
                io.Combo.Input(
                    "model",
                    options=names,
                    default=names[0],
                    tooltip="'dwpose' is the released pair of files in models/detection, which 'anycharv download "
                    "pose' fetches; 'embedded' comes with this pack and knows only puppets.",
                ),
                io.Float.Input(
                    "smoothing",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    round=0.01,
                    tooltip="Steadies trembling points over time: 0 is off, 0.5 is made for detectors' usual "
                    "tremble, 1 also rounds off fast motion.",
                ),
                io.Float.Input(
                    "fps",
                    default=24.0,
                    min=1.0,
                    max=1000.0,
                    step=0.01,
                    round=0.0001,
                    advanced=True,
                    tooltip="Frames per second of the video, by which smoothing tells tremble from motion. Get "
                    "Video Components knows it.",
                ),
            ],
            outputs=[
                PoseKeypoint.Output(
                    display_name="keypoints", tooltip="Everybody in every frame; choose with AnyCharV Find People."
                ),
                io.Image.Output(display_name="skeletons", tooltip="Everybody, as AnyCharV Pose Draw draws."),
            ],
        )

    @classmethod
    def validate_inputs(cls, model: str) -> bool | str:
        return missing_pose_model(model) or True

    @classmethod
    def execute(cls, images: Tensor, model: str, smoothing: float, fps: float) -> io.NodeOutput:
        frames = rgb_frames(images, "images")
        poser = open_poser(pose_model_files(model))
        progress = frame_progress(len(images))
        if smoothing:
            findings = find_people(frames, poser, progress)
            tracks = [track.people for track in findings.tracks]
            openness = 10 ** (1 - 2 * smoothing)
            cutoffs = [openness * middle for middle in _SMOOTHING]
            poses = smooth_poses(findings.poses, tracks, fps, findings.cuts, *cutoffs)
        else:
            people: list[np.ndarray] = []
            for batch in batched(frames, BATCH):
                people += poser(np.stack(batch)).people
                progress(len(people))
            poses = Poses(images.shape[2], images.shape[1], people)
        return io.NodeOutput(
            list(poses.keypoints()), image_tensor(np.stack(list(interruptible(draw_poses(poses)))))
        )
