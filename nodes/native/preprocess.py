"""anycharv_core's preprocessors on ComfyUI's types: clips pass a few frames at a time and can be interrupted."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.utils
import numpy as np
from torch import Tensor

from ...anycharv_core.errors import UserError
from ...anycharv_core.media.pose import Pose, clean_pose, draw_pose, scale_pose
from ...anycharv_core.preprocess.cache import weights_key
from ...anycharv_core.preprocess.dwpose import DWPose
from ...anycharv_core.preprocess.find import BATCH, batched, find_people
from ...anycharv_core.preprocess.people import (
    by_box,
    by_click,
    by_likeness,
    by_number,
    chosen_boxes,
    chosen_poses,
    contact_sheet,
    sheet_frames,
)
from ...anycharv_core.preprocess.rescale import rescale
from ...anycharv_core.preprocess.retarget import retarget
from ...anycharv_core.preprocess.smoothing import smooth_poses
from ...anycharv_core.preprocess.tracking import Track
from .pictures import image_tensor, image_uint8, rgb_frames
from .poses import pose_frames

Boxes = list[list[dict[str, Any]]]
"""BOUNDING_BOX of a clip: for every frame its boxes, {"x", "y", "width", "height", "label"} in pixels."""

# Bytes that ComfyUI frees on the GPU before onnxruntime, which cannot ask for them itself, opens its networks.
_ONNX_MEMORY = 2 * 2**30
# min_cutoff and beta of `smooth_poses` at the middle of the node's scale, a decade below and above which it ends.
_SMOOTHING = 2.0, 30.0


def find_poses(
    images: Tensor, files: tuple[Path, Path], smoothing: float, fps: float
) -> tuple[list[Pose], Tensor]:
    """POSE_KEYPOINT of everybody in IMAGE [F, H, W, 3], and IMAGE of their skeletons.

    files: detector and whole-body network; smoothing: 0 for none, to 1; fps: frames per second.
    Raises UserError as `DWPose` does.
    """
    frames = rgb_frames(images, "images")
    device = comfy.model_management.get_torch_device()
    if device.type == "cuda":
        comfy.model_management.free_memory(_ONNX_MEMORY, device)
    told = frame_progress(len(images))
    try:
        poser = _dwpose(files, tuple(map(weights_key, files)), str(device)).poses
        if smoothing:
            findings = find_people(frames, poser, told)
            tracks = [track.people for track in findings.tracks]
            openness = 10 ** (1 - 2 * smoothing)
            cutoffs = [openness * middle for middle in _SMOOTHING]
            poses = smooth_poses(list(findings.poses), tracks, fps, findings.cuts, *cutoffs)
        else:
            poses = []
            for batch in batched(frames, BATCH):
                poses += poser(np.stack(batch))
                told(len(poses))
    finally:
        if device.type == "cuda":
            # ComfyUI neither sees nor can free what onnxruntime holds there.
            _dwpose.cache_clear()
    return poses, image_tensor(np.stack([draw_pose(pose) for pose in poses]))


@lru_cache(maxsize=1)
def _dwpose(files: tuple[Path, Path], _versions: Any, device: str) -> DWPose:
    """Opened networks, kept for the next run with the same files."""
    return DWPose(*files, device)


def choose_people(images: Tensor, keypoints: Any, choose: dict[str, Any]) -> tuple[list[Pose], Boxes, Tensor, int]:
    """The poses and boxes of the people chosen, the contact sheet as IMAGE, and how many people there are.

    choose: "choose" is one of number, click, box and likeness, beside that way's own inputs.
    Raises UserError where nobody is found or chosen, or keypoints do not fit the images.
    """
    frames = rgb_frames(images, "images")
    height, width = images.shape[1:3]
    given = pose_frames(keypoints)
    if len(given) != len(images):
        raise UserError(
            f"images has {len(images)} frames but keypoints has {len(given)}; find the poses in these images."
        )
    stream = (scale_pose(pose, width, height) for pose in given)
    findings = find_people(frames, lambda batch: list(islice(stream, len(batch))), frame_progress(len(images)))
    tracks = findings.tracks
    if not tracks:
        raise UserError(
            "There is nobody in the keypoints: look at the skeletons, and choose the model that knows your clip."
        )
    numbers = _chosen(tracks, choose)
    shown = {i: image_uint8(images[i : i + 1], "images")[0, ..., :3] for i in sheet_frames(tracks)}
    sheet = contact_sheet(tracks, shown)
    poses = chosen_poses(findings.poses, [tracks[number] for number in numbers])
    of_each = [(str(number + 1), chosen_boxes(tracks[number])) for number in numbers]
    boxes = [
        [_as_dict(places[frame], label) for label, places in of_each if places[frame] is not None]
        for frame in range(len(images))
    ]
    return list(poses), boxes, image_tensor(sheet), len(tracks)


def _chosen(tracks: list[Track], choose: dict[str, Any]) -> list[int]:
    way = choose["choose"]
    if way == "number":
        return by_number(tracks, choose["people"])
    if way == "click":
        return [by_click(tracks, choose["frame"], choose["x"], choose["y"])]
    if way == "box":
        x0, y0 = choose["left"], choose["top"]
        return [by_box(tracks, choose["frame"], (x0, y0, x0 + choose["width"], y0 + choose["height"]))]
    return [by_likeness(tracks, image_uint8(choose["picture"][:1], "picture")[0])[0]]


def _as_dict(box: Any, label: str) -> dict[str, Any]:
    x, y = math.floor(box[0]), math.floor(box[1])
    return {"x": x, "y": y, "width": math.ceil(box[2]) - x, "height": math.ceil(box[3]) - y, "label": label}


def retarget_poses(keypoints: Any, reference: Any, keep_aspect: bool | None = None) -> list[Pose]:
    """POSE_KEYPOINT of one person in the proportions of the first person of the first frame of `reference`.

    keep_aspect: None leaves the person's height and place; else they become the reference's, see `rescale`.

    Raises UserError where there are several people or the reference shows none.
    """
    figure = clean_pose(pose_frames(reference)[0])
    character, poses = {**figure, "people": figure["people"][:1]}, pose_frames(keypoints)
    return retarget(poses, character) if keep_aspect is None else rescale(poses, character, keep_aspect)


def frame_progress(total: int) -> Callable[[int], None]:
    """Shows how many frames are done; raises where the user has interrupted."""
    bar = comfy.utils.ProgressBar(total)

    def told(done: int) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        bar.update_absolute(done, total)

    return told
