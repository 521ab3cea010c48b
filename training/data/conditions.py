"""The masks and the skeletons that the network is given."""

from __future__ import annotations

import numpy as np

from anycharv_core.media.imaging import resize
from anycharv_core.media.masks import augment_mask, block_masks, box_masks
from anycharv_core.media.pose import Poses
from anycharv_core.media.pose_drawing import draw_poses
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
        return block_masks(masks)
    if not augmented:
        return np.where(masks > 127, np.uint8(255), np.uint8(0))
    strength = rng.uniform(*data.strength)
    return np.stack([augment_mask(mask, rng, strength) for mask in masks])


def drawn_poses(poses: Poses, size: Size, scale: int) -> np.ndarray:
    """Skeletons uint8 [F, H, W, 3], drawn `scale` times as large as `size` and brought down."""
    drawn = draw_poses(poses.scaled(scale * size[0], scale * size[1]))
    return np.stack([resize(picture, size) for picture in drawn])
