"""The scene kept where the networks gave it back as it was: what they redraw is softer than what is there."""

from __future__ import annotations

import numpy as np

from ..opencv import cv2
from .masks import mask_box

# Of the largest value: differences up to the first are the networks' inaccuracy, from the second on their answer.
SAME, CHANGED = 14 / 255, 40 / 255
_BLUR = 0.04  # of the shorter side of the mask's box: how far around a pixel the difference is averaged


def keep_scene(pasted: np.ndarray, frame: np.ndarray, mask: np.ndarray, touched: np.ndarray) -> np.ndarray:
    """A frame with a person pasted into it -> the same, with the frame's own pixels where little was changed.

    So background inside a box becomes the scene's, bit for bit, and the edge of the box cannot be seen; a person
    stays, unless they look like what was there.

    Args:
        pasted, frame: uint8 or uint16, or float32 in 0..1, both of one type, [H, W, 3].
        mask: uint8 [H, W], 255 where the frame was to be replaced.
        touched: bool [H, W], where it was, which soft edges carry past the mask.

    Returns:
        [H, W, 3] of that type; `pasted` itself where there is no mask.
    """
    box, region = mask_box(mask), mask_box(touched)
    if box is None or region is None:
        return pasted
    blur = max(1.0, _BLUR * min(box[2] - box[0], box[3] - box[1]))
    reach = int(np.ceil(6 * blur))  # of the two averages together
    rows = slice(max(0, region[1] - reach), region[3] + reach)
    columns = slice(max(0, region[0] - reach), region[2] + reach)
    new, old = (each[rows, columns].astype(np.float32) for each in (pasted, frame))
    whole = frame.dtype.kind == "u"
    difference = cv2.GaussianBlur(np.abs(new - old).max(axis=2), (0, 0), blur)
    difference /= np.iinfo(frame.dtype).max if whole else 1
    share = np.clip((difference - SAME) / (CHANGED - SAME), 0, 1)
    share = cv2.GaussianBlur(share * share * (3 - 2 * share), (0, 0), 0.4 * blur)[..., None]
    kept = pasted.copy()
    mixed = old + share * (new - old)
    kept[rows, columns] = np.rint(mixed).astype(frame.dtype) if whole else mixed
    return kept
