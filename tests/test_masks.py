"""Masks: coverage, exact ends of the soft ones, and box files."""

import json
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from anycharv_core.errors import UserError
from anycharv_core.media.masks import (
    augment_mask,
    block_masks,
    box_masks,
    boxes_to_masks,
    composite,
    feather,
    fill_absent,
    grow_boxes,
    margins,
    mask_box,
    read_boxes,
)

SIDES = st.integers(1, 40)
LEVELS = st.sampled_from([0, 0, 0, 0, 255])


@st.composite
def clips(draw, longest=6):
    shape = draw(st.tuples(st.integers(1, longest), SIDES, SIDES))
    return draw(npst.arrays(np.uint8, shape, elements=LEVELS, fill=st.just(0)))


@st.composite
def masks(draw):
    return draw(clips(longest=1))[0]


def distances(mask):
    """Euclidean distance of every pixel to the nearest mask pixel, the slow way."""
    ys, xs = np.nonzero(mask)
    y, x = np.indices(mask.shape)
    steps = (y[..., None] - ys) ** 2 + (x[..., None] - xs) ** 2
    return np.sqrt(steps.min(axis=-1, initial=np.iinfo(np.int64).max))


def blob(height=128, width=128):
    y, x = np.indices((height, width))
    inside = ((y - height / 2) / (height / 3)) ** 2 + ((x - width / 2) / (width / 6)) ** 2 <= 1
    return np.where(inside, 255, 0).astype(np.uint8)


@given(masks())
def test_box_is_the_smallest_that_holds_the_mask(mask):
    box = mask_box(mask)
    if box is None:
        assert not mask.any()
        return
    x0, y0, x1, y1 = box
    assert mask[y0:y1, x0:x1].sum() == mask.sum(dtype=int)
    assert all(edge.any() for edge in (mask[y0], mask[y1 - 1], mask[:, x0], mask[:, x1 - 1]))


def test_box_has_the_last_row_and_column_and_ignores_noise():
    mask = np.full((20, 30), 5, np.uint8)
    mask[4:10, 6:21] = 255
    assert mask_box(mask) == (6, 4, 21, 10)
    assert mask_box(np.full((20, 30), 127, np.uint8)) is None
    assert mask_box(np.full((20, 30), True)) == (0, 0, 30, 20)


@given(clips(), st.floats(0, 1), st.integers(0, 4))
def test_box_masks_cover_every_frame(clip, padding, smooth):
    boxes = box_masks(clip, padding, smooth)
    assert boxes.shape == clip.shape and boxes.dtype == np.uint8 and set(np.unique(boxes)) <= {0, 255}
    assert (boxes[clip > 0] == 255).all()
    for mask, covered in zip(clip, boxes, strict=True):
        assert covered.any() == mask.any()
        x0, y0, x1, y1 = mask_box(covered) or (0, 0, 0, 0)
        assert (covered[y0:y1, x0:x1] == 255).all()


def test_box_masks_are_padded_and_steadied():
    clip = np.zeros((9, 200, 300), np.uint8)
    for index, jump in enumerate([0, 3, -3, 0, 2, -2, 0, 3, 0]):
        clip[index, 60:140, 100 + jump : 150 + jump] = 255
    assert mask_box(box_masks(clip, 0.1, smooth=0)[0]) == (95, 52, 155, 148)
    assert mask_box(box_masks(clip, 0.0, smooth=0)[0]) == (96, 56, 154, 144)

    def travel(boxes):
        lefts = [mask_box(mask)[0] for mask in boxes]
        return sum(abs(b - a) for a, b in pairwise(lefts))

    assert travel(box_masks(clip)) < travel(box_masks(clip, smooth=0)) / 4


def test_margins_are_a_fraction_of_each_side_and_at_least_4():
    assert margins((10, 20, 110, 21), 0.1) == (10, 4)
    assert margins((0.0, 0.0, 50.5, 90.0), 0.1) == (6, 9)


@given(clips(), st.integers(1, 12), st.integers(1, 12))
def test_every_block_takes_the_largest_value_in_it(clip, rows, columns):
    blocks = block_masks(clip, rows, columns)
    assert blocks.shape == clip.shape and blocks.dtype == np.uint8 and set(np.unique(blocks)) <= {0, 255}
    for mask, blocky in zip(clip, blocks, strict=True):
        x0, y0, x1, y1 = mask_box(mask) or (0, 0, 0, 0)
        expected = np.zeros_like(mask)
        for top, bottom in pairwise(sorted({i * (y1 - y0) // rows for i in range(rows + 1)})):
            for left, right in pairwise(sorted({i * (x1 - x0) // columns for i in range(columns + 1)})):
                part = slice(y0 + top, y0 + bottom), slice(x0 + left, x0 + right)
                expected[part] = mask[part].max()
        assert np.array_equal(blocky, expected)


def test_blocks_go_from_the_box_to_the_mask():
    clip = np.stack([blob(), blob() * 0])
    assert np.array_equal(block_masks(clip, 1, 1), boxes_to_masks([mask_box(mask) for mask in clip], 128, 128))
    assert np.array_equal(block_masks(clip, 1000, 1000), clip)
    areas = [int((block_masks(clip, k, k) > 0).sum()) for k in (1, 10, 20, 1000)]
    assert areas == sorted(areas, reverse=True) and len(set(areas)) == 4
    # The default makes the outline steps of a tenth of the box.
    x0, y0, x1, y1 = mask_box(clip[0])
    inside = block_masks(clip)[0, y0:y1, x0:x1] > 0
    assert len(np.unique(inside, axis=0)) <= 10 and len(np.unique(inside, axis=1).T) <= 10


@given(masks(), st.integers(0, 2**32), st.floats(0, 3))
def test_augmented_mask_covers_the_mask(mask, seed, strength):
    augmented = augment_mask(mask, np.random.default_rng(seed), strength)
    assert augmented.shape == mask.shape and augmented.dtype == np.uint8
    assert set(np.unique(augmented)) <= {0, 255}
    assert (augmented[mask > 0] == 255).all() and augmented.any() == mask.any()


def test_augmented_borders_are_irregular_bounded_and_repeatable():
    mask = blob()
    augmented = [augment_mask(mask, np.random.default_rng(seed)) for seed in range(20)]
    assert np.array_equal(augmented[3], augment_mask(mask, np.random.default_rng(3)))
    assert len({a.tobytes() for a in augmented}) == 20
    distance = distances(mask)
    x0, y0, x1, y1 = mask_box(mask)
    reach = [distance[a > 0].max() for a in augmented]
    assert 2 < np.mean(reach) <= max(reach) <= 0.2 * ((x1 - x0) * (y1 - y0)) ** 0.5
    # A plain dilation would be full up to its reach.
    fill = [(a > 0)[distance <= r].mean() for a, r in zip(augmented, reach, strict=True)]
    assert np.median(fill) < 0.9
    assert np.array_equal(augment_mask(mask, np.random.default_rng(0), strength=0), mask)


@given(masks(), st.integers(0, 6), st.integers(0, 6))
def test_feather_is_exact_at_both_ends(mask, pad, radius):
    alpha = feather(mask, pad, radius)
    assert alpha.shape == mask.shape and alpha.dtype == np.float32
    assert alpha.min() >= 0 and alpha.max() <= 1
    distance = distances(mask)
    assert (alpha[distance <= pad] == 1).all()
    assert (alpha[distance > pad + radius] == 0).all()
    assert (alpha[(distance > pad) & (distance < pad + radius)] > 0).all()
    falling = np.sort(distance, axis=None)
    assert (np.diff(alpha.ravel()[np.argsort(distance, axis=None)])[np.diff(falling) > 0] <= 0).all()


PICTURES = npst.arrays(np.uint8, (5, 7, 3))


@given(PICTURES, PICTURES, npst.arrays(np.float32, (5, 7), elements=st.floats(0, 1, width=32)))
def test_composite_is_bit_equal_at_both_ends(generated, original, alpha):
    blended = composite(generated, original, alpha)
    assert blended.dtype == np.uint8
    assert np.array_equal(blended[alpha == 0], original[alpha == 0])
    assert np.array_equal(blended[alpha == 1], generated[alpha == 1])
    weight = alpha[..., None].astype(np.float64)
    assert abs(blended - (weight * generated + (1 - weight) * original)).max() <= 0.5 + 1e-4


def test_composite_takes_whole_clips():
    clip = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)
    alpha = np.zeros((2, 4, 4), np.float32)
    alpha[1] = 1
    assert np.array_equal(composite(255 - clip, clip, alpha), np.stack([clip[0], 255 - clip[1]]))


def test_boxes_are_cut_off_at_the_picture_and_cover_touched_pixels():
    filled = boxes_to_masks([None, (1.5, 2, 3.2, 4), (-5, -5, 2, 1), (20, 20, 30, 30)], 8, 6)
    assert filled.shape == (4, 6, 8)
    assert [mask_box(mask) for mask in filled] == [None, (1, 2, 4, 4), (0, 0, 2, 1), None]
    assert filled.sum(axis=(1, 2), dtype=int).tolist() == [0, 6 * 255, 2 * 255, 0]
    assert boxes_to_masks([(-9, -9, -2, -2)], 8, 6).max() == 0


@given(masks())
def test_box_of_a_box_mask_is_the_box(mask):
    box = mask_box(mask)
    assert mask_box(boxes_to_masks([box], mask.shape[1], mask.shape[0])[0]) == box


def test_box_files_may_mix_notations(tmp_path):
    path = tmp_path / "boxes.json"
    path.write_text(json.dumps([None, [1, 2.5, 30, 40], {"x": 1, "y": 2.5, "width": 29, "height": 37.5}]))
    assert read_boxes(path) == [None, (1.0, 2.5, 30.0, 40.0), (1.0, 2.5, 30.0, 40.0)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "one box or null for every frame"),
        ('{"x": 1}', "one box or null for every frame"),
        ("[null, [1, 2, 3]]", "frame 1: a box must be"),
        ('[{"x": 1, "y": 2, "width": 3}]', "frame 0: a box must be"),
        ("[[1, 2, 3, NaN]]", "NaN is not a finite number"),
        ('[[1, 2, 3, "4"]]', "a box must be"),
        ("[7]", "a box must be"),
        ("[[5, 5, 5, 9]]", "is empty"),
        ('[{"x": 1, "y": 2, "width": 3, "height": 0}]', "is empty"),
    ],
)
def test_a_broken_box_file_is_refused_in_one_sentence(tmp_path, content, message):
    path = tmp_path / "boxes.json"
    path.write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        read_boxes(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@given(clips(), st.integers(0, 50))
def test_grown_boxes_hold_the_old_ones_and_are_large_enough(clip, smallest):
    boxed = box_masks(clip, 0.0, 0)
    grown = grow_boxes(boxed, smallest)
    assert (grown >= boxed).all()
    for before, after in zip(boxed, grown, strict=True):
        box = mask_box(after)
        assert (box is None) == (mask_box(before) is None)
        if box:
            assert box[2] - box[0] >= min(smallest, clip.shape[2])
            assert box[3] - box[1] >= min(smallest, clip.shape[1])
    assert np.array_equal(grow_boxes(boxed, 0), boxed)


def test_absent_frames_hold_a_neighbours_mask_or_take_the_frame():
    clip = np.zeros((5, 4, 4), np.uint8)
    clip[1, 0], clip[3, 2] = 255, 255
    held = fill_absent(clip, hold=True)
    assert [np.array_equal(held[i], clip[j]) for i, j in ((0, 1), (1, 1), (2, 1), (3, 3), (4, 3))] == [True] * 5
    whole = fill_absent(clip, hold=False)
    assert whole[[0, 2, 4]].min() == 255 and np.array_equal(whole[[1, 3]], clip[[1, 3]])
    assert fill_absent(clip * 0, hold=True).min() == 255
