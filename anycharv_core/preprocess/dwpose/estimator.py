"""Whole-body skeletons of everybody in a video by DWPose (arXiv:2307.15880), from its two released ONNX files.

The numbers are those of IDEA-Research/DWPose as the official AnyCharV release carries it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ...errors import UserError
from ...media.frames import Frames, batched, checked
from ...media.pose import BODY, BOX, FACE, FEET, HANDS, MIN_SCORE, PLACES, Poses
from ...media.pose import POINTS as POSE_POINTS
from . import simcc, yolox
from .onnx_net import BATCH, OnnxNet

POINTS = 134
# Where each point of OpenPose's order is in COCO-WholeBody's with the neck inserted at 17.
_ORDER = [0, 17, 6, 8, 10, 5, 7, 9, 12, 14, 16, 11, 13, 15, 2, 1, 4, 3, *range(18, POINTS)]
_SHOULDERS = [5, 6]
_PARTS = {
    BODY: slice(0, 18),
    FACE: slice(24, 92),
    HANDS[0]: slice(92, 113),
    HANDS[1]: slice(113, 134),
    FEET: slice(18, 24),
}


class DWPose:
    """The detector and the whole-body network.

    Args:
        detector_path: `yolox_l.onnx`, pictures [1, 3, 640, 640] -> [1, 8400, 85].
        pose_path: `dw-ll_ucoco_384.onnx`, pictures [N, 3, 384, 288] -> [N, 133, 576] and [N, 133, 768].
        device: see `onnx_net.OnnxNet`.

    Raises:
        UserError: here: a file is missing; on first use: a file is not ONNX, or not that network.
    """

    def __init__(self, detector_path: str | Path, pose_path: str | Path, device: str | None = None):
        self._detector = OnnxNet(detector_path, "person detector (yolox_l.onnx)", yolox.outputs, device)
        self._pose = OnnxNet(pose_path, "pose network (dw-ll_ucoco_384.onnx)", simcc.outputs, device)

    def detect(self, frames: Frames) -> list[np.ndarray]:
        """Find the people.

        Args:
            frames: uint8 [F, H, W, 3] RGB.

        Returns:
            For each frame float32 [n, 4]: x0, y0, x1, y1 in pixels, the most certain person first; boxes may
            leave the frame, and n is 0 where nobody is found.

        Raises:
            UserError: frames that are not as above, or see `DWPose`.
        """
        return [boxes for boxes, _ in self._detect(list(checked("frames", frames, 3)))]

    def estimate(self, frames: Frames, boxes: Sequence[np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Find the points of the people in the boxes.

        Args:
            frames: uint8 [F, H, W, 3] RGB.
            boxes: for each frame [n, 4]: x0, y0, x1, y1 in pixels. Without any, the whole frame is taken for
                one person's box, as the release does.

        Returns:
            For each frame keypoints float32 [n, 134, 2], in pixels, in OpenPose's order: 18 body, 6 feet,
            68 face, 21 left hand and 21 right hand points; and scores float32 [n, 134], 0 for unseen and
            around 1 for certain. The neck, the shoulders' middle, scores 1 if both of them exceed 0.3, else 0.

        Raises:
            UserError: frames or boxes that are not as above, or see `DWPose`.
        """
        frames = list(checked("frames", frames, 3))
        if len(boxes) != len(frames):
            raise UserError(
                f"There are {len(frames)} frames, and boxes for {len(boxes)}; give each frame its own."
            )
        given = [
            np.asarray(group if len(group) else [[0, 0, frame.shape[1], frame.shape[0]]], np.float64)
            for frame, group in zip(frames, boxes, strict=True)
        ]
        for index, group in enumerate(given):
            if group.ndim != 2 or group.shape[1] != 4 or not np.isfinite(group).all():
                raise UserError(f"The boxes of frame {index} must be [n, 4] and finite: x0, y0, x1, y1 in pixels.")
        return self._estimate(frames, given)

    def poses(self, frames: Frames, people_limit: int | None = None) -> Poses:
        """The skeletons of a video, which is read as a stream.

        Args:
            frames: uint8 [F, H, W, 3] RGB, or anything that yields uint8 [H, W, 3] of one size.
            people_limit: keep this many of the most certain people in every frame; None keeps all.

        Returns:
            Poses on a canvas of the frames' size, with everything but a mid hip. Unlike in `estimate`, a frame in
            which nobody is found has no people.

        Raises:
            UserError: no frame, frames or a limit that are not as above, or see `DWPose`.
        """
        if people_limit is not None and people_limit < 1:
            raise UserError(f"The people limit is {people_limit}; give 1 or more, or none to keep everybody.")
        people: list[np.ndarray] = []
        for chunk in batched(checked("frames", frames, 3), BATCH):
            found = [(boxes[:people_limit], scores[:people_limit]) for boxes, scores in self._detect(chunk)]
            points = self._estimate(chunk, [boxes for boxes, _ in found])
            people += [pack_people(*one, *other) for one, other in zip(points, found, strict=True)]
            height, width = chunk[0].shape[:2]
        if not people:
            raise UserError("The video has no frames; give at least one.")
        return Poses(width, height, people)

    def _detect(self, frames: Sequence[np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
        """For each frame boxes float32 [n, 4] and their scores float32 [n]."""
        size = self._detector.size
        outputs = self._detector.run(yolox.letterbox(frame, size) for frame in frames)
        return [
            yolox.people(output, size, yolox.ratio(frame, size))
            for frame, (output,) in zip(frames, outputs, strict=True)
        ]

    def _estimate(
        self, frames: Sequence[np.ndarray], boxes: Sequence[np.ndarray]
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """As `estimate`, but nobody where there is no box."""
        size = self._pose.size
        windows = [[simcc.window(box.astype(np.float64), size) for box in group] for group in boxes]
        # One stream of crops over all frames, so that batches are full whatever the number of people.
        outputs = self._pose.run(
            simcc.crop(frame, *place, size)
            for frame, group in zip(frames, windows, strict=True)
            for place in group
        )
        found = []
        for group in windows:
            people = [_person(*simcc.decode(*next(outputs)), place, size) for place in group]
            points = np.array(people, np.float32).reshape(-1, POINTS, 3)
            found.append((points[..., :2].copy(), points[..., 2].copy()))
        return found


def pack_people(
    keypoints: np.ndarray, scores: np.ndarray, boxes: np.ndarray, box_scores: np.ndarray
) -> np.ndarray:
    """One frame's people as `Poses` holds them, every score kept.

    Args:
        keypoints, scores: [n, 134, 2] and [n, 134], as `DWPose.estimate` returns them.
        boxes: [n, 4], x0, y0, x1, y1 in pixels.
        box_scores: [n], how certain the detector is of each box.

    Returns:
        float64 [n, pose.POINTS, 3]: body, 68 face, hand and foot points and the box; no mid hip.
    """
    people = np.full((len(boxes), POSE_POINTS, 3), np.nan)
    points = np.concatenate([keypoints, scores[..., None]], axis=-1)
    for part, place in _PARTS.items():
        found = points[:, place]
        people[:, PLACES[part]][:, : found.shape[1]] = found
    corners = people[:, PLACES[BOX]]
    corners[..., :2] = boxes.reshape(-1, 2, 2)
    corners[..., 2] = box_scores[:, None]
    return people


def _person(
    points: np.ndarray, scores: np.ndarray, place: tuple[np.ndarray, np.ndarray], size: tuple[int, int]
) -> np.ndarray:
    """float64 [134, 3] in OpenPose's order from 133 points of the crop."""
    body = np.column_stack([simcc.to_frame(points, *place, size), scores])
    neck = body[_SHOULDERS].mean(axis=0)
    neck[2] = (scores[_SHOULDERS] > MIN_SCORE).all()
    return np.insert(body, 17, neck, axis=0)[_ORDER]
