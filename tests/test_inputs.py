"""Masks as people have them: opacity, brightness or boxes."""

import json

import numpy as np
import pytest
from PIL import Image

from anycharv_core.jobs.inputs import mask_frames


@pytest.fixture
def square():
    mask = np.zeros((12, 16), np.uint8)
    mask[3:9, 4:10] = 255
    return mask


def test_opacity_is_the_mask_of_pictures_that_have_some(tmp_path, square):
    noise = np.random.default_rng(0).integers(0, 256, (12, 16, 3), np.uint8)
    Image.fromarray(np.dstack([noise, square])).save(tmp_path / "0.png")
    frames = mask_frames(tmp_path, (16, 12))
    assert all(np.array_equal(next(iter(frames)), square) for _ in range(2))


def test_brightness_is_the_mask_of_opaque_pictures_with_or_without_alpha(tmp_path, square):
    Image.fromarray(square).save(tmp_path / "gray.png")
    Image.fromarray(np.dstack([square] * 3 + [np.full_like(square, 255)])).save(tmp_path / "rgba.png")
    for name in ("gray.png", "rgba.png"):
        assert np.array_equal(next(iter(mask_frames(tmp_path / name, (16, 12)))), square)


def test_boxes_are_painted_at_the_clip_s_size(tmp_path, square):
    (tmp_path / "boxes.json").write_text(json.dumps([[4, 3, 10, 9], None]))
    first, second = mask_frames(tmp_path / "boxes.json", (16, 12))
    assert np.array_equal(first, square) and not second.any()
