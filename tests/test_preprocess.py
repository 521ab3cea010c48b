"""`anycharv preprocess` from end to end: two puppets side by side, with poses and masks given or found."""

import json
from fractions import Fraction

import numpy as np
import pytest
from clip_files import make_clip
from keypoint_files import read_frames as read_poses
from keypoint_files import write_frames as write_poses
from PIL import Image

from anycharv_core.cli import main
from anycharv_core.files import MANIFEST
from anycharv_core.jobs.preprocess import PreprocessJob, preprocess
from anycharv_core.jobs.replace import people_of
from anycharv_core.media.masks import mask_box
from anycharv_core.media.pose import parse_poses
from anycharv_core.media.video_read import probe
from anycharv_core.media.video_write import VideoWriter, read_gray, write_masks
from anycharv_core.preprocess import cache, find
from anycharv_core.puppets import render, render_reference, sample_character, sample_motion, sample_scene

FRAMES, SIDE = 6, 128


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    """A clip with two people (the right one absent in the last two frames), their poses and masks as files."""
    folder = tmp_path_factory.mktemp("stage")
    clips = []
    for seed in (3, 8):
        character = sample_character(seed)
        motion = sample_motion(seed, FRAMES, character.proportions)
        clips.append(render(character, motion, sample_scene(seed), (SIDE, SIDE)))
    frames = np.concatenate([clip.frames for clip in clips], axis=2)
    frames[-2:, :, SIDE:] = 90
    people = []
    for t in range(FRAMES):
        pair = []
        for offset, clip in zip((0, SIDE), clips, strict=True):
            points = clip.keypoints[t].astype(float)
            points[:, 0] += offset * (points[:, 2] > 0)
            pair.append({"pose_keypoints_2d": points.ravel().tolist()})
        people.append(pair if t < FRAMES - 2 else pair[:1])
    poses = [{"canvas_width": 2 * SIDE, "canvas_height": SIDE, "people": both} for both in people]
    # Uneven times, so that a result timed by the average rate would show.
    times = (0, 40, 90, 120, 160, 220)
    with VideoWriter(folder / "clip.mp4", 2 * SIDE, SIDE, times, Fraction(1, 1000)) as video:
        for frame in frames:
            video.write(frame)
    write_poses(folder / "poses.json", poses)
    masks = np.zeros((2, FRAMES, SIDE, 2 * SIDE), np.uint8)
    masks[0, ..., :SIDE], masks[1, :-2, :, SIDE:] = clips[0].mask, clips[1].mask[:-2]
    for side, mask in zip(("left", "right"), masks, strict=True):
        write_masks(folder / f"{side}.mkv", mask)
    for name, seed in (("left", 3), ("right", 8)):
        rgb, alpha = render_reference(sample_character(seed), seed, (SIDE, SIDE))
        Image.fromarray(np.dstack([rgb, alpha])).save(folder / f"{name}.png")
    return folder


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ANYCHARV_CACHE", str(tmp_path / "cache"))


def run(*arguments):
    return main([str(argument) for argument in arguments])


def prepare(stage, out, *more, poses="poses.json", masks="left.mkv"):
    given = ["--poses", stage / poses, "--masks", stage / masks]
    return run("preprocess", stage / "clip.mp4", "--out", out, *given, *more)


def read(path):
    return np.stack(list(read_gray(path)))


def test_a_folder_with_everything_and_the_clip_s_times(stage, tmp_path, capsys):
    out = tmp_path / "out"
    assert prepare(stage, out, "--people", "1") == 0
    names = {"pose.json", "mask.mkv", "box.mkv", "people.png", "report.json"}
    assert {path.name for path in out.iterdir()} == names | {MANIFEST}
    said = capsys.readouterr().out
    assert all(str(out / name) in said for name in names)
    assert np.array_equal(read(out / "mask.mkv"), read(stage / "left.mkv"))
    source = probe(stage / "clip.mp4")
    for name in ("mask.mkv", "box.mkv"):
        info = probe(out / name)
        times = [t * info.time_base for t in info.timestamps]
        assert times == [t * source.time_base for t in source.timestamps]
    for mask, box in zip(read(out / "mask.mkv"), read(out / "box.mkv"), strict=True):
        x0, _, x1, y1 = mask_box(mask)
        around = mask_box(box)
        assert (box[mask > 0] == 255).all() and set(np.unique(box)) <= {0, 255}
        assert around[0] < x0 or x0 == 0
        assert (around[2], around[3]) >= (x1, y1)
    poses = read_poses(out / "pose.json")
    assert [len(pose["people"]) for pose in poses] == [1] * FRAMES
    given = read_poses(stage / "poses.json")
    assert all(pose["people"][0] == both["people"][0] for pose, both in zip(poses, given, strict=True))
    report = json.loads((out / "report.json").read_text())
    assert [person["frames"] for person in report["people"]] == [FRAMES, FRAMES - 2]
    assert report["chosen"] == [{"number": 1, "folder": ".", "frames": FRAMES, "frames_with_empty_mask": 0}]
    assert Image.open(out / "people.png").size[0] > 100


@pytest.mark.parametrize(
    "choice",
    [
        ("--people", "2"),
        ("--click", f"1,{SIDE * 1.6},{SIDE * 0.6}"),
        ("--box", f"0,{SIDE},0,{2 * SIDE},{SIDE}"),
    ],
)
def test_each_way_to_choose_the_other_person(stage, tmp_path, choice):
    assert prepare(stage, tmp_path / "out", *choice, masks="right.mkv") == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["chosen"][0]["number"] == 2 and report["chosen"][0]["frames"] == FRAMES - 2
    poses = read_poses(tmp_path / "out" / "pose.json")
    assert [len(pose["people"]) for pose in poses] == [1, 1, 1, 1, 0, 0]
    assert min(np.reshape(poses[0]["people"][0]["pose_keypoints_2d"], (-1, 3))[:, 0]) > SIDE * 0.9


@pytest.mark.parametrize(("name", "number"), [("left", 1), ("right", 2)])
def test_the_person_who_looks_like_a_picture(stage, tmp_path, name, number):
    assert prepare(stage, tmp_path / "out", "--like", stage / f"{name}.png", masks=f"{name}.mkv") == 0
    assert json.loads((tmp_path / "out" / "report.json").read_text())["chosen"][0]["number"] == number


def test_without_a_choice_the_masks_say_who(stage, tmp_path):
    assert prepare(stage, tmp_path / "out", masks="right.mkv") == 0
    poses = read_poses(tmp_path / "out" / "pose.json")
    assert [len(pose["people"]) for pose in poses] == [1, 1, 1, 1, 0, 0]
    assert min(np.reshape(poses[0]["people"][0]["pose_keypoints_2d"], (-1, 3))[:, 0]) > SIDE * 0.9


def test_a_second_run_decodes_and_finds_nothing_anew(stage, tmp_path, monkeypatch):
    assert prepare(stage, tmp_path / "first", "--people", "1") == 0

    def refuse(*_):
        raise AssertionError("done again")

    monkeypatch.setattr(find, "find_people", refuse)
    monkeypatch.setattr(find, "probe", refuse)
    monkeypatch.setattr("anycharv_core.preprocess.person.write_person", refuse)
    assert prepare(stage, tmp_path / "second", "--people", "1") == 0
    for name in ("pose.json", "mask.mkv", "box.mkv", "people.png"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()
    with pytest.raises(AssertionError, match="done again"):
        prepare(stage, tmp_path / "third", "--people", "1", masks="right.mkv")


def test_two_people_and_a_reference_for_each(stage, tmp_path):
    # White masks for both: the boxes overlap, so the second goes into what the first left.
    out, video = tmp_path / "out", tmp_path / "result.mp4"
    write_masks(tmp_path / "all.mkv", np.full((FRAMES, SIDE, 2 * SIDE), 255, np.uint8))
    given = ["--poses", stage / "poses.json", "--masks", tmp_path / "all.mkv", "--people", "2,1"]
    assert run("preprocess", stage / "clip.mp4", "--out", out, *given) == 0
    assert (out / "person_2" / "box.mkv").is_file()
    references = ["--reference", stage / "left.png", "--reference", stage / "right.png"]
    assert run("generate", "--prepared", out, *references, "--out", video) == 0
    report = json.loads((tmp_path / "result.report.json").read_text())
    people = report["inputs"]["people"]
    assert [each["pose"] for each in people] == [str(out / "pose.json"), str(out / "person_2" / "pose.json")]
    assert report["frames"] == FRAMES and report["background_bit_equal"]


def test_a_prepared_person_is_replaced_and_the_rest_stays(stage, tmp_path):
    out, video, sheet = tmp_path / "out", tmp_path / "result.mp4", tmp_path / "sheet.png"
    assert prepare(stage, out, "--people", "2", masks="right.mkv") == 0
    arguments = ["--prepared", out, "--reference", stage / "left.png", "--out", video, "--sheet", sheet]
    assert run("generate", *arguments) == 0
    report = json.loads((tmp_path / "result.report.json").read_text())
    assert report["background_bit_equal"] and report["output_size"] == [2 * SIDE, SIDE]
    assert sheet.is_file()


def test_retargeting_widens_the_box_to_the_taller_skeleton(stage, tmp_path, monkeypatch):
    tall = read_poses(stage / "poses.json")[0]
    tall["people"] = tall["people"][:1]
    points = np.reshape(tall["people"][0]["pose_keypoints_2d"], (-1, 3))
    points[[3, 4, 6, 7], 0] += np.array([-60, -90, 60, 90])
    tall["people"][0]["pose_keypoints_2d"] = points.ravel().tolist()
    monkeypatch.setattr("anycharv_core.jobs.preprocess.reference_pose", lambda *_: parse_poses(tall))
    assert prepare(stage, tmp_path / "plain", "--people", "1") == 0
    assert prepare(stage, tmp_path / "long", "--people", "1", "--retarget", stage / "left.png") == 0
    plain, wide = (read(tmp_path / name / "box.mkv") for name in ("plain", "long"))
    assert (wide >= plain).all() and (wide > plain).any()
    assert (tmp_path / "plain" / "pose.json").read_text() != (tmp_path / "long" / "pose.json").read_text()


def test_an_empty_mask_leaves_the_person_s_box(stage, tmp_path):
    masks = read(stage / "left.mkv")
    masks[2] = 0
    write_masks(tmp_path / "holes.mkv", masks)
    given = ["--poses", stage / "poses.json", "--masks", tmp_path / "holes.mkv", "--people", "1"]
    assert run("preprocess", stage / "clip.mp4", "--out", tmp_path / "out", *given) == 0
    assert not read(tmp_path / "out" / "mask.mkv")[2].any() and read(tmp_path / "out" / "box.mkv")[2].any()
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["chosen"][0]["frames_with_empty_mask"] == 1


def few_poses(stage, tmp_path):
    write_poses(tmp_path / "few.json", read_poses(stage / "poses.json")[:3])
    return ["--poses", tmp_path / "few.json", "--masks", stage / "left.mkv"]


def few_masks(stage, tmp_path):
    write_masks(tmp_path / "few.mkv", read(stage / "left.mkv")[:3])
    return ["--poses", stage / "poses.json", "--masks", tmp_path / "few.mkv", "--people", "1"]


def few_masks_who(stage, tmp_path):
    return few_masks(stage, tmp_path)[:-2]


def black_masks(stage, tmp_path):
    write_masks(tmp_path / "black.mkv", np.zeros((FRAMES, SIDE, 2 * SIDE), np.uint8))
    return ["--poses", stage / "poses.json", "--masks", tmp_path / "black.mkv"]


def small_masks(stage, tmp_path):
    write_masks(tmp_path / "small.mkv", np.full((FRAMES, 20, 20), 255, np.uint8))
    return ["--poses", stage / "poses.json", "--masks", tmp_path / "small.mkv", "--people", "1"]


def nobody(stage, tmp_path):
    poses = [{"canvas_width": 9, "canvas_height": 9, "people": []}] * FRAMES
    write_poses(tmp_path / "nobody.json", poses)
    return ["--poses", tmp_path / "nobody.json", "--masks", stage / "left.mkv"]


def given(*more):
    return lambda stage, tmp_path: ["--poses", stage / "poses.json", "--masks", stage / "left.mkv", *more]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (few_poses, "holds 3 poses but the video has 6 frames"),
        (few_masks, "There are 3 masks but the video has 6 frames"),
        (few_masks_who, "There are 3 masks but the video has 6 frames"),
        (black_masks, "mark nothing in any frame"),
        (small_masks, "is 20x20 but the video is 256x128"),
        (nobody, "Nobody was found"),
        (given("--people", "3"), "2 people"),
        (given("--people", "1", "--click", "0,1,1"), "--people and --click"),
        (given("--click", "0,127,1"), "Nobody is at 127, 1"),
        (given("--click", "77,1,1"), "no frame 77; choose one from 0 to 5"),
        (given("--click", "1,2"), "is not 3 numbers"),
        (lambda stage, _: given(*("--retarget", stage / "left.png") * 2)(stage, _), "as many pictures"),
        (lambda stage, _: ["--poses", stage / "poses.json", "--segmenter", stage], "SAM 2"),
        (lambda stage, _: ["--poses", stage / "poses.json", "--segmenter", "embeded"], "embeded is not there"),
        (lambda stage, _: ["--pose-model", stage], "anycharv download pose"),
    ],
)
def test_mistakes_are_one_sentence_and_leave_nothing(stage, tmp_path, capsys, arguments, words):
    out = tmp_path / "out"
    assert run("preprocess", stage / "clip.mp4", "--out", out, *arguments(stage, tmp_path)) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1 and "Traceback" not in said
    assert not out.exists() and not list(tmp_path.glob(".writing-*"))


def test_without_comfyui_it_is_said_which_option_names_the_networks(stage, tmp_path, monkeypatch, capsys):
    for name in ("ANYCHARV_MODELS", "COMFYUI_PATH"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(tmp_path))
    for given, said in ((["--masks", stage / "left.mkv"], "--pose-model"), (["--poses", "a"], "--segmenter")):
        assert run("preprocess", stage / "clip.mp4", "--out", tmp_path / "out", *given) == 2
        assert f"or give {said} embedded, which knows puppets only" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--segmenter", "--like", "--retarget"])
def test_what_is_used_last_is_looked_at_first(stage, tmp_path, monkeypatch, capsys, option):
    """Not when everybody was found, which takes most of the time."""
    monkeypatch.setattr("anycharv_core.jobs.preprocess.find_in_video", lambda *_: pytest.fail("people looked for"))
    given = ["--pose-model", "embedded", *([] if option == "--segmenter" else ["--masks", stage / "left.mkv"])]
    assert run("preprocess", stage / "clip.mp4", "--out", tmp_path / "out", *given, option, "no/such/thing") == 2
    assert "no/such/thing is not there" in capsys.readouterr().err


def test_puppet_networks_say_that_they_know_nobody_else(tmp_path, capsys):
    make_clip(tmp_path / "grey.mp4", [np.full((64, 64, 3), 99, np.uint8)] * 3)
    embedded = ["--pose-model", "embedded", "--segmenter", "embedded"]
    assert run("preprocess", tmp_path / "grey.mp4", "--out", tmp_path / "out", *embedded) == 2
    assert "which knows puppets only; give --pose-model or --poses" in capsys.readouterr().err


def test_a_torn_clip_and_a_folder_in_the_way(stage, tmp_path, capsys):
    torn = tmp_path / "torn.mp4"
    torn.write_bytes((stage / "clip.mp4").read_bytes()[:900])
    inputs = ["--poses", stage / "poses.json", "--masks", stage / "left.mkv"]
    assert run("preprocess", torn, "--out", tmp_path / "out", *inputs) == 2
    assert "torn.mp4" in capsys.readouterr().err
    assert run("preprocess", tmp_path / "none.mp4", "--out", tmp_path / "out", *inputs) == 2
    assert "is not there" in capsys.readouterr().err
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("important")
    assert prepare(stage, tmp_path / "mine") == 2
    assert "thesis.txt" in capsys.readouterr().err and (tmp_path / "mine" / "thesis.txt").is_file()


def test_nothing_that_it_did_not_write_is_replaced(stage, tmp_path, capsys):
    out = tmp_path / "out"
    assert prepare(stage, out, "--people", "1,2") == 0
    photo = out / "person_photos" / "mum.jpg"
    photo.parent.mkdir()
    photo.write_bytes(b"dear")
    assert prepare(stage, out, "--people", "1") == 2
    assert "person_photos/mum.jpg" in capsys.readouterr().err and photo.read_bytes() == b"dear"
    photo.unlink()
    mask = (out / "mask.mkv").read_bytes()
    inputs = ["--poses", stage / "poses.json", "--masks", out / "mask.mkv"]
    assert run("preprocess", stage / "clip.mp4", "--out", out, *inputs) == 2
    assert "would be replaced" in capsys.readouterr().err and (out / "mask.mkv").read_bytes() == mask
    assert prepare(stage, out, "--people", "1") == 0 and not (out / "person_2").exists()
    (out / "mask.mkv").write_bytes(b"mended by hand")
    assert prepare(stage, out, "--people", "1") == 2
    assert "mask.mkv, which was changed" in capsys.readouterr().err
    assert (out / "mask.mkv").read_bytes() == b"mended by hand"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--reference", "a.png"], "--video and --mask and --pose missing"),
        (["--prepared", "{out}", "--reference", "a.png", "--reference", "b.png"], "1 people to replace and 2"),
        (["--prepared", "{tmp}", "--reference", "a.png"], "anycharv preprocess"),
    ],
)
def test_generate_says_what_a_prepared_folder_lacks(stage, tmp_path, capsys, arguments, words):
    out = tmp_path / "out"
    assert prepare(stage, out, "--people", "1") == 0
    capsys.readouterr()
    filled = [argument.format(out=out, tmp=tmp_path) for argument in arguments]
    assert run("generate", *filled, "--out", tmp_path / "x.mp4") == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("name", ["in memory", "/gone/source"])
def test_a_video_that_is_no_file_is_to_be_given(stage, tmp_path, capsys, name):
    out, video = tmp_path / "out", tmp_path / "x.mp4"
    assert prepare(stage, out, "--people", "1") == 0
    report = json.loads((out / "report.json").read_text())
    (out / "report.json").write_text(json.dumps(report | {"clip": name}))
    capsys.readouterr()
    given = ["--prepared", out, "--model", "embedded", "--reference", stage / "left.png", "--out", video]
    assert run("generate", *given) == 2
    said = capsys.readouterr().err
    assert said == f"anycharv: {out} was made of a video that is no file here, '{name}'; give it as --video.\n"
    found, people, _ = people_of([stage / "left.png"], None, stage / "clip.mp4", None, None, out)
    assert found == stage / "clip.mp4" and people[0].pose == out / "pose.json"


def test_keys_follow_content_not_names(tmp_path):
    for name, text in (("a", "one"), ("b", "one"), ("c", "two")):
        (tmp_path / name).write_text(text)
    a, b, c = (cache.content_key(tmp_path / name, 1) for name in "abc")
    assert a == b != c and cache.content_key(tmp_path / "a", 2) != a


@pytest.mark.parametrize(
    ("count", "codec", "pix_fmt", "crop", "rotation"),
    [(1, "libx264", "yuv420p", 0, 0), (3, "libx264", "yuv422p10le", 0, 90), (3, "ffv1", "bgr0", 1, 0)],
    ids=["one frame", "10 bit 4:2:2, turned", "odd sizes"],
)
def test_clips_of_all_kinds_by_the_embedded_networks(tmp_path, count, codec, pix_fmt, crop, rotation):
    character = sample_character(5, "heldout")
    motion = sample_motion(5, 3, character.proportions, "heldout")
    truth = render(character, motion, sample_scene(5, "heldout"), (160 - crop, 160 - crop))
    stored = [np.rot90(frame, -rotation // 90) for frame in truth.frames[:count]]
    clip = make_clip(tmp_path / "clip.mkv", stored, codec=codec, pix_fmt=pix_fmt, rotation=(rotation, False))
    embedded = ["--pose-model", "embedded", "--segmenter", "embedded"]
    assert run("preprocess", clip, "--out", tmp_path / "out", *embedded) == 0
    found, masks = read_poses(tmp_path / "out" / "pose.json"), read(tmp_path / "out" / "mask.mkv")
    assert len(found) == len(masks) == count and masks.shape[1:] == truth.mask.shape[1:]
    for pose, points, mask, true in zip(found, truth.keypoints, masks, truth.mask, strict=False):
        body = np.reshape(pose["people"][0]["pose_keypoints_2d"], (-1, 3))
        seen = (points[:, 2] > 0) & (body[:, 2] > 0.3)
        assert np.median(np.linalg.norm(body[seen, :2] - points[seen, :2], axis=1)) < 8
        both = (mask > 0) & (true > 0)
        assert both.sum() > 0.5 * ((mask > 0) | (true > 0)).sum()


def test_a_person_in_one_frame_only(stage, tmp_path):
    poses = read_poses(stage / "poses.json")
    for t, pose in enumerate(poses):
        pose["people"] = pose["people"][:1] if t == 3 else []
    write_poses(tmp_path / "once.json", poses)
    given = ["--poses", tmp_path / "once.json", "--segmenter", "embedded"]
    assert run("preprocess", stage / "clip.mp4", "--out", tmp_path / "out", *given) == 0
    boxes = read(tmp_path / "out" / "box.mkv")
    assert [bool(box.any()) for box in boxes] == [t == 3 for t in range(FRAMES)]


def test_progress_is_called_by_position_as_its_type_says(stage, tmp_path):
    seen = []

    def progress(phase, done, of, /):
        seen.append((phase, done, of))

    job = PreprocessJob(
        stage / "clip.mp4", tmp_path / "out", poses=stage / "poses.json", masks=stage / "left.mkv", people="1"
    )
    preprocess(job, progress)
    assert seen == [("people", FRAMES, FRAMES), *(("masks", done, FRAMES) for done in range(1, FRAMES + 1))]
