"""The camera that follows a person: it is smooth, rests where it can, and never cuts."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from anycharv_core.media.camera import KERNEL, camera_path, seen_background, taut_string

FRAME, CANVAS = (640, 360), (128, 72)


@st.composite
def shoots(draw):
    """(boxes, frame, canvas, cuts, context, keep) with jitter, jumps, absences and people at every size."""
    frame = draw(st.sampled_from([(64, 48), (640, 360), (360, 640), (8000, 1000), (4, 300)]))
    canvas = draw(st.sampled_from([(64, 64), (128, 72), (72, 128), (1024, 576)]))
    count = draw(st.integers(1, 70))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    steadiness = draw(st.sampled_from([0.0, 0.01, 0.2, 1.0]))
    middle = np.clip(np.cumsum(rng.normal(0, steadiness * 0.1, (count, 2)), axis=0) + rng.random(2), 0, 1)
    extent = np.clip(np.exp(rng.normal(np.log(rng.random(2)), steadiness)), 0, 1)
    extent = np.repeat(extent[None], count, axis=0) * (1 + steadiness * rng.random((count, 2)))
    near = np.clip(np.floor((middle - extent / 2) * frame), 0, np.array(frame) - 1)
    far = np.clip(np.ceil((middle + extent / 2) * frame), near + 1, frame)
    boxes = [
        None if absent else (*one, *other)
        for one, other, absent in zip(
            near, far, rng.random(count) < draw(st.sampled_from([0, 0.3, 1])), strict=True
        )
    ]
    cuts = sorted(draw(st.lists(st.integers(0, count), max_size=3)))
    return boxes, frame, canvas, cuts, draw(st.sampled_from([0.0, 0.25, 1.0])), draw(st.integers(0, 20))


@settings(deadline=None, max_examples=200)
@given(shoots())
def test_person_is_never_cut(shoot):
    boxes, frame, canvas, cuts, context, keep = shoot
    windows = camera_path(boxes, frame, canvas, cuts, context, keep)
    assert windows.shape == (len(boxes), 4) and np.isfinite(windows).all()
    sides = windows[:, 2:] - windows[:, :2]
    np.testing.assert_allclose(sides[:, 0] * canvas[1], sides[:, 1] * canvas[0], rtol=1e-9)
    for window, box in zip(windows, boxes, strict=True):
        if box is not None:
            near, far = np.maximum(np.subtract(box[:2], keep), 0), np.minimum(np.add(box[2:], keep), frame)
            assert (window[:2] <= near + 1e-6).all() and (window[2:] >= far - 1e-6).all()


@settings(deadline=None, max_examples=100)
@given(shoots())
def test_path_is_smooth(shoot):
    """A Hann window bounds every second difference by how far the camera goes in all."""
    boxes, frame, canvas, cuts, context, keep = shoot
    windows = camera_path(boxes, frame, canvas, cuts, context, keep)
    padded = np.pad(KERNEL, 2)
    sharpest = np.abs(np.diff(padded, 2)).sum() / 2
    assert sharpest < 0.065
    for shot in np.split(windows, sorted({cut for cut in cuts if 0 < cut < len(boxes)})):
        numbers = np.column_stack([(shot[:, :2] + shot[:, 2:]) / 2, np.log(shot[:, 2] - shot[:, 0])])
        largest = max(frame[0], frame[1] * canvas[0] / canvas[1])
        reach = np.array([*frame, np.log(largest / min(canvas[0] / 4, largest))])
        assert (np.abs(np.diff(numbers, 2, axis=0)) <= sharpest * reach + 1e-9).all()


@settings(deadline=None, max_examples=50)
@given(shoots())
def test_shots_are_independent(shoot):
    boxes, frame, canvas, cuts, context, keep = shoot
    windows = camera_path(boxes, frame, canvas, cuts, context, keep)
    starts = [0, *cuts, len(boxes)]
    alone = [
        camera_path(boxes[start:end], frame, canvas, (), context, keep)
        for start, end in pairwise(starts)
        if end > start
    ]
    np.testing.assert_array_equal(windows, np.concatenate(alone))


def test_camera_rests_while_the_person_stays():
    """Arms that swing and masks that tremble move nothing."""
    rng = np.random.default_rng(0)
    swing = 15 * np.sin(np.arange(200) / 5)
    boxes = np.stack([300 - swing, 100 + 0 * swing, 350 + swing, 220 + 0 * swing], 1) + rng.uniform(
        -3, 3, (200, 4)
    )
    windows = camera_path(list(boxes), FRAME, CANVAS)
    assert (windows == windows[0]).all()


def test_camera_follows_a_walk_at_a_steady_pace():
    x = 50 + 2.5 * np.arange(200)
    boxes = np.stack([x, 0 * x + 150, x + 40, 0 * x + 250], 1)
    windows = camera_path(list(boxes), FRAME, CANVAS)
    steps = np.diff(windows[20:-20, 0])
    assert steps.min() > 1.5 and np.abs(np.diff(steps)).max() < 0.06
    assert np.ptp(windows[:, 2] - windows[:, 0]) < 1e-9
    assert (windows[:, :2] >= -1e-9).all() and (windows[:, 2:] <= FRAME).all()


def test_camera_zooms_slowly_with_a_person_who_comes_near():
    height = 60 * 1.01 ** np.arange(150)
    boxes = np.stack([320 - height / 4, 340 - height, 320 + height / 4, 0 * height + 340], 1)
    sizes = np.diff(camera_path(list(boxes), FRAME, CANVAS)[:, ::2])[:, 0]
    assert sizes[-1] > 2 * sizes[0]
    assert np.abs(np.diff(np.log(sizes))).max() < 0.02


def test_absence_is_bridged():
    boxes = [(100, 100, 140, 200)] * 30 + [None] * 40 + [(500, 100, 540, 200)] * 30
    windows = camera_path(boxes, FRAME, CANVAS)
    assert (windows[:10] == windows[0]).all() and (windows[-10:] == windows[-1]).all()
    assert (np.diff(windows[:, 0]) >= 0).all()


@pytest.mark.parametrize("frame", [(64, 48), (8000, 3000)])
def test_a_person_who_fills_the_frame_is_seen_whole(frame):
    whole = (0, 0, *frame)
    windows = camera_path([whole] * 3, frame, frame)
    np.testing.assert_allclose(windows, [whole] * 3, atol=1e-9)
    assert seen_background(windows, [whole] * 3, frame) == 1


def test_a_shot_without_the_person_is_seen_whole():
    windows = camera_path([(10, 10, 30, 50)] * 5 + [None] * 5, FRAME, CANVAS, cuts=[5])
    np.testing.assert_allclose(windows[5:], [(0, 0, *FRAME)] * 5)
    assert (windows[:5, 2] < 110).all()


def test_one_pixel_is_not_enlarged_for_ever():
    window = camera_path([(300, 200, 301, 201)], FRAME, CANVAS)[0]
    assert window[2] - window[0] == pytest.approx(CANVAS[0] / 4)


def test_seen_background_is_that_of_the_window():
    windows = np.array([(0.0, 0.0, 64.0, 36.0)] * 2)
    assert seen_background(windows, [(10, 10, 20, 30), None], FRAME) == pytest.approx(
        (64 * 36 - 200) / (640 * 360 - 200)
    )
    assert seen_background(windows, [None, None], FRAME) == 1


@settings(deadline=None)
@given(st.integers(2, 12), st.integers(0, 2**32 - 1))
def test_no_path_through_the_tube_is_shorter(count, seed):
    rng = np.random.default_rng(seed)
    low = rng.normal(0, 3, count)
    high = low + rng.uniform(0, 4, count)
    path = taut_string(low, high, 0.0)
    assert (path >= low).all() and (path <= high).all()
    # Variables: the path, and what it goes up or down from frame to frame.
    steps = np.diff(np.eye(count), axis=0)
    slack = -np.eye(count - 1)
    best = linprog(
        np.r_[np.zeros(count), np.ones(count - 1)],
        np.block([[steps, slack], [-steps, slack]]),
        np.zeros(2 * (count - 1)),
        bounds=[*zip(low, high, strict=True), *[(0, None)] * (count - 1)],
    )
    assert np.abs(np.diff(path)).sum() == pytest.approx(best.fun, abs=1e-6)


def test_ten_thousand_frames_take_moments():
    """Work grows with the number of frames, not with its square: the string's longest look ahead is bounded."""
    rng = np.random.default_rng(1)
    near = rng.uniform(0, 300, (10_000, 2))
    boxes = np.concatenate([near, near + 1 + rng.uniform(0, 60, (10_000, 2))], axis=1)
    assert camera_path(list(boxes), FRAME, CANVAS).shape == (10_000, 4)
