"""Where jobs write: never over what they read, and a place that cannot be is named in one sentence."""

from __future__ import annotations

import errno
from fractions import Fraction
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
from keypoint_files import write_frames
from PIL import Image

from anycharv_core import UserError
from anycharv_core.cli import main
from anycharv_core.inference.backend import TorchBackend
from anycharv_core.jobs.run import check_places, explained_memory
from anycharv_core.media.frames import FrameStore
from anycharv_core.media.video_write import VideoWriter, write_masks

FRAMES, SIZE = 3, 16


@pytest.fixture
def files(tiny_model: Path, tmp_path: Path) -> dict[str, object]:
    """What `generate` needs, with its masks and poses in folders."""
    made = {name: tmp_path / name for name in ("masks", "poses", "reference.png", "video.mp4")}
    write_masks(made["masks"], [np.full((SIZE, SIZE), 255, np.uint8)] * FRAMES)
    made["poses"].mkdir()
    for index in range(FRAMES):
        (made["poses"] / f"{index}_keypoints.json").write_text('{"people": []}')
    Image.new("RGB", (8, 8), "red").save(made["reference.png"])
    with VideoWriter(made["video.mp4"], SIZE, SIZE, rate=Fraction(25)) as writer:
        for _ in range(FRAMES):
            writer.write(np.zeros((SIZE, SIZE, 3), np.uint8))
    return made | {"model": tiny_model, "out": tmp_path / "out.mp4"}


def generate(files: dict[str, object], *more: object, **changed: object) -> int:
    given = {"reference": "reference.png", "video": "video.mp4", "mask": "masks", "pose": "poses"}
    options = {name: files[key] for name, key in (given | {"model": "model", "out": "out"}).items()} | changed
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    return main(["generate", *map(str, [*words, "--steps", 1, "--device", "cpu", *more])])


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize(
    ("option", "place"),
    [
        ("sheet", "masks/000000.png"),
        ("sheet", "masks/new.png"),
        ("out", "poses/new.mp4"),  # its report, new.report.json, would be a pose
        ("out", "linked.mp4"),
        ("out", "linked_masks/new.mp4"),
    ],
)
def test_nothing_is_written_over_or_among_the_inputs(
    files: dict, tmp_path: Path, option: str, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "linked.mp4").symlink_to("video.mp4")
    (tmp_path / "linked_masks").symlink_to("masks")
    before = contents(tmp_path)
    more = ["--sheet", tmp_path / place] if option == "sheet" else []
    assert generate(files, *more, **({"out": tmp_path / place} if option == "out" else {})) == 2
    said = capsys.readouterr().err
    assert "an input" in said or "one of the inputs" in said
    assert said.count("\n") == 1 and contents(tmp_path) == before


def test_an_input_that_links_to_itself_is_named(
    files: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loop = tmp_path / "loop.mp4"
    loop.symlink_to(loop)
    for option in ("video", "mask", "pose", "reference"):
        assert generate(files, **{option: loop}) == 2
        said = capsys.readouterr().err
        assert "loop.mp4" in said and said.count("\n") == 1


@pytest.mark.parametrize(
    "words",
    [
        ["demo", "--clips", "1"],
        ["bench", "puppets", "--clips", "1"],
        ["evaluate", "real", "made"],
        ["preprocess", "video.mp4"],
        ["generate", "--reference", "reference.png", "--prepared", "x"],
    ],
    ids=lambda words: words[0],
)
def test_an_empty_path_is_no_folder(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*words, "--out", ""]) == 2
    assert "argument --out: the path is empty" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_scores_do_not_go_among_the_poses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """evaluate.json there would be taken for, or replace, the poses of a clip of that name."""
    for name in ("real", "made", "poses"):
        (tmp_path / name).mkdir()
    for side in ("real", "made"):
        with VideoWriter(tmp_path / side / "evaluate.mp4", SIZE, SIZE, rate=Fraction(25)) as writer:
            writer.write(np.zeros((SIZE, SIZE, 3), np.uint8))
    write_frames(tmp_path / "poses" / "evaluate.json", [{"canvas_width": 16, "canvas_height": 16, "people": []}])
    before = contents(tmp_path)
    poses = ["--real-poses", str(tmp_path / "poses"), "--generated-poses", str(tmp_path / "poses")]
    sides = [str(tmp_path / "real"), str(tmp_path / "made")]
    assert main(["evaluate", *sides, *poses, "--out", str(tmp_path / "poses")]) == 2
    assert "which is an input" in capsys.readouterr().err and contents(tmp_path) == before


def test_convert_does_not_replace_its_source(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model.safetensors"
    assert main(["convert", str(tiny_model), str(model)]) == 0
    before = contents(tmp_path)
    assert main(["convert", str(model), str(model), "--dtype", "fp16", "--force"]) == 2
    assert "one of the inputs" in capsys.readouterr().err and contents(tmp_path) == before


def test_an_output_beside_its_inputs_is_fine(tmp_path: Path) -> None:
    (tmp_path / "video.mp4").touch()
    check_places([tmp_path / "out.mp4", None], [tmp_path / "video.mp4", None])
    assert [path.name for path in tmp_path.iterdir()] == ["video.mp4"]


@pytest.mark.parametrize(
    "full",
    [
        RuntimeError("could not create a primitive"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried"),
        MemoryError(),
    ],
    ids=["oneDNN", "torch", "Python"],
)
def test_a_full_memory_is_called_that(
    files: dict, full: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def encode(*_: object) -> None:
        raise full

    monkeypatch.setattr(TorchBackend, "encode", encode)
    assert generate(files) == 2
    assert "The memory is not enough" in capsys.readouterr().err
    assert not Path(str(files["out"])).exists()


def test_other_errors_are_not_called_a_full_memory() -> None:
    with pytest.raises(RuntimeError, match="something else"), explained_memory():
        raise RuntimeError("something else")
    with pytest.raises(UserError, match="memory is not enough"), explained_memory():
        raise MemoryError


def full_disk(*_: object, **__: object) -> NoReturn:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("place", ["sheet.png", "out.report.json"])
def test_a_disk_that_fills_up_after_the_video_costs_neither_it_nor_older_files(
    files: dict,
    tmp_path: Path,
    place: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / place).write_bytes(b"old")
    before = contents(tmp_path)
    if place == "out.report.json":
        write_text = Path.write_text

        def full_after_the_video(path: Path, *text: str, **options: str) -> int:
            # The state that a stopped generation goes on from is written before.
            return write_text(path, *text, **options) if path.parent != tmp_path else full_disk()

        monkeypatch.setattr(Path, "write_text", full_after_the_video)
    else:
        monkeypatch.setattr("PIL.Image.Image.save", full_disk)
    assert generate(files, "--sheet", tmp_path / "sheet.png") == 2
    said = capsys.readouterr().err
    assert f"Cannot write {tmp_path / place}: " in said and said.count("\n") == 1
    after = contents(tmp_path)
    assert after.items() >= before.items(), "what was there is as it was"
    assert files["out"] in after and not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(("folder", "named"), [(None, "TMPDIR names another"), ("given", "given")])
def test_a_full_disk_of_temporary_files_is_named(
    folder: str | None, named: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    store = FrameStore(None if folder is None else tmp_path / folder)
    monkeypatch.setattr(store._file, "write", full_disk)
    with pytest.raises(UserError, match=f"Cannot write temporary files to .*{named}.*: the disk is full"):
        store.append(np.zeros((2, 2, 3), np.uint8))
