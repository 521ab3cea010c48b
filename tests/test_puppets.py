"""The puppet world: seeds, exact swaps, and ground truth that agrees with the pixels."""

import cv2
import numpy as np
import pytest

from anycharv_core.puppets import (
    Character,
    Clip,
    render,
    render_reference,
    sample_character,
    sample_motion,
    sample_scene,
)
from anycharv_core.puppets.scene import camera_matrices
from anycharv_core.puppets.task import sample_animation

SIZE = (96, 80)
FRAMES = 7


def clip(seed: int, character: Character | None = None, kind: str | None = None, **options) -> Clip:
    performer = sample_character(seed)
    motion = sample_motion(seed, FRAMES, performer.proportions, kind=kind)
    return render(character or performer, motion, sample_scene(seed), **{"size": SIZE, **options})


@pytest.fixture(scope="module", params=range(6))
def swap(request) -> tuple[Clip, Clip]:
    seed = request.param
    return clip(seed, flow=True), clip(seed, sample_character(seed + 100), flow=True)


def test_shapes_and_types(swap):
    width, height = SIZE
    for c in swap:
        assert c.frames.shape == (FRAMES, height, width, 3) and c.frames.dtype == np.uint8
        assert c.mask.shape == (FRAMES, height, width) and c.mask.dtype == np.uint8
        assert set(np.unique(c.mask)) <= {0, 255}
        assert c.keypoints.shape == (FRAMES, 18, 3) and c.keypoints.dtype == np.float32
        assert c.boxes.shape == (FRAMES, 4) and c.boxes.dtype == np.int64
        assert c.flow.shape == (FRAMES - 1, height, width, 2) and c.flow.dtype == np.float32
    assert clip(0).flow is None


@pytest.mark.parametrize("kind", ["walk", "wave", "dance"])
def test_same_seeds_same_bytes(kind):
    first, second = clip(3, kind=kind), clip(3, kind=kind)
    assert first.frames.tobytes() == second.frames.tobytes()
    assert first.mask.tobytes() == second.mask.tobytes()
    assert first.keypoints.tobytes() == second.keypoints.tobytes()


def test_flow_does_not_change_the_picture():
    np.testing.assert_array_equal(clip(2).frames, clip(2, flow=True).frames)


def test_splits_are_disjoint():
    seeds = range(40)
    train, heldout = ({sample_character(s, split) for s in seeds} for split in ("train", "heldout"))
    assert len(train) == len(heldout) == len(seeds)
    assert not train & heldout
    body = sample_character(0).proportions
    for seed in seeds:
        motions = [sample_motion(seed, 4, body, split, "wave").joints for split in ("train", "heldout")]
        assert not np.allclose(*motions)
        scenes = [sample_scene(seed, split).grain for split in ("train", "heldout")]
        assert not np.allclose(*scenes)
    references = [render_reference(sample_character(1), 1, SIZE, split)[0] for split in ("train", "heldout")]
    assert (references[0] != references[1]).any()


def test_unknown_names_are_errors():
    with pytest.raises(KeyError):
        sample_character(0, "test")
    with pytest.raises(KeyError):
        sample_motion(0, 4, sample_character(0).proportions, kind="swim")


def test_swap_changes_nothing_outside_both_masks(swap):
    one, other = swap
    outside = (one.mask == 0) & (other.mask == 0)
    assert outside.any()
    np.testing.assert_array_equal(one.frames[outside], other.frames[outside])


def test_swap_keeps_keypoints(swap):
    one, other = swap
    np.testing.assert_array_equal(one.keypoints, other.keypoints)
    assert list(one.poses().keypoints()) == list(other.poses().keypoints())


def test_swap_changes_the_looks(swap):
    one, other = swap
    both = (one.mask > 0) & (other.mask > 0)
    assert both.any()
    assert np.abs(one.frames[both].astype(int) - other.frames[both]).mean() > 15


def test_boxes_are_tight_around_the_mask(swap):
    for c in swap:
        for mask, (x0, y0, x1, y1) in zip(c.mask, c.boxes, strict=True):
            inside = mask[y0:y1, x0:x1]
            assert inside.sum() == mask.sum()
            if mask.any():
                assert inside[0].any() and inside[-1].any() and inside[:, 0].any() and inside[:, -1].any()


def test_boxes_of_an_invisible_character_are_zero():
    performer = sample_character(0)
    motion = sample_motion(0, 2, performer.proportions)
    away = np.float32((5, 0))
    for part in (motion.joints, motion.head):
        part += away
    c = render(performer, motion, sample_scene(0), SIZE)
    assert not c.mask.any() and not c.boxes.any() and not c.keypoints.any()


def test_joints_lie_on_the_character():
    hits = []
    for seed in range(8):
        c = clip(seed, kind="dance")
        for mask, points in zip(c.mask, c.keypoints, strict=True):
            x, y = points[points[:, 2] > 0, :2].astype(int).T
            hits.append((mask[y, x] > 0).mean())
    # Occluders and the far ear may hide some.
    assert np.mean(hits) > 0.9


def test_character_fills_the_frame():
    heights = []
    for seed in range(12):
        c = clip(seed, kind="wave")
        heights.append(np.mean(c.boxes[:, 3] - c.boxes[:, 1]) / SIZE[1])
    assert 0.45 < np.mean(heights) < 0.85


def test_flow_brings_the_next_frame_back(swap):
    for c in swap:
        height, width = c.mask.shape[1:]
        x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
        for t, flow in enumerate(c.flow):
            at = x + flow[..., 0], y + flow[..., 1]
            back = cv2.remap(c.frames[t + 1], *at, cv2.INTER_LINEAR)
            landed = cv2.remap(c.mask[t + 1], *at, cv2.INTER_LINEAR)
            error = np.abs(back.astype(int) - c.frames[t]).max(-1)
            # What leaves the frame or goes behind something else cannot come back.
            inner = (at[0] > 1) & (at[0] < width - 2) & (at[1] > 1) & (at[1] < height - 2)
            body = inner & (cv2.erode(c.mask[t], np.ones((3, 3))) > 0) & (landed == 255)
            scene = inner & (cv2.dilate(c.mask[t], np.ones((3, 3))) == 0) & (landed == 0)
            assert np.median(error[scene]) <= 3
            assert (error[scene] > 40).mean() < 0.03
            if body.sum() > 100:
                assert (error[body] > 40).mean() < 0.18


def test_flow_of_the_body_beats_standing_still():
    still, moved = [], []
    for seed in range(6):
        c = clip(seed, kind="walk", flow=True, size=(160, 160))
        y, x = np.mgrid[:160, :160].astype(np.float32)
        for t, flow in enumerate(c.flow):
            body = c.mask[t] > 0
            back = cv2.remap(c.frames[t + 1], x + flow[..., 0], y + flow[..., 1], cv2.INTER_LINEAR)
            now = c.frames[t].astype(int)
            still.append(np.abs(c.frames[t + 1] - now)[body].mean())
            moved.append(np.abs(back - now)[body].mean())
    assert np.nanmean(moved) < 0.45 * np.nanmean(still)


def test_background_flow_is_the_camera():
    scenes = ((seed, sample_scene(seed)) for seed in range(200))
    seed, scene = next((i, s) for i, s in scenes if not s.movers and not s.occluders and s.shake[0] > 0)
    c = clip(seed, flow=True)
    width, height = SIZE
    camera = camera_matrices(scene, FRAMES)
    u, v = (np.arange(width) + 0.5 - width / 2) / height, (np.arange(height) + 0.5) / height
    points = np.stack(np.meshgrid(u, v), axis=-1)
    for t in range(FRAMES - 1):
        world = (points - camera[t, :, 2]) / camera[t, 0, 0]
        expected = (world * camera[t + 1, 0, 0] + camera[t + 1, :, 2] - points) * height
        background = c.mask[t] == 0
        np.testing.assert_allclose(c.flow[t][background], expected[background], atol=1e-3)
        assert background.mean() > 0.5


def test_sizes_show_the_same_thing():
    small, large = clip(4, size=(64, 64)), clip(4, size=(256, 256))
    for few, many in zip(small.frames, large.frames, strict=True):
        shrunk = cv2.resize(many, (64, 64), interpolation=cv2.INTER_AREA)
        assert np.abs(few.astype(int) - shrunk).mean() < 4
    np.testing.assert_allclose(small.keypoints[..., :2] * 4, large.keypoints[..., :2], atol=1e-3)


def test_pose_has_the_openpose_layout():
    c = clip(1)
    pose = next(c.poses().keypoints())
    assert (pose["canvas_width"], pose["canvas_height"]) == SIZE
    (person,) = pose["people"]
    flat = person["pose_keypoints_2d"]
    assert len(flat) == 54 and all(isinstance(value, float) for value in flat)
    np.testing.assert_array_equal(np.float32(flat).reshape(18, 3), c.keypoints[0])
    assert person["face_keypoints_2d"] is None and person["hand_left_keypoints_2d"] is None
    assert len(c.poses()) == FRAMES


@pytest.mark.parametrize("size", [(128, 128), (96, 160), (200, 112)])
def test_reference_shows_the_whole_character(size):
    for seed in range(5):
        rgb, alpha = render_reference(sample_character(seed), seed, size)
        assert rgb.shape == (size[1], size[0], 3) and rgb.dtype == np.uint8
        assert alpha.shape == (size[1], size[0]) and alpha.dtype == np.uint8
        assert set(np.unique(alpha)) == {0, 255}
        rows = np.flatnonzero(alpha.any(1))
        assert rows[-1] - rows[0] > 0.6 * size[1] and rows[-1] < size[1] - 1


@pytest.mark.parametrize("seed", range(4))
def test_an_animation_moves_the_references_character_in_its_own_still_scene(seed):
    task = sample_animation(seed, FRAMES, 64, flow=True)
    assert task.reference.shape == (64, 64, 3) and task.pose.shape == (FRAMES, 64, 64, 3)
    assert len(task.poses()) == FRAMES and task.truth.flow.shape == (FRAMES - 1, 64, 64, 2)
    scene = ~task.region
    apart = np.abs(task.truth.frames.astype(int) - task.reference).max(axis=-1)
    # All but the shadows, here and there, is the reference's to the bit.
    assert (apart[scene] == 0).mean() > 0.97 and apart[scene].max() < 60
    assert not task.truth.flow[(task.truth.mask[:-1] == 0) & scene[:-1]].any()
    # The skeletons lie on the character.
    drawn = task.pose.max(axis=-1) > 60
    assert (drawn & (task.truth.mask == 0)).sum() < 0.25 * drawn.sum()
    again = sample_animation(seed, FRAMES, 64)
    assert np.array_equal(again.truth.frames, task.truth.frames) and again.truth.flow is None
