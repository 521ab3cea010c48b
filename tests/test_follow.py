"""The networks see a window that follows the person, and nothing else of the video changes."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from anycharv_core import Pipeline, UserError
from anycharv_core.cli import main
from anycharv_core.inference.finish import paste_reach, paste_weights
from anycharv_core.inference.reference import refer
from anycharv_core.media.camera import CONTEXT
from anycharv_core.media.canvas import Canvas, CanvasPath
from anycharv_core.media.masks import mask_box
from anycharv_core.media.pose import BODY, Poses, pack_person
from anycharv_core.media.pose_drawing import draw_poses
from anycharv_core.media.video_read import read_frames
from anycharv_core.media.video_write import VideoWriter, write_masks
from anycharv_core.systems.anycharv import RECIPES

WIDTH, HEIGHT, FRAMES = 120, 80, 6


@pytest.fixture(scope="module")
def pipe(tiny_model: Path) -> Pipeline:
    return Pipeline.from_pretrained(tiny_model)


def walk(frames: int = FRAMES) -> dict:
    """Somebody small who walks to the right."""
    rng = np.random.default_rng(0)
    mask = np.zeros((frames, HEIGHT, WIDTH), np.uint8)
    people = []
    for t in range(frames):
        x = 30 + t
        mask[t, 30:54, x : x + 10] = 255
        body = np.column_stack([np.linspace(x + 2, x + 8, 18), np.linspace(32, 52, 18), np.ones(18)])
        people.append(pack_person({BODY: body})[None])
    return {
        "reference": rng.integers(256, size=(40, 24, 3), dtype=np.uint8),
        "scene": rng.integers(256, size=(frames, HEIGHT, WIDTH, 3), dtype=np.uint8),
        "mask": mask,
        "pose": Poses(WIDTH, HEIGHT, people),
    }


def outside(masks: np.ndarray) -> np.ndarray:
    return np.stack([paste_weights(mask) for mask in masks]) == 0


@pytest.mark.parametrize("size", [None, (32, 32), (30, 50)])
def test_only_the_feathered_mask_changes(pipe: Pipeline, size: tuple | None) -> None:
    given = walk()
    out = pipe(**given, steps=1, size=size, canvas="person")
    multiple = pipe.backend.multiple
    expected = (round(side / multiple) for side in size or (WIDTH, HEIGHT))
    assert tuple(out.latents.shape[:1:-1]) == tuple(expected)
    still = outside(given["mask"])
    np.testing.assert_array_equal(out.frames[still], given["scene"][still])
    inside = given["mask"] > 0
    assert (out.frames[inside] != given["scene"][inside]).mean() > 0.9


def test_what_was_shown_comes_back_to_where_it_was(pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """With networks that return what they are shown, the picture is the scene again, but for resampling."""
    given = walk()
    smooth = np.linspace(20, 230, WIDTH)[None, None, :, None] + np.linspace(-15, 15, HEIGHT)[None, :, None, None]
    given["scene"] = np.repeat(np.broadcast_to(smooth, (FRAMES, HEIGHT, WIDTH, 1)), 3, axis=3).astype(np.uint8)
    shown = []
    encode = pipe.backend.encode

    def seeing(pictures: np.ndarray) -> torch.Tensor:
        shown.extend(pictures)
        return encode(pictures)

    monkeypatch.setattr(pipe.backend, "encode", seeing)
    # The last picture encoded is the reference.
    monkeypatch.setattr(pipe.backend, "decode", lambda latents, rounded, deep: np.stack(shown[:FRAMES]))
    out = pipe(**given, steps=1, size=(64, 64), canvas="person")
    assert np.abs(out.frames.astype(int) - given["scene"]).max() <= 2


def test_auto_takes_the_person_where_they_are_small(pipe: Pipeline) -> None:
    given = walk()
    assert tuple(pipe(**given, steps=1, size=(32, 32)).latents.shape[2:]) == tuple(
        pipe(**given, steps=1, size=(32, 32), canvas="person").latents.shape[2:]
    )
    given["mask"][:, 5:75, 10:110] = 255
    auto, whole = (pipe(**given, steps=1, size=(32, 32), canvas=canvas) for canvas in ("auto", "frame"))
    torch.testing.assert_close(auto.latents, whole.latents, rtol=0, atol=0)


def test_pictures_of_skeletons_are_cut_and_points_are_drawn_for_the_window(pipe: Pipeline) -> None:
    given = walk()
    seen = []
    denoise = pipe.backend.denoise

    def watching(video, *args, **kwargs):
        seen.append(video.poses.take(range(FRAMES)))
        return denoise(video, *args, **kwargs)

    pipe.backend.denoise = watching
    try:
        pipe(**given, steps=1, size=(64, 64), canvas="person")
        drawn = np.stack(list(draw_poses(given["pose"].scaled(8 * WIDTH, 8 * HEIGHT))))
        pipe(**given | {"pose": drawn}, steps=1, size=(64, 64), canvas="person")
        streams = {name: iter(given[name]) for name in ("scene", "mask")} | {"pose": iter(drawn)}
        list(pipe(given["reference"], **streams, steps=1, size=(64, 64), canvas="person").frames)
    finally:
        del pipe.backend.denoise
    points, pictures, streamed = (poses.max(axis=-1) > 60 for poses in seen)
    np.testing.assert_array_equal(pictures, streamed)
    # Strokes have the width they were drawn with, but they lie in the same places.
    for one, other in zip(points, pictures, strict=True):
        assert one.any() and other.any()
        middles = [np.argwhere(each).mean(axis=0) for each in (one, other)]
        assert np.abs(middles[0] - middles[1]).max() < 1.5


def test_the_reference_is_as_large_as_the_person(pipe: Pipeline) -> None:
    """Wherever in its picture the character stands: by its matte, and only on a canvas that follows."""
    canvas = CanvasPath(Canvas((96, 64), (64, 80), (64, 80)), np.array([[0.0, 0.0, 32.0, 40.0]]))
    recipe, seen = pipe.system.recipe("default"), []
    for height, top, left in ((100, 10, 80), (40, 60, 5)):
        picture = np.zeros((120, 200, 4), np.uint8)
        picture[top : top + height, left : left + height // 2] = 255
        reference = refer(recipe, picture, None)
        assert reference.beside(CanvasPath(canvas.canvas)) is reference
        seen.append(reference.beside(canvas).picture)
    inside = [np.argwhere(picture[..., 0] > 127) for picture in seen]
    for points in inside:
        assert np.ptp(points[:, 0]) + 1 == pytest.approx(80 / 1.2, abs=1.5)
        assert points.mean(axis=0) == pytest.approx((39.5, 31.5), abs=1)
    opaque = refer(recipe, np.zeros((120, 200, 3), np.uint8), None)
    assert opaque.beside(canvas) is opaque


def test_shots_are_followed_on_their_own(pipe: Pipeline) -> None:
    """Where there is a cut the window jumps, rather than to hold both people at once."""
    given = walk(24)
    dark, bright = np.full((HEIGHT, WIDTH, 3), 20, np.uint8), np.full((HEIGHT, WIDTH, 3), 220, np.uint8)
    given["scene"] = np.stack([dark] * 12 + [bright] * 12)
    given["mask"][:] = 0
    given["mask"][:12, 10:40, 5:17] = 255
    given["mask"][12:, 40:70, 100:112] = 255
    plan = pipe.plan(RECIPES["default"], (WIDTH, HEIGHT), (WIDTH, HEIGHT), (32, 32), (32, 32))
    boxes = [mask_box(mask) for mask in given["mask"]]
    calls = []

    def cuts() -> list[int]:
        calls.append(1)
        return [12]

    path = pipe.follow(plan, "auto", CONTEXT, boxes, cuts)
    assert path.shows == "person" and calls == [1]
    assert (path.windows[:12] == path.windows[0]).all() and (path.windows[12:] == path.windows[12]).all()
    assert path.windows[12, 0] > path.windows[11, 2]
    out = pipe(**given, steps=1, size=(32, 32))
    still = outside(given["mask"])
    np.testing.assert_array_equal(out.frames[still], given["scene"][still])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"canvas": "face"}, "There is no canvas 'face'"),
        ({"canvas": "person", "context": -1.0}, "The context is -1.0"),
        ({"canvas": "person", "recipe": "official"}, "The canvas can't follow a person here"),
        ({"match_colour": True, "recipe": "official"}, "Colours can only be matched where a person is pasted"),
    ],
)
def test_what_cannot_be_followed_is_said_in_one_sentence(pipe: Pipeline, change: dict, sentence: str) -> None:
    given = walk()
    given["pose"] = np.stack(list(draw_poses(given["pose"])))
    with pytest.raises(UserError, match=sentence):
        pipe(**given | {"steps": 1} | change)


@pytest.mark.parametrize("pixels", [(slice(None), slice(None)), (40, 60), (slice(0, 1), slice(119, 120))])
def test_a_mask_of_everything_and_of_one_pixel(pipe: Pipeline, pixels: tuple) -> None:
    given = walk()
    given["mask"][:] = 0
    given["mask"][(slice(None), *pixels)] = 255
    out = pipe(**given, steps=1, size=(32, 32), canvas="person")
    still = outside(given["mask"])
    np.testing.assert_array_equal(out.frames[still], given["scene"][still])


def test_somebody_who_leaves_and_comes_back(pipe: Pipeline) -> None:
    given = walk()
    given["mask"][2:4] = 0
    out = pipe(**given, steps=1, size=(32, 32), canvas="person")
    np.testing.assert_array_equal(out.frames[2:4], given["scene"][2:4])


@pytest.mark.parametrize(("width", "height"), [(64, 36), (8000, 96)])
@pytest.mark.parametrize("canvas", ["auto", "person"])
def test_very_small_and_very_wide_videos(pipe: Pipeline, width: int, height: int, canvas: str) -> None:
    rng = np.random.default_rng(0)
    scene = rng.integers(256, size=(2, height, width, 3), dtype=np.uint8)
    mask = np.zeros((2, height, width), np.uint8)
    mask[:, 8:30, width - 40 : width - 30] = 255
    body = np.column_stack([np.linspace(width - 38, width - 32, 18), np.linspace(10, 28, 18), np.ones(18)])
    pose = Poses(width, height, [pack_person({BODY: body})[None]] * 2)
    out = pipe(scene[0, :, :30], scene, mask, pose, steps=1, size=(32, 32), canvas=canvas)
    still = outside(mask)
    np.testing.assert_array_equal(out.frames[still], scene[still])
    assert (out.frames[mask > 0] != scene[mask > 0]).mean() > 0.9


def test_two_people_whose_boxes_cross(pipe: Pipeline) -> None:
    """The second is put in front of the first, and nothing around both of them changes."""
    one, other = walk(), walk()
    other["mask"] = np.roll(other["mask"][::-1], 4, axis=2)
    assert ((one["mask"] > 0) & (other["mask"] > 0)).any()
    first = pipe(**one, steps=1, size=(32, 32), canvas="person").frames
    both = pipe(**other | {"scene": first}, steps=1, size=(32, 32), canvas="person").frames
    still = outside(one["mask"]) & outside(other["mask"])
    np.testing.assert_array_equal(both[still], one["scene"][still])
    np.testing.assert_array_equal(both[outside(other["mask"])], first[outside(other["mask"])])


def test_all_that_is_pasted_is_seen() -> None:
    for size in ((64, 48), (1920, 1080)):
        mask = np.zeros(size[::-1], np.uint8)
        mask[20:30, 25:40] = 255
        ys, xs = np.nonzero(paste_weights(mask))
        reach = paste_reach(size)
        assert max(20 - ys.min(), ys.max() - 29, 25 - xs.min(), xs.max() - 39) <= reach


def test_generate_says_what_it_took_for_each_person(tiny_model: Path, tmp_path: Path) -> None:
    given = walk(30)
    with VideoWriter(tmp_path / "video.mp4", WIDTH, HEIGHT, rate=Fraction(25)) as writer:
        for frame in given["scene"]:
            writer.write(frame)
    large = np.zeros((HEIGHT, WIDTH), np.uint8)
    large[4:76, 10:110] = 255
    for name, masks in (("small", given["mask"]), ("large", [large] * 30)):
        write_masks(tmp_path / f"{name}.mkv", masks)
    keypoints = list(given["pose"].keypoints())
    (tmp_path / "pose.json").write_text(json.dumps(keypoints))
    Image.fromarray(given["reference"]).save(tmp_path / "reference.png")
    common = [*("generate", "--reference", "reference.png", "--video", "video.mp4", "--pose", "pose.json")]
    common += ["--model", str(tiny_model), "--steps", "1", "--size", "64x64", "--sheet", "sheet.png"]

    def made(mask: str, *options: str) -> tuple[dict, np.ndarray]:
        arguments = [*common, "--mask", mask, "--out", f"{mask}.mp4", *options]
        paths = (".png", ".mp4", ".json", ".mkv")
        assert main([str(tmp_path / a) if a.endswith(paths) else a for a in arguments]) == 0
        report = json.loads((tmp_path / f"{mask}.report.json").read_text())
        assert report["background_bit_equal"] is True
        return report, np.stack(list(read_frames(tmp_path / f"{mask}.mp4")))

    report, frames = made("small.mkv")
    assert report["canvas"] == ["person"] and report["network_size"] == [64, 64]
    assert report["settings"]["canvas"] == "auto" and report["settings"]["context"] == CONTEXT
    assert frames.shape == given["scene"].shape
    assert made("large.mkv")[0]["canvas"] == ["frame"]
    assert made("large.mkv", "--canvas", "person", "--context", "0")[0]["canvas"] == ["person"]
    report, unmatched = made("small.mkv", "--canvas", "frame")
    assert report["canvas"] == ["frame"] and report["settings"]["match_colour"] is False
    report, matched = made("small.mkv", "--canvas", "frame", "--match-colour")
    assert report["settings"]["match_colour"] is True and not np.array_equal(matched, unmatched)
