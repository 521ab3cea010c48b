"""A seam that one sees scores; a paste without one scores as the truth does."""

from __future__ import annotations

import math
import sys
from dataclasses import replace

import numpy as np
import pytest

from anycharv_core.bench.seam import seam
from anycharv_core.inference.finish import PasteBack
from anycharv_core.media.canvas import Canvas
from anycharv_core.media.colour_match import match_colour
from anycharv_core.media.masks import box_masks, composite, feather
from anycharv_core.puppets.character import sample_character
from anycharv_core.puppets.motion import sample_motion
from anycharv_core.puppets.render import render
from anycharv_core.puppets.scene import sample_scene
from anycharv_core.puppets.task import sample_swap
from anycharv_core.systems.anycharv import ANYCHARV

SWAP = sample_swap(3, 2, 96)
TRUTH, BOX = SWAP.truth.frames, SWAP.box


def shifted(levels: int) -> np.ndarray:
    """The truth, all of it so much brighter."""
    return np.clip(TRUTH.astype(int) + levels, 0, 255).astype(np.uint8)


def hard(made: np.ndarray, masks: np.ndarray = BOX) -> np.ndarray:
    return np.where((masks > 0)[..., None], made, TRUTH)


def soft(made: np.ndarray, width: int) -> np.ndarray:
    weights = np.stack([feather(mask, 0, width) for mask in BOX])
    return composite(made, TRUTH, weights)


@pytest.mark.parametrize("inside", [True, False])
def test_a_perfect_paste_scores_as_the_truth(inside):
    assert seam(hard(TRUTH), TRUTH, BOX, inside) == (0, 0)


@pytest.mark.parametrize("inside", [True, False])
def test_a_step_scores_its_height(inside):
    jumps = [seam(hard(shifted(levels)), TRUTH, BOX, inside).jump for levels in (4, 8, 16, 32)]
    assert jumps == sorted(jumps) and jumps[0] > 0.5
    # A central difference sees half of a step on each of its sides, where the scene itself is flat.
    assert 8 < jumps[-1] <= 17


def test_a_soft_edge_shows_less():
    made = shifted(24)
    jumps = [seam(frames, TRUTH, BOX).jump for frames in (hard(made), soft(made, 3), soft(made, 4))]
    assert jumps == sorted(jumps, reverse=True) and jumps[-1] < 0.8 * jumps[0]


def test_blur_is_an_error_and_no_jump():
    """A ring that is smoother than the truth has lost detail, but shows no line."""
    grey = np.full_like(TRUTH, 128)
    made = seam(grey, TRUTH, BOX)
    assert made.error > 10 and made.jump == 0


def test_far_away_nothing_counts():
    far = np.ones(BOX.shape, bool)
    ring = np.stack([feather(mask, 8, 0) for mask in BOX]) > 0
    far[ring] = False
    assert far.any()
    assert seam(np.where(far[..., None], shifted(50), TRUTH), TRUTH, BOX, inside=False) == (0, 0)


def test_scores_do_not_depend_on_the_size():
    """A step is as visible in a large picture as in a small one; the ring grows, its seam does not."""
    scores = []
    for side in (100, 400):
        truth = np.full((1, side, side, 3), 100, np.uint8)
        mask = np.zeros((1, side, side), np.uint8)
        mask[:, side // 4 : -side // 4, side // 4 : -side // 4] = 255
        scores.append(seam(np.where((mask > 0)[..., None], truth + np.uint8(20), truth), truth, mask).jump)
    assert scores == pytest.approx([10, 10], abs=0.5)


def test_without_an_edge_there_is_no_score():
    for level in (0, 255):
        made = seam(TRUTH, TRUTH, np.full_like(BOX, level))
        assert math.isnan(made.error) and math.isnan(made.jump)


@pytest.mark.parametrize("sticking_out", [{"held": "umbrella"}, {"held": "balloon"}, {"hair": "afro"}])
def test_what_sticks_out_of_the_mask_is_seen_to_be_cut(sticking_out):
    driver = replace(sample_character(0, "heldout"), held="none", hair="bald", hat="none")
    motion, scene = sample_motion(0, 2, driver.proportions, "heldout"), sample_scene(0, "heldout")
    driving = render(driver, motion, scene, (96, 96))
    truth = render(replace(driver, **sticking_out), motion, scene, (96, 96))
    cut = np.where((driving.mask > 0)[..., None], truth.frames, driving.frames)
    whole = (driving.mask > 0) | (truth.mask > 0)
    assert seam(cut, truth.frames, driving.mask).error > 3
    assert seam(np.where(whole[..., None], truth.frames, driving.frames), truth.frames, driving.mask) == (0, 0)


def test_a_shadow_that_ends_at_the_mask_is_a_seam(monkeypatch):
    driver = sample_character(0, "heldout")
    motion, scene = sample_motion(0, 2, driver.proportions, "heldout"), sample_scene(0, "heldout")
    truth = render(driver, motion, scene, (192, 192))
    monkeypatch.setattr(sys.modules[render.__module__], "_SHADOW_OPACITY", 0)
    sunless = render(driver, motion, scene, (192, 192))
    tight, wide = (box_masks(truth.mask, padding, smooth=0) for padding in (0, 0.1))
    cut, whole = (
        seam(np.where((box > 0)[..., None], sunless.frames, truth.frames), truth.frames, box)
        for box in (tight, wide)
    )
    assert cut.error > 2 and cut.jump > 2
    assert whole == (0, 0)


def test_matched_colours_leave_no_seam():
    made = np.stack([match_colour(*each) for each in zip(shifted(12), TRUTH, BOX, strict=True)])
    assert seam(hard(made), TRUTH, BOX).jump < 0.1 * seam(hard(shifted(12)), TRUTH, BOX).jump
    assert np.abs(made.astype(int) - TRUTH)[TRUTH < 240].max() <= 1


@pytest.mark.parametrize("deep", [False, True])
def test_what_is_pasted_can_match_its_surroundings(deep):
    kind, depth = (np.uint16, 257) if deep else (np.uint8, 1)
    scene, made = (list(frames.astype(kind) * kind(depth)) for frames in (TRUTH, shifted(12)))
    canvas = Canvas((96, 96), (96, 96), (96, 96))
    jumps = []
    for match in (False, True):
        paste = PasteBack(scene, BOX, replace(ANYCHARV.recipe("default"), match_colour=match, keeps_scene=False))
        pasted = np.stack([paste(frame, canvas) for frame in made])
        assert paste.untouched and pasted.dtype == scene[0].dtype
        jumps.append(seam((pasted // depth).astype(np.uint8), TRUTH, BOX).jump)
    assert jumps[1] < 0.2 * jumps[0]


def test_colours_match_where_there_is_nothing_to_match():
    picture = TRUTH[0]
    for mask in (np.zeros_like(BOX[0]), np.full_like(BOX[0], 255)):
        assert match_colour(picture, 255 - picture, mask) is picture
    assert np.array_equal(match_colour(picture, picture, BOX[0]), picture)
