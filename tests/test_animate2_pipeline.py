"""Animate Anyone 2 from pictures to pictures: what it is shown, what it keeps, and what it says to bad input."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_animate2
import torch
from PIL import Image
from tiny_animate import figure
from tiny_animate2 import SIZE, inputs
from torch import Tensor

from anycharv_core import UserError
from anycharv_core.checkpoints.single_file import write_single
from anycharv_core.cli import main
from anycharv_core.inference.latents import Latents
from anycharv_core.inference.pipeline import Pipeline
from anycharv_core.inference.sampling import sample, sample_chained, to_the_end
from anycharv_core.inference.shortcuts import FAST, NONE, Shortcuts
from anycharv_core.media.canvas import Canvas
from anycharv_core.media.depth import DepthRange, along_skeleton, place_depth, structured_depth
from anycharv_core.media.masks import block_masks
from anycharv_core.media.video_read import read_frames
from anycharv_core.media.video_write import VideoWriter, write_masks
from anycharv_core.models.schedule import NoiseSchedule
from anycharv_core.models.windows import Windows, chained_windows
from anycharv_core.systems import SYSTEMS, read_checkpoint, recognise
from anycharv_core.systems.animate_anyone_2 import ANIMATE_ANYONE_2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_animate2.make(tmp_path_factory.mktemp("animate2") / "model")


@pytest.fixture(scope="module")
def pipe(folder: Path) -> Pipeline:
    return Pipeline.from_pretrained(folder)


def run(pipe: Pipeline, given: dict[str, np.ndarray], **settings: Any) -> Any:
    return pipe(**given, **({"steps": 2, "guidance_scale": 2.0} | settings))


def without(given: dict[str, np.ndarray], *names: str) -> dict[str, np.ndarray]:
    return {name: value for name, value in given.items() if name not in names}


def test_folder_and_file_come_back_as_models_of_the_system(folder: Path, pipe: Pipeline, tmp_path: Path) -> None:
    assert pipe.system is ANIMATE_ANYONE_2 is SYSTEMS["animate_anyone_2"]
    assert pipe.backend.extras == {"objects", "depth"}
    write_single(read_checkpoint(folder), tmp_path / "model.safetensors")
    assert recognise(folder) is recognise(tmp_path / "model.safetensors") is ANIMATE_ANYONE_2
    assert recognise(tmp_path) is recognise(tmp_path / "nothing") is None
    single = Pipeline.from_pretrained(tmp_path / "model.safetensors")
    given = inputs(2)
    assert torch.equal(run(single, given).latents, run(pipe, given).latents)


def test_a_model_without_half_of_its_object_branch_is_refused(tmp_path: Path) -> None:
    half = tiny_animate2.checkpoint()
    del half.configs["object_guider"], half.weights["object_guider"]
    write_single(half, tmp_path / "half.safetensors")
    with pytest.raises(UserError, match="belong together"):
        Pipeline.from_pretrained(tmp_path / "half.safetensors")


def test_the_driver_inside_the_coarse_mask_is_not_seen(pipe: Pipeline) -> None:
    given = inputs()
    inside = block_masks(given["mask"], 5, 3) >= 128
    other = given["scene"].copy()
    other[inside] = 7
    plain = without(given, "objects")
    made, again = (run(pipe, plain | {"scene": scene}) for scene in (given["scene"], other))
    assert torch.equal(made.latents, again.latents)
    off = given["scene"].copy()
    off[:, 0, 0] ^= 255
    assert not torch.equal(made.latents, run(pipe, plain | {"scene": off}).latents)


def test_objects_and_depth_are_read_and_may_be_missing(pipe: Pipeline) -> None:
    given = inputs()
    whole = run(pipe, given).latents
    for name in ("objects", "depth"):
        assert not torch.equal(run(pipe, without(given, name)).latents, whole)
    nothing = run(pipe, without(given, "objects"))
    empty = run(pipe, given | {"objects": np.zeros_like(given["objects"])})
    assert torch.equal(nothing.latents, empty.latents)
    # One frame's object leaves the others' conditions alone: the rows are the only difference.
    some = given["objects"].copy()
    some[1:] = 0
    assert not torch.equal(run(pipe, given | {"objects": some}).latents, nothing.latents)


def test_streams_give_what_arrays_give(pipe: Pipeline) -> None:
    given = inputs()
    streamed = {name: value if name == "reference" else iter(value) for name, value in given.items()}
    made = run(pipe, streamed)  # type: ignore[arg-type]
    assert np.array_equal(np.stack(list(made.frames)), run(pipe, given).frames)


def test_pasting_reaches_further_than_the_mask_and_no_further(pipe: Pipeline) -> None:
    given = inputs()
    made = run(pipe, given).frames
    changed = (made != given["scene"]).any(-1).any(0)
    rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
    grown = 3  # 15 % of the box's 20 pixels, and the feather on top
    assert 6 - grown - 2 <= rows[0] <= 6 - grown and 8 - grown - 2 <= columns[0] <= 8 - grown
    assert run(pipe, given, recipe="official").frames.shape == given["scene"].shape


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"objects": np.full((3, SIZE, SIZE), 255, np.uint8)}, "objects cover the person .* in frame 0"),
        ({"objects": np.zeros((3, 8, 8), np.uint8)}, r"objects is \(8, 8\) but the scene"),
        ({"objects": np.zeros((2, SIZE, SIZE), np.uint8)}, "objects has 2 frames but"),
        ({"depth": np.zeros((3, 8, 8), np.uint8)}, r"depth is \(8, 8\) but the scene"),
        ({"depth": np.zeros((5, SIZE, SIZE), np.uint8)}, "has 3 frames but the depth has more"),
        ({"depth": np.zeros((3, SIZE, SIZE, 3), np.uint8)}, "depth must be"),
        ({"pose": np.zeros((3, SIZE, SIZE, 3), np.uint8)}, "Frame 0 has depth but no skeleton"),
    ],
)
def test_bad_input_is_said_in_a_sentence(pipe: Pipeline, change: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(UserError, match=message):
        run(pipe, inputs() | change)


def test_other_systems_take_neither(tiny_model: Path) -> None:
    for name in ("objects", "depth"):
        given = without(inputs(), *({"objects", "depth"} - {name}))
        with pytest.raises(UserError, match=f"reads no {name}"):
            run(Pipeline.from_pretrained(tiny_model), given)


def test_depth_is_read_along_the_skeleton_alone() -> None:
    depth = np.zeros((1, 6, 8), np.uint16)
    depth[0, :, 2:4] = np.array([100, 100, 200, 200, 300, 300])[:, None]
    skeleton = np.zeros((1, 6, 8, 3), np.uint8)
    skeleton[0, :, 3:5, 1] = 255  # wider than the limb, whose depth ends after column 3
    along = along_skeleton(depth[0], skeleton[0])
    assert (along[:, :3] == 0).all() and (along[:, 5:] == 0).all()
    assert (along[:, 3] == along[:, 4]).all() and (along[:, 3] == depth[0, :, 3]).all()
    made = structured_depth(depth, skeleton)
    assert made[0, 0, 3] == 26 and made[0, 5, 3] == 255 and (made[0, :, :3] == 0).all()
    assert not DepthRange([np.zeros((2, 2), np.uint16)]).structured(np.zeros((2, 2), np.uint16)).any()
    assert not along_skeleton(depth[0] * 0, skeleton[0]).any()


def test_depth_is_placed_without_blending() -> None:
    depth = np.zeros((8, 8), np.uint8)
    depth[:, 4:] = 200
    placed = place_depth(depth, Canvas((8, 8), (3, 3), (4, 4)))
    assert set(np.unique(placed)) == {0, 200 * 257} and (placed[:3, 2] > 0).all() and not placed[3].any()
    windowed = place_depth(depth, Canvas((8, 8), (4, 4), (4, 4), (2.0, -4.0, 10.0, 4.0)))
    assert not windowed[:2].any() and (windowed[2:, 1:3] > 0).all() and not windowed[:, 3].any()


SCHEDULE = NoiseSchedule()


def chained(
    frames: int,
    denoise: Any,
    noise: Tensor,
    steps: int = 2,
    windows: Windows | None = None,
    way: Shortcuts = NONE,
) -> Tensor:
    latents = Latents.begun([noise[:frames]], parts=way.parts)
    plan = windows or chained_windows(frames, 16, 1)
    to_the_end(sample_chained(denoise, latents, steps, plan, SCHEDULE, torch.device("cpu"), shortcuts=way))
    return latents.whole()


@pytest.mark.parametrize("frames", [1, 15, 16, 17, 31, 32, 46, 47])
def test_chained_windows_have_one_frame_of_the_one_before(frames: int) -> None:
    indices = chained_windows(frames, 16, 1).indices
    assert {frame for index in indices for frame in index} == set(range(frames))
    assert all(len(index) == min(frames, 16) for index in indices)
    assert all(one[15] == other[0] for one, other in pairwise(indices))


def test_a_short_video_is_one_window_and_the_first_frames_of_a_longer_one_are_its_own() -> None:
    noise = torch.randn(20, 4, 2, 2, generator=torch.Generator().manual_seed(0))

    def denoise(x: Tensor, t: int, index: Any, known: Tensor | None = None) -> Tensor:
        return 0.1 * x + x.mean(0)  # every frame depends on the others of its window

    one = Windows((tuple(range(12)),), ((1.0,) * 12,))
    assert torch.equal(chained(12, denoise, noise), sample(denoise, noise[:12], 2, one, SCHEDULE))
    whole, begun = chained(20, denoise, noise), chained(16, denoise, noise)
    assert torch.equal(whole[:16], begun) and not torch.equal(whole[16:], chained(20, denoise, noise + 1)[16:])


def test_windows_join_exactly_where_what_is_known_is_kept() -> None:
    noise = torch.randn(20, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    clean = torch.arange(20.0).reshape(-1, 1, 1, 1).expand_as(noise)
    seen = []

    def denoise(x: Tensor, t: int, index: Any, known: Tensor) -> Tensor:
        seen.append(known)
        wanted = clean[list(index)].clone()
        wanted[: len(known)] = known
        return -wanted  # at pure noise, v is the clean latents' opposite

    made = chained(20, denoise, noise, steps=1)
    torch.testing.assert_close(made, clean, atol=1e-4, rtol=0)
    assert [len(known) for known in seen] == [0, 1] and torch.equal(seen[1][0], made[15])


@pytest.mark.parametrize("way", [NONE, FAST])
def test_a_stopped_chain_goes_on_after_its_last_window(way: Shortcuts) -> None:
    noise = torch.randn(40, 4, 2, 2, generator=torch.Generator().manual_seed(0))

    def denoise(x: Tensor, t: int, index: Any, known: Tensor) -> Tensor:
        return 0.1 * x + x.mean(0) + known.sum()

    whole = chained(40, denoise, noise, 3, way=way)
    latents, calls = Latents.begun([noise], parts=way.parts), []

    def stop(x: Tensor, t: int, index: Any, known: Tensor) -> Tensor:
        calls.append(index)
        if len(calls) > 5:
            raise KeyboardInterrupt
        return denoise(x, t, index, known)

    plan, cpu = chained_windows(40, 16, 1), torch.device("cpu")
    with pytest.raises(KeyboardInterrupt):
        to_the_end(sample_chained(stop, latents, 3, plan, SCHEDULE, cpu, shortcuts=way))
    assert latents.rounds == 1
    to_the_end(sample_chained(denoise, latents, 3, plan, SCHEDULE, cpu, shortcuts=way))
    assert torch.equal(latents.whole(), whole)


def test_a_longer_video_begins_as_the_shorter_one(pipe: Pipeline) -> None:
    given = inputs(18)
    noise = torch.randn(18, 4, SIZE // 2, SIZE // 2, generator=torch.Generator().manual_seed(0))
    whole = run(pipe, given, noise=noise, steps=1).latents
    begun = {name: value if name == "reference" else value[:16] for name, value in given.items()}
    # The depth's range is that of the whole video.
    first = run(pipe, without(begun, "depth"), noise=noise[:16], steps=1).latents
    assert torch.equal(run(pipe, without(given, "depth"), noise=noise, steps=1).latents[:16], first)
    overlapping = run(pipe, given, noise=noise, steps=1, recipe="overlapping").latents
    assert overlapping.shape == whole.shape and not torch.equal(overlapping, whole)


def write_inputs(given: dict[str, np.ndarray], folder: Path) -> None:
    Image.fromarray(given["reference"]).save(folder / "reference.png")
    for name, frames in (("video", given["scene"]), ("pose", given["pose"])):
        with VideoWriter(folder / f"{name}.mkv", SIZE, SIZE, codec="ffv1", rate=8) as video:
            for frame in frames:
                video.write(frame)
    for name in ("mask", "objects", "depth"):
        write_masks(folder / f"{name}.mkv", given[name])


def test_the_command_line_takes_objects_and_depth(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = inputs()
    write_inputs(given, tmp_path)
    options = [f"--{name}={tmp_path / name}.mkv" for name in ("video", "mask", "pose", "objects", "depth")]
    options += [f"--reference={tmp_path / 'reference.png'}", f"--model={folder}", "--steps=1", "--format=ffv1"]
    assert main(["generate", *options, f"--out={tmp_path / 'out.mkv'}"]) == 0
    report = json.loads((tmp_path / "out.report.json").read_text())
    assert report["inputs"]["people"][0]["objects"] == str(tmp_path / "objects.mkv")
    assert report["background_bit_equal"] is True
    made = np.stack(list(read_frames(tmp_path / "out.mkv")))
    expected = run(Pipeline.from_pretrained(folder), given, steps=1, guidance_scale=None).frames
    assert np.array_equal(made, expected)
    write_masks(tmp_path / "objects.mkv", given["objects"][:2])
    assert main(["generate", *options, f"--out={tmp_path / 'out.mkv'}"]) == 2
    assert "objects.mkv holds 2 objects pictures" in capsys.readouterr().err


def test_nothing_is_recorded_of_its_official_recipe_so_that_fast_modes_go_with_it(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_inputs(inputs(), tmp_path)
    options = [f"--{name}={tmp_path / name}.mkv" for name in ("video", "mask", "pose")]
    options += [f"--reference={tmp_path / 'reference.png'}", f"--model={folder}", "--steps=2", "--recipe=official"]
    assert main(["generate", *options, "--fast", f"--out={tmp_path / 'out.mp4'}"]) == 0, capsys.readouterr().err
    settings = json.loads((tmp_path / "out.report.json").read_text())["settings"]
    assert settings["deep_cache"] == FAST.deep_cache and "recorded" not in settings["dtype_because"]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("objects", np.full((3, SIZE, SIZE), 255, np.uint8), "objects cover the person to replace in frame 0"),
        ("objects", np.zeros((3, 16, 16), np.uint8), "(16, 16) but the scene is (32, 32)"),
        ("depth", np.zeros((3, 16, 16), np.uint8), "(16, 16) but the scene is (32, 32)"),
        ("depth", np.zeros((4, SIZE, SIZE), np.uint8), "depth.mkv holds 4 depth pictures"),
        ("pose", np.zeros((3, SIZE, SIZE, 3), np.uint8), "Frame 0 has depth but no skeleton"),
    ],
)
def test_the_command_line_says_what_is_wrong_in_a_sentence(
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    value: np.ndarray,
    message: str,
) -> None:
    write_inputs(inputs() | {name: value}, tmp_path)
    options = [f"--{name}={tmp_path / name}.mkv" for name in ("video", "mask", "pose", "objects", "depth")]
    options += [f"--reference={tmp_path / 'reference.png'}", f"--model={folder}", "--steps=1"]
    assert main(["generate", *options, f"--out={tmp_path / 'out.mp4'}"]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1 and not (tmp_path / "out.mp4").exists()


def prepare(given: dict[str, np.ndarray], place: Path) -> Path:
    """A prepared folder with everything that is offered."""
    place.mkdir()
    write_inputs(given, place)
    write_masks(place / "box.mkv", np.full_like(given["mask"], 255))
    figures = [figure((SIZE, SIZE), 0.25, (2.0, 2.0))] * 3
    (place / "pose.json").write_text(json.dumps(figures))
    report = {"clip": str(place / "video.mkv"), "chosen": [{"folder": "."}], "cuts": []}
    (place / "report.json").write_text(json.dumps(report))
    return place


@pytest.mark.parametrize("name", ["mask", "objects", "depth"])
def test_what_was_prepared_is_not_replaced_by_the_output(
    name: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = prepare(inputs(), tmp_path / "prepared")
    before, out = (place / f"{name}.mkv").read_bytes(), f"--out={place / name}.mkv"
    options = [f"--prepared={place}", f"--reference={place / 'reference.png'}", "--steps=1", "--format=ffv1"]
    assert main(["generate", *options, f"--model={folder}", out]) == 2
    assert f"{name}.mkv is one of the inputs and would be overwritten" in capsys.readouterr().err
    assert (place / f"{name}.mkv").read_bytes() == before


def test_what_was_prepared_is_taken_by_models_that_read_it(
    folder: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = inputs()
    place = prepare(given, tmp_path / "prepared")

    def made(name: str, model: Path, *options: str) -> tuple[np.ndarray, dict[str, str]]:
        out = tmp_path / f"{name}.mkv"
        common = [f"--reference={place / 'reference.png'}", f"--model={model}", "--steps=1", "--format=ffv1"]
        assert main(["generate", *common, *options, f"--out={out}"]) == 0, capsys.readouterr().err
        report = json.loads((tmp_path / f"{name}.report.json").read_text())
        return np.stack(list(read_frames(out))), report["inputs"]["people"][0]

    prepared, read = made("prepared", folder, f"--prepared={place}")
    files = {name: f"--{name}={place / name}.mkv" for name in ("video", "mask", "objects", "depth")}
    named, _ = made("named", folder, *files.values(), f"--pose={place / 'pose.json'}")
    assert np.array_equal(prepared, named)
    assert all(read[name] == str(place / f"{name}.mkv") for name in ("mask", "objects", "depth"))
    write_masks(tmp_path / "nothing.mkv", np.zeros_like(given["objects"]))
    other, read = made("other", folder, f"--prepared={place}", f"--objects={tmp_path / 'nothing.mkv'}")
    assert read["objects"] == str(tmp_path / "nothing.mkv") and not np.array_equal(other, prepared)
    _, read = made("plain", tiny_model, f"--prepared={place}")
    assert read["mask"] == str(place / "box.mkv") and not {"objects", "depth"} & read.keys()
    wrong = [f"--prepared={place}", files["objects"], f"--reference={place / 'reference.png'}"]
    assert main(["generate", *wrong, f"--model={tiny_model}", f"--out={tmp_path / 'wrong.mp4'}"]) == 2
    assert "reads no objects" in capsys.readouterr().err
