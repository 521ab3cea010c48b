"""DWPose: the recorded results of the official code, its steps by their definitions, and tiny networks whose
answers are known."""

from __future__ import annotations

import json
import logging
import sys
from types import SimpleNamespace

import needs
import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keypoint_files import clean_pose, draw_pose
from tiny_onnx import BOX, GAINS, write_detector, write_pose

from anycharv_core.errors import UserError
from anycharv_core.media.pose import Poses
from anycharv_core.preprocess.dwpose import DWPose, onnx_net, pack_people, simcc, yolox

OFFICIAL = needs.PARITY / "dwpose"
RECORDED = sorted(OFFICIAL.glob("*.npz"))
SIDE = 64
CROP = (288, 384)
# DWPose's order of a person by COCO-WholeBody numbers (-1: neck), written out from the two definitions.
BODY = [0, -1, 6, 8, 10, 5, 7, 9, 12, 14, 16, 11, 13, 15, 2, 1, 4, 3]
ORDER = [*BODY, *range(17, 133)]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dwpose")
    return write_detector(folder / "yolox_l.onnx", SIDE), write_pose(folder / "dw-ll_ucoco_384.onnx")


@pytest.fixture(scope="module")
def tiny(files):
    return DWPose(*files, device="cpu")


def black(height=SIDE, width=SIDE, red=()):
    """A black frame with a red square of one detector cell at each (column, row, redness)."""
    frame = np.zeros((height, width, 3), np.uint8)
    for column, row, redness in red:
        frame[row * 8 : row * 8 + 8, column * 8 : column * 8 + 8, 0] = redness
    return frame


def box_of(column, row):
    x, y = column * 8 + 4, row * 8 + 4
    return [x - BOX / 2, y - BOX / 2, x + BOX / 2, y + BOX / 2]


def noise(seed, *shape):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


# --- the official results


@needs.recorded(OFFICIAL)
@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.stem)
def test_recorded_results(path):
    net = DWPose(OFFICIAL / "yolox_l.onnx", OFFICIAL / "dw-ll_ucoco_384.onnx", device="cpu")
    recorded = np.load(path)
    frames = recorded["frame_rgb"][None]
    (boxes,) = net.detect(frames)
    assert boxes.dtype == np.float32 and boxes.shape == recorded["boxes_xyxy"].shape
    assert np.abs(boxes - recorded["boxes_xyxy"]).max() < 0.01
    people = 30  # of some 200 in each frame: all would take half a minute
    ((keypoints, scores),) = net.estimate(frames, [boxes[:people]])
    assert keypoints.dtype == scores.dtype == np.float32
    assert np.abs(keypoints - recorded["keypoints"][:people]).max() < 0.01
    assert np.abs(scores - recorded["scores"][:people]).max() < 1e-4


# --- the steps, by their definitions


def overlap(a, b):
    """Intersection over union of two boxes whose last pixel counts."""
    sides = [min(a[i + 2], b[i + 2]) - max(a[i], b[i]) + 1 for i in (0, 1)]
    shared = max(sides[0], 0) * max(sides[1], 0)
    return shared / (sum((c[2] - c[0] + 1) * (c[3] - c[1] + 1) for c in (a, b)) - shared)


def crowd(seed, count):
    rng = np.random.default_rng(seed)
    corner, size = rng.uniform(0, 100, (count, 2)), rng.uniform(1, 60, (count, 2))
    scores = rng.permutation(np.linspace(0.1, 0.9, count))
    return np.hstack([corner, corner + size]).astype(np.float32), scores.astype(np.float32)


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


# --- the whole, with tiny networks


def test_finds_red_things(tiny):
    frames = np.stack([black(red=[(2, 2, 200), (5, 5, 250)]), black(), black(red=[(6, 1, 180)])])
    boxes = tiny.detect(frames)
    assert [b.dtype for b in boxes] == [np.float32] * 3
    assert np.allclose(boxes[0], [box_of(5, 5), box_of(2, 2)], atol=1e-3)  # the more certain one first
    assert boxes[1].shape == (0, 4)
    assert np.allclose(boxes[2], [box_of(6, 1)], atol=1e-3)


def test_neighbours_are_one_person_and_green_is_none(tiny):
    frame = black(red=[(2, 2, 200), (3, 2, 250)])
    frame[40:48, 40:48, 1] = 255
    assert np.allclose(tiny.detect(frame[None])[0], [box_of(3, 2)], atol=1e-3)


def test_points_are_in_openpose_order(tiny):
    frame = black(96, 80)
    frame[40:43, 30:33, 0] = 255
    ((keypoints, scores),) = tiny.estimate(frame[None], [np.float32([[10, 20, 60, 70]])])
    assert keypoints.shape == (1, 134, 2) and scores.shape == (1, 134)
    assert np.abs(keypoints - [31, 41]).max() < 2.1  # a crop pixel is 1.3 frame pixels, of a 3 pixel square
    peak = (255 - 103.53) / 57.375
    expected = [1.0 if k < 0 else GAINS[k] * peak for k in ORDER]
    assert np.allclose(scores[0], expected, atol=1e-4)


@pytest.mark.parametrize(("red", "shoulders"), [(255, (1, 1)), (126, (0, 1)), (115, (0, 0))])
def test_neck_needs_both_shoulders(tiny, red, shoulders):
    frame = np.full((64, 48, 3), (red, 0, 0), np.uint8)
    ((_, scores),) = tiny.estimate(frame[None], [np.float32([[0, 0, 48, 64]])])
    assert tuple(scores[0, [2, 5]] > 0.3) == shoulders
    assert scores[0, 1] == all(shoulders)


def test_unseen_points_lie_half_a_crop_pixel_before_the_corner(tiny):
    box = np.float32([[10, 10, 34, 42]])
    ((keypoints, scores),) = tiny.estimate(black()[None], [box])
    centre, extent = simcc.window(box[0].astype(float), (48, 64))
    assert (scores <= 0).all()
    assert np.allclose(keypoints, centre - extent / 2 - 0.5 * extent / [48, 64], atol=1e-4)


def test_no_box_is_the_whole_frame_for_estimate_and_nobody_for_poses(tiny):
    frames = noise(3, 2, 50, 70, 3) // 2
    (first, second) = tiny.estimate(frames, [[], np.float32([[0, 0, 70, 50]])])
    whole = tiny.estimate(frames[:1], [np.float32([[0, 0, 70, 50]])])[0]
    assert np.array_equal(first[0], whole[0]) and np.array_equal(first[1], whole[1])
    assert second[0].shape == (1, 134, 2)
    assert [len(people) for people in tiny.poses(frames).people] == [0, 0]


def test_batched_equals_one_by_one(tiny, monkeypatch):
    frames = noise(4, 9, 64, 64, 3)
    boxes = [crowd(k, k % 4)[0] + [0, 0, 5, 5] for k in range(9)]
    together = tiny.detect(frames), tiny.estimate(frames, boxes)
    for k in range(9):
        (alone,) = tiny.detect(frames[k : k + 1])
        assert np.array_equal(alone, together[0][k])
        ((keypoints, scores),) = tiny.estimate(frames[k : k + 1], boxes[k : k + 1])
        assert np.array_equal(keypoints, together[1][k][0]) and np.array_equal(scores, together[1][k][1])
    monkeypatch.setattr(onnx_net, "BATCH", 1)
    for (keypoints, scores), other in zip(tiny.estimate(frames, boxes), together[1], strict=True):
        assert np.array_equal(keypoints, other[0]) and np.array_equal(scores, other[1])


def test_batches_are_full_across_frames(files, monkeypatch):
    net, seen = DWPose(*files, device="cpu"), []
    opened = onnxruntime.InferenceSession

    def watched(*args, **kwargs):
        session = opened(*args, **kwargs)

        def run(names, feed):
            (pictures,) = feed.values()
            seen.append(pictures.shape)
            return session.run(names, feed)

        parts = {name: getattr(session, name) for name in ("get_inputs", "get_outputs", "get_providers")}
        return SimpleNamespace(run=run, **parts)

    monkeypatch.setattr(onnxruntime, "InferenceSession", watched)
    monkeypatch.setattr(onnx_net, "BATCH", 8)
    net.estimate(noise(5, 5, 32, 32, 3), [crowd(k, 4)[0] for k in range(5)])
    assert [shape[0] for shape in seen] == [8, 8, 4]
    seen.clear()
    net.detect(noise(5, 3, 32, 32, 3))  # the released detector takes one picture
    assert [shape[0] for shape in seen] == [1, 1, 1]


def test_a_pose_net_of_batch_one(tmp_path, files, tiny):
    net = DWPose(files[0], write_pose(tmp_path / "one.onnx", batch=1), device="cpu")
    frames, boxes = noise(6, 2, 40, 40, 3), [crowd(k, 3)[0] for k in range(2)]
    for ours, theirs in zip(net.estimate(frames, boxes), tiny.estimate(frames, boxes), strict=True):
        assert np.allclose(ours[0], theirs[0])


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (1, 700), (700, 1), (37, 91), (641, 479)])
def test_odd_sizes(tiny, size):
    width, height = size
    frames = noise(7, 2, height, width, 3)
    frames[1] = (255, 0, 0)
    for boxes, (keypoints, scores) in zip(tiny.detect(frames), tiny.estimate(frames, [[], []]), strict=True):
        assert boxes.shape[1] == 4 and np.isfinite(boxes).all()
        assert np.isfinite(keypoints).all() and np.isfinite(scores).all()
    assert tiny.poses(frames).size == size


def test_many_people(tiny):
    frame = np.zeros((512, 512, 3), np.uint8)
    for row in range(2):
        for column in range(2):
            frame[row * 256 + 128 : row * 256 + 192, column * 256 + 128 : column * 256 + 192, 0] = 250
    (people,) = tiny.poses(frame[None]).people
    assert len(people) == 4
    boxes = np.tile(np.float32([[0, 0, 100, 100]]), (150, 1)) + np.arange(150, dtype=np.float32)[:, None]
    ((keypoints, _),) = tiny.estimate(frame[None], [boxes])
    assert keypoints.shape == (150, 134, 2)


def test_poses_of_a_stream(tiny):
    red = [[(2, 2, 200), (6, 6, 250)], [], [(5, 2, 240)]] * 7
    frames = [black(red=squares) for squares in red]
    poses = list(tiny.poses(iter(frames)).keypoints())
    assert [len(pose["people"]) for pose in poses] == [2, 0, 1] * 7
    for pose, frame in zip(poses, frames, strict=True):
        assert clean_pose(pose) == pose and json.loads(json.dumps(pose)) == pose
        assert draw_pose(pose).shape == frame.shape
    person = poses[0]["people"][0]
    box = np.reshape(person["box_keypoints_2d"], (2, 3))
    assert np.allclose(box[:, :2].ravel(), box_of(6, 6), atol=1e-3)
    assert np.allclose(box[:, 2], 1 / (1 + np.exp(-(250 - 128) / 16)), atol=1e-4)
    (keypoints, _), *_ = tiny.estimate(frames[:1], tiny.detect(frames[:1]))
    assert np.allclose(np.reshape(person["pose_keypoints_2d"], (18, 3))[:, :2], keypoints[0, :18])


def test_people_limit_keeps_the_most_certain(tiny):
    frame = black(red=[(1, 1, 180), (6, 6, 250), (1, 6, 220)])
    for limit in (1, 2, 3, 9):
        (pose,) = tiny.poses(frame[None], people_limit=limit).keypoints()
        kept = [person["box_keypoints_2d"][:2] for person in pose["people"]]
        assert np.allclose(kept, [box_of(*c)[:2] for c in [(6, 6), (1, 6), (1, 1)]][:limit], atol=1e-3)
    with pytest.raises(UserError, match="limit is 0"):
        tiny.poses(frame[None], people_limit=0)


def test_packing_people_loses_nothing():
    rng = np.random.default_rng(8)
    keypoints, scores = rng.normal(40, 30, (2, 134, 2)), rng.uniform(0, 1, (2, 134))
    boxes = np.float32([[1, 2, 3, 4], [5, 6, 7, 8]])
    (pose,) = Poses(90, 80, [pack_people(keypoints, scores, boxes, np.ones(2))]).keypoints()
    assert clean_pose(pose) == pose
    for k, person in enumerate(pose["people"]):
        parts = [
            np.reshape(person[part], (-1, 3))
            for part in (
                "pose_keypoints_2d",
                "foot_keypoints_2d",
                "face_keypoints_2d",
                "hand_left_keypoints_2d",
                "hand_right_keypoints_2d",
            )
        ]
        assert [len(part) for part in parts] == [18, 6, 68, 21, 21]
        assert np.array_equal(np.concatenate(parts), np.column_stack([keypoints[k], scores[k]]))
        assert person["mid_hip_keypoints_2d"] is None
        x0, y0, x1, y1 = boxes[k].tolist()
        assert person["box_keypoints_2d"] == [x0, y0, 1.0, x1, y1, 1.0]


def test_packing_nobody():
    people = pack_people(np.zeros((0, 134, 2)), np.zeros((0, 134)), np.zeros((0, 4)), np.zeros(0))
    (pose,) = Poses(9, 8, [people]).keypoints()
    assert pose == {"canvas_width": 9, "canvas_height": 8, "people": []}


# --- files, devices, and what a user can get wrong


def test_sessions_open_on_first_use(tmp_path, files, monkeypatch):
    damaged = tmp_path / "damaged.onnx"
    damaged.write_bytes(files[1].read_bytes()[:500])
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    net = DWPose(files[0], damaged)
    with pytest.raises(UserError, match="pip install onnxruntime"):
        net.detect(black()[None])
    monkeypatch.undo()
    assert len(net.detect(black()[None])) == 1
    with pytest.raises(UserError, match=r"cannot open .*damaged\.onnx.*anycharv download pose"):
        net.estimate(black()[None], [[]])


def test_a_session_is_opened_once(files, monkeypatch):
    opened, paths = onnxruntime.InferenceSession, []
    monkeypatch.setattr(
        onnxruntime, "InferenceSession", lambda path, *a, **k: paths.append(path) or opened(path, *a, **k)
    )
    net = DWPose(*files, device="cpu")
    assert paths == []
    net.poses([black(red=[(2, 2, 250)])] * 3)
    net.poses([black(red=[(2, 2, 250)])])
    assert paths == [str(path) for path in files]


def test_a_missing_file_is_named_at_once(tmp_path, files):
    with pytest.raises(UserError, match=r"no person detector \(yolox_l.onnx\) at .*gone.*anycharv download pose"):
        DWPose(tmp_path / "gone.onnx", files[1])
    with pytest.raises(UserError, match=r"no pose network \(dw-ll_ucoco_384.onnx\) at .*download pose"):
        DWPose(files[0], tmp_path)


def test_swapped_files(files):
    net = DWPose(*files[::-1], device="cpu")
    with pytest.raises(UserError, match=r"ucoco_384\.onnx is not the person detector \(yolox_l\.onnx\)"):
        net.detect(black()[None])
    with pytest.raises(UserError, match=r"yolox_l\.onnx is not the pose network \(dw-ll_ucoco_384\.onnx\)"):
        net.estimate(black()[None], [[]])


def test_foreign_detectors(tmp_path, files):
    few = write_detector(tmp_path / "few.onnx", SIDE, columns=6)
    with pytest.raises(UserError, match=r"few\.onnx is not the person detector.* \[1, 84, 6\] .*\[\*, 84, 85\]"):
        DWPose(few, files[1], "cpu").detect(black()[None])
    free = write_detector(tmp_path / "free.onnx", side_name="side")
    with pytest.raises(UserError, match=r"free\.onnx is not .*does not fix the size"):
        DWPose(free, files[1], "cpu").detect(black()[None])
    text = tmp_path / "text.onnx"
    text.write_text("<!doctype html>")
    with pytest.raises(UserError, match=r"cannot open .*text\.onnx"):
        DWPose(text, files[1], "cpu").detect(black()[None])


@pytest.mark.parametrize(
    ("frames", "boxes", "sentence"),
    [
        (np.zeros((1, 8, 8, 3), np.float32), [[]], "uint8"),
        (np.zeros((1, 8, 8), np.uint8), [[]], "uint8"),
        (np.zeros((2, 8, 8, 3), np.uint8), [[]], "2 frames, and boxes for 1"),
        (np.zeros((1, 8, 8, 3), np.uint8), [[[1, 2, 3]]], "boxes of frame 0"),
        (np.zeros((1, 8, 8, 3), np.uint8), [[1, 2, 3, 4]], "boxes of frame 0"),
        (np.zeros((1, 8, 8, 3), np.uint8), [[[0, 0, np.nan, 4]]], "boxes of frame 0"),
    ],
)
def test_wrong_frames_and_boxes(tiny, frames, boxes, sentence):
    with pytest.raises(UserError, match=sentence):
        tiny.estimate(frames, boxes)


def test_no_frames(tiny):
    frames = np.zeros((0, 8, 8, 3), np.uint8)
    assert tiny.detect(frames) == tiny.estimate(frames, []) == []
    with pytest.raises(UserError, match="no frames"):
        tiny.poses(frames)


def test_cuda_where_there_is_none_is_said_once(files, tiny, caplog, monkeypatch):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    onnx_net._say_choice.cache_clear()
    frame = black(red=[(2, 2, 250)])[None]
    with caplog.at_level(logging.INFO, "anycharv_core"):
        for _ in range(2):
            (found,) = DWPose(*files, device="cuda").poses(frame).people
            assert np.array_equal(found, tiny.poses(frame).people[0], equal_nan=True)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING and "onnxruntime-gpu" in record.message


def test_the_cpu_is_said_once_and_is_no_warning(files, caplog):
    onnx_net._say_choice.cache_clear()
    with caplog.at_level(logging.INFO, "anycharv_core"):
        DWPose(*files, device="cpu").poses(black(red=[(2, 2, 250)])[None])
        DWPose(*files, device="mps").detect(black()[None])
    assert [(record.levelno, record.message) for record in caplog.records] == [
        (logging.INFO, "Poses are found on the CPU.")
    ]


@pytest.mark.parametrize(
    ("device", "torch_has_it", "index"),
    [("cuda", True, 0), ("cuda:1", True, 1), (None, True, 0), (None, False, None), ("cpu", True, None)],
)
def test_cuda_is_used_where_it_is(files, monkeypatch, device, torch_has_it, index):
    import torch

    asked = []
    opened = onnxruntime.InferenceSession

    def session(path, options, providers):
        asked.append(providers)
        return opened(path, options, providers=["CPUExecutionProvider"])

    available = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: available)
    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: torch_has_it)
    DWPose(*files, device=device).detect(black()[None])
    cuda = [] if index is None else [("CUDAExecutionProvider", {"device_id": index})]
    assert asked == [[*cuda, "CPUExecutionProvider"]]
