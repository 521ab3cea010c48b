"""Persons of real videos made larger (Animate Anyone 2, section 3.2): cut out, scaled, and put back.

Puppets are rendered again instead, which is exact.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from anycharv_core.media.masks import composite, mask_box
from anycharv_core.media.pose import BODY, PLACES, Poses
from anycharv_core.opencv import cv2

ANKLES = (10, 13)  # of OpenPose-18
_RADIUS = 3  # pixels from which what a scaled person bares is filled


def anchors(poses: Poses, figures: np.ndarray) -> np.ndarray:
    """float64 [F, 2]: in every frame the lower ankle of its person, or where none is seen the middle of the lower
    edge of the figure uint8 [F, H, W]. A box alone would jitter."""
    places = []
    for people, figure in zip(poses.people, figures, strict=True):
        ankles = people[:1, PLACES[BODY]][:, list(ANKLES)].reshape(-1, 3)
        seen = ankles[ankles[:, 2] > 0]
        x0, _, x1, y1 = mask_box(figure) or (0, 0, 0, 0)
        places.append(seen[seen[:, 1].argmax(), :2] if len(seen) else ((x0 + x1) / 2, float(y1)))
    return np.array(places, np.float64)


def enlarged(
    frames: np.ndarray,
    figures: np.ndarray,
    layers: Mapping[str, np.ndarray],
    poses: Poses,
    factor: float,
    points: np.ndarray,
) -> tuple[np.ndarray, dict[str, np.ndarray], Poses]:
    """Frames, layers and poses with the figure `factor` (at least 1) times as large about `points` [F, 2].

    frames: uint8 [F, H, W, 3]; figures: uint8 [F, H, W], 255 on the person and what they hold; layers: whatever
    moves with them, [F, H, W], such as their masks and depth. What a larger figure no longer covers is filled from
    around.
    """
    made = np.empty_like(frames)
    moved = {name: np.empty_like(layer) for name, layer in layers.items()}
    for t, (frame, figure, (x, y)) in enumerate(zip(frames, figures, points, strict=True)):
        # OpenCV puts pixel centres at whole numbers.
        shift = [(1 - factor) * (place - 0.5) for place in (x, y)]
        matrix = np.array([[factor, 0, shift[0]], [0, factor, shift[1]]])
        size = frame.shape[1], frame.shape[0]
        alpha = cv2.warpAffine(figure, matrix, size, flags=cv2.INTER_LINEAR).astype(np.float32) / 255
        bared = ((figure > 127) & (alpha < 0.5)).astype(np.uint8)
        behind = cv2.inpaint(frame, bared, _RADIUS, cv2.INPAINT_TELEA) if bared.any() else frame
        made[t] = composite(cv2.warpAffine(frame, matrix, size, flags=cv2.INTER_LINEAR), behind, alpha)
        for name, layer in layers.items():
            moved[name][t] = cv2.warpAffine(layer[t], matrix, size, flags=cv2.INTER_NEAREST)
    return made, moved, _scaled_poses(poses, factor, points)


def _scaled_poses(poses: Poses, factor: float, points: Sequence[np.ndarray] | np.ndarray) -> Poses:
    placed = []
    for people, point in zip(poses.people, points, strict=True):
        people = people.copy()
        people[..., :2] = point + factor * (people[..., :2] - point)
        placed.append(people)
    return Poses(poses.width, poses.height, placed)
