"""The steps of DWPose by their definitions: suppression, letterbox, crop, decoding."""

from __future__ import annotations

import needs
import numpy as np
import pytest
from dwpose_files import CROP, SIDE, crowd, noise
from hypothesis import given, settings
from hypothesis import strategies as st

from anycharv_core.preprocess.dwpose import simcc, yolox


def overlap(a, b):
    """Intersection over union of two boxes whose last pixel counts."""
    sides = [min(a[i + 2], b[i + 2]) - max(a[i], b[i]) + 1 for i in (0, 1)]
    shared = max(sides[0], 0) * max(sides[1], 0)
    return shared / (sum((c[2] - c[0] + 1) * (c[3] - c[1] + 1) for c in (a, b)) - shared)


@pytest.mark.parametrize("count", [0, 1, 2, 40, 300])
def test_suppression_by_definition(count):
    boxes, scores = crowd(count, count)
    kept = []
    for i in np.argsort(-scores):
        if all(overlap(boxes[i], boxes[j]) <= yolox.MAX_OVERLAP for j in kept):
            kept.append(i)
    assert yolox.suppress(boxes, scores).tolist() == kept
    assert count < 40 or len(kept) < count


@pytest.mark.parametrize("limit", [0.2, 0.45, 0.7])
def test_suppression_equals_torchvision(limit):
    ops = needs.installed("torchvision", module="torchvision.ops")
    import torch

    boxes, scores = crowd(7, 400)
    wider = boxes + np.float32([0, 0, 1, 1])  # torchvision's boxes end before their last pixel
    try:
        expected = ops.nms(torch.from_numpy(wider), torch.from_numpy(scores), limit)
    except RuntimeError as error:
        pytest.skip(f"needs torchvision: it does not fit torch ({error})")
    assert yolox.suppress(boxes, scores, limit).tolist() == expected.tolist()


def test_suppression_counts_the_last_pixel():
    # Overlap 5/15 by corners, 12/24 with the last pixel; the limit is between the two.
    boxes = np.float32([[0, 0, 2, 5], [0, 0, 2, 5]]) + np.float32([[0, 0, 0, 0], [1, 0, 1, 0]])
    assert yolox.suppress(boxes, np.float32([0.9, 0.8])).tolist() == [0]


def raw_output(boxes, scores, size, strides=yolox.STRIDES):
    """What the detector must have said for these boxes (input pixels): box k in the k-th cell."""
    cells = [(x, y, s) for s in strides for y in range(size[1] // s) for x in range(size[0] // s)]
    output = np.zeros((len(cells), 85), np.float32)
    for row, (x, y, stride), box, score in zip(output, cells, boxes, scores, strict=False):
        row[0] = (box[0] + box[2]) / 2 / stride - x
        row[1] = (box[1] + box[3]) / 2 / stride - y
        row[2:4] = np.log((box[2:] - box[:2]) / stride)
        row[4], row[5] = 1, score
    return output


@given(
    width=st.integers(1, 4000),
    height=st.integers(1, 4000),
    box=st.tuples(*[st.floats(0.01, 0.45)] * 2, *[st.floats(0.55, 1.0)] * 2),
    cell=st.integers(0, 83),
)
@settings(max_examples=60, deadline=None)
def test_letterbox_round_trip_of_boxes(width, height, box, cell):
    box = np.array(box) * [width, height, width, height]
    frame = np.broadcast_to(np.uint8(0), (height, width, 3))
    scale = yolox.ratio(frame, (SIDE, SIDE))
    boxes = [np.array([0, 0, 1, 1])] * cell + [box * scale]
    output = raw_output(boxes, [0] * cell + [0.9], (SIDE, SIDE))
    found, scores = yolox.people(output, (SIDE, SIDE), scale)
    assert np.abs(found - box).max() < 0.5 and np.allclose(scores, 0.9)


@pytest.mark.parametrize("size", [(540, 960), (288, 512), (1920, 1080), (640, 480), (160, 90), (64, 64)])
def test_letterbox_round_trip_of_pixels(size):
    width, height = size
    for x, y in [(0.31, 0.27), (0.8, 0.2), (0.2, 0.8)]:
        place = np.array([x * width, y * height]) // 1
        spot = np.hypot(*(np.indices((height, width))[::-1] - place[:, None, None]))
        frame = np.repeat((255 * np.exp(-((spot / 4) ** 2))).astype(np.uint8)[..., None], 3, axis=2)
        picture = yolox.letterbox(frame, (640, 640))
        scale = yolox.ratio(frame, (640, 640))
        bottom, right = round(height * scale), round(width * scale)
        assert (picture[:, bottom:] == 114).all() and (picture[:, :, right:] == 114).all()
        weight = picture[0, :bottom, :right]
        ys, xs = np.indices(weight.shape) + 0.5
        back = np.array([(weight * xs).sum(), (weight * ys).sum()]) / weight.sum() / scale
        assert np.abs(back - (place + 0.5)).max() < 0.5


def test_letterbox_is_bgr_and_keeps_values():
    frame = noise(0, 64, 40, 3)
    picture = yolox.letterbox(frame, (64, 64))
    assert picture.shape == (3, 64, 64) and picture.dtype == np.float32
    assert np.array_equal(picture[:, :, :40], frame[..., ::-1].transpose(2, 0, 1))


def test_detector_output_by_definition():
    rng = np.random.default_rng(1)
    size, scale = (96, 64), 0.4
    output = rng.normal(0.6, 0.5, (126, 85)).astype(np.float32)
    output[:, 4:] = rng.uniform(0, 1, (126, 81))
    expected = []
    cells = [(x, y, s) for s in (8, 16, 32) for y in range(64 // s) for x in range(96 // s)]
    for row, (x, y, s) in zip(output, cells, strict=True):
        cx, cy, w, h = (row[0] + x) * s, (row[1] + y) * s, np.exp(row[2]) * s, np.exp(row[3]) * s
        box = [(cx - w / 2) / scale, (cy - h / 2) / scale, (cx + w / 2) / scale, (cy + h / 2) / scale]
        if row[4] * row[5] > 0.3:
            expected.append((row[4] * row[5], box))
    expected.sort(key=lambda item: -item[0])
    kept = []
    for score, box in expected:
        if all(overlap(box, other) <= 0.45 for _, other in kept):
            kept.append((score, box))
    boxes, scores = yolox.people(output, size, scale)
    assert 3 < len(kept) < len(expected)
    assert np.allclose(boxes, [box for _, box in kept], atol=1e-3)
    assert np.allclose(scores, [score for score, _ in kept])


def test_only_certain_people_count():
    boxes = [np.array([9 * k, 0, 9 * k + 8, 8]) for k in range(4)]
    output = raw_output(boxes, [0.29, 0.31, 0.0, 0.9], (SIDE, SIDE))
    output[2, 6] = 1.0  # surely a bicycle
    _, scores = yolox.people(output, (SIDE, SIDE), 1.0)
    assert np.allclose(scores, [0.9, 0.31])


@given(
    box=st.tuples(*[st.floats(-500, 2000)] * 2, *[st.floats(1, 2000)] * 2),
    x=st.floats(0, 288),
    y=st.floats(0, 384),
)
@settings(max_examples=100, deadline=None)
def test_crop_round_trip(box, x, y):
    box = np.array([box[0], box[1], box[0] + box[2], box[1] + box[3]])
    centre, extent = simcc.window(box, CROP)
    there = simcc.to_frame(np.array([x, y]), centre, extent, CROP)
    back = simcc.crop_matrix(centre, extent, CROP) @ [*there, 1]
    # Half a pixel of the crop and of the frame, whichever is stricter.
    assert np.abs(back - [x, y]).max() * max(1, extent[0] / 288) < 0.5


def test_crop_round_trip_of_pixels():
    place = np.array([133.0, 71.0])
    spot = np.hypot(*(np.indices((200, 240))[::-1] - place[:, None, None]))
    frame = np.repeat((255 * np.exp(-((spot / 4) ** 2))).astype(np.uint8)[..., None], 3, axis=2)
    centre, extent = simcc.window(np.array([90.0, 20, 180, 150]), CROP)
    picture = simcc.crop(frame, centre, extent, CROP)
    weight = picture[1] - picture[1].min()
    ys, xs = np.indices(weight.shape)
    point = np.array([(weight * xs).sum(), (weight * ys).sum()]) / weight.sum()
    assert np.abs(simcc.to_frame(point, centre, extent, CROP) - place).max() < 0.5


@pytest.mark.parametrize("box", [[0, 0, 10, 100], [0, 0, 100, 10], [5, 5, 293, 389]])
def test_window_holds_the_padded_box_in_proportion(box):
    box = np.array(box, float)
    centre, extent = simcc.window(box, CROP)
    assert np.allclose(centre, (box[:2] + box[2:]) / 2)
    assert np.isclose(extent[0] / extent[1], 288 / 384)
    assert (extent >= 1.25 * (box[2:] - box[:2]) - 1e-9).all()
    assert np.isclose(extent, 1.25 * (box[2:] - box[:2])).any()


def test_crop_is_normalised_bgr():
    frame = np.full((384, 288, 3), (250, 100, 50), np.uint8)
    centre, extent = np.array([144.0, 192.0]), np.array([288.0, 384.0])
    picture = simcc.crop(frame, centre, extent, CROP)
    assert picture.shape == (3, 384, 288) and picture.dtype == np.float32
    expected = [(50 - 123.675) / 58.395, (100 - 116.28) / 57.12, (250 - 103.53) / 57.375]
    assert np.allclose(picture[:, 200, 100], expected)


def test_simcc_decode_by_definition():
    rng = np.random.default_rng(2)
    columns, rows = rng.normal(-1, 1, (3, 7, 20)), rng.normal(-1, 1, (3, 7, 30))
    columns[0, 0] = -1
    points, scores = simcc.decode(columns.astype(np.float32), rows.astype(np.float32))
    for n in range(3):
        for k in range(7):
            x = max(range(20), key=lambda i, line=columns[n, k]: line[i])
            y = max(range(30), key=lambda i, line=rows[n, k]: line[i])
            score = min(columns[n, k, x], rows[n, k, y])
            assert np.isclose(scores[n, k], score)
            assert points[n, k].tolist() == ([x / 2, y / 2] if score > 0 else [-0.5, -0.5])
    assert (scores <= 0).any() and (scores > 0).any()
