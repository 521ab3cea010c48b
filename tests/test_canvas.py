"""How frames map to the network's canvas and back: exactly, also between pixels, and without a trace outside."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from anycharv_core.errors import UserError
from anycharv_core.media.canvas import AUTO, FRAME, PERSON, Canvas, CanvasPath, choose_path
from anycharv_core.media.masks import composite, feather
from anycharv_core.media.pose import BODY, Poses, body_points, pack_person


@st.composite
def canvases(draw):
    """Canvases whose windows lie anywhere on the source, past its edges too, and are scaled up or down."""
    width, height = source = draw(st.integers(4, 80)), draw(st.integers(4, 80))
    inner = draw(st.integers(4, 64)), draw(st.integers(4, 64))
    part = st.floats(0.05, 0.95)
    x, y = width * draw(part), height * draw(part)
    half = width * draw(st.floats(0.02, 0.8)) + 1, height * draw(st.floats(0.02, 0.8)) + 1
    return Canvas(source, inner, inner, (x - half[0], y - half[1], x + half[0], y + half[1]))


def ramp(width: int, height: int) -> np.ndarray:
    """Levels that rise evenly to the right (red) and down (green): every place has a colour of its own."""
    picture = np.zeros((height, width, 3), np.uint8)
    picture[..., 0] = np.rint(255 * (np.arange(width) + 0.5) / width)
    picture[..., 1] = np.rint(255 * (np.arange(height) + 0.5) / height)[:, None]
    return picture


def centres(width: int, height: int) -> np.ndarray:
    """float [H, W, 2]: the middle of every pixel."""
    return np.stack(np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5), axis=-1)


@given(canvases(), st.tuples(st.floats(-1e4, 1e4), st.floats(-1e4, 1e4)))
def test_map_is_exactly_invertible(canvas, point):
    point = np.array(point)
    np.testing.assert_allclose(canvas.to_source(canvas.to_canvas(point)), point, atol=1e-7)
    corners = np.reshape(canvas.window, (2, 2))
    np.testing.assert_allclose(canvas.to_canvas(corners), [(0, 0), canvas.inner], atol=1e-9)


def test_whole_frames_are_scaled_and_padded_as_ever():
    canvas = Canvas((37, 29), (30, 23), (32, 24))
    rng = np.random.default_rng(0)
    picture, made = rng.integers(256, size=(29, 37, 3), dtype=np.uint8), rng.integers(256, size=(24, 32, 3))
    scaled = np.array(Image.fromarray(picture).resize((30, 23), Image.Resampling.LANCZOS))
    np.testing.assert_array_equal(canvas.place(picture), np.pad(scaled, [(0, 1), (0, 2), (0, 0)], "edge"))
    made = made.astype(np.uint8)
    back = np.array(Image.fromarray(made[:23, :30]).resize((37, 29), Image.Resampling.LANCZOS))
    np.testing.assert_array_equal(canvas.restore(made), back)
    weights = feather(np.pad(np.full((9, 9), 255, np.uint8), [(10, 10), (14, 14)]), 2, 3)
    np.testing.assert_array_equal(canvas.paste(made, picture, weights), composite(back, picture, weights))
    seen = Canvas((37, 29), (30, 23), (32, 24), (0, 0, 37, 29))
    np.testing.assert_array_equal(seen.place(picture), canvas.place(picture))
    np.testing.assert_array_equal(seen.restore(made), canvas.restore(made))


@given(canvases())
def test_placed_pixels_show_their_place_in_the_frame(canvas):
    """Away from the edges, where a scaled picture is its own continuation, colours tell places to a level."""
    (width, height), source = canvas.inner, canvas.source
    places = canvas.to_source(centres(width, height))
    scale = np.maximum(1, np.divide(np.subtract(canvas.window[2:], canvas.window[:2]), canvas.inner))
    inside = ((places > 3 * scale + 1) & (places < source - 3 * scale - 1)).all(axis=-1)
    expected = 255 * places / source
    placed = canvas.place(ramp(*source))[..., :2]
    assert (np.abs(placed - expected)[inside] <= 1.5).all()


@given(canvases())
def test_restored_pixels_come_from_their_place_on_the_canvas(canvas):
    x0, y0, x1, y1 = canvas.region
    if x1 <= x0 or y1 <= y0:
        return
    places = canvas.to_canvas(centres(*canvas.source)[y0:y1, x0:x1])
    scale = np.maximum(1, np.divide(canvas.inner, np.subtract(canvas.window[2:], canvas.window[:2])))
    inside = ((places > 3 * scale + 1) & (places < canvas.inner - 3 * scale - 1)).all(axis=-1)
    restored = canvas.restore(ramp(*canvas.inner))[..., :2]
    assert restored.shape == (y1 - y0, x1 - x0, 2)
    assert (np.abs(restored - 255 * places / canvas.inner)[inside] <= 1.5).all()


def test_edges_are_repeated_past_the_frame():
    canvas = Canvas((8, 8), (24, 24), (24, 24), (-8.0, -8.0, 16.0, 16.0))
    picture = np.random.default_rng(0).integers(256, size=(8, 8, 3), dtype=np.uint8)
    np.testing.assert_array_equal(canvas.place(picture), np.pad(picture, [(8, 8), (8, 8), (0, 0)], "edge"))


@given(canvases(), st.integers(0, 2**32 - 1))
def test_every_touched_pixel_is_in_the_mask(canvas, seed):
    rng = np.random.default_rng(seed)
    mask = 255 * (rng.random(canvas.source[::-1]) < 0.03).astype(np.uint8)
    placed = canvas.place_mask(mask) > 0
    # A touch of less than a thousandth of a pixel may be a rounding error.
    surely, perhaps = (np.zeros(placed.shape, bool) for _ in range(2))
    for y, x in np.argwhere(mask):
        near, far = canvas.to_canvas(np.array([(x, y), (x + 1, y + 1)]))
        for touched, slack in ((surely, -1e-3), (perhaps, 1e-3)):
            columns, rows = (
                slice(max(0, int(np.floor(low - slack))), max(0, int(np.ceil(high + slack))))
                for low, high in zip(near, far, strict=True)
            )
            touched[rows, columns] = True
    assert placed[surely].all() and not placed[~perhaps].any()


def test_one_pixel_of_a_large_mask_is_not_lost():
    mask = np.zeros((4000, 8000), np.uint8)
    mask[1234, 4321] = 255
    canvas = Canvas((8000, 4000), (64, 32), (64, 32), (0.5, 0.25, 7999.5, 3999.75))
    assert canvas.place_mask(mask).sum() == 255


@given(canvases(), st.integers(0, 2**32 - 1))
def test_pixels_outside_are_untouched(canvas, seed):
    rng = np.random.default_rng(seed)
    frame = rng.integers(256, size=(*canvas.source[::-1], 3), dtype=np.uint8)
    made = rng.integers(256, size=(*canvas.inner[::-1], 3), dtype=np.uint8)
    weights = rng.random(canvas.source[::-1], np.float32) * rng.integers(2, size=canvas.source[::-1])
    before = frame.copy()
    x0, y0, x1, y1 = canvas.region
    if x1 <= x0 or y1 <= y0:
        return
    pasted = canvas.paste(made, frame, weights.astype(np.float32))
    np.testing.assert_array_equal(frame, before)
    outside = np.ones(weights.shape, bool)
    outside[y0:y1, x0:x1] = False
    untouched = outside | (weights == 0)
    np.testing.assert_array_equal(pasted[untouched], frame[untouched])


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([(64, 40), (300, 200), (200, 300)]))
def test_what_is_pasted_lies_in_the_region(seed, frame):
    """The feathered mask is seen whole, so that nothing of it is cut off when it is pasted."""
    rng = np.random.default_rng(seed)
    keep, boxes = 5, []
    for near in rng.integers(0, np.subtract(frame, 1), (30, 2)):
        far = rng.integers(near + 1, np.minimum(near + 40, frame) + 1)
        boxes.append((*near.tolist(), *far.tolist()))
    whole = Canvas(frame, (64, 64), (64, 64))
    path = choose_path(PERSON, whole, (64, 48), boxes, [13], 0.0, keep)
    for number, (x0, y0, x1, y1) in enumerate(boxes):
        region = path.at(number).region
        assert region[0] <= max(0, x0 - keep) and region[1] <= max(0, y0 - keep)
        assert region[2] >= min(frame[0], x1 + keep) and region[3] >= min(frame[1], y1 + keep)


def test_poses_lie_where_the_canvas_shows_the_person():
    """Drawn on the canvas they cover the same pixels as the skeleton drawn on the frame and then placed."""
    body = np.column_stack([np.linspace(105, 135, 18), np.linspace(110, 205, 18), np.ones(18)])
    poses = Poses(1280, 720, [np.stack([pack_person({BODY: body * (2, 2, 1)})])] * 2)
    boxes = [(100, 100, 140, 220), (110, 100, 150, 220)]
    path = choose_path(PERSON, Canvas((640, 360), (64, 36), (64, 40)), (64, 64), boxes)
    placed = path.poses(poses, (256, 256))
    assert placed.size == (256, 256)
    for number, people in enumerate(placed.people):
        expected = 4 * path.at(number).to_canvas(body[:, :2])
        np.testing.assert_allclose(body_points(people[0])[:, :2], expected, rtol=1e-5)
        assert (people[0, :18, 2] == 1).all() and np.isnan(people[0, 18:]).all()
    longer = path.poses(poses.take([0, 1, 1]), (256, 256)).people
    np.testing.assert_array_equal(longer[2], longer[1])
    whole = CanvasPath(path.canvas).poses(poses, (128, 72))
    np.testing.assert_allclose(body_points(whole.people[0][0])[:, :2], body[:, :2] / 5, rtol=1e-6)


def test_a_person_still_is_a_still_canvas():
    path = choose_path(PERSON, Canvas((640, 360), (64, 36), (64, 40)), (64, 64), [(100, 100, 140, 220)] * 9)
    assert path.shows == PERSON and path.canvas == Canvas((640, 360), (64, 64), (64, 64))
    assert [path.at(frame) for frame in range(9)] == [path.at(0)] * 9 and path.at(0).window is not None


def test_auto_follows_who_is_small():
    whole = Canvas((640, 360), (128, 72), (128, 72))
    small, large = (100, 100, 140, 220), (100, 10, 240, 350)
    assert choose_path(AUTO, whole, (128, 72), [small] * 3).shows == PERSON
    path = choose_path(AUTO, whole, (128, 72), [large, None])
    assert path.shows == FRAME and path.at(0) == path.at(1) == whole
    assert choose_path(FRAME, whole, (128, 72), [small]).at(0) == whole


@pytest.mark.parametrize("context", [-0.1, float("nan"), float("inf")])
def test_what_cannot_be_chosen(context):
    whole = Canvas((64, 64), (64, 64), (64, 64))
    with pytest.raises(UserError, match="There is no canvas 'face'; use one of 'frame', 'person', 'auto'"):
        choose_path("face", whole, (64, 64), [None])
    with pytest.raises(UserError, match="context"):
        choose_path(PERSON, whole, (64, 64), [None], context=context)
