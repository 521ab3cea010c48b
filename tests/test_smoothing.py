"""Keypoints steadied over time: less jitter, no lag, and nothing across cuts, gaps or people."""

import numpy as np
import pytest
from keypoint_files import clean_pose

from anycharv_core.media.pose import PARTS, Poses, parse_poses
from anycharv_core.preprocess import smoothing
from anycharv_core.preprocess.smoothing import one_euro

RATE = 30


def smooth_poses(frames, tracks, rate, **options):
    poses = parse_poses(frames) if frames else Poses(800, 800, [])
    return list(smoothing.smooth_poses(poses, tracks, rate, **options).keypoints())


HEIGHT = 400.0


def figure(seed=0, count=18):
    """[count, 2] in pixels, `HEIGHT` along the diagonal of its extent."""
    places = np.random.default_rng(seed).uniform(0, 1, (count, 2))
    places = (places - places.min(0)) / np.ptp(places, axis=0)
    return 100 + places * HEIGHT / np.sqrt(2)


def clip(places, scores=1.0):
    """A frame per places [F, P, 18, 2], with P people in each."""
    scores = np.broadcast_to(scores, places.shape[:-1])
    people = [
        [{"pose_keypoints_2d": np.c_[xy, s].ravel().tolist()} for xy, s in zip(frame, row, strict=True)]
        for frame, row in zip(places, scores, strict=True)
    ]
    return [{"canvas_width": 800, "canvas_height": 800, "people": row} for row in people]


def places_of(poses, person=0):
    return np.array([np.reshape(pose["people"][person]["pose_keypoints_2d"], (18, 3)) for pose in poses])[..., :2]


def smoothed(places, **options):
    poses = smooth_poses(clip(places[:, None]), [np.zeros(len(places), int)], RATE, **options)
    return places_of(poses)


def noisy_still(frames=120, level=0.004 * HEIGHT):
    return figure() + np.random.default_rng(1).normal(0, level, (frames, 18, 2))


def reach(frames=90):
    """A person who moves 0.4 of their size within 0.3 s: as fast as arms go."""
    u = np.clip((np.arange(frames) / RATE - 1) / 0.3, 0, 1)
    return figure() + 0.4 * HEIGHT * (10 * u**3 - 15 * u**4 + 6 * u**5)[:, None, None] * [1, 0]


def test_jitter_of_a_still_pose_is_more_than_halved():
    noisy = noisy_still()
    steady = smoothed(noisy)
    assert np.diff(steady, axis=0).std() < 0.35 * np.diff(noisy, axis=0).std()
    assert (steady - figure()).std() < 0.5 * (noisy - figure()).std()
    assert np.abs(steady.mean(0) - figure()).max() < 0.5


def test_fast_motion_neither_lags_nor_shrinks():
    moving = reach()
    steady = smoothed(moving)
    causal = one_euro(moving, RATE, 2.0, 30.0 / HEIGHT)
    assert np.abs(steady - moving).max() < 0.005 * HEIGHT < np.abs(causal - moving).max() / 2
    error, speed = (steady - moving)[..., 0], np.gradient(moving[..., 0], axis=0)
    lag = -(error * speed).sum() / (speed**2).sum()
    assert abs(lag) < 0.02  # frames; forwards alone it is more than a tenth of one
    assert -((causal - moving)[..., 0] * speed).sum() / (speed**2).sum() > 0.1
    swing = figure() + 0.2 * HEIGHT * np.sin(2 * np.pi * np.arange(120) / 15)[:, None, None] * [0, 1]
    assert np.abs(smoothed(swing) - swing).max() < 0.02 * HEIGHT


def test_constant_speed_passes_unchanged_far_from_the_ends():
    walk = figure() + np.arange(200)[:, None, None] * [3.0, 1.0]
    assert np.abs(smoothed(walk) - walk)[60:-60].max() < 0.01


def test_the_past_and_the_future_are_alike():
    noisy = noisy_still() + reach(120) - figure()
    assert np.allclose(smoothed(noisy[::-1])[::-1], smoothed(noisy), atol=1e-9)


def test_strength_is_the_same_at_any_resolution():
    noisy = noisy_still() + reach(120) - figure()
    assert np.allclose(smoothed(noisy * 0.5) * 2, smoothed(noisy), atol=1e-9)
    assert not np.allclose(smoothed(noisy, min_cutoff=0.5), smoothed(noisy), atol=0.1)


def test_a_cut_a_gap_and_an_unseen_point_start_anew():
    noisy = noisy_still(40)
    noisy[20:] += 150
    whole, cut = smoothed(noisy), smoothed(noisy, cuts=[20])
    apart = np.concatenate([smoothed(noisy[:20]), smoothed(noisy[20:])])
    assert np.allclose(cut, apart, atol=1e-9) and not np.allclose(whole, apart, atol=1)

    people = np.zeros(40, int)
    people[20] = -1
    poses = smooth_poses(clip(noisy[:, None]), [people], RATE)
    assert np.array_equal(places_of(poses)[20], noisy[20])
    both = np.r_[0:20, 21:40]
    # The size is that of the whole shot, the filter's state is not: both halves have the same size here.
    parts = np.concatenate([smoothed(noisy[:20]), smoothed(noisy[21:])])
    assert np.abs(places_of(poses)[both] - parts).max() < 0.05

    scores = np.ones((40, 1, 18))
    scores[20, 0, 5] = 0.3
    poses = smooth_poses(clip(noisy[:, None], scores), [np.zeros(40, int)], RATE)
    assert np.array_equal(places_of(poses)[20, 5], noisy[20, 5])
    assert np.abs(places_of(poses)[both, 5] - parts[:, 5]).max() < 0.05
    assert np.allclose(places_of(poses)[:, 6], whole[:, 6], atol=0.05)


def test_everyone_is_followed_along_their_own_track():
    one, other = noisy_still(), noisy_still()[::-1] + 250
    swap = np.arange(120) % 2
    places = np.where(swap[:, None, None, None], np.stack([other, one], 1), np.stack([one, other], 1))
    poses = smooth_poses(clip(places), [swap], RATE)
    followed = np.stack([places_of(poses, person) for person in (0, 1)], 1)
    assert np.allclose(followed[np.arange(120), swap], smoothed(one), atol=1e-9)
    assert np.array_equal(followed[np.arange(120), 1 - swap], other), "who is on no track stays as they are"
    poses = smooth_poses(clip(places), [swap, 1 - swap], RATE)
    followed = np.stack([places_of(poses, person) for person in (0, 1)], 1)
    assert np.allclose(followed[np.arange(120), 1 - swap], smoothed(other), atol=1e-9)


def test_all_parts_are_steadied_but_the_box_and_every_score_is_kept():
    rng = np.random.default_rng(2)

    def person():
        parts = {
            part: np.c_[figure(3, count), rng.uniform(0.31, 1, count)]
            for part, count in PARTS.items()
            if count > 1
        }
        for points in parts.values():
            points[:, :2] += rng.normal(0, 2, (len(points), 2))
        return {part: points.ravel().tolist() for part, points in parts.items()}

    frames = [{"canvas_width": 800, "canvas_height": 800, "people": [person()]} for _ in range(20)]
    frames[7]["people"][0]["face_keypoints_2d"] = frames[7]["people"][0]["face_keypoints_2d"][:204]
    frames[8]["people"][0]["hand_left_keypoints_2d"] = None
    before = [clean_pose(frame) for frame in frames]
    after = smooth_poses(frames, [np.zeros(20, int)], RATE)
    assert [clean_pose(frame) for frame in frames] == before, "the input is left alone"
    for old, new in zip(before, after, strict=True):
        for part, flat in old["people"][0].items():
            steady = new["people"][0][part]
            if flat is None or part == "box_keypoints_2d":
                assert steady == flat
            else:
                assert steady != flat and len(steady) == len(flat) and steady[2::3] == flat[2::3]


@pytest.mark.parametrize("frames", [0, 1, 2])
def test_short_clips_and_empty_ones(frames):
    poses = [clean_pose(pose) for pose in clip(noisy_still(max(frames, 1))[:frames, None])]
    result = smooth_poses(poses, [np.zeros(frames, int)], RATE)
    assert len(result) == frames and (frames > 1 or result == poses)
    assert smooth_poses(poses, [], RATE) == poses
    nobody = [{**pose, "people": []} for pose in poses]
    assert smooth_poses(nobody, [np.full(frames, -1)], RATE) == nobody
