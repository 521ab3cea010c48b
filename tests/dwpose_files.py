"""Tiny networks in the place of DWPose's two, and pictures for them."""

from __future__ import annotations

import numpy as np
import pytest
from tiny_onnx import BOX, write_detector, write_pose

from anycharv_core.preprocess.dwpose import DWPose

SIDE = 64
CROP = (288, 384)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dwpose")
    return write_detector(folder / "yolox_l.onnx", SIDE), write_pose(folder / "dw-ll_ucoco_384.onnx")


@pytest.fixture(scope="module")
def tiny(files):
    return DWPose(*files, device="cpu")


def black(height=SIDE, width=SIDE, red=()):
    """A black frame with a red square of one detector cell at each (column, row, redness)."""
    frame = np.zeros((height, width, 3), np.uint8)
    for column, row, redness in red:
        frame[row * 8 : row * 8 + 8, column * 8 : column * 8 + 8, 0] = redness
    return frame


def box_of(column, row):
    x, y = column * 8 + 4, row * 8 + 4
    return [x - BOX / 2, y - BOX / 2, x + BOX / 2, y + BOX / 2]


def noise(seed, *shape):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def crowd(seed, count):
    rng = np.random.default_rng(seed)
    corner, size = rng.uniform(0, 100, (count, 2)), rng.uniform(1, 60, (count, 2))
    scores = rng.permutation(np.linspace(0.1, 0.9, count))
    return np.hstack([corner, corner + size]).astype(np.float32), scores.astype(np.float32)
