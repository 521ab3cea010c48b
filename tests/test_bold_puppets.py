"""The bold world: readable at 64 pixels, as exact as the first, and without influence on it."""

import hashlib
from dataclasses import replace

import cv2
import numpy as np
import pytest

from anycharv_core.puppets import render, sample_character, sample_motion, sample_scene
from anycharv_core.puppets.bold import (
    CLOTH,
    HEIGHTS,
    sample_bold_character,
    sample_bold_motion,
    sample_bold_scene,
)
from anycharv_core.puppets.character import BOLD_PATTERNS
from anycharv_core.puppets.render import bounds, frame_camera, window_camera
from anycharv_core.puppets.task import sample_bold_animation
from training.config import Data
from training.data.puppets import PuppetClips

SIZE, FRAMES = (96, 96), 6
FIRST_WORLD = "05c90f207c2fa256d58384c970ac2d75ccb6f13ffad0f083287a1423d1ea07d5"


def performance(seed: int, other: int | None = None, **options):
    performer = sample_bold_character(seed)
    motion = sample_bold_motion(seed, FRAMES, performer.proportions)
    character = performer if other is None else sample_bold_character(other)
    return render(character, motion, sample_bold_scene(seed), **{"size": SIZE, **options})


def test_the_first_world_draws_what_it_drew() -> None:
    drawn = hashlib.sha256()
    for seed in range(8):
        character = sample_character(seed)
        motion = sample_motion(seed, 3, character.proportions)
        drawn.update(render(character, motion, sample_scene(seed), (64, 64)).frames.tobytes())
    assert drawn.hexdigest() == FIRST_WORLD


@pytest.mark.parametrize("seed", range(4))
def test_a_swap_is_exact(seed: int) -> None:
    driving, truth = performance(seed), performance(seed, seed + 50)
    outside = (driving.mask == 0) & (truth.mask == 0)
    np.testing.assert_array_equal(driving.frames[outside], truth.frames[outside])
    np.testing.assert_array_equal(driving.keypoints, truth.keypoints)


def test_characters_are_bold() -> None:
    characters = [sample_bold_character(seed, "heldout") for seed in range(60)]
    assert {c.pattern for c in characters} == set(BOLD_PATTERNS)
    for c in characters:
        assert 0.28 <= c.proportions.head <= 0.33
        assert {c.top, c.bottom_colour, c.pattern_colour} <= set(CLOTH)
        assert np.linalg.norm(np.subtract(c.top, c.pattern_colour)) > 120


def test_performers_are_as_tall_as_promised_and_stand_on_their_feet() -> None:
    for seed in range(12):
        motion = sample_bold_motion(seed, 12, sample_bold_character(seed).proportions)
        assert HEIGHTS[0] - 1e-3 <= motion.scale.mean() <= HEIGHTS[1] + 1e-3
        lowest = motion.joints[:, 10:14:3, 1].max(1)
        np.testing.assert_array_less(np.abs(motion.ground[:, 1] - lowest), 0.1 * motion.scale)


def test_a_window_is_a_cut_of_the_frame() -> None:
    whole = performance(2, size=(384, 384))
    x0, _, x1, y1 = whole.boxes[0]
    side, left, top = 192, (x0 + x1) // 2 - 96, y1 - 180
    windows = np.repeat([(left, top, left + side, top + side)], FRAMES, axis=0)
    camera = window_camera(frame_camera(sample_bold_scene(2), FRAMES, (384, 384)), windows, (side, side))
    cut = performance(2, size=(side, side), camera=camera)
    np.testing.assert_allclose(cut.keypoints[..., :2] + (left, top), whole.keypoints[..., :2], atol=1e-3)
    same = np.abs(cut.frames[0].astype(int) - whole.frames[0, top : top + side, left : left + side])
    assert same.mean() < 1.0
    np.testing.assert_array_equal(cut.mask, whole.mask[:, top : top + side, left : left + side])


@pytest.mark.parametrize("seed", range(6))
def test_bounds_hold_what_is_drawn(seed: int) -> None:
    character = sample_bold_character(seed)
    motion = sample_bold_motion(seed, FRAMES, character.proportions)
    scene = replace(sample_bold_scene(seed), occluders=())
    boxes = bounds(character, motion, frame_camera(scene, FRAMES, (128, 128)))
    drawn = render(character, motion, scene, (128, 128)).boxes
    inside = np.clip(boxes, 0, 128)
    seen = (drawn[:, 2:] > drawn[:, :2]).all(axis=1)
    assert (np.abs(inside - drawn)[seen] < 1.5).all()


def test_a_pattern_survives_64_pixels() -> None:
    """A band of cloth is some four pixels high where a character stands 64 pixels tall."""
    seed = next(s for s in range(50) if sample_bold_character(s).pattern == "bands")
    character = sample_bold_character(seed)
    motion = sample_bold_motion(seed, 1, character.proportions)
    scale = 64 / motion.scale[0]
    camera = np.array([[[scale, 0, 32], [0, scale, 72]]])
    camera[0, :, 2] -= scale * motion.ground[0]
    clip = render(character, motion, sample_bold_scene(seed), (64, 80), camera=camera)
    near = np.linalg.norm(clip.frames[0].astype(int) - np.array(character.pattern_colour), axis=-1) < 60
    cores = cv2.erode((near & (clip.mask[0] > 0)).astype(np.uint8), np.ones((3, 3), np.uint8))
    assert cores.sum() >= 6


def test_the_trainer_sees_puppets_through_a_canvas_that_follows_them() -> None:
    data = Data(size=(64, 80), world="bold", context=(0.05, 0.1), clips=16)
    heights, margins = [], []
    for index in range(16):
        sample = PuppetClips(data, 2)[index, 0]
        assert sample["frames"].shape == (2, 80, 64, 3)
        whole = sample["character"].numpy() > 0
        rows = np.flatnonzero(whole.any(axis=(0, 2)))
        heights.append(len(rows) / 80)
        shown = np.flatnonzero((sample["reference"].numpy() > 24).any(axis=(1, 2)))
        margins.append((80 / len(shown) - 1) / 2)
        again = PuppetClips(data, 2)[index, 0]
        assert all((sample[name] == again[name]).all() for name in sample)
    assert 0.6 < np.median(heights) < 0.95
    assert min(margins) > 0.02 and max(margins) - min(margins) > 0.05


def test_an_animation_fills_the_frame_before_its_own_scene_at_rest() -> None:
    heights = []
    for seed in range(8):
        task = sample_bold_animation(seed, 3, 80)
        heights.append(np.flatnonzero((task.truth.mask > 0).any(axis=(0, 2))).size / 80)
        outside = ~task.region
        still = np.where(outside.all(axis=0)[..., None], task.truth.frames, 0)
        # But for shadows on the ground, which move with the character.
        same = np.abs(still.astype(int) - np.where(outside.all(axis=0)[..., None], task.reference, 0)) <= 2
        assert same.mean() > 0.9
        assert task.reference[: 80 // 4].std(axis=(0, 1)).max() > 5
    assert 0.6 < np.median(heights) < 0.95


def test_the_trainer_animates_in_the_same_world() -> None:
    data = Data(size=(80, 80), world="bold", reference="frame", clips=8)
    samples = [PuppetClips(data, 2)[index, 0] for index in range(8)]
    heights = [np.flatnonzero((s["character"].numpy() > 0).any(axis=(0, 2))).size / 80 for s in samples]
    assert 0.6 < np.median(heights) < 0.95
    assert min(s["reference"].float().std() for s in samples) > 10
