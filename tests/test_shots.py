"""Shot boundaries: hard cuts are found, motion, pans and flashes are not."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from anycharv_core.preprocess import shots
from anycharv_core.preprocess.shots import ShotDetector, find_cuts
from anycharv_core.puppets import render, sample_character, sample_motion, sample_scene

FRAMES = 14


@pytest.fixture(scope="module")
def clips() -> list[np.ndarray]:
    made = []
    for seed in range(6):
        performer = sample_character(seed)
        motion = sample_motion(seed, FRAMES, performer.proportions, kind="dance")
        made.append(render(performer, motion, sample_scene(seed), (96, 80)).frames)
    return made


def test_every_cut_between_scenes_is_found_at_its_frame(clips):
    assert find_cuts(np.concatenate(clips)) == [FRAMES * i for i in range(1, len(clips))]


def test_motion_alone_is_no_cut(clips):
    for clip in clips:
        assert find_cuts(clip) == []
        assert find_cuts(clip[::2]) == []


def test_fast_pan_is_no_cut():
    rng = np.random.default_rng(0)
    wall = cv2.resize(rng.integers(0, 256, (12, 90, 3), np.uint8), (2400, 96), interpolation=cv2.INTER_CUBIC)
    pan = [wall[:, x : x + 128] for x in range(0, 2200, 40)]
    assert find_cuts(pan) == []


@pytest.mark.parametrize("length", [1, 2, 3])
def test_flash_is_no_cut(clips, length):
    flashed = clips[0].copy()
    flashed[6 : 6 + length] = 255 - (255 - flashed[6 : 6 + length]) // 8
    assert np.abs(flashed[6].astype(int) - flashed[5]).mean() > 50
    assert find_cuts(flashed) == []


def test_repeated_frames_are_no_cuts():
    rng = np.random.default_rng(0)
    wall = cv2.resize(rng.integers(0, 256, (12, 90, 3), np.uint8), (2400, 96), interpolation=cv2.INTER_CUBIC)
    jerky = [wall[:, 60 * (i // 2) : 60 * (i // 2) + 128] for i in range(40)]
    assert find_cuts(jerky) == []


def test_short_shots_and_ends(clips):
    assert find_cuts([*clips[0][:1], *clips[1]]) == [1]
    assert find_cuts([*clips[0], *clips[1][:1]]) == [FRAMES]
    assert find_cuts([*clips[0], *clips[1][:3], *clips[2]]) == [FRAMES, FRAMES + 3]


def test_nothing_to_cut(clips):
    assert find_cuts([]) == []
    assert find_cuts(clips[0][:1]) == []
    assert find_cuts(np.zeros((9, 3, 5, 3), np.uint8)) == []


def test_memory_does_not_grow(clips):
    detector = ShotDetector()
    for frame in np.concatenate(clips):
        detector.feed(frame)
    assert len(detector._window) == 2 * shots._REACH + 1
