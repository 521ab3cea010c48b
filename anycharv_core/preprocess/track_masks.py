"""Masks from the tracks of other segmenters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import cv2
import numpy as np

from ..errors import UserError


def unpack_sam3(data: Mapping[str, Any], number: int = 0) -> Iterator[np.ndarray]:
    """Yields the masks of one object of ComfyUI's SAM3_TRACK_DATA, frame by frame.

    Args:
        data: "packed_masks" is uint8 [T, N, h, w / 8] (a tensor on any device), eight pixels a byte with the
            leftmost in the lowest bit, or None where nothing was found; "n_frames" is T; "orig_size" is the
            clip's (H, W). As ComfyUI's `comfy/ldm/sam3/tracker.py` and its SAM3 nodes define it.
        number: which of the N objects, from 0.

    Yields:
        uint8 [H, W] of 0 and 255, enlarged by the nearest pixel.

    Raises:
        UserError: there is no such object, though others were found.
    """
    height, width = data["orig_size"]
    packed = data["packed_masks"]
    if packed is None:
        for _ in range(data["n_frames"]):
            yield np.zeros((height, width), np.uint8)
        return
    count = packed.shape[1]
    if not 0 <= number < count:
        raise UserError(f"The SAM3 track has no object {number}; choose one from 0 to {count - 1}.")
    for masks in packed:
        mask = 255 * np.unpackbits(masks[number].cpu().numpy(), axis=-1, bitorder="little")
        # The other kind of nearest, INTER_NEAREST, is up to a pixel off to one side.
        yield cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
