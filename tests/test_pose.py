"""Skeletons: official drawing, pixel for pixel, and the files they come in."""

import hashlib
import json
import random

import cv2
import needs
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from keypoint_files import clean_pose, draw_pose, read_frames, scale_pose, write_frames

from anycharv_core.errors import UserError
from anycharv_core.media import pose
from anycharv_core.media.pose import PARTS, Poses, parse_poses, person_in_mask, read_poses, write_poses
from anycharv_core.media.pose_drawing import draw_poses

RECORDED = needs.PARITY / "pose_drawing"
COUNTS = {
    "pose_keypoints_2d": 18,
    "face_keypoints_2d": 68,
    "hand_left_keypoints_2d": 21,
    "hand_right_keypoints_2d": 21,
}


def make_frame(seed, width=320, height=256, people=1, step=0.0, face=68):
    """People with points all over the canvas, some of them unseen; on a grid of `step` pixels.

    None leave it: OpenCV 4 and 5 cut strokes at the border in slightly different ways.
    """
    rng = random.Random(seed)

    def points(count):
        flat = []
        for _ in range(count):
            x, y = rng.uniform(0.05, 0.95) * width, rng.uniform(0.05, 0.95) * height
            if step:
                x, y = x // step * step, y // step * step
            flat += [x, y, rng.choice([0.0, 0.3, 0.301, 0.6, 0.9, 1.0])]
        return flat

    counts = {**COUNTS, "face_keypoints_2d": face}
    return {
        "canvas_width": width,
        "canvas_height": height,
        "people": [{part: points(count) for part, count in counts.items()} for _ in range(people)],
    }


def body_points(frame, person=0):
    return pose.body_points(parse_poses(frame).people[0][person])


def only_person(frame, mask):
    poses = parse_poses(frame)
    return next(poses.only(np.array([person_in_mask(poses, 0, mask)])).keypoints())


def body_only(points, width=64, height=64):
    person = {"pose_keypoints_2d": [float(v) for point in points for v in point]}
    return {"canvas_width": width, "canvas_height": height, "people": [person]}


@needs.recorded(RECORDED)
def test_drawing_equals_the_recorded_official_ones():
    for index, frame in enumerate(json.loads((RECORDED / "poses.json").read_text())):
        recorded = cv2.imread(str(RECORDED / f"{index:02d}.png"))[..., ::-1]
        assert np.array_equal(draw_pose(frame), recorded), index


# Each digest was taken of the official code's drawing, run beside ours on the same frame.
@pytest.mark.parametrize(
    ("frame", "digest"),
    [
        (make_frame(1), "3696e89c41cd76a4f19a71ff5fac02be812b6a526cdaec3705ea18e7813ed68a"),
        # Whole pixels, where dividing by the canvas and multiplying back falls below the number.
        (
            make_frame(2, 333, 517, people=3, step=1.0),
            "2d685dcd27f665f1caa3bf40abab68c105c729c7e00ea6cdd7b99bb8b74831ce",
        ),
        (
            make_frame(3, 320, 576, people=2, step=0.5, face=70),
            "1deb3bad95b6fabbaf6f5a8fbf031809b578a7656df9b7d83e1569e1772f27a1",
        ),
        # First rows and columns, where hands and faces are left out and bodies are not.
        (
            make_frame(4, 96, 96, people=2, step=12.0),
            "ec646d4b9af4c93dfcdb95c9de02c88a5fdf2cd27ef0c0a1ef66de277f49e5b1",
        ),
    ],
)
def test_drawing_equals_the_official_code(frame, digest):
    assert hashlib.sha256(draw_pose(frame).tobytes()).hexdigest() == digest


@pytest.mark.parametrize(
    "people",
    [
        None,
        [],
        [{}],
        [{"pose_keypoints_2d": None, "face_keypoints_2d": []}],
        [{"pose_keypoints_2d": [0] * 54}],
    ],
)
def test_nobody_seen_is_a_black_picture(people):
    picture = draw_pose({"canvas_width": 48, "canvas_height": 32, "people": people})
    assert picture.shape == (32, 48, 3) and picture.dtype == np.uint8 and not picture.any()


def test_score_of_exactly_the_limit_is_not_drawn():
    unseen, seen = [[20, 20, 0.3]] * 18, [[20, 20, 0.31]] * 18
    assert not draw_pose(body_only(unseen)).any()
    assert draw_pose(body_only(seen)).any()


def test_all_bodies_lie_under_all_hands_and_faces():
    frame = make_frame(5, people=1)
    body = {"pose_keypoints_2d": frame["people"][0].pop("pose_keypoints_2d")}
    rest = frame["people"][0]
    drawn = [draw_pose({**frame, "people": people}) for people in ([body, rest], [rest, body], [{**body, **rest}])]
    assert np.array_equal(drawn[0], drawn[1]) and np.array_equal(drawn[0], drawn[2])


def test_fractions_of_the_canvas_become_pixels():
    frame = make_frame(6, 512, 256)
    fractions = json.loads(json.dumps(frame))
    for flat in fractions["people"][0].values():
        flat[0::3] = [x / 512 for x in flat[0::3]]
        flat[1::3] = [y / 256 for y in flat[1::3]]
    assert clean_pose(fractions) == clean_pose(frame)
    assert np.array_equal(draw_pose(fractions), draw_pose(frame))


@given(st.integers(0, 10**6), st.integers(16, 700), st.integers(16, 700))
def test_scaled_pose_scales_back(seed, width, height):
    frame = clean_pose(make_frame(seed))
    scaled = scale_pose(frame, width, height)
    assert draw_pose(scaled).shape == (height, width, 3)
    points = body_points(frame)
    np.testing.assert_allclose(body_points(scaled), points * [width / 320, height / 256, 1], rtol=1e-5)
    np.testing.assert_allclose(body_points(scale_pose(scaled, 320, 256)), points, rtol=1e-5)
    assert scale_pose(frame, 320, 256) == frame


def test_body_points_are_zero_for_a_missing_body():
    points = body_points(make_frame(7, people=2), person=1)
    assert points.shape == (18, 3) and points.dtype == np.float32 and points.any()
    hand = {"hand_left_keypoints_2d": [1.0] * 63}
    assert not body_points({"canvas_width": 8, "canvas_height": 8, "people": [hand]}).any()


def test_people_without_a_single_list_are_left_out():
    frame = make_frame(7)
    assert clean_pose({**frame, "people": [{}, *frame["people"], {"face_keypoints_2d": []}]}) == clean_pose(frame)


def test_only_the_person_with_most_joints_in_the_mask_is_kept():
    frame = body_only([(10 + i, 20, 1.0) for i in range(18)])
    right = body_only([(44 + i % 3, 20, 1.0) for i in range(18)])["people"][0]
    unseen = body_only([(44, 20, 0.3)] * 18)["people"][0]
    frame["people"] += [unseen, right]
    mask = np.zeros((128, 128), np.uint8)  # twice the canvas: masks are of the clip, poses of theirs
    mask[:, 80:] = 255
    assert only_person(frame, mask) == clean_pose({**frame, "people": [right]})
    assert only_person(frame, 255 - mask)["people"] == clean_pose(frame)["people"][:1]
    assert only_person(frame, mask * 0)["people"] == []
    everywhere = only_person(frame, np.full_like(mask, 255))["people"]
    assert everywhere == clean_pose(frame)["people"][:1]


def test_poses_survive_writing_and_reading(tmp_path):
    frames = [clean_pose(make_frame(seed, people=seed)) for seed in range(4)]
    write_frames(tmp_path / "poses.json", frames)
    assert read_frames(tmp_path / "poses.json") == frames
    assert [path.name for path in tmp_path.iterdir()] == ["poses.json"]


def sdpose_sample():
    """What ComfyUI's SDPose hands on: pixels, 70 face points, feet; -1 where its heat map was empty."""
    person = {
        "pose_keypoints_2d": [*flat_points(18)[:-3], -1.0, -1.0, 0.02],
        "foot_keypoints_2d": flat_points(6),
        "face_keypoints_2d": flat_points(70),
        "hand_right_keypoints_2d": flat_points(21),
        "hand_left_keypoints_2d": flat_points(21),
    }
    return {"canvas_width": 320, "canvas_height": 256, "people": [person, person]}, person


def dwpose_sample():
    """comfyui_controlnet_aux: None for a list and zeros for a point it did not find, fractions, animals."""
    body = flat_points(18, 1 / 320, 1 / 256)
    body[3:6] = [0.0, 0.0, 0.0]
    person = {
        "pose_keypoints_2d": body,
        "face_keypoints_2d": None,
        "hand_left_keypoints_2d": None,
        "hand_right_keypoints_2d": flat_points(21, 1 / 320, 1 / 256),
    }
    expected = {
        "pose_keypoints_2d": flat_points(18),
        "hand_right_keypoints_2d": flat_points(21),
    }
    expected["pose_keypoints_2d"][3:6] = [0.0, 0.0, 0.0]
    return {"people": [person], "animals": [[1.0]], "canvas_height": 256, "canvas_width": 320}, expected


def openpose_sample():
    """OpenPose's own JSON: BODY_25, person_id, empty lists and no canvas."""
    points = flat_points(25)
    person = {
        "person_id": [-1],
        "pose_keypoints_2d": points,
        "face_keypoints_2d": [],
        "hand_left_keypoints_2d": flat_points(21),
        "hand_right_keypoints_2d": [],
        "pose_keypoints_3d": [],
    }
    expected = {
        "pose_keypoints_2d": points[:24] + points[27:57],
        "mid_hip_keypoints_2d": points[24:27],
        "foot_keypoints_2d": points[57:],
        "hand_left_keypoints_2d": flat_points(21),
    }
    return {"version": 1.3, "people": [person]}, expected


def our_sample():
    person = {part: flat_points(count) for part, count in PARTS.items()}
    person["box_keypoints_2d"] = [8.5, 16.25, 0.87, 250.0, 256.0, 0.87]
    return {"canvas_width": 320, "canvas_height": 256, "people": [person]}, person


def flat_points(count, x=1.0, y=1.0):
    return [v for i in range(count) for v in ((10 + 3.5 * i) * x, (20 + 2.25 * i) * y, 0.1 + 0.9 * i / count)]


@pytest.mark.parametrize("sample", [sdpose_sample, dwpose_sample, openpose_sample, our_sample])
def test_nothing_is_lost_of_what_detectors_write(tmp_path, sample):
    content, expected = sample()
    (tmp_path / "theirs_000_keypoints.json").write_text(json.dumps(content))
    single = read_frames(tmp_path / "theirs_000_keypoints.json", (320, 256))
    poses = read_frames(tmp_path, (320, 256))
    assert poses == single and len(poses) == 1
    for person in poses[0]["people"]:
        assert set(person) == set(PARTS)
        for part, flat in person.items():
            assert flat == (pytest.approx(expected[part], abs=1e-9) if part in expected else None), part
    assert len(poses[0]["people"]) == len(content["people"])
    write_frames(tmp_path / "ours.json", poses)
    assert read_frames(tmp_path / "ours.json") == poses


def test_feet_of_their_own_come_before_those_of_body_25():
    content, expected = openpose_sample()
    content |= {"canvas_width": 320, "canvas_height": 256}
    content["people"][0]["foot_keypoints_2d"] = flat_points(6)
    (person,) = clean_pose(content)["people"]
    assert person["foot_keypoints_2d"] == flat_points(6)
    assert person["mid_hip_keypoints_2d"] == expected["mid_hip_keypoints_2d"]


def test_feet_mid_hip_and_box_are_kept_scaled_and_not_drawn():
    content, _ = our_sample()
    drawn = {part: content["people"][0][part] for part in COUNTS}
    assert np.array_equal(draw_pose(content), draw_pose({**content, "people": [drawn]}))
    (scaled,) = scale_pose(content, 160, 768)["people"]
    assert scaled["box_keypoints_2d"] == [4.25, 48.75, 0.87, 125.0, 768.0, 0.87]
    assert scaled["foot_keypoints_2d"][:3] == [5.0, 60.0, 0.1]
    kept = only_person(content, np.full((256, 320), 255, np.uint8))
    assert kept == clean_pose(content) and kept["people"][0]["mid_hip_keypoints_2d"]
    alone = {**content, "people": [{"box_keypoints_2d": content["people"][0]["box_keypoints_2d"]}]}
    assert not draw_pose(alone).any() and not body_points(alone).any()


def test_a_single_frame_is_a_clip_of_one(tmp_path):
    (tmp_path / "one.json").write_text("\ufeff" + json.dumps(make_frame(8)), encoding="utf-8")
    assert read_frames(tmp_path / "one.json") == [clean_pose(make_frame(8))]


def test_a_folder_of_openpose_files_needs_the_canvas(tmp_path):
    frame = make_frame(9, people=1)
    body = np.reshape(frame["people"][0]["pose_keypoints_2d"], (18, 3))
    body_25 = np.concatenate([body[:8], [[7.0, 7.0, 1.0]], body[8:], np.full((6, 3), 9.0)])
    openpose = {
        "version": 1.3,
        "people": [{**frame["people"][0], "pose_keypoints_2d": body_25.ravel().tolist()}],
    }
    for index, content in enumerate([openpose, {"people": []}]):
        (tmp_path / f"clip_{index:012d}_keypoints.json").write_text(json.dumps(content))
    first, second = read_frames(tmp_path, canvas=(320, 256))
    frame["people"][0] |= {"mid_hip_keypoints_2d": [7.0, 7.0, 1.0], "foot_keypoints_2d": [9.0] * 18}
    assert first == clean_pose(frame) and second == {**first, "people": []}
    with pytest.raises(UserError, match="canvas size"):
        read_poses(tmp_path)


def body_of(*values):
    return [{**make_frame(0), "people": [{"pose_keypoints_2d": list(values)}]}]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "no pose frames"),
        ("[3]", "frame 0: A pose frame must be an object"),
        ('[{"people": []}]', "canvas size"),
        ('[{"canvas_width": 8.5, "canvas_height": 8}]', "canvas size"),
        ('[{"canvas_width": 8, "canvas_height": 8, "people": {"a": 1}}]', "people must be a list"),
        (json.dumps([make_frame(0), make_frame(0, 64, 64)]), "frame 1: its canvas is 64x64"),
        (json.dumps(body_of(*[1.0] * 53)), "18 or 25 points"),
        (json.dumps(body_of(*[1.0] * 51)), "not 51 numbers"),
        (
            json.dumps({**make_frame(0), "people": [{"foot_keypoints_2d": [1.0] * 21}]}),
            "foot_keypoints_2d must hold 6 points",
        ),
        (json.dumps(body_of(*[1.0] * 53, None)), "flat list of numbers"),
        (json.dumps(body_of(*[[1.0, 1.0, 1.0]] * 18)), "flat list of numbers"),
        (json.dumps(body_of([1.0], *[[1.0, 1.0, 1.0]] * 17)), "flat list of numbers"),
        (json.dumps(body_of(*[1.0] * 53, float("nan"))), "finite"),
        (json.dumps(body_of(*[1.0] * 53, 1e9)), "finite"),
        (json.dumps(body_of(*[1.0] * 53, 10**400)), "too large"),
        (json.dumps(body_of(*["1"] * 54)), "flat list of numbers"),
        ('[{"canvas_width": true, "canvas_height": 8}]', "canvas size"),
        ('[{"canvas_width": "8", "canvas_height": 8}]', "canvas size"),
        ('[{"canvas_width": 1e999, "canvas_height": 8}]', "finite"),
        (json.dumps([{**make_frame(0), "people": make_frame(0)["people"] * 101}]), "100 people, .* has 101"),
    ],
)
def test_a_broken_file_is_refused_in_one_sentence(tmp_path, content, message):
    path = tmp_path / "poses.json"
    path.write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        read_poses(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_nothing_to_read_is_said(tmp_path):
    with pytest.raises(UserError, match="no pose frames"):
        read_poses(tmp_path)
    with pytest.raises(UserError, match="is not there"):
        read_poses(tmp_path / "missing.json")


def test_a_bad_pose_leaves_the_old_file(tmp_path):
    path = tmp_path / "poses.json"
    write_frames(path, [make_frame(1)])
    old = path.read_bytes()
    with pytest.raises(UserError, match="frame 1"):
        write_frames(path, [make_frame(1), {"people": 3}])
    with pytest.raises(IndexError):
        write_poses(path, Poses(8, 8, [parse_poses(make_frame(1)).people[0], np.zeros((1, 2))]))
    assert path.read_bytes() == old


def test_frames_of_one_shape_are_scaled_to_the_first_canvas():
    frame = make_frame(3)
    half = scale_pose(frame, 160, 128)
    poses = parse_poses([frame, half])
    assert poses.size == (320, 256)
    np.testing.assert_allclose(poses.people[1], poses.people[0])


def test_a_few_kilobytes_a_frame():
    poses = parse_poses([our_sample()[0]] * 3)
    assert sum(people.nbytes for people in poses.people) <= 3 * 4096


def test_poses_survive_packing_to_the_bit():
    frames = [clean_pose(make_frame(seed, people=seed, face=68 + seed % 2 * 2)) for seed in (2, 0, 1)]
    poses = parse_poses(frames)
    assert list(Poses.unpack(poses.pack()).keypoints()) == list(poses.keypoints()) == frames


def test_points_flung_far_away_by_scaling_are_drawn():
    person = {"pose_keypoints_2d": [1e6, -1e6, 1.0] * 9 + [4.0, 4.0, 1.0] * 9}
    poses = parse_poses({"canvas_width": 8, "canvas_height": 8, "people": [person]})
    (picture,) = draw_poses(poses.scaled(16000, 8))
    assert picture.shape == (8, 16000, 3)


def test_poses_of_a_file_lie_in_a_file(tmp_path, monkeypatch):
    frames = [make_frame(seed, people=seed % 3) for seed in range(12)]
    write_frames(tmp_path / "poses.json", frames)
    monkeypatch.setattr("anycharv_core.media.frames.MEMORY", 1)
    read, parsed = read_poses(tmp_path / "poses.json"), parse_poses(frames)
    for one, other in ((read, parsed), (read.scaled(99, 70), parsed.scaled(99, 70))):
        assert len(one) == 12 and [len(people) for people in one.people] == [0, 1, 2] * 4
        for ours, theirs in zip(one.people, other.people, strict=True):
            np.testing.assert_array_equal(ours, theirs)
    with pytest.raises(IndexError):
        read.people[12]
