"""Choosing people by number, place and likeness, and the contact sheet."""

from __future__ import annotations

import re

import numpy as np
import pytest
from keypoint_files import people_of

from anycharv_core.errors import UserError
from anycharv_core.media.pose import POINTS, Poses
from anycharv_core.preprocess.choose import by_box, by_click, by_likeness, by_number, chosen_boxes
from anycharv_core.preprocess.contact_sheet import contact_sheet, sheet_frames
from anycharv_core.preprocess.tracking import Track, observe, track
from anycharv_core.puppets import render_reference, sample_character
from anycharv_core.puppets.crowd import sample_crowd


def person(*boxes: tuple[float, float, float, float] | None, place: int = 0) -> Track:
    sides = np.array([box or (np.nan,) * 4 for box in boxes], np.float32)
    places = np.array([-1 if box is None else place for box in boxes])
    return Track(sides, places, np.zeros(432, np.float32))


PAIR = [
    person((10, 10, 30, 60), (12, 10, 32, 60), None, (14, 10, 34, 60)),
    person((25, 20, 55, 90), None, None, (40, 20, 70, 90), place=1),
]


def test_by_number():
    assert by_number(PAIR, "2") == [1]
    assert by_number(PAIR, " 2, 1") == [1, 0]
    assert by_number(PAIR, [1]) == [0]


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ("3", "There are 2 people in the video, not 3; choose 1 or 2."),
        ("0", "There are 2 people in the video, not 0; choose 1 or 2."),
        ([], "There are 2 people in the video, not nobody; choose 1 or 2."),
        ("1,1", "Person 1 is chosen twice; give each number once."),
        ("one", "'one' is not a list of people's numbers; choose 1 or 2."),
    ],
)
def test_wrong_numbers_say_what_there_is(choice, message):
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        by_number(PAIR, choice)


def test_counts_in_words():
    with pytest.raises(UserError, match=r"There is 1 person in the video, not 2; choose 1\."):
        by_number(PAIR[:1], "2")
    with pytest.raises(UserError, match=r"There are 4 people in the video, not 5; choose from 1 to 4\."):
        by_number(PAIR * 2, "5")


@pytest.mark.parametrize(
    "choose",
    [
        lambda: by_number([], "1"),
        lambda: by_click([], 0, 1, 1),
        lambda: by_box([], 0, (0, 0, 1, 1)),
        lambda: by_likeness([], np.zeros((4, 4, 3), np.uint8)),
        lambda: contact_sheet([], {}),
    ],
)
def test_an_empty_clip_says_so(choose):
    with pytest.raises(UserError, match="Nobody was found in the video"):
        choose()


def test_by_click():
    assert by_click(PAIR, 0, 11, 11) == 0
    assert by_click(PAIR, 0, 50, 80) == 1
    # In both boxes: nearer the middle of the second one.
    assert by_click(PAIR, 0, 29, 55) == 1
    with pytest.raises(UserError, match=r"Nobody is at 90, 5 in frame 0; person 1 is in 10, 10, 30, 60, person 2"):
        by_click(PAIR, 0, 90, 5)
    with pytest.raises(UserError, match=r"at all, but there is somebody in frame 1\."):
        by_click(PAIR, 2, 11, 11)
    with pytest.raises(UserError, match=r"no frame 4; choose one from 0 to 3\."):
        by_click(PAIR, 4, 11, 11)


def test_by_box():
    assert by_box(PAIR, 0, (8, 8, 33, 66)) == 0
    assert by_box(PAIR, 3, (38, 15, 75, 95)) == 1
    with pytest.raises(UserError, match=r"Nobody is in the box 80, 80, 95, 95 in frame 0; person 1 is"):
        by_box(PAIR, 0, (80, 80, 95, 95))
    with pytest.raises(UserError, match="is empty; give x0, y0, x1, y1"):
        by_box(PAIR, 0, (30, 8, 10, 66))


def test_chosen_poses_and_boxes():
    two = np.stack([np.full((POINTS, 3), number) for number in (1.0, 2.0)])
    poses = Poses(99, 99, [two[:count] for count in (2, 1, 0, 2)])
    both = poses.only(PAIR[1].people, PAIR[0].people)
    assert [people[:, 0, 0].tolist() for people in both.people] == [[2, 1], [1], [], [2, 1]]
    assert [people[:, 0, 0].tolist() for people in poses.only(PAIR[1].people).people] == [[2], [], [], [2]]
    assert both.size == (99, 99) and len(poses.people[0]) == 2
    assert chosen_boxes(PAIR[1]) == [(25, 20, 55, 90), None, None, (40, 20, 70, 90)]


@pytest.fixture(scope="module")
def crowd():
    made = sample_crowd(4, "cuts", 24, 128)
    tracks = track([observe(*pair) for pair in zip(made.frames, made.poses().people, strict=True)], made.cuts)
    return made, tracks


def test_by_likeness_finds_the_character_of_a_picture():
    hits = []
    for seed in range(6):
        made = sample_crowd(seed, "plain", 4, 128)
        tracks = track([observe(*pair) for pair in zip(made.frames, made.poses().people, strict=True)])
        for one in tracks:
            # The person cut out of a frame of the clip, as somebody would who has no other picture.
            place = np.flatnonzero(made.present[0])[one.people[0]]
            x0, y0, x1, y1 = made.boxes[0][place]
            alpha = made.masks[0][place][..., None]
            cut_out = np.concatenate([made.frames[0], alpha], axis=-1)[y0:y1, x0:x1]
            index, likeness = by_likeness(tracks, cut_out)
            hits.append(tracks[index] is one)
            assert 0 <= likeness <= 1
    assert len(hits) >= 8 and np.mean(hits) >= 0.9


def test_likeness_tells_strangers():
    rgb, alpha = render_reference(sample_character(5), 0, (128, 128))
    picture = np.concatenate([rgb, alpha[..., None]], axis=-1)
    points = np.full((18, 3), 0.0)
    pose = {"canvas_width": 128, "canvas_height": 128}
    rows, columns = np.flatnonzero(alpha.any(1)), np.flatnonzero(alpha.any(0))
    box = [float(columns[0]), float(rows[0]), 1.0, float(columns[-1]), float(rows[-1]), 1.0]
    body = {"pose_keypoints_2d": points.ravel().tolist(), "box_keypoints_2d": box}
    (same,) = track([observe(rgb, people_of({**pose, "people": [body]}))])
    (stranger,) = track([observe(255 - rgb, people_of({**pose, "people": [body]}))])
    index, likeness = by_likeness([stranger, same], picture)
    assert index == 1 and likeness > 0.7
    assert by_likeness([stranger], picture)[1] < 0.5
    with pytest.raises(UserError, match="transparent everywhere"):
        by_likeness([same], picture * np.uint8((1, 1, 1, 0)))


def test_sheet_needs_few_frames_and_shows_everybody(crowd):
    made, tracks = crowd
    wanted = sheet_frames(tracks)
    assert wanted == sorted(set(wanted)) and len(wanted) <= 4 * len(tracks) + 1
    assert sheet_frames([]) == []
    page = contact_sheet(tracks, {index: made.frames[index] for index in wanted})
    assert page.dtype == np.uint8 and page.ndim == 3 and page.shape[2] == 3
    for one in tracks:
        assert one.present[wanted].sum() >= min(4, one.present.sum())
    longer = contact_sheet([*tracks, tracks[-1]], {index: made.frames[index] for index in wanted})
    assert longer.shape[0] > page.shape[0] + 100


def test_sheet_shows_clear_moments():
    seen = [(10.0 * i, 10.0, 10.0 * i + 20, 60.0) for i in range(8)]
    other = [None, None, (10.0, 10.0, 60.0, 60.0), *[None] * 5]
    frames = sheet_frames([person(*seen), person(*other)])
    # Frame 2 shows both; frame 3 is as large as 2 and has nobody in the way.
    assert {2, 3} <= set(frames)


def test_sheet_of_one_sighting_at_the_edge():
    one = person(None, (60, 40, 64.4, 64), None)
    assert sheet_frames([one]) == [1]
    page = contact_sheet([one], {1: np.full((64, 64, 3), 90, np.uint8)})
    assert (page == 90).all(axis=-1).any()


def test_long_sheets_end_and_say_so():
    many = [person((1, 1, 9, 30)) for _ in range(45)]
    picture = {0: np.zeros((32, 32, 3), np.uint8)}
    assert contact_sheet(many, picture).shape == contact_sheet(many[:42], picture).shape
