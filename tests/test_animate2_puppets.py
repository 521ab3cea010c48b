"""The world of things that are touched: exact bodies, objects, depth, contacts and twins."""

import hashlib

import numpy as np
import pytest

from anycharv_core.puppets import render, sample_character
from anycharv_core.puppets.interact import ACTS, Act, grown, sample_act
from anycharv_core.puppets.interaction import sample_interaction
from anycharv_core.puppets.motion import ELBOW, HIP, KNEE, NECK, SHOULDER, WRIST, depth_twin, scaled
from anycharv_core.puppets.render import Clip, frame_camera

SIZE, FRAMES = (96, 96), 5
DIGESTS = {
    "sit": "82c55b971f18ff8c8c3a6370d92e6dc2bde558661d1254c718ec7aabd37f9be9",
    "lean": "6d91939d8c6ed7c01b9af0a6cfc980e891f1fcfb36bc540c4a6616da1580320b",
    "carry": "ff0a40f7f9af620e05ba236c1001a9240f1c2cd17e1972ec531889c6249e3817",
    "hold": "dcfa33df339082e617170d28affee1306914569b3396a8a173f9cf253c2f2506",
}


def clip(act: Act, **options) -> Clip:
    return render(act.character, act.motion, act.scene, SIZE, parts=True, **options)


@pytest.fixture(scope="module", params=[(kind, seed) for kind in ACTS for seed in (0, 1)], ids=str)
def act(request: pytest.FixtureRequest) -> Act:
    kind, seed = request.param
    return sample_act(seed, FRAMES, kind=kind)


@pytest.mark.parametrize(("seed", "kind"), enumerate(ACTS))
def test_a_seed_draws_what_it_drew(seed: int, kind: str) -> None:
    task = sample_interaction(seed, 2, 48)
    coarse = task.depth >> 8  # as the last bits are those of a processor's sine
    drawn = hashlib.sha256()
    for array in (
        task.reference,
        task.driving.frames,
        task.mask,
        task.pose,
        task.objects,
        coarse,
        task.truth.frames,
    ):
        drawn.update(array.tobytes())
    assert drawn.hexdigest() == DIGESTS[kind]


def test_the_mask_is_body_and_object_and_depth_lies_on_it(act: Act) -> None:
    made = clip(act)
    parts = made.parts
    assert parts is not None
    assert np.array_equal(np.maximum(parts.body, parts.objects), made.mask)
    assert parts.objects.any() == (act.character.held != "none")
    known = ~np.isnan(parts.depth)
    assert known.any() and (made.mask[known] == 255).all()
    pictures = parts.depth_pictures()
    assert pictures.dtype == np.uint16 and np.array_equal(pictures > 0, known)
    low, high = parts.joint_depth.min(), parts.joint_depth.max()
    assert (parts.depth[known] >= low).all() and (parts.depth[known] <= high).all()


def test_parts_do_not_change_the_picture(act: Act) -> None:
    plain, flowing = (
        render(act.character, act.motion, act.scene, SIZE, flow=flow, parts=parts)
        for flow, parts in ((True, False), (True, True))
    )
    assert plain.parts is None and np.array_equal(plain.frames, flowing.frames)
    assert plain.flow is not None and flowing.flow is not None and np.array_equal(plain.flow, flowing.flow)


def test_acts_are_functions_of_their_seed_and_split(act: Act) -> None:
    seed = next(
        seed
        for seed in (0, 1)
        if np.array_equal(act.motion.joints, sample_act(seed, FRAMES, kind=act.kind).motion.joints)
    )
    assert sample_act(seed, FRAMES, kind=act.kind).character == act.character
    assert sample_act(seed, FRAMES, "heldout", act.kind).character != act.character


def test_what_is_touched_is_where_it_is_touched(act: Act) -> None:
    motion, joints = act.motion, act.motion.joints
    assert act.contact.shape == (FRAMES, 2)
    if act.kind in ("sit", "lean"):
        assert np.ptp(act.contact, axis=0).max() < 1e-6, "a thing that stands still is touched at one place"
        prop = act.scene.movers[-1]
        assert prop.kind == {"sit": "bench", "lean": "wall"}[act.kind] and prop.start == prop.end
        assert prop.start[0] == pytest.approx(act.contact[0, 0])
    if act.kind == "sit":
        assert prop.start[1] == pytest.approx(joints[0, HIP, 1].mean() + 0.045 * motion.scale[0], abs=1e-5)
    if act.kind == "lean":
        assert act.contact[0, 0] > joints[0, SHOULDER[1], 0]
    if act.kind == "carry":
        np.testing.assert_allclose(act.contact, joints[:, WRIST].mean(1), atol=1e-6)
        made = clip(act)
        assert made.parts is not None
        centre = (frame_camera(act.scene, FRAMES, SIZE) @ np.append(act.contact[0], 1))[0]
        rows, columns = np.nonzero(made.parts.objects[0])
        assert abs(columns.mean() - centre[0]) < 6 and abs(rows.mean() - centre[1]) < 6


def test_limbs_are_in_front_by_their_depth(act: Act) -> None:
    depth, motion = act.motion.depth, act.motion
    arms = depth[:, ELBOW] + depth[:, WRIST] - 2 * depth[:, NECK, None]
    assert np.array_equal(motion.arm_front, arms > -0.02)
    legs = depth[:, KNEE] + depth[:, HIP]
    assert np.array_equal(motion.right_leg_front, legs[:, 0] > legs[:, 1])


def test_a_twin_differs_in_depth_alone(act: Act) -> None:
    twin = Act(act.kind, act.character, depth_twin(act.motion), act.scene, act.contact)
    one, other = clip(act), clip(twin)
    assert np.array_equal(one.keypoints, other.keypoints) and np.array_equal(one.mask, other.mask)
    assert (one.frames != other.frames).any() and one.parts is not None and other.parts is not None
    assert (one.parts.joint_depth != other.parts.joint_depth).any()
    back = depth_twin(twin.motion)
    np.testing.assert_allclose(back.depth, act.motion.depth, atol=1e-6)
    assert np.array_equal(back.arm_front, act.motion.arm_front)


def test_the_other_character_gets_what_is_held(act: Act) -> None:
    other = act.performed_by(sample_character(5))
    assert (other.held, other.held_colour, other.side) == (
        act.character.held,
        act.character.held_colour,
        act.character.side,
    )
    assert other.skin == sample_character(5).skin


def test_scaling_keeps_the_anchor_and_the_identity(act: Act) -> None:
    same = scaled(act.motion, 1.0, act.motion.ground)
    np.testing.assert_allclose(same.joints, act.motion.joints, atol=1e-6)
    larger = grown(act.motion, 1.2)
    np.testing.assert_allclose(larger.ground, act.motion.ground, atol=1e-6)
    np.testing.assert_allclose(
        larger.joints - larger.ground[:, None], 1.2 * (act.motion.joints - act.motion.ground[:, None]), atol=1e-5
    )
    assert np.array_equal(larger.depth, act.motion.depth)


def test_who_comes_nearer_has_larger_depth() -> None:
    act = sample_act(0, FRAMES, kind="carry")
    near = clip(Act(act.kind, act.character, grown(act.motion, 1.2), act.scene, act.contact))
    far = clip(act)
    assert near.parts is not None and far.parts is not None
    assert (near.parts.joint_depth > far.parts.joint_depth).all()
