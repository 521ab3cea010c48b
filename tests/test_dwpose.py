"""DWPose as a whole: equal to recorded official results, and on tiny networks."""

from __future__ import annotations

import json
from types import SimpleNamespace

import needs
import numpy as np
import onnxruntime
import pytest
from dwpose_files import black, box_of, crowd, noise
from dwpose_files import files as files
from dwpose_files import tiny as tiny
from keypoint_files import clean_pose, draw_pose
from tiny_onnx import GAINS, write_pose

from anycharv_core.errors import UserError
from anycharv_core.media.pose import Poses
from anycharv_core.preprocess.dwpose import DWPose, onnx_net, pack_people, simcc

OFFICIAL = needs.PARITY / "dwpose"
RECORDED = sorted(OFFICIAL.glob("*.npz"))


# DWPose's order of a person by COCO-WholeBody numbers (-1: neck), written out from the two definitions.
BODY = [0, -1, 6, 8, 10, 5, 7, 9, 12, 14, 16, 11, 13, 15, 2, 1, 4, 3]
ORDER = [*BODY, *range(17, 133)]


@needs.recorded(OFFICIAL)
@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.stem)
def test_recorded_results(path):
    net = DWPose(OFFICIAL / "yolox_l.onnx", OFFICIAL / "dw-ll_ucoco_384.onnx", device="cpu")
    recorded = np.load(path)
    frames = recorded["frame_rgb"][None]
    (boxes,) = net.detect(frames)
    expected = recorded["boxes_xyxy"]
    assert boxes.dtype == np.float32
    # The recorded detector has random weights and sees some 200 people, many of whom overlap by just so much that
    # a processor's rounding decides which of them stay.
    alike = np.abs(boxes[:, None] - expected).max(axis=-1) < 0.01
    assert alike.any(axis=0).mean() > 0.9 and alike.any(axis=1).mean() > 0.9
    people = 30  # all would take half a minute
    ((keypoints, scores),) = net.estimate(frames, [expected[:people]])
    assert keypoints.dtype == scores.dtype == np.float32
    assert np.abs(keypoints - recorded["keypoints"][:people]).max() < 0.01
    assert np.abs(scores - recorded["scores"][:people]).max() < 1e-4


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
