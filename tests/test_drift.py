"""A video that stays as it starts has no drift; the further it goes, the more."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest

from anycharv_core.bench.drift import Drift, drift
from anycharv_core.puppets.task import sample_swap

FRAMES = 20
TRUTH = sample_swap(1, FRAMES, 96).truth


def fade(frame: np.ndarray, amount: float) -> np.ndarray:
    return np.rint(frame + amount * (128.0 - frame)).astype(np.uint8)


def turn_hue(frame: np.ndarray, amount: float) -> np.ndarray:
    colours = cv2.cvtColor(frame, cv2.COLOR_RGB2HSV_FULL)
    colours[..., 0] += np.uint8(round(80 * amount))
    return cv2.cvtColor(colours, cv2.COLOR_HSV2RGB_FULL)


def blur(frame: np.ndarray, amount: float) -> np.ndarray:
    return cv2.GaussianBlur(frame, (0, 0), 3 * amount) if amount else frame


def drifting(change, strength: float) -> Drift:
    """The truth, changed more with every frame, up to `strength` in the last."""
    made = np.stack([change(frame, strength * t / (FRAMES - 1)) for t, frame in enumerate(TRUTH.frames)])
    return drift(made, TRUTH.frames, TRUTH.mask, TRUTH.keypoints)


def test_the_truth_has_no_drift():
    assert drift(TRUTH.frames, TRUTH.frames, TRUTH.mask, TRUTH.keypoints) == (0, 0, 0)


def test_a_constant_defect_is_no_drift():
    """Another character, grey and blurred from the first frame to the last, is wrong, but steady."""
    still = np.repeat(TRUTH.frames[:1], FRAMES, axis=0)
    masks = np.repeat(TRUTH.mask[:1], FRAMES, axis=0)
    made = np.stack([fade(blur(frame, 1), 0.5) for frame in still])
    assert drift(made, still, masks) == pytest.approx((0, 0, 0), abs=1e-6)


@pytest.mark.parametrize(
    ("change", "fields"),
    [(fade, ("colour", "sharpness")), (turn_hue, ("identity", "colour")), (blur, ("sharpness",))],
)
def test_more_drift_scores_more(change, fields):
    scores = [drifting(change, strength) for strength in (0, 0.2, 0.4, 0.6, 0.8)]
    for field in fields:
        values = [getattr(score, field) for score in scores]
        # Turning no hue at all is rounded to 8 bits all the same.
        assert values[0] < 0.01 * values[-1] and values == sorted(values) and values[-1] > 1.5 * values[1]


def test_a_halved_gradient_is_two_doublings_of_its_square():
    made = TRUTH.frames.copy()
    made[-2:] = fade(made[-2:], 0.5)
    assert drift(made, TRUTH.frames, TRUTH.mask).sharpness == pytest.approx(2, abs=0.1)


def test_only_the_ends_and_the_character_count():
    made = TRUTH.frames.copy()
    made[2:-2] = 0
    made[TRUTH.mask == 0] = 0
    scored = drift(made, TRUTH.frames, TRUTH.mask)
    assert scored.identity == 0 and scored.colour < 1e-5


def test_frames_without_the_character_are_left_out():
    masks = TRUTH.mask.copy()
    masks[1:] = 0
    assert all(math.isnan(value) for value in drift(TRUTH.frames, TRUTH.frames, masks))
