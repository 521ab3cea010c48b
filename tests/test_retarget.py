"""The reference's proportions on the driving skeleton: lengths, angles, the ground, and what is missing."""

import json

import needs
import numpy as np
import pytest
from keypoint_files import clean_pose, draw_pose, read_frames

from anycharv_core.errors import UserError
from anycharv_core.media.pose import PARTS, Poses, parse_poses
from anycharv_core.preprocess import retarget as retargeting
from anycharv_core.puppets.character import sample_character
from anycharv_core.puppets.motion import sample_motion

pytestmark = pytest.mark.filterwarnings("error")

# neck, shoulder, upper arm, forearm, trunk, pelvis, thigh, shin, head
ADULT = (55, 38, 62, 55, 110, 20, 90, 85, 12)
CARTOON = (90, 30, 45, 40, 80, 26, 40, 35, 30)
PAIRS = {
    "neck": [(1, 0)],
    "shoulder": [(1, 2), (1, 5)],
    "upper arm": [(2, 3), (5, 6)],
    "forearm": [(3, 4), (6, 7)],
    "trunk": [(1, 18)],
    "pelvis": [(18, 8), (18, 11)],
    "thigh": [(8, 9), (11, 12)],
    "shin": [(9, 10), (12, 13)],
    "head": [(0, 14), (0, 15), (14, 16), (15, 17)],
}
BONES = [pair for pairs in PAIRS.values() for pair in pairs]
ARM, LEG = (0.4, 0.2), (0.06, 0.02)


def figure(build, neck=(300.0, 200.0), arms=(ARM, ARM), legs=(LEG, LEG), size=1.0):
    """float64 [18, 2], seen from the front; arms and legs (right, left) by the angles of their two bones."""
    head_up, across, upper, fore, trunk, hip, thigh, shin, head = (size * length for length in build)
    points = np.zeros((18, 2))
    points[1] = neck
    points[0] = points[1] - [0, head_up]
    for side, (shoulder, hips, eye, ear) in zip((-1, 1), ((2, 8, 14, 16), (5, 11, 15, 17)), strict=True):
        arm, leg = arms[side > 0], legs[side > 0]
        points[shoulder] = points[1] + [side * across, 0]
        points[hips] = points[1] + [side * hip, trunk]
        for start, angles, lengths in ((shoulder, arm, (upper, fore)), (hips, leg, (thigh, shin))):
            for bone, (angle, length) in enumerate(zip(angles, lengths, strict=True)):
                along = np.array([side * np.sin(angle), np.cos(angle)])
                points[start + bone + 1] = points[start + bone] + length * along
        points[eye] = points[0] + [side * head, -head]
        points[ear] = points[eye] + [side * head, head / 2]
    return points


def retarget(frames, reference):
    poses = parse_poses(frames) if frames else Poses(600, 800, [])
    return list(retargeting.retarget(poses, parse_poses(reference)).keypoints())


def pose(*bodies, scores=1.0, **parts):
    flat = [np.c_[body, np.broadcast_to(scores, 18)].ravel().tolist() for body in bodies]
    people = [{"pose_keypoints_2d": body, **parts} for body in flat]
    return clean_pose({"canvas_width": 600, "canvas_height": 800, "people": people})


def part(frame, name="pose_keypoints_2d"):
    return np.reshape(frame["people"][0][name], (-1, 3))


def joints(frame):
    body = part(frame)[:, :2]
    return np.concatenate([body, (body[8:9] + body[11:12]) / 2])


def lengths(frame):
    body = joints(frame)
    return np.array([np.linalg.norm(body[a] - body[b]) for a, b in BONES])


def directions(frame):
    body = joints(frame)
    bones = np.array([body[b] - body[a] for a, b in BONES])
    return np.arctan2(bones[:, 1], bones[:, 0])


def dance(frames=40, build=ADULT):
    """Arms and legs swing in the picture's plane, one foot lifted at a time; the camera comes closer."""
    for turn in np.linspace(0, 4 * np.pi, frames):
        lift = [max(0.0, np.sin(turn + phase)) for phase in (0, np.pi)]
        yield figure(
            build,
            (300 + 20 * np.sin(turn), 200),
            [(1 + np.sin(turn), 2 + np.cos(turn)), (0.5, 1.5 + np.sin(turn))],
            [(0.1 + 0.6 * up, -0.5 * up) for up in lift],
            size=1 + 0.1 * turn / np.pi,
        )


def test_a_frontal_pose_takes_on_the_references_proportions_and_keeps_its_height():
    driving, reference = pose(figure(ADULT)), pose(figure(CARTOON, size=2.5, arms=[(1, 2), (0.2, 0.3)]))
    (result,) = retarget([driving], reference)
    ratio = lengths(result) / lengths(reference)
    assert np.ptp(ratio) < 0.01 * ratio.mean()

    def height(frame):
        at = dict(zip(BONES, lengths(frame), strict=True))
        return sum(at[pair] for pair in ((1, 0), (1, 18), (8, 9), (9, 10)))

    assert height(result) == pytest.approx(height(driving), rel=1e-9)
    assert result["people"][0]["pose_keypoints_2d"][2::3] == [1.0] * 18


def test_every_bone_has_one_factor_and_its_direction_in_all_frames():
    driving = [pose(body) for body in dance()]
    result = retarget(driving, pose(figure(CARTOON)))
    factors = np.array([lengths(new) / lengths(old) for old, new in zip(driving, result, strict=True)])
    assert np.ptp(factors, axis=0).max() < 1e-9
    by_bone = dict(zip(BONES, factors[0], strict=True))
    for pairs in PAIRS.values():
        assert np.ptp([by_bone[pair] for pair in pairs]) < 1e-9, "left and right are one"
    turned = [directions(new) - directions(old) for old, new in zip(driving, result, strict=True)]
    assert np.abs(np.angle(np.exp(1j * np.array(turned)))).max() < 1e-9
    ratio = factors[0] * lengths(driving[0]) / lengths(pose(figure(CARTOON)))
    assert np.ptp(ratio) < 0.01 * ratio.mean(), "the swinging clip is measured as the still figure is"


def test_lengths_hold_while_limbs_point_at_the_camera():
    bodies = list(dance(60))
    for t, body in enumerate(bodies):
        if t % 3:  # two frames of three show the forearms at a third of their length, and the legs at half
            for elbow, wrist in ((3, 4), (6, 7)):
                body[wrist] = body[elbow] + (body[wrist] - body[elbow]) / 3
        if t % 2:
            for knee, ankle in ((9, 10), (12, 13)):
                body[ankle] = body[knee] + (body[ankle] - body[knee]) / 2
    plain = retarget([pose(body) for body in dance(60)], pose(figure(CARTOON)))
    result = retarget([pose(body) for body in bodies], pose(figure(CARTOON)))
    assert lengths(result[0]) == pytest.approx(lengths(plain[0]), rel=0.02)


def test_the_ground_stays_where_it_was():
    driving = [pose(body) for body in dance()]
    result = retarget(driving, pose(figure(CARTOON)))
    for old, new in zip(driving, result, strict=True):
        feet, moved = part(old)[[10, 13], :2], part(new)[[10, 13], :2]
        assert moved[:, 1].max() == pytest.approx(feet[:, 1].max(), abs=1e-6)
    standing = [figure(ADULT, arms=[(t / 5, 1), ARM], legs=[LEG, (0.6, -0.6)]) for t in range(20)]
    result = retarget([pose(body) for body in standing], pose(figure(CARTOON)))
    for body, new in zip(standing, result, strict=True):
        assert np.abs(part(new)[10, :2] - body[10]).max() < 0.5, "the foot that carries"
    both = figure(ADULT, legs=[(0.3, 0.3)] * 2)
    (new,) = retarget([pose(both)], pose(figure(CARTOON)))
    assert part(new)[[10, 13], :2].mean(0) == pytest.approx(both[[10, 13]].mean(0))


def test_weight_moves_from_foot_to_foot_without_a_jump():
    walk = []
    for turn in np.linspace(0, 6 * np.pi, 90):
        lift = [max(0.0, np.sin(turn + phase)) for phase in (0, np.pi)]
        swing = 0.4 * np.cos(turn)
        legs = [(0.1 - swing, 0.1 - swing - 0.3 * lift[0]), (0.1 + swing, 0.1 + swing - 0.3 * lift[1])]
        walk.append(pose(figure(ADULT, (200 + 30 * turn / np.pi, 200), legs=legs)))
    result = retarget(walk, pose(figure(CARTOON)))
    neck = np.array([part(new)[1, :2] - part(old)[1, :2] for old, new in zip(walk, result, strict=True)])
    assert np.abs(np.diff(neck, axis=0)).max() < 8

    # A detector that confuses left and right moves the weight at once.
    legs = [(0.5, 0.5), (0.5, -0.6)]
    stand = [pose(figure(ADULT, legs=legs[:: 1 if t < 10 else -1])) for t in range(20)]
    necks = np.array([part(new)[1, 0] for new in retarget(stand, pose(figure(CARTOON)))])
    whole = abs(necks[-1] - necks[0])
    assert whole > 30 and np.abs(np.diff(necks)).max() < whole / 5


def test_there_and_back():
    driving = [pose(body) for body in dance()]
    back = retarget(retarget(driving, pose(figure(CARTOON))), driving[0])
    again = retarget(driving, driving[0])
    for old, same, new in zip(driving, again, back, strict=True):
        assert np.abs(part(same) - part(old)).max() < 1e-6, "their own proportions change nothing"
        assert lengths(new) == pytest.approx(lengths(old), rel=1e-6)
        assert np.abs(part(new) - part(old)).max() < 5  # sideways the weight on two feet is read anew
    still = pose(figure(ADULT))
    (back,) = retarget(retarget([still], pose(figure(CARTOON))), still)
    assert np.abs(part(back) - part(still)).max() < 1e-6


def test_hands_feet_and_face_are_carried_whole_and_the_box_keeps_its_margins():
    body, rng = figure(ADULT), np.random.default_rng(0)

    def around(centre, count):
        points = centre + rng.uniform(-15, 15, (count, 2))
        points[0] = centre
        return np.c_[points, np.linspace(0.2, 1, count)[::-1]].ravel().tolist()

    parts = {
        "face_keypoints_2d": around(body[0], 70),
        "hand_left_keypoints_2d": around(body[7], 21),
        "hand_right_keypoints_2d": around(body[4], 21),
        "foot_keypoints_2d": around(body[13], 3) + around(body[10], 3),
        "mid_hip_keypoints_2d": [*(body[8] + body[11]) / 2, 0.9],
    }
    shown = np.concatenate([np.c_[body, np.ones(18)], *(np.reshape(flat, (-1, 3)) for flat in parts.values())])
    shown = shown[shown[:, 2] > 0.3, :2]
    parts["box_keypoints_2d"] = [*(shown.min(0) - 7), 0.8, *(shown.max(0) + 9), 0.8]
    driving = pose(body, **parts)
    (result,) = retarget([driving], pose(figure(CARTOON)))
    ratio = dict(zip(BONES, lengths(result) / lengths(driving), strict=True))
    new_body = joints(result)
    for name, joint, bone, where in (
        ("face_keypoints_2d", 0, (0, 14), slice(70)),
        ("hand_left_keypoints_2d", 7, (6, 7), slice(21)),
        ("hand_right_keypoints_2d", 4, (3, 4), slice(21)),
        ("foot_keypoints_2d", 13, (12, 13), slice(0, 3)),
        ("foot_keypoints_2d", 10, (9, 10), slice(3, 6)),
    ):
        old, new = part(driving, name)[where], part(result, name)[where]
        seen = old[:, 2] > 0.3
        expected = new_body[joint] + ratio[bone] * (old[seen, :2] - body[joint])
        assert new[seen, :2] == pytest.approx(expected), name
        assert np.array_equal(new[~seen], old[~seen]) and np.array_equal(new[:, 2], old[:, 2]), name
    assert part(result, "mid_hip_keypoints_2d")[0, :2] == pytest.approx(new_body[18])
    everything = np.concatenate([part(result, name) for name in PARTS if name != "box_keypoints_2d"])
    everything = everything[everything[:, 2] > 0.3, :2]
    box = part(result, "box_keypoints_2d")
    assert box[0] == pytest.approx([*(everything.min(0) - 7), 0.8])
    assert box[1] == pytest.approx([*(everything.max(0) + 9), 0.8])

    swapped = {"hand_left_keypoints_2d": "hand_right_keypoints_2d"}
    swapped |= {there: here for here, there in swapped.items()}
    other = pose(body, **{swapped.get(name, name): flat for name, flat in parts.items()})
    (moved,) = retarget([other], pose(figure(CARTOON)))
    for here, there in swapped.items():
        assert part(moved, here) == pytest.approx(part(result, there)), "SDPose's hands are the other way round"


def test_points_lost_for_some_frames_change_nothing_for_the_rest():
    bodies = list(dance())
    scores = np.ones((40, 18))
    for t, joint in ((5, 9), (6, 9), (7, 10), (12, 1), (13, 8), (20, 0), (25, 3)):
        scores[t, joint] = 0.2
    driving = [pose(body, scores=row) for body, row in zip(bodies, scores, strict=True)]
    result = retarget(driving, pose(figure(CARTOON)))
    whole = retarget([pose(body) for body in bodies], pose(figure(CARTOON)))
    for old, new, full, row in zip(driving, result, whole, scores, strict=True):
        seen = row > 0.3
        assert np.array_equal(part(new)[~seen], part(old)[~seen])
        assert np.abs(part(new) - part(full))[seen].max() < 20
        if seen[[1, 10, 13]].all():
            ground = part(old)[[10, 13], 1].max()
            assert part(new)[[10, 13], 1].max() == pytest.approx(ground, abs=1e-6), "knee or hip seen or not"
    moved = np.array([part(new)[:, :2] - part(old)[:, :2] for old, new in zip(driving, result, strict=True)])
    jumps = np.linalg.norm(np.diff(moved[:, [2, 5, 6, 7]], axis=0), axis=-1)
    assert jumps.max() < 20, "what hangs on a lost joint does not jump"


def test_a_reference_without_legs_leaves_the_legs_as_they_are():
    half = np.ones(18)
    half[[9, 10, 12, 13]] = 0.0
    driving = pose(figure(ADULT))
    (result,) = retarget([driving], pose(figure(CARTOON), scores=half))
    ratio = dict(zip(BONES, lengths(result) / lengths(driving), strict=True))
    assert [ratio[pair] for pair in PAIRS["thigh"] + PAIRS["shin"]] == pytest.approx([1] * 4)
    assert ratio[1, 0] / ratio[1, 18] == pytest.approx((90 / 55) / (80 / 110))
    assert ratio[1, 0] * 55 + ratio[1, 18] * 110 == pytest.approx(55 + 110)
    # Nor does a driving clip without them have a ground; it stands on its hips.
    (result,) = retarget([pose(figure(ADULT), scores=half)], pose(figure(CARTOON)))
    assert part(result)[8:12:3, 1] == pytest.approx(part(driving)[8:12:3, 1])
    assert np.array_equal(part(result)[9:11, :2], part(driving)[9:11, :2])


def test_frames_with_nobody_stay_empty_and_the_input_is_left_alone():
    bodies = list(dance(10))
    driving = [pose(body) if t % 3 else pose() for t, body in enumerate(bodies)]
    hand = {"pose_keypoints_2d": None, "hand_left_keypoints_2d": [9.0, 9.0, 1.0] * 21}
    driving[1] = {**driving[1], "people": [{**driving[1]["people"][0], **hand}]}
    before = json.dumps(driving)
    result = retarget(driving, pose(figure(CARTOON)))
    assert json.dumps(driving) == before
    assert [len(frame["people"]) for frame in result] == [0, 1, 1, 0, 1, 1, 0, 1, 1, 0]
    assert result[1]["people"][0]["pose_keypoints_2d"] is None
    assert retarget([pose()] * 2, pose(figure(CARTOON))) == [pose()] * 2
    assert retarget([], pose(figure(CARTOON))) == []


def test_several_people_and_no_body_are_said():
    driving = pose(figure(ADULT))
    with pytest.raises(UserError, match=r"Frame 1 .* has 2 people"):
        retarget([driving, pose(figure(ADULT), figure(CARTOON))], driving)
    for nobody in (pose(), pose(figure(ADULT), scores=0.3)):
        with pytest.raises(UserError, match="no body"):
            retarget([driving], nobody)
    small = figure(ADULT, size=0.2)
    several = retarget([driving], pose(small, figure(CARTOON)))
    assert several == retarget([driving], pose(figure(CARTOON))), "of several the tallest"


def test_a_limb_without_length_in_the_reference_does_not_collapse():
    flat = figure(ADULT)
    flat[[4, 7]] = flat[[3, 6]] + 0.01
    driving = pose(figure(ADULT))
    (result,) = retarget([driving], pose(flat))
    assert (lengths(result) / lengths(driving)).min() == pytest.approx(0.25)


def test_puppets_in_three_dimensions_take_on_each_others_build():
    bodies, motions = [], []
    for seed in (1, 2):
        proportions = sample_character(seed).proportions
        motions.append(sample_motion(seed, 48, proportions, kind="dance"))
        bodies.append([pose(600 * frame) for frame in motions[-1].joints])
    result = retarget(bodies[0], bodies[1][0])
    for old, new in zip(bodies[0], result, strict=True):
        assert part(new)[[10, 13], 1].max() == pytest.approx(part(old)[[10, 13], 1].max(), abs=0.5)
    assert np.isfinite([part(new) for new in result]).all()


@needs.recorded(needs.CLIPS)
@pytest.mark.parametrize("name", ["dance_indoor_1", "ski", "surf"])
def test_recorded_clips_keep_their_ground(name):
    poses = read_frames(needs.CLIPS / name / "pose.json")
    result = retarget(poses, pose(figure(CARTOON)))
    for old, new in zip(poses, result, strict=True):
        feet = part(old)[[10, 13]]
        if (part(old)[[1, 10, 13], 2] > 0.3).all():
            assert part(new)[[10, 13], 1].max() == pytest.approx(feet[:, 1].max(), abs=0.5)
        assert np.array_equal(part(old)[:, 2], part(new)[:, 2])
    assert draw_pose(result[-1]).any()
