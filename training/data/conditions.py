"""The masks and the skeletons that the network is given."""

from __future__ import annotations

import numpy as np

from anycharv_core.media.imaging import resize
from anycharv_core.media.masks import augment_mask, block_masks, box_masks
from anycharv_core.media.pose import HANDS, MIN_SCORE, PLACES, Poses
from anycharv_core.media.pose_drawing import draw_poses
from anycharv_core.opencv import cv2
from training.config import Data
from training.data.crops import Size

SCATTERED = 8  # up to this many frames of a puppet are picked at random from a longer motion
STEADY = 2  # frames on either side over which the boxes of a clip are steadied, as at inference


def given_masks(masks: np.ndarray, data: Data, rng: np.random.Generator, smooth: int) -> np.ndarray:
    """Exact masks uint8 [F, H, W] -> the masks that the network is given, uint8 [F, H, W] that covers them.

    `smooth`: frames on either side over which boxes are steadied; 0 for frames that don't follow each other.
    """
    augmented = data.mask == "fine" and data.augment
    if data.mask == "box" or (augmented and rng.random() < data.box_share):
        return box_masks(masks, padding=rng.uniform(*data.padding), smooth=smooth)
    if data.mask == "block":
        rows, columns = (_log_uniform(rng, *ends) for ends in (data.rows, data.columns))
        return block_masks(masks, rows, columns)
    if not augmented:
        return np.where(masks > 127, np.uint8(255), np.uint8(0))
    strength = rng.uniform(*data.strength)
    return np.stack([augment_mask(mask, rng, strength) for mask in masks])


def _log_uniform(rng: np.random.Generator, low: int, high: int) -> int:
    """A whole number from `low` to `high`; nothing is drawn where there is one only."""
    if low == high:
        return low
    return int(np.exp(rng.uniform(np.log(low), np.log(high + 1))))


def factor(data: Data, rng: np.random.Generator) -> float:
    """By which a clip's person is made larger or smaller."""
    if data.scale is None or rng.random() >= data.scale_share:
        return 1.0
    return float(rng.uniform(*data.scale))


def with_scene(
    arrays: dict[str, np.ndarray], scene: np.ndarray, data: Data, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """The sample with the scene uint8 [F, H, W, 3] around its masks, where that is not that of its frames.

    Where the first frame is given whole, that is the sample's own, to be left as it is.
    """
    if data.scale is None and not data.carried:
        return arrays
    scene, mask = scene.copy(), arrays["mask"].copy()
    if rng.random() < data.carried:
        scene[0], mask[0] = arrays["frames"][0], 0
    return arrays | {"scene": scene, "mask": mask}


def on_background(
    picture: np.ndarray, mask: np.ndarray, other: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """A reference uint8 [H, W, 3] whose person, uint8 [H, W], stands before something else: in half the cases
    `other`, a picture of its size, else one colour, or noise (Animate Anyone 2, section 4.1)."""
    kind = rng.random()
    if kind < 0.5:
        behind = other
    elif kind < 0.75:
        behind = np.broadcast_to(rng.integers(0, 256, 3, np.uint8), picture.shape)
    else:
        behind = rng.integers(0, 256, picture.shape, np.uint8)
    return np.where((mask > 127)[..., None], picture, behind)


def drawn_poses(poses: Poses, size: Size, scale: int) -> np.ndarray:
    """Skeletons uint8 [F, H, W, 3], drawn `scale` times as large as `size` and brought down."""
    drawn = draw_poses(poses.scaled(scale * size[0], scale * size[1]))
    return np.stack([resize(picture, size) for picture in drawn])


# CogVideoX's own trainer blurs pictures with noise of a strength exp(N(-3, 0.5)), pixels being -1 to 1.
_NOISE = -3.0, 0.5


def noisy_picture(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A picture of the background uint8 [H, W, 3] as training shows it."""
    strength = 127.5 * np.exp(rng.normal(*_NOISE))
    return np.clip(picture + strength * rng.standard_normal(picture.shape), 0, 255).round().astype(np.uint8)


def painted_over(picture: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """A frame uint8 [H, W, 3] with the person, 255 in a mask uint8 [H, W], filled from around."""
    reach = max(3, min(mask.shape) // 50)
    square = np.ones((2 * reach + 1, 2 * reach + 1), np.uint8)
    hole = cv2.dilate(np.where(mask > 127, np.uint8(255), np.uint8(0)), square)
    return cv2.inpaint(picture, hole, reach, cv2.INPAINT_TELEA)


def hand_masks(poses: Poses, size: Size) -> np.ndarray:
    """uint8 [F, H, W], 255 in the hull of each hand's points and a little around it; poses of a canvas of
    `size`."""
    masks = np.zeros((len(poses), size[1], size[0]), np.uint8)
    for mask, people in zip(masks, poses.people, strict=True):
        for points in (person[PLACES[hand]] for person in people for hand in HANDS):
            seen = points[np.nan_to_num(points[:, 2]) > MIN_SCORE, :2]
            if len(seen) >= 3:
                pad = max(1, round(0.15 * float(np.ptp(seen, axis=0).max())))
                hull = cv2.convexHull(seen.round().astype(np.int32))
                cv2.fillConvexPoly(mask, hull, 255)
                cv2.polylines(mask, [hull], True, 255, 2 * pad)
    return masks
