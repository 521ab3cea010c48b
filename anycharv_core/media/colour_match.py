"""Colours of a generated picture brought to those of the picture that it is pasted into."""

from __future__ import annotations

import numpy as np

from ..opencv import cv2
from .masks import mask_box

_FEWEST = 16  # pixels: fewer say too little
_RING = 0.2  # of the longer side of the mask's box


def match_colour(made: np.ndarray, frame: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The generated picture with the shift of colour taken out that it shows in a ring around the mask.

    There the network redraws what is known, so that the median difference, for each colour, is the network's own.
    One shift for the whole picture changes no detail of it.

    Args:
        made, frame: uint8 or uint16 [H, W, 3], generated and original, of one depth.
        mask: uint8 [H, W], 255 where the frame will be replaced.

    Returns:
        [H, W, 3] of that depth; `made` itself where there is no mask, or nothing around it.
    """
    box = mask_box(mask)
    if box is None:
        return made
    reach = max(3, round(_RING * max(box[2] - box[0], box[3] - box[1])))
    inside = (mask >= 128).astype(np.uint8)
    ring = (cv2.dilate(inside, np.ones((2 * reach + 1,) * 2, np.uint8)) > inside) & (inside == 0)
    if ring.sum() < _FEWEST:
        return made
    shift = np.median(frame[ring].astype(np.float32) - made[ring], axis=0)
    return np.rint(np.clip(made + shift, 0, np.iinfo(made.dtype).max)).astype(made.dtype)
