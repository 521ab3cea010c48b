"""Journeys: planes with exact cameras, feet on their floor, twins that differ in the camera's way alone."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest

from anycharv_core.media.cameras import plane_maps
from anycharv_core.puppets.bold import sample_bold_character
from anycharv_core.puppets.draw import Shape, ellipse
from anycharv_core.puppets.layers import transform
from anycharv_core.puppets.motion import ANKLE, mirrored
from anycharv_core.puppets.places import View, build_place
from anycharv_core.puppets.render import Clip
from anycharv_core.puppets.seeds import generator
from anycharv_core.puppets.travel import (
    JOURNEYS,
    Journey,
    journey_of,
    pan_twins,
    render_journey,
    sample_travel,
    sample_wander,
    zoom_twins,
)

FRAMES, SIZE = 8, (64, 64)
DIGEST = "a830410fee508532ada0f9eed98acee76ec37bfd8df5e6e6100881992231c497"
PLANES = 6
MARK = (255, 0, 255)


def journey(kind: str, seed: int = 0, frames: int = FRAMES) -> Journey:
    proportions = sample_bold_character(seed).proportions
    return journey_of(generator("train", "journey", seed), kind, frames, proportions)


def place_of(seed: int, drawn: Journey, size: tuple[int, int] = SIZE):
    return build_place(seed, "train", drawn.view, float(drawn.depth[0]), drawn.way, size[0] / size[1])


def test_a_seed_draws_what_it_drew() -> None:
    drawn = hashlib.sha256()
    for kind in JOURNEYS:
        drawn.update(sample_travel(3, 3, 48, kind=kind).truth.frames.tobytes())
    assert drawn.hexdigest() == DIGEST


@pytest.mark.parametrize("kind", JOURNEYS)
def test_a_mark_on_any_plane_is_found_where_the_cameras_say(kind: str) -> None:
    seed, character = 1, sample_bold_character(1)
    drawn = journey(kind, seed)
    place = place_of(seed, drawn)
    bare = render_journey(character, drawn, place, SIZE)
    cameras = bare.cameras
    assert cameras is not None
    for i, plane in enumerate(place):
        unit = plane.depth / drawn.view.focal
        centre = np.array((0.2 * unit, -drawn.view.height - 0.2 * unit))
        mark = Shape(ellipse(*centre, 0.05 * unit, 0.05 * unit), MARK, i)
        # Nearer planes would hide it.
        marked = [*place[:i], replace(plane, shapes=(*plane.shapes, mark))]
        without = plates(render_journey(character, drawn, place[: i + 1], SIZE))
        seen = plates(render_journey(character, drawn, marked, SIZE))
        for t in range(FRAMES):
            rows, columns = np.nonzero((seen[t] != without[t]).any(-1))
            at = cameras.K[t] @ (cameras.R[t] @ (*centre, plane.depth) + cameras.T[t])
            found = np.array((columns.min() + columns.max() + 1, rows.min() + rows.max() + 1)) / 2
            np.testing.assert_allclose(found, at[:2] / at[2], atol=1.0)


def plates(clip: Clip) -> np.ndarray:
    assert clip.background is not None
    return clip.background


@pytest.mark.parametrize("kind", ("follow", "approach"))
def test_feet_and_floor_move_together(kind: str) -> None:
    parted = []
    for seed in range(10):
        drawn = journey(kind, seed, 24)
        cameras = drawn.seen_at(SIZE)
        person = plane_maps(cameras, drawn.depth[:, None])[:, 0]
        local = drawn.motion.joints[:, ANKLE].astype(float)
        ankles = transform(person[:, None], local)
        # A foot that comes forward shows lower; how much higher it is lifted is what tells.
        level = local[..., 1] - drawn.view.height / drawn.depth.mean() * drawn.motion.depth[:, ANKLE]
        apart = level[:, 1] - level[:, 0]
        foot = (apart > 0).astype(int)
        for t in range(len(foot) - 1):
            if foot[t] != foot[t + 1] or min(abs(apart[t]), abs(apart[t + 1])) <= 0.03:
                continue
            moved = ankles[t + 1, foot[t]] - ankles[t, foot[t]]
            parted.append(np.abs(moved - floor_step(drawn, t, ankles[t, foot[t]]))[0 if kind == "follow" else 1])
    assert len(parted) > 80
    assert np.mean(np.array(parted) <= 0.2) >= 0.9


def floor_step(drawn: Journey, t: int, at: np.ndarray) -> np.ndarray:
    """How far the floor moves in pixels, from frame t to the next, under a foot at a place of the frame."""
    cameras = drawn.seen_at(SIZE)
    floor = plane_maps(cameras, drawn.depth[:1])[:, 0]
    inverse = np.linalg.inv(floor[t, :, :2])
    return transform(floor[t + 1], inverse @ (at - floor[t, :, 2])) - at


def test_plates_are_covered_and_what_they_hide_is_known() -> None:
    for kind in JOURNEYS:
        truth = sample_travel(5, 49, (96, 48), kind=kind).truth
        assert truth.layers is not None and truth.depth is not None and truth.hands is not None
        assert truth.layers.max() <= PLANES
        np.testing.assert_array_equal(truth.layers[truth.mask == 0] < PLANES, True)
        assert (truth.depth > 0).all()
        assert (truth.hands[truth.mask == 0] == 0).all() and truth.hands.any()
        # Off the character only its shadow, which darkens, sets frame and plate apart.
        outside = truth.mask == 0
        assert (truth.frames[outside] <= plates(truth)[outside]).all()
        assert (truth.frames[outside] != plates(truth)[outside]).any(-1).mean() < 0.05


def test_flow_leads_to_the_next_plate() -> None:
    travel = sample_travel(2, 4, 96, flow=True, kind="follow")
    truth = travel.truth
    assert truth.flow is not None and truth.layers is not None
    rows, columns = np.nonzero((truth.layers[0] < PLANES) & (np.arange(96) > 20) & (np.arange(96) < 76))
    x, y = (np.stack([columns, rows], -1) + truth.flow[0][rows, columns] + 0.5).T
    there = plates(truth)[1][y.astype(int), x.astype(int)].astype(int)
    same = np.abs(there - plates(truth)[0][rows, columns]).max(-1) < 40
    assert same.mean() > 0.9  # the rest are edges, and what a nearer plane hides
    still = np.abs(plates(truth)[1].astype(int) - plates(truth)[0])[rows, columns].max(-1) < 40
    assert same.mean() > still.mean()


def test_a_longer_way_leads_through_the_same_place() -> None:
    view = View(1.8, 0.62)
    drawn = journey("static")
    character = sample_bold_character(0)
    for seed in range(4):
        near, far = (build_place(seed, "train", view, 3.0, way, 1.0) for way in (0.0, 3.0))
        one, two = (plates(render_journey(character, drawn, place, SIZE)) for place in (near, far))
        np.testing.assert_array_equal(one[0], two[0])


def test_pan_twins_differ_in_the_way_alone() -> None:
    one, two = pan_twins(4, FRAMES, 64)
    np.testing.assert_array_equal(one.background, two.background)
    np.testing.assert_array_equal(one.reference, two.reference)
    a, b = one.truth.cameras, two.truth.cameras
    assert a is not None and b is not None
    np.testing.assert_array_equal(a.T[0], b.T[0])
    np.testing.assert_array_equal(a.T * (-1, 1, 1), b.T)
    assert (plates(one.truth)[-1] != plates(two.truth)[-1]).any()
    # The one's right shoulder is where the other's left is in a mirror.
    x, y = one.truth.keypoints[0, 2, :2], two.truth.keypoints[0, 5, :2]
    np.testing.assert_allclose(x * (-1, 1) + (64, 0), y, atol=1e-3)


def test_a_mirror_of_a_mirror_is_the_motion() -> None:
    motion = journey("follow").motion
    twice = mirrored(mirrored(motion))
    for name, value in vars(motion).items():
        np.testing.assert_array_equal(value, getattr(twice, name))


def test_zoom_twins_are_equally_large_and_only_one_camera_moves() -> None:
    dolly, approach = zoom_twins(4, FRAMES, 64)
    np.testing.assert_array_equal(dolly.background, approach.background)
    np.testing.assert_array_equal(dolly.reference, approach.reference)
    a, b = dolly.truth.cameras, approach.truth.cameras
    assert a is not None and b is not None
    for name in ("K", "R", "T"):
        np.testing.assert_array_equal(getattr(a, name)[0], getattr(b, name)[0])
    assert not np.ptp(b.T, axis=0).any() and a.T[-1, 2] < a.T[0, 2]
    assert (plates(approach.truth) == approach.background).all()
    assert (plates(dolly.truth)[-1] != dolly.background).any()
    sizes = [
        plane_maps(cameras, journey(kind, 4).depth[:, None])[:, 0, 0, 0]
        for cameras, kind in ((a, "dolly"), (b, "approach"))
    ]
    assert sizes[0].shape == sizes[1].shape
    for twin in (dolly, approach):
        necks = twin.truth.keypoints[:, 1, 0]
        assert np.ptp(necks) < 6


def test_a_wander_is_seen_with_its_character_from_the_first() -> None:
    travel = sample_wander(1, FRAMES, 64)
    np.testing.assert_array_equal(travel.background, travel.truth.frames[0])
    assert travel.truth.mask[0].any()
    cameras = travel.truth.cameras
    assert cameras is not None and np.ptp(cameras.T, axis=0).any()


def test_bad_asks_are_refused() -> None:
    with pytest.raises(KeyError):
        sample_travel(0, 2, 32, kind="teleport")
    with pytest.raises(ValueError):
        sample_travel(-1, 2, 32)
