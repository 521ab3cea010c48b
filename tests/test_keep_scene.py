"""The scene stays where what is pasted hardly differs from it."""

from __future__ import annotations

import numpy as np
import pytest

from anycharv_core.inference.finish import PasteBack
from anycharv_core.media.canvas import Canvas
from anycharv_core.media.keep_scene import keep_scene
from anycharv_core.systems.anycharv import ANYCHARV

BOX = np.zeros((96, 128), np.uint8)
BOX[16:80, 32:96] = 255
SCENE = np.random.default_rng(0).integers(60, 180, (96, 128, 3), dtype=np.uint8)


def redrawn(offset: int) -> np.ndarray:
    """The scene with another square in the middle of the box, and all of the box off by `offset`."""
    made = SCENE.astype(int)
    made[BOX > 0] += offset
    made[36:60, 52:76] = 255 - made[36:60, 52:76] // 4
    return made.astype(np.uint8)


def test_what_was_hardly_changed_is_the_scenes_bit_for_bit() -> None:
    kept = keep_scene(redrawn(9), SCENE, BOX, BOX > 0)
    same = (kept == SCENE).all(axis=2)
    assert same[BOX == 0].all(), "nothing outside the mask is touched"
    around = np.ones_like(same)
    around[20:76, 36:92] = False  # as far as the averages reach around the square
    assert same[around].all()
    np.testing.assert_array_equal(kept[42:54, 58:70], redrawn(9)[42:54, 58:70], "what was drawn stays")


def test_a_change_everywhere_stays_everywhere() -> None:
    made = np.where(BOX[..., None] > 0, np.uint8(255), SCENE)
    inner = (slice(26, 70), slice(42, 86))
    np.testing.assert_array_equal(keep_scene(made, SCENE, BOX, BOX > 0)[inner], made[inner])


def test_deep_pictures_are_as_shallow_ones() -> None:
    made, deep = redrawn(9), 257
    shallow = keep_scene(made, SCENE, BOX, BOX > 0).astype(int) * deep
    kept = keep_scene(made.astype(np.uint16) * deep, SCENE.astype(np.uint16) * deep, BOX, BOX > 0)
    assert np.abs(kept - shallow).max() <= deep


def test_pictures_of_floats_are_as_those_of_whole_numbers() -> None:
    made = redrawn(9)
    floats = keep_scene(*(each.astype(np.float32) / 255 for each in (made, SCENE)), BOX, BOX > 0)
    np.testing.assert_allclose(255 * floats, keep_scene(made, SCENE, BOX, BOX > 0), atol=0.51)


@pytest.mark.parametrize("value", (0, 255))
def test_masks_of_nothing_and_of_everything(value: int) -> None:
    made = np.full_like(SCENE, 255)
    mask = np.full(SCENE.shape[:2], value, np.uint8)
    kept = keep_scene(made, SCENE, mask, mask > 0)
    assert (kept == made).all()


def test_the_soft_edge_of_a_small_mask_is_kept_too() -> None:
    scene = np.random.default_rng(0).integers(60, 180, (400, 400, 3), dtype=np.uint8)
    mask = np.zeros((400, 400), np.uint8)
    mask[192:208, 192:208] = 255  # the edge reaches 12 pixels past it
    whole = Canvas((400, 400), (400, 400), (400, 400))
    paste = PasteBack([scene], [mask], ANYCHARV.recipe("default"))
    assert (paste(scene + np.uint8(9), whole) == scene).all()
