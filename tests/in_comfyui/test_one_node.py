"""A bare video and a picture: people are found, kept, seen and animated by one node each."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import folder_paths
import pytest
import torch
from comfy_pack import core, execute, load
from test_replace import replaced

import nodes

EMBEDDED = {"pose_model": "embedded", "segmenter": "embedded"}
FRAMES = 6


@pytest.fixture(autouse=True)
def folders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANYCHARV_CACHE", tempfile.mkdtemp())
    monkeypatch.setattr(folder_paths, "output_directory", tempfile.mkdtemp())


def puppet() -> tuple[Any, ...]:
    return execute("AnyCharVPuppetClip", seed=3, frames=FRAMES, size=96)


def prepared(video: Any, **inputs: Any) -> tuple[Any, ...]:
    settings = {"who": {"who": "biggest"}, "people": 1, "frames": 0, **EMBEDDED}
    return execute("AnyCharVPrepareVideo", video=video, **settings | inputs)


def pictures(path: str) -> torch.Tensor:
    read = core("anycharv_core.media.video_read").read_frames
    return torch.stack([torch.from_numpy(frame) for frame in read(path)])


def test_what_is_found_prepared_and_kept_gives_the_same_video() -> None:
    clip = puppet()
    people, preview, sheet, count = prepared(clip[0], save_as="mine")
    shown = preview.get_components().images
    assert count == 1 and sheet.shape[0] == 1 and shown.shape == clip[1].shape
    changed = (shown - clip[1]).abs().mean(dim=3)
    assert changed[clip[2] > 0.5].mean() > 5 * changed[clip[2] < 0.5].mean()
    loader = nodes.NODE_CLASS_MAPPINGS["AnyCharVLoadPrepared"]
    assert loader.validate_inputs("mine") is True and "holds nothing called" in loader.validate_inputs("other")
    (kept,) = execute("AnyCharVLoadPrepared", name="mine")
    made = [
        pictures(replaced(clip[0], clip, None, pose=None, crf=0, **given))
        for given in (EMBEDDED, {"prepared": people}, {"prepared": kept})
    ]
    assert torch.equal(made[0], made[1]) and torch.equal(made[0], made[2])


def test_second_character_finds_nothing_again(monkeypatch: pytest.MonkeyPatch) -> None:
    clip = puppet()
    prepare = core("nodes.prepare")
    prepared(clip[0])

    def refuse(*_: Any) -> None:
        raise AssertionError("found again")

    for name in ("open_poser", "open_segmenter"):
        monkeypatch.setattr(prepare, name, refuse)
    other = torch.flip(clip[4], [2])
    replaced(clip[0], clip, None, pose=None, reference=other, reference_mask=None, **EMBEDDED)


def test_colours_are_matched_where_that_is_asked_for() -> None:
    clip = puppet()
    plain, matched = (pictures(replaced(clip[0], clip, clip[2], crf=0, match_colour=on)) for on in (False, True))
    inside = clip[2] > 0.5
    assert not torch.equal(plain[inside], matched[inside])
    with pytest.raises(core("anycharv_core.errors").UserError, match="match"):
        replaced(clip[0], clip, clip[2], recipe="official", match_colour=True)


def test_trial_takes_the_first_frames_of_everything() -> None:
    clip = puppet()
    whole, trial = (pictures(replaced(clip[0], clip, clip[2], frames=count, crf=0)) for count in (0, 4))
    assert len(whole) == FRAMES and len(trial) == 4


def test_animate_character_finds_the_motion() -> None:
    task = core("anycharv_core.puppets.task").sample_animation(3, FRAMES, 96)
    video = puppet()[0]
    parts = dict(zip(("model", "reference_net", "vae", "clip_vision"), load("embedded-animate"), strict=True))
    reference = torch.from_numpy(task.reference[None]).float() / 255
    settings = {"steps": 1, "cfg": 1.0, "seed": 1, "width": 0, "height": 0, "recipe": "default", "crf": 0}
    settings |= {"reference": reference, "video": video, "pose_model": "embedded"}
    paths = []
    for given in ({}, {"fit": False}, {"fit": False, "pose": list(task.truth.poses().keypoints()), "frames": 4}):
        (made,) = execute("AnyCharVAnimateCharacter", **parts, **settings | given)
        paths.append(made.get_stream_source())
    fitted, found, given = map(pictures, paths)
    assert len(fitted) == len(found) == FRAMES and len(given) == 4
    assert not torch.equal(fitted, found)
    wrong = dict(zip(("model", "reference_net", "vae", "clip_vision"), load(), strict=True))
    with pytest.raises(core("anycharv_core.errors").UserError, match="use AnyCharV Replace Character"):
        execute("AnyCharVAnimateCharacter", **wrong, **settings)
    assert not list(Path(folder_paths.get_output_directory()).iterdir())
