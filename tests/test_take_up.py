"""A generation that is stopped at any moment goes on with the same command, and ends as if nothing had been."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import pytest
import torch
from cli_files import Files, Run, command, refused
from cli_files import files as files
from PIL import Image

from anycharv_core.cli import main
from anycharv_core.files import locked, write_error
from anycharv_core.jobs import work
from anycharv_core.jobs.work import work_folder
from anycharv_core.media.frames import FrameStore

STEPS = 4
# Files are flushed three times a step: the latents, and the state, which is a file and then a name in the folder;
# before the first time the noise, and in the end the video.
KILLS = range(1, 15) if os.environ.get("ANYCHARV_SLOW") else (3, 10, 14)
FORK = multiprocessing.get_context("forkserver")
FORK.set_forkserver_preload(["anycharv_core.jobs.replace", "diffusers", "transformers"])


def killed(words: list[str], flush_number: int) -> None:
    flush, flushes = os.fsync, []

    def counted(number: int) -> None:
        flush(number)
        if work.SUFFIX in str(Path(f"/proc/self/fd/{number}").readlink()):
            flushes.append(number)
        if len(flushes) == flush_number:
            os.kill(os.getpid(), 9)

    os.fsync = counted
    os._exit(main(words))


def kill(words: list[object], flush_number: int) -> None:
    """Runs the command in a process of its own, which kills itself when it has flushed that many of its files."""
    process = FORK.Process(target=killed, args=([str(word) for word in words], flush_number))
    process.start()
    process.join()
    assert process.exitcode == -9


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> Run:
    """Runs a command line; gives its exit code and what it says on stderr, from which pytest takes warnings."""

    def call(*words: object) -> tuple[int, str]:
        capsys.readouterr()
        caplog.clear()
        code = main([str(word) for word in words])
        return code, "".join(f"{line}\n" for line in caplog.messages) + capsys.readouterr().err

    return call


@pytest.fixture(scope="module")
def whole(files: Files, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What comes out in one go; the network looks at the latents of 6 frames, of which the last has no mask."""
    out = tmp_path_factory.mktemp("whole") / "a.mp4"
    assert main([str(word) for word in words_for(files, tiny_model, out)]) == 0
    return out


def words_for(files: Files, model: Path, out: Path, **changed: Any) -> list[object]:
    return command(files, model, out, **{"steps": STEPS, "mask": files.boxes} | changed)


@pytest.mark.parametrize("flush_number", KILLS)
def test_killed_anywhere_it_ends_bit_equal(
    flush_number: int, files: Files, tiny_model: Path, whole: Path, tmp_path: Path, run: Run
) -> None:
    out = tmp_path / "a.mp4"
    words = words_for(files, tiny_model, out)
    kill(words, flush_number)
    state = work_folder(out) / "state.json"
    done = json.loads(state.read_text())["people"]["0"]["rounds"] if state.is_file() else 0
    assert done == (flush_number - 1) // 3 and left_in(tmp_path) == {"a.mp4.anycharv-work"}
    code, said = run(*words)
    assert code == 0 and ("Going on after round" in said) == (done > 0) and said.count("\n") <= 1
    assert out.read_bytes() == whole.read_bytes()
    assert json.loads((tmp_path / "a.report.json").read_text())["resumed_rounds"] == done
    assert left_in(tmp_path) == {"a.mp4", "a.report.json"}


def left_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.fixture
def stopped(files: Files, tiny_model: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The output of a run that found the disk full in its third step."""
    out, flush, flushes = tmp_path / "a.mp4", work.flushed, []

    def full(path: Path) -> None:
        flushes.append(path)
        if len(flushes) == 6:
            raise write_error(path, OSError(errno.ENOSPC, "No space left on device"))
        flush(path)

    monkeypatch.setattr(work, "flushed", full)
    refused(run(*words_for(files, tiny_model, out)), "a.mp4.anycharv-work", "the disk is full; free some space")
    assert left_in(tmp_path) == {"a.mp4.anycharv-work"}
    return out


def test_after_a_full_disk_it_goes_on(
    stopped: Path, files: Files, tiny_model: Path, whole: Path, run: Run
) -> None:
    code, said = run(*words_for(files, tiny_model, stopped, sheet=stopped.with_name("sheet.png"), crf=17))
    assert (code, said) == (0, "Going on after round 2 of sampling, which an earlier run had finished.\n")
    assert stopped.read_bytes() == whole.read_bytes()


def test_other_inputs_are_refused_and_can_start_over(
    stopped: Path, files: Files, tiny_model: Path, whole: Path, run: Run, tmp_path: Path
) -> None:
    video = shutil.copy(files.video, tmp_path / "copy.mp4")
    again = words_for(files, tiny_model, stopped, seed=7)
    refused(run(*again), "a.mp4.anycharv-work holds an unfinished video of another seed; use --fresh")
    changed = shutil.copy(files.reference, tmp_path / "other.png")
    with Image.open(changed) as picture:
        picture.rotate(90, expand=True).save(changed)
    refused(run(*words_for(files, tiny_model, stopped, reference=changed, steps=3)), "of another steps, people;")
    assert (tmp_path / "a.mp4.anycharv-work" / "state.json").is_file()
    # By content: a copy is the same video.
    code, said = run(*words_for(files, tiny_model, stopped, video=video))
    assert code == 0 and "after round 2" in said and stopped.read_bytes() == whole.read_bytes()


def test_fresh_starts_over(stopped: Path, files: Files, tiny_model: Path, whole: Path, run: Run) -> None:
    assert run(*words_for(files, tiny_model, stopped, seed=7), "--fresh") == (0, "")
    assert stopped.read_bytes() != whole.read_bytes()
    assert left_in(stopped.parent) == {"a.mp4", "a.report.json"}


@pytest.mark.parametrize("torn", ["latents", "state", "another shape"])
def test_what_is_torn_is_made_again_with_a_word(
    torn: str, stopped: Path, files: Files, tiny_model: Path, whole: Path, run: Run
) -> None:
    state = work_folder(stopped) / "state.json"
    place = json.loads(state.read_text())["people"]["0"]["places"][0]
    latents = state.with_name(f"latents-0-{'abc'[int(place)]}")
    if torn == "latents":
        latents.write_bytes(bytes([latents.read_bytes()[0] ^ 1]) + latents.read_bytes()[1:])
    elif torn == "state":
        state.write_text(state.read_text()[:-9])
    else:
        latents.write_bytes(latents.read_bytes()[:-4])
    code, said = run(*words_for(files, tiny_model, stopped))
    word = "state.json is damaged" if torn == "state" else f"{latents.name} is torn"
    assert code == 0 and word in said and "from the start" in said and said.count("\n") == 1
    assert stopped.read_bytes() == whole.read_bytes() and left_in(stopped.parent) == {"a.mp4", "a.report.json"}


def test_control_c_keeps_the_finished_steps_and_says_so(
    files: Files, tiny_model: Path, whole: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, flush = tmp_path / "a.mp4", work.flushed

    def interrupted(path: Path) -> None:
        flush(path)
        if path.suffix == work.SUFFIX:
            raise KeyboardInterrupt

    monkeypatch.setattr(work, "flushed", interrupted)
    code, said = run(*words_for(files, tiny_model, out))
    assert (code, said) == (
        130,
        "anycharv: stopped; run the same command again to go on.\n",
    )
    monkeypatch.setattr(work, "flushed", flush)
    code, said = run(*words_for(files, tiny_model, out))
    assert code == 0 and "after round 1 " in said and out.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize("whole", [True, False])
def test_no_latents_are_open_when_their_files_go(
    whole: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On Windows they would stay."""
    files, closed, unlink = [], [], Path.unlink

    def opened(file: IO[bytes], held: object = None) -> FrameStore:
        files.append(file)
        return store(file, held)

    def removed(path: Path, missing_ok: bool = False) -> None:
        if path.name.startswith("latents"):
            closed.append([file.closed for file in files if Path(file.name) == path])
        unlink(path, missing_ok)

    store = FrameStore.in_file
    monkeypatch.setattr(FrameStore, "in_file", opened)
    monkeypatch.setattr(Path, "unlink", removed)
    noise = torch.zeros(2, 1, 1, 1)
    with suppress(KeyboardInterrupt), work.work(tmp_path / "a.mp4", {}, fresh=False) as state:
        latents = state.latents(0, tuple(noise.shape), [noise])
        for resumable in (True, False):
            latents.put(range(2), noise)
            latents.advance(resumable)
        if not whole:
            raise KeyboardInterrupt
    assert len(files) == 3 and all(file.closed for file in files)
    assert closed == [[True]] * (3 if whole else 0) and len(latents) == 2


def test_two_processes_do_not_work_on_one_video(files: Files, tiny_model: Path, tmp_path: Path, run: Run) -> None:
    out = tmp_path / "a.mp4"
    work_folder(out).mkdir()
    with locked(work_folder(out) / "lock") as alone:
        assert alone
        refused(run(*words_for(files, tiny_model, out)), f"Another process is making {out}; wait for it")
    assert run(*words_for(files, tiny_model, out, steps=1)) == (0, "")


def test_files_of_others_in_the_folder_stay(files: Files, tiny_model: Path, tmp_path: Path, run: Run) -> None:
    place = work_folder(tmp_path / "a.mp4")
    place.mkdir()
    (place / "letter.txt").write_text("mine")
    assert run(*words_for(files, tiny_model, tmp_path / "a.mp4", steps=1)) == (0, "")
    assert [path.name for path in place.iterdir()] == ["letter.txt"]
    shutil.rmtree(place)
    place.write_text("a file")
    refused(run(*words_for(files, tiny_model, tmp_path / "a.mp4")), "a.mp4.anycharv-work")
    assert place.read_text() == "a file"


def test_what_nobody_goes_on_with_is_removed(tmp_path: Path) -> None:
    names = "old", "others", "recent", "running"
    old, others, recent, running = places = [work_folder(tmp_path / name) for name in names]
    for place in places:
        place.mkdir()
        (place / "state.json").write_text("{}")
        (place / "latents-0-a").write_bytes(b"0")
    (others / "letter.txt").write_text("mine")
    with locked(running / "lock"):
        for path in (*places, *(path for place in places for path in place.iterdir())):
            if path != recent / "latents-0-a":
                os.utime(path, (0, 0))
        work.remove_abandoned(tmp_path, seconds=3600)
        assert left_in(tmp_path) == {place.name for place in places if place != old}
    assert left_in(others) == {"letter.txt"} and left_in(recent) == {"state.json", "latents-0-a"}
    assert left_in(running) == {"state.json", "latents-0-a", "lock"}
