"""The commands of training/: their help, their errors, and one of them at a time in a folder."""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from tiny_training import recipe, write

from anycharv_core.errors import UserError
from training import commands, lora, train
from training.prepare import dataset as prepare_dataset
from training.prepare import pairs as make_pairs
from training.preprocessors import data, detector, pose, segmenter

MODULES = {
    "train": train,
    "make_pairs": make_pairs,
    "prepare_dataset": prepare_dataset,
    "lora": lora,
    "preprocessors.data": data,
    "preprocessors.detector": detector,
    "preprocessors.pose": pose,
    "preprocessors.segmenter": segmenter,
}
HOLDER = """
import sys
from pathlib import Path
from training.commands import alone
with alone(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("name", MODULES)
def test_help_names_the_command_and_explains_every_argument(name: str, monkeypatch, capsys) -> None:
    made: list[argparse.ArgumentParser] = []

    def kept(*given: str) -> argparse.ArgumentParser:
        made.append(original(*given))
        return made[-1]

    original = commands.new_parser
    monkeypatch.setattr(commands, "new_parser", kept)
    with pytest.raises(SystemExit) as ended:
        MODULES[name].main(["--help"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: python -m training.{name} ")
    assert [action.dest for action in made[0]._actions if not action.help] == []


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (UserError("The disk\nis full."), 2, "x: The disk is full.\n"),
        (FileNotFoundError(2, "No such file", "a.yaml"), 2, "x: a.yaml: No such file; check the path and its "),
        (KeyboardInterrupt(), 130, "x: go on like this.\n"),
    ],
)
def test_what_goes_wrong_is_one_line(error: BaseException, code: int, said: str, capsys) -> None:
    def work() -> None:
        raise error

    assert commands.run("x", work, "go on like this.") == code
    found = capsys.readouterr().err
    assert found.startswith(said) and found.count("\n") == 1


def calls(folder: Path, tiny_model: Path, out: Path) -> dict[str, Callable[[], int]]:
    """Every command that works on a folder, about to begin on `out`."""
    (folder / "videos").mkdir()
    (folder / "videos" / "a.mp4").write_bytes(b"")
    pairs = {"task": "pairs", "frames": 1, "pairs": {"pairs": 1, "steps": 1}}
    config = recipe()
    config["phases"]["pairs"] = pairs
    path, to = str(write(folder, config)), ["--out", str(out)]
    return {
        "training": lambda: train.main([path, *to, "--cpu"]),
        "make_pairs": lambda: make_pairs.main([path, *to, "--model", str(tiny_model)]),
        "prepare_dataset": lambda: prepare_dataset.main([str(folder / "videos"), *to]),
    }


def test_a_second_one_in_the_same_folder_stops(tmp_path: Path, tiny_model: Path, capsys) -> None:
    out = tmp_path / "out"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(out)],
        cwd=Path(__file__).parents[1],
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert holder.stdout.readline() == "held\n"
        for name, call in calls(tmp_path, tiny_model, out).items():
            assert call() == 2
            said = capsys.readouterr().err
            assert said.startswith(f"{name}: Another process is at work in {out}: ") and said.count("\n") == 1
        assert [path.name for path in out.iterdir()] == [commands.LOCK]
    finally:
        holder.kill()
        holder.communicate()
    assert holder.returncode == -signal.SIGKILL
    with commands.alone(out):  # the lock went with the process that was killed
        pass


@pytest.mark.parametrize(
    ("change", "said", "there"),
    [
        ("engine.precision=fp16", "fp16 is for graphics cards", torch.cuda.is_available()),
        ("engine.optimizer=adamw8bit", "needs bitsandbytes", find_spec("bitsandbytes")),
        ("engine.tracker=wandb", "tracker is wandb, which is not installed", find_spec("wandb")),
    ],
)
def test_what_this_machine_lacks_is_said_before_anything_is_done(
    change: str, said: str, there: object, tmp_path: Path, capsys
) -> None:
    if there:
        pytest.skip(f"needs a machine that lacks it: {change}")
    path = write(tmp_path, recipe(cache={"variants": 1}))
    assert train.main([str(path), "--out", str(tmp_path / "out"), "--cpu", "--set", change]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert [each.name for each in (tmp_path / "out").iterdir()] == [commands.LOCK]


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file"), commands.alone(tmp_path / "file"):
        pass


@pytest.mark.parametrize(
    ("words", "code", "last"),
    [
        (["-m", "training.train"], 2, "training: it lacks "),
        (["-c", "import training"], 1, "ImportError: training can't be imported, it lacks "),
    ],
)
def test_without_its_packages_it_says_what_to_install(words: list[str], code: int, last: str) -> None:
    # -S: Python sees nothing of what is installed.
    done = subprocess.run(
        [sys.executable, "-S", *words], cwd=Path(__file__).parents[1], capture_output=True, text=True
    )
    said = done.stderr.splitlines()[-1]
    assert done.returncode == code and said.startswith(last) and "pip install -e '.[train]'" in said
