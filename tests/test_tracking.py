"""Who is who: identities through occlusion, crossing, exits and cuts, on made-up and on rendered people."""

from __future__ import annotations

import time
from functools import cache

import numpy as np
import pytest
from keypoint_files import people_of

from anycharv_core.media.pose import BOX, PLACES, Poses
from anycharv_core.preprocess.tracking import (
    Observation,
    Track,
    body_looks,
    looks_distance,
    mean_looks,
    observe,
    spans,
    track,
    tracklets,
)
from anycharv_core.preprocess.tracking.looks import SIZE
from anycharv_core.puppets.crowd import sample_crowd

WIDTH, HEIGHT = 80, 200


@cache
def colours(seed: int) -> np.ndarray:
    """Looks of an invented person; two of them are far apart."""
    parts = np.random.default_rng(seed).random((3, SIZE // 3)) ** 8
    return mean_looks(parts.reshape(1, -1).astype(np.float32))


def sightings(
    frames: int, paths: dict[int, dict[int, float]], noise: float = 1.0, looks: dict[int, int] | None = None
) -> tuple[list[Observation], list[list[int]]]:
    """Observations of people who stand with their middle at paths[person][frame], and who each one is; in
    another order in every frame."""
    rng = np.random.default_rng(1)
    observations, truth = [], []
    for frame in range(frames):
        there = [int(p) for p in rng.permutation([p for p, path in paths.items() if frame in path])]
        boxes = np.zeros((len(there), 4), np.float32)
        seen = np.zeros((len(there), SIZE), np.float32)
        for row, person in enumerate(there):
            x = paths[person][frame]
            boxes[row] = np.array((x - WIDTH / 2, 100, x + WIDTH / 2, 100 + HEIGHT)) + rng.normal(0, noise, 4)
            own = colours((looks or {}).get(person, person))
            seen[row] = mean_looks(np.stack([own, colours(int(rng.integers(1000, 1100)))]), np.float32((1, 0.25)))
        observations.append(Observation(boxes, np.full(len(there), 0.9, np.float32), seen))
        truth.append(there)
    return observations, truth


def line(start: int, stop: int, x0: float, x1: float) -> dict[int, float]:
    return dict(zip(range(start, stop), np.linspace(x0, x1, stop - start).tolist(), strict=True))


def identities(tracks: list[Track], truth: list[list[int]]) -> list[set[int]]:
    """The people that each track holds; one each, if nobody was taken for another."""
    return [
        {int(truth[frame][track.people[frame]]) for frame in np.flatnonzero(track.present)} for track in tracks
    ]


def assert_consistent(tracks: list[Track], observations: list[Observation]) -> None:
    for one in tracks:
        assert one.boxes.shape == (len(observations), 4) and one.boxes.dtype == np.float32
        assert one.people.shape == (len(observations),) and one.looks.dtype == np.float32
        np.testing.assert_array_equal(np.isnan(one.boxes).all(axis=1), ~one.present)
        for frame in np.flatnonzero(one.present):
            np.testing.assert_array_equal(one.boxes[frame], observations[frame].boxes[one.people[frame]])
    for frame in range(len(observations)):
        people = [int(one.people[frame]) for one in tracks if one.present[frame]]
        assert len(people) == len(set(people))


def test_nothing_to_follow():
    nobody = Observation(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros((0, SIZE), np.float32))
    assert track([]) == [] and track([nobody] * 5, [2]) == []


def test_one_frame_and_one_sighting():
    observations, _ = sightings(1, {0: {0: 100.0}})
    (alone,) = track(observations)
    assert alone.people.tolist() == [0]
    observations, truth = sightings(9, {0: line(0, 9, 100, 120), 1: {4: 400.0}})
    tracks = track(observations)
    assert identities(tracks, truth) == [{0}, {1}]
    assert spans(tracks[1].present) == [(4, 5)] and spans(~tracks[1].present) == [(0, 4), (5, 9)]
    assert_consistent(tracks, observations)


def test_people_without_points_are_nobody():
    observations, _ = sightings(4, {0: line(0, 4, 100, 110)})
    lost = [
        Observation(
            np.concatenate([np.full((1, 4), np.nan, np.float32), seen.boxes]),
            np.concatenate([np.zeros(1, np.float32), seen.scores]),
            np.concatenate([np.zeros((1, SIZE), np.float32), seen.looks]),
        )
        for seen in observations
    ]
    (alone,) = track(lost)
    assert alone.people.tolist() == [1] * 4


@pytest.mark.parametrize("same_clothes", [False, True])
def test_crossing_people_keep_their_identity(same_clothes):
    looks = {0: 0, 1: 0} if same_clothes else None
    observations, truth = sightings(60, {0: line(0, 60, 80, 560), 1: line(0, 60, 560, 80)}, looks=looks)
    tracks = track(observations)
    assert sorted(identities(tracks, truth), key=min) == [{0}, {1}]
    assert all(one.present.all() for one in tracks)
    assert_consistent(tracks, observations)


def test_meeting_and_turning_back_is_told_by_looks():
    there_and_back = {
        0: {**line(0, 30, 100, 300), **line(30, 60, 300, 100)},
        1: {**line(0, 30, 540, 320), **line(30, 60, 320, 540)},
    }
    swapping = {
        0: {**line(0, 30, 100, 300), **line(30, 60, 340, 540)},
        1: {**line(0, 30, 540, 340), **line(30, 60, 300, 100)},
    }
    for paths in (there_and_back, swapping):
        tracks = track((made := sightings(60, paths))[0])
        assert sorted(identities(tracks, made[1]), key=min) == [{0}, {1}]


def test_person_hidden_behind_another_comes_out_as_before():
    behind = {frame: x for frame, x in line(0, 60, 80, 560).items() if not 25 <= frame < 36}
    observations, truth = sightings(60, {0: behind, 1: line(0, 60, 330, 330)})
    tracks = track(observations)
    assert sorted(identities(tracks, truth), key=min) == [{0}, {1}]
    assert [spans(~one.present) for one in tracks] == [[], [(25, 36)]]


def test_missed_detections_do_not_part_a_track():
    rng = np.random.default_rng(0)
    paths = {
        person: {frame: x for frame, x in line(0, 120, start, start + 150).items() if rng.random() > 0.2}
        for person, start in enumerate((100, 400, 700))
    }
    observations, truth = sightings(120, paths)
    tracks = track(observations)
    assert sorted(identities(tracks, truth), key=min) == [{0}, {1}, {2}]


def test_exit_and_re_entry_long_after():
    paths = {0: {**line(0, 40, 300, 20), **line(150, 200, 20, 300)}, 1: line(0, 200, 450, 470)}
    observations, truth = sightings(200, paths)
    tracks = track(observations)
    assert identities(tracks, truth) == [{1}, {0}]
    assert spans(~tracks[1].present) == [(40, 150)]


def test_somebody_else_entering_is_somebody_else():
    observations, truth = sightings(200, {0: line(0, 60, 300, 20), 1: line(90, 200, 20, 300)})
    assert identities(track(observations), truth) == [{1}, {0}]


def test_cuts_join_by_looks_and_not_by_place():
    paths = {
        0: {**line(0, 30, 100, 110), **line(30, 60, 500, 510), **line(90, 110, 300, 310)},
        1: {**line(0, 30, 500, 510), **line(30, 60, 100, 110)},
        2: line(60, 90, 105, 108),
    }
    observations, truth = sightings(110, paths)
    tracks = track(observations, [30, 60, 90])
    assert identities(tracks, truth) == [{0}, {1}, {2}]
    assert spans(tracks[0].present) == [(0, 60), (90, 110)]


def test_same_clothes_in_one_frame_stay_two_people():
    paths = {0: line(0, 60, 100, 110), 1: line(0, 60, 500, 510)}
    observations, truth = sightings(60, paths, looks={0: 0, 1: 0})
    tracks = track(observations, [30])
    assert len(tracks) == 2 and all(one.present.all() for one in tracks)
    assert_consistent(tracks, observations)
    assert sorted(identities(track(observations), truth), key=min) == [{0}, {1}]


@pytest.mark.parametrize("shift", [2, 15])
def test_second_detections_are_left_out(shift):
    observations, _ = sightings(40, {0: line(0, 40, 100, 200), 1: line(0, 40, 500, 450)}, noise=0.5)
    doubled = [
        Observation(
            np.concatenate([seen.boxes, seen.boxes + np.float32((shift, 0, shift, 0))]),
            np.concatenate([seen.scores, seen.scores - 0.2]),
            np.concatenate([seen.looks, seen.looks]),
        )
        for seen in observations
    ]
    tracks = track(doubled)
    assert len(tracks) == 2
    assert all(one.present.all() for one in tracks)


def test_order_is_time_times_size():
    paths = {0: line(0, 10, 100, 100), 1: line(0, 40, 400, 400), 2: line(0, 25, 700, 700)}
    observations, truth = sightings(40, paths)
    assert identities(track(observations), truth) == [{1}, {2}, {0}]


def test_many_people_are_followed_quickly():
    paths = {
        person: dict(enumerate((200 + 150 * person + 100 * np.sin(np.arange(150) / 30 + person)).tolist()))
        for person in range(10)
    }
    observations, truth = sightings(150, paths)
    started = time.process_time()
    tracks = track(observations)
    assert time.process_time() - started < 10
    assert sorted(identities(tracks, truth), key=min) == [{person} for person in range(10)]


def rendered(situation: str, seed: int, boxes: bool) -> tuple[list[Observation], list[list[int]], tuple[int, ...]]:
    """A rendered clip as a detector would see it: people who show no more than a sliver are not found."""
    crowd = sample_crowd(seed, situation, 36, 112)
    observations, truth = [], []
    for frame, people, masks, sides in zip(
        crowd.frames, crowd.poses().people, crowd.masks, crowd.boxes, strict=True
    ):
        area = (masks > 0).sum(axis=(1, 2))
        shown = np.flatnonzero(area > 0)
        kept = area[shown] > 80
        people = people[kept]
        corners = np.insert(sides[shown[kept]].reshape(-1, 2, 2).astype(float), 2, 0.9, axis=-1)
        people[:, PLACES[BOX]] = corners if boxes else np.nan
        observations.append(observe(frame, people))
        truth.append(shown[kept].tolist())
    return observations, truth, crowd.cuts


@pytest.mark.parametrize("boxes", [True, False], ids=["boxes", "points"])
@pytest.mark.parametrize("situation", ["plain", "crossing", "exit", "cuts"])
def test_rendered_people_are_never_taken_for_each_other(situation, boxes):
    for seed in range(3):
        observations, truth, cuts = rendered(situation, seed, boxes)
        tracks = track(observations, cuts)
        assert_consistent(tracks, observations)
        found = identities(tracks, truth)
        assert all(len(people) == 1 for people in found)
        assert len(found) == len(set().union(*found)), "somebody's track is in pieces"


def test_observation_covers_the_frame_at_its_own_size():
    crowd = sample_crowd(0, "plain", 2, 128)
    frame, people = crowd.frames[0], crowd.poses().people[0].copy()
    people[:, PLACES[BOX]] = np.nan
    seen = observe(frame, people)
    assert seen.boxes.dtype == seen.scores.dtype == seen.looks.dtype == np.float32
    assert seen.looks.shape == (len(people), SIZE)
    for box, truth in zip(seen.boxes, crowd.boxes[0][crowd.present[0]], strict=True):
        inner = np.minimum(box[2:], truth[2:]) - np.maximum(box[:2], truth[:2])
        assert inner.prod() > 0.6 * (truth[2:] - truth[:2]).prod()
    doubled = Poses(128, 128, [people]).scaled(256, 256)
    np.testing.assert_allclose(observe(frame, doubled.scaled(128, 128).people[0]).boxes, seen.boxes, atol=1e-3)


def test_person_without_points_has_no_box():
    person = {"pose_keypoints_2d": [5.0, 5.0, 0.1] * 18}
    hand = {"hand_left_keypoints_2d": [9.0, 9.0, 1.0] * 21}
    people = people_of({"canvas_width": 64, "canvas_height": 64, "people": [person, hand]})
    seen = observe(np.zeros((64, 64, 3), np.uint8), people)
    assert np.isnan(seen.boxes).all() and not seen.scores.any() and not seen.looks.any()


def test_looks_are_the_clothes_and_not_the_picture_behind():
    points = np.zeros((18, 3))
    for joint, x, y in ((1, 50, 40), (2, 40, 40), (5, 60, 40), (8, 44, 90), (11, 56, 90), (10, 44, 150)):
        points[joint] = x, y, 1
    box = np.array([30, 10, 70, 160])
    shirts = {"red": (200, 30, 30), "blue": (30, 30, 200)}
    looks = {}
    for wall in (60, 230):
        for name, colour in shirts.items():
            frame = np.full((180, 100, 3), wall, np.uint8)
            frame[35:95, 36:65] = colour
            looks[name, wall] = body_looks(frame, box, points)[None]
    assert looks_distance(looks["red", 60], looks["red", 230]) < 0.2
    assert looks_distance(looks["red", 60], looks["blue", 60]) > 0.8


def test_looks_that_share_no_part_tell_nothing():
    upper, lower = np.zeros((1, SIZE), np.float32), np.zeros((1, SIZE), np.float32)
    upper[0, SIZE // 3], lower[0, -1] = 1, 1
    assert looks_distance(upper, lower).item() == 0.5
    assert looks_distance(upper, upper).item() == 0


def test_crowds_that_come_and_go_end_in_a_bounded_number_of_tracks(monkeypatch):
    monkeypatch.setattr(tracklets, "_MOST", 8)
    rng = np.random.default_rng(0)
    paths = {
        person: line(start, start + 3, *[float(rng.uniform(0, 9000))] * 2)
        for person in range(40)
        for start in [person]
    }
    paths[40] = line(0, 43, 500, 520)
    observations, truth = sightings(43, paths)
    tracks = track(observations)
    assert len(tracks) <= 8 and {40} in identities(tracks, truth)


def test_points_far_outside_the_picture_have_looks():
    points = np.tile([[-1e6, 1e6, 1.0], [1e6, -1e6, 1.0]], (9, 1))
    looks = body_looks(np.zeros((64, 64, 3), np.uint8), np.array([0, 0, 64, 64]), points)
    assert looks.shape == (SIZE,) and np.isfinite(looks).all()
