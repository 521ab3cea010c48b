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
