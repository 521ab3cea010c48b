"""What `generate` and `animate` write: quality, lossless files and folders, depth, colours."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from cli_files import FRAMES, HEIGHT, TIMES, WIDTH, Files, Run, command, masks, refused
from cli_files import files as files
from cli_files import run as run
from clip_files import write_yuv
from tiny_animate import make

from anycharv_core.bench.videos import named_videos, video_frames
from anycharv_core.errors import UserError
from anycharv_core.inference.finish import paste_weights
from anycharv_core.inference.pipeline import Pipeline
from anycharv_core.jobs.animate import AnimateJob
from anycharv_core.jobs.inputs import Replacement
from anycharv_core.jobs.replace import ReplaceJob, generate
from anycharv_core.media.colour import Colours, widened
from anycharv_core.media.mask_read import numbered_pngs
from anycharv_core.media.png_write import TIMES as TIMES_FILE
from anycharv_core.media.png_write import PngWriter
from anycharv_core.media.video_read import probe, read_frames

OUTSIDE = paste_weights(masks(1)[0]) == 0


def ten_bit(path: Path, tags: tuple[int, int, int] = (6, 6, 6), full: bool = True) -> Path:
    planes = np.random.default_rng(0).integers(300, 700, (3, HEIGHT, WIDTH))
    return write_yuv(path, planes, 10, tags, full, FRAMES)


def deep_frames(path: Path) -> list[np.ndarray]:
    if path.is_dir():
        return [next(read_frames(picture, deep=True)) for picture in numbered_pngs(path)]
    return list(read_frames(path, deep=True))


@pytest.mark.parametrize("depth", [8, 10])
@pytest.mark.parametrize(("kind", "name"), [("ffv1", "a.mkv"), ("png", "a")])
def test_lossless_files_hold_the_source_s_pixels_outside_the_mask(
    files: Files, tiny_model: Path, tmp_path: Path, run: Run, kind: str, name: str, depth: int
) -> None:
    video = files.video if depth == 8 else ten_bit(tmp_path / "deep.mkv")
    out = tmp_path / name
    assert run(*command(files, tiny_model, out, video=video, format=kind)) == (0, "")
    before, after = deep_frames(video), deep_frames(out)
    assert len(after) == FRAMES
    for made, original in zip(after, before, strict=True):
        assert made.dtype == original.dtype == (np.uint8 if depth == 8 else np.uint16)
        assert np.array_equal(made[OUTSIDE], original[OUTSIDE]) and not np.array_equal(made, original)
    report = json.loads((tmp_path / "a.report.json").read_text())
    assert report["background_bit_equal"] is True and report["output"] == str(out)
    written = report["written"]
    assert (written["codec"], written["lossless"], written["crf"]) == (kind, True, None)
    assert written["depth"] == (depth if kind == "ffv1" or depth == 8 else 16)
    assert written["colours"]["matrix"] == "rgb"
    if depth == 10:
        assert written["colours"]["primaries"] == written["colours"]["transfer"] == "smpte170m"


def test_frames_and_times_of_a_folder_and_no_sound(
    files: Files, tiny_model: Path, tmp_path: Path, run: Run
) -> None:
    out = tmp_path / "frames.v1"
    assert run(*command(files, tiny_model, out, format="png")) == (0, "")
    facts = json.loads((out / TIMES_FILE).read_text())
    times = [time * Fraction(facts["time_base"]) for time in facts["timestamps"]]
    assert times == [Fraction(time, 12800) for time in TIMES] and facts["size"] == [WIDTH, HEIGHT]
    report = json.loads((tmp_path / "frames.v1.report.json").read_text())
    assert report["audio"] == f"A folder of PNGs has no sound; that of {files.video} was left out."
    # What this command wrote it may replace, and what somebody put there it may not.
    assert run(*command(files, tiny_model, out, format="png", seed=1)) == (0, "")
    (out / "notes.txt").write_text("mine")
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    refused(run(*command(files, tiny_model, out, format="png")), "notes.txt", "choose a new folder")
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_what_was_written_is_scored(files: Files, tiny_model: Path, tmp_path: Path, run: Run) -> None:
    pytest.importorskip("torchmetrics")
    for folder, kind, name in (("real", "ffv1", "a.mkv"), ("made", "png", "a")):
        (tmp_path / folder).mkdir()
        assert run(*command(files, tiny_model, tmp_path / folder / name, format=kind)) == (0, "")
        assert list(named_videos(tmp_path / folder)) == ["a"]
    assert len(list(video_frames(tmp_path / "made" / "a"))) == FRAMES
    assert run("evaluate", tmp_path / "real", tmp_path / "made", "--out", tmp_path / "scores") == (0, "")
    scores = json.loads((tmp_path / "scores" / "evaluate.json").read_text())
    assert scores["pairs"]["a"]["PSNR"] in ("inf", float("inf"))


def test_ten_bits_and_tags_reach_the_mp4(files: Files, tiny_model: Path, tmp_path: Path, run: Run) -> None:
    video = ten_bit(tmp_path / "deep.mkv", (5, 5, 6), full=False)
    assert run(*command(files, tiny_model, tmp_path / "a.mp4", video=video, crf=1)) == (0, "")
    info = probe(tmp_path / "a.mp4")
    assert info.depth == 10 and info.colours == Colours(5, False, 5, 6)
    written = json.loads((tmp_path / "a.report.json").read_text())["written"]
    assert written == {
        "codec": "h264",
        "crf": 1,
        "lossless": False,
        "pixel_format": "yuv420p10le",
        "depth": 10,
        "colours": {"matrix": "bt470bg", "range": "limited", "primaries": "bt470bg", "transfer": "smpte170m"},
    }


def test_a_larger_crf_makes_a_smaller_file(files: Files, tiny_model: Path, tmp_path: Path, run: Run) -> None:
    for crf in (0, 17, 51, None):
        assert run(*command(files, tiny_model, tmp_path / f"{crf}.mp4", crf=crf)) == (0, "")
    sizes = [(tmp_path / f"{crf}.mp4").stat().st_size for crf in (0, 17, 51)]
    assert sizes[0] > sizes[1] > sizes[2]
    assert (tmp_path / "None.mp4").read_bytes() == (tmp_path / "17.mp4").read_bytes()


@pytest.mark.parametrize(
    ("changed", "name", "words"),
    [
        ({"crf": 99}, "a.mp4", ["--crf", "'99' is not a whole number from 0 to 51"]),
        ({"crf": -1}, "a.mp4", ["--crf"]),
        ({"crf": 20, "format": "ffv1"}, "a.mkv", ["--crf is the quality of H.264", "leave it out"]),
        ({"format": "gif"}, "a.mp4", ["--format", "'gif'", "h264"]),
        ({"format": "ffv1"}, "a.mp4", ["a Matroska video", "let its name end in .mkv"]),
        ({}, "a.mkv", ["an mp4 video", "let its name end in .mp4"]),
        ({"format": "png"}, "a.mp4", ["a folder of PNGs", "not end in .mp4"]),
        ({"format": "png"}, "none/a", ["folder does not exist"]),
    ],
    ids=str,
)
def test_outputs_that_cannot_be_are_one_sentence(
    files: Files, tmp_path: Path, run: Run, changed: dict[str, object], name: str, words: list[str]
) -> None:
    refused(run(*command(files, tmp_path / "no model", tmp_path / name, **changed)), *words)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("out", [".", "..", "/"])
def test_a_folder_without_a_name_is_one_sentence(
    out: str, files: Files, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = command(files, tmp_path / "no model", Path(out), format="png")
    refused(run(*words), f"The output {out} has no name,", "name the folder itself")
    assert list(tmp_path.iterdir()) == []


def test_jobs_are_checked_as_the_command_line_is(tmp_path: Path) -> None:
    for changed, words in (
        ({"crf": 52}, "The CRF is 52; give a whole number from 0"),
        ({"format": "av1"}, "There is no format 'av1'; use one of 'h264', 'ffv1', 'png'"),
    ):
        job = AnimateJob(reference=tmp_path / "r.png", pose=tmp_path / "p.json", out=tmp_path / "a.mp4", **changed)
        with pytest.raises(UserError, match=words):
            job.check_places(())


def test_a_folder_that_is_an_input_is_never_replaced(
    files: Files, tiny_model: Path, tmp_path: Path, run: Run
) -> None:
    out = tmp_path / "frames"
    assert run(*command(files, tiny_model, out, format="png")) == (0, "")
    words = command(files, tiny_model, out, format="png", reference=out / "000000.png")
    refused(run(*words), "choose a new folder")
    assert len(numbered_pngs(out)) == FRAMES


def test_hdr_is_refused_before_anything_is_loaded(files: Files, tmp_path: Path, run: Run) -> None:
    video = ten_bit(tmp_path / "hdr.mkv", (9, 9, 16), full=False)
    words = command(files, tmp_path / "no model", tmp_path / "a.mp4", video=video)
    refused(run(*words), "hdr.mkv is HDR (PQ)", "convert it to SDR first")


def test_a_deep_scene_gives_deep_frames_with_levels_between_those_of_8_bits(tiny_model: Path) -> None:
    rng = np.random.default_rng(0)
    scene = widened(rng.integers(0, 1024, (FRAMES, HEIGHT, WIDTH, 3)).astype(np.uint16), 10)
    pose = rng.integers(0, 256, (FRAMES, HEIGHT, WIDTH, 3), np.uint8)
    reference = rng.integers(0, 256, (30, 20, 3), np.uint8)
    pipe = Pipeline.from_pretrained(tiny_model)
    for frames in (scene, iter(scene)):
        out = pipe(reference, frames, np.stack(masks()), pose, steps=1, size=(32, 24))
        made = np.stack(list(out.frames))
        assert made.dtype == np.uint16 and np.array_equal(made[:, OUTSIDE], scene[:, OUTSIDE])
        inside = made[0, 15:25, 16:24]
        assert (inside % 257 != 0).mean() > 0.9


def test_a_wrong_number_of_pictures_is_refused(tmp_path: Path) -> None:
    frame = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    with (
        pytest.raises(ValueError, match="announced with 2 frames and got 1"),
        PngWriter(tmp_path / "a", WIDTH, HEIGHT, [0, 1], Fraction(1, 25)) as writer,
    ):
        writer.write(frame)
    with (
        pytest.raises(ValueError, match="got one more"),
        PngWriter(tmp_path / "a", WIDTH, HEIGHT, [0], Fraction(1, 25)) as writer,
    ):
        writer.write(frame)
        writer.write(frame)
    with pytest.raises(ValueError, match="is uint16"), PngWriter(tmp_path / "a", WIDTH, HEIGHT, rate=25) as writer:
        writer.write(frame.astype(np.uint16))
    with pytest.raises(UserError, match="No frames came"), PngWriter(tmp_path / "a", WIDTH, HEIGHT, rate=25):
        pass
    assert list(tmp_path.iterdir()) == []


def test_every_person_goes_into_a_deep_video(files: Files, tiny_model: Path, tmp_path: Path) -> None:
    video = ten_bit(tmp_path / "deep.mkv")
    person = Replacement(files.reference, files.mask, files.pose)
    job = ReplaceJob(
        video=video, people=(person, person), model=str(tiny_model), out=tmp_path / "a", format="png", steps=1
    )
    report = generate(job)
    assert report["background_bit_equal"] is True
    for made, original in zip(deep_frames(job.out), deep_frames(video), strict=True):
        assert made.dtype == np.uint16 and np.array_equal(made[OUTSIDE], original[OUTSIDE])


def test_an_animation_in_front_of_a_deep_scene_keeps_it(files: Files, tmp_path: Path, run: Run) -> None:
    scene, out = ten_bit(tmp_path / "deep.mkv"), tmp_path / "a.mkv"
    words = [
        "animate",
        "--reference",
        files.reference,
        "--pose",
        files.pose,
        "--model",
        make(tmp_path / "model", v1=False),
    ]
    words += [
        "--scene",
        scene,
        "--mask",
        files.mask,
        "--steps",
        1,
        "--size",
        "48x40",
        "--out",
        out,
        "--format",
        "ffv1",
    ]
    assert run(*words) == (0, "")
    for made, original in zip(deep_frames(out), deep_frames(scene), strict=True):
        assert made.dtype == np.uint16 and np.array_equal(made[OUTSIDE], original[OUTSIDE])
    written = json.loads((tmp_path / "a.report.json").read_text())["written"]
    assert (written["depth"], written["colours"]["primaries"]) == (10, "smpte170m")
    hdr = ten_bit(tmp_path / "hdr.mkv", (9, 9, 16), full=False)
    words[words.index(scene)] = hdr
    refused(run(*words), "hdr.mkv is HDR (PQ)")
