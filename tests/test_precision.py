"""--dtype auto: bfloat16 where the device has it and the model bears it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_files import Files, Run, command, refused
from cli_files import files as files
from cli_files import run as run

from anycharv_core.checkpoints.places import EMBEDDED
from anycharv_core.errors import UserError
from anycharv_core.jobs import precision, work
from anycharv_core.jobs.precision import HOLDS, precision_for


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANYCHARV_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(precision, "has_bf16", lambda device: True)


def measured(monkeypatch: pytest.MonkeyPatch, value: float) -> list[str]:
    """The models that were tried, each with `value` as its result."""
    tried: list[str] = []

    def decibels(model: str, *_: object) -> float:
        tried.append(model)
        return value

    monkeypatch.setattr(precision, "_decibels", decibels)
    return tried


@pytest.mark.parametrize("model", [name for name, path in EMBEDDED.items() if path.is_file()])
def test_the_embedded_models_bear_bfloat16(model: str) -> None:
    chosen = precision_for("auto", model, None, None, "cpu")
    assert chosen.name == "bf16" and chosen.why is not None
    assert 45 < float(chosen.why.split()[0]) < 80


def test_a_device_without_it_computes_in_float32(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "has_bf16", lambda device: False)
    tried = measured(monkeypatch, 60.0)
    chosen = precision_for("auto", str(tiny_model), None, None, "cpu")
    assert chosen.name == "fp32" and "no instructions" in str(chosen.why) and not tried


def test_what_was_asked_for_is_taken(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = measured(monkeypatch, 60.0)
    for name in precision.DTYPES:
        assert precision_for(name, str(tiny_model), None, None, "cpu") == precision.Precision(name)
    assert not tried


@pytest.mark.parametrize(("value", "name"), [(HOLDS - 0.1, "fp32"), (HOLDS, "bf16"), (float("nan"), "fp32")])
def test_a_model_is_tried_once(value: float, name: str, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = measured(monkeypatch, value)
    chosen = [precision_for("auto", str(tiny_model), None, None, "cpu") for _ in range(2)]
    assert chosen[0] == chosen[1] and chosen[0].name == name and f"{value:.1f} dB" in str(chosen[0].why)
    assert tried == [str(tiny_model)]


def test_other_weights_are_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = measured(monkeypatch, 60.0)
    model = tmp_path / "model.safetensors"
    for content in (b"one", b"another"):
        model.write_bytes(content)
        precision_for("auto", str(model), None, None, "cpu")
    assert len(tried) == 2


def test_without_a_cache_it_is_tried_every_time(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("ANYCHARV_CACHE", str(tmp_path / "file"))
    tried = measured(monkeypatch, 60.0)
    for _ in range(2):
        assert precision_for("auto", str(tiny_model), None, None, "cpu").name == "bf16"
    assert len(tried) == 2


def test_a_model_that_is_not_there_is_said_to_be(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="There is no model at"):
        precision_for("auto", str(tmp_path / "none"), None, None, "cpu")


def test_the_command_line_leaves_it_open_and_the_report_says_why(
    files: Files,
    tiny_model: Path,
    tmp_path: Path,
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for value, name in ((51.0, "bf16"), (31.0, "fp32")):
        measured(monkeypatch, value)
        monkeypatch.setenv("ANYCHARV_CACHE", str(tmp_path / name))
        assert run(*command(files, tiny_model, tmp_path / "a.mp4", dtype=None, steps=1))[0] == 0
        settings = json.loads((tmp_path / "a.report.json").read_text())["settings"]
        assert settings["dtype"] == name and f"{value} dB" in settings["dtype_because"]


def test_the_official_recipe_stays_in_float32(
    files: Files, tiny_model: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = measured(monkeypatch, 60.0)
    made = []
    for dtype in (None, "fp32"):
        words = command(
            files, tiny_model, tmp_path / "a.mp4", dtype=dtype, recipe="official", pose=files.skeletons
        )
        assert run(*words)[0] == 0
        made.append((tmp_path / "a.mp4").read_bytes())
    assert made[0] == made[1] and not tried


def test_a_stopped_run_goes_on_in_the_format_that_was_chosen(
    files: Files, tiny_model: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured(monkeypatch, 60.0)
    flush = work.flushed

    def interrupted(path: Path) -> None:
        flush(path)
        if path.suffix == work.SUFFIX:
            raise KeyboardInterrupt

    monkeypatch.setattr(work, "flushed", interrupted)
    assert run(*command(files, tiny_model, tmp_path / "a.mp4", dtype=None))[0] == 130
    monkeypatch.setattr(work, "flushed", flush)
    monkeypatch.setattr(precision, "has_bf16", lambda device: False)
    refused(run(*command(files, tiny_model, tmp_path / "a.mp4", dtype=None)), "unfinished video of another dtype;")
    assert run(*command(files, tiny_model, tmp_path / "a.mp4", dtype="bf16"))[0] == 0
    assert json.loads((tmp_path / "a.report.json").read_text())["resumed_rounds"] == 1
