"""What a result wears is named from its pixels: right on the truth, else by chance, worse where it is soft."""

import cv2
import numpy as np
import pytest

from anycharv_core.bench.naming import NAMED, learn_patterns, wears
from anycharv_core.bench.puppets import score
from anycharv_core.bench.tasks import BOLD_SWAP, Setup, tasks

SIZE = 160
SETUP = Setup(24, 2, SIZE, BOLD_SWAP)


@pytest.fixture(scope="module")
def truths():
    return [(task.given.character, task.given.truth) for task in tasks(SETUP, flow=False)]


def means(rows) -> dict[str, float]:
    rows = list(rows)
    return {name: float(np.nanmean([row[name] for row in rows])) for name in NAMED}


def blurred(frames: np.ndarray, radius: float) -> np.ndarray:
    return np.stack([cv2.GaussianBlur(frame, (0, 0), radius) for frame in frames])


def test_the_truth_is_named_right(truths) -> None:
    rows = [wears(character, clip, clip.frames) for character, clip in truths]
    found = means(rows)
    assert found["pattern named"] >= 0.95
    assert all(found[name] == 1 for name in NAMED[1:])
    # Only bald heads, and what lies under a hat or behind something, cannot be named.
    for name, fewest in zip(NAMED, (23, 12, 18, 18, 18), strict=True):
        assert sum(not np.isnan(row[name]) for row in rows) >= fewest, name


def test_without_the_truth_it_is_chance(truths) -> None:
    shuffled = [(truths[i - 1][0], clip) for i, (_, clip) in enumerate(truths)]
    learned = learn_patterns(SIZE)
    right = [learned.name(clip.frames, clip.keypoints) == other.pattern for other, clip in shuffled]
    assert np.mean(right) < 0.6
    grey = means(wears(character, clip, np.full_like(clip.frames, 128)) for character, clip in truths)
    assert all(grey[name] < 0.6 for name in NAMED)


def test_blur_loses_patterns_and_then_colours(truths) -> None:
    sharp, soft, softer = (
        means(wears(c, clip, blurred(clip.frames, radius) if radius else clip.frames) for c, clip in truths)
        for radius in (0, 4, 12)
    )
    assert soft["pattern named"] < sharp["pattern named"] - 0.3
    for name in NAMED[1:]:
        assert softer[name] < sharp[name]


def test_a_bold_swap_reports_the_names_and_another_task_does_not() -> None:
    bold, plain = (next(tasks(Setup(1, 2, SIZE, kind))) for kind in (BOLD_SWAP, "swap"))
    found = score(bold, bold.given.truth.frames, "no weights")
    assert set(NAMED) <= set(found)
    assert {"sharpness", "character SSIM", "identity", "warp error", "seam jump"} <= set(found)
    assert not set(NAMED) & set(score(plain, plain.given.truth.frames, "no weights"))
