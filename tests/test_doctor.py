"""`anycharv doctor`, and where the demo's files are."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from anycharv_core.checkpoints.places import EMBEDDED
from anycharv_core.checkpoints.single_file import write_single
from anycharv_core.cli import main
from anycharv_core.jobs.doctor import examine, find_models
from anycharv_core.systems import read_checkpoint, write_folder


def test_doctor_finds_models(tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_single(read_checkpoint(tiny_model), tmp_path / "mine.safetensors")
    save_file({"lora_a": torch.zeros(1)}, tmp_path / "lora.safetensors")
    (tmp_path / "torn.safetensors").write_bytes(b"\xff" * 20)
    model = read_checkpoint(tiny_model)
    for part in ("vae", "image_encoder"):
        del model.weights[part], model.configs[part]
    write_folder(model, tmp_path / "official")
    assert find_models(tmp_path) == [tmp_path / "mine.safetensors", tmp_path / "official"]
    assert find_models(tiny_model) == [tiny_model]
    assert main(["doctor", "--models", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "mine.safetensors" in printed and "official AnyCharV's folder" in printed and "lora" not in printed
    assert "pass --vae and --image-encoder" in printed and torch.__version__ in printed
    assert printed.count("shipped with this package") == sum(path.is_file() for path in EMBEDDED.values())


def test_doctor_finds_what_comfyui_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("ANYCHARV_MODELS", raising=False)
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert examine() == 0
    printed = capsys.readouterr().out
    assert f"$COMFYUI_PATH            {tmp_path / 'models'}, which is not there" in printed
    assert "not found. No DWPose is named" in printed and "not found. No SAM 2 is named" in printed
    assert "Nothing is missing" not in printed and "need DWPose and SAM 2" in printed
    models = tmp_path / "models"
    published = models / "anycharv" / "animate"
    for file in (
        *(models / "detection" / name for name in ("yolox_l.onnx", "dw-ll_ucoco_384.onnx")),
        models / "sam2" / "large" / "config.json",
        *(published / f"{part}.pth" for part in ("denoising_unet", "reference_unet", "pose_guider")),
        published / "sd-vae-ft-mse" / "config.json",
    ):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    assert find_models(models / "anycharv") == [published]
    assert examine() == 0
    printed = capsys.readouterr().out
    assert f"DWPose                   {models / 'detection'}\n" in printed
    assert f"SAM2                     {models / 'sam2' / 'large'}\n" in printed
    assert f"{published} Animate Anyone's folder" in printed
    assert "has no image_encoder; pass --image-encoder with it" in printed and "Nothing is missing" in printed
    (models / "detection" / "yolox_l.onnx").unlink()
    assert examine() == 0
    assert "DWPose                   not found" in capsys.readouterr().out


def test_doctor_misses_what_should_be_shipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from anycharv_core.jobs import doctor

    missing = {name: tmp_path / path.name for name, path in doctor.EMBEDDED.items()}
    monkeypatch.setattr(doctor, "EMBEDDED", missing)
    assert examine([tmp_path]) == 1
    wanted = f"Reinstall this package: {', '.join(missing)} came with it"
    assert wanted in capsys.readouterr().out


def test_doctor_looks_where_the_environment_says(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ANYCHARV_MODELS", str(tiny_model.parent))
    assert examine() == 0
    assert str(tiny_model) in capsys.readouterr().out


def test_doctor_explains_what_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def version(name: str) -> str:
        if name in ("av", "onnxruntime"):
            raise doctor.metadata.PackageNotFoundError(name)
        return "1.2.3"

    def load(name: str) -> object:
        if name != "cv2":
            return sys.modules[name]
        raise ImportError("libGL.so.1: cannot open shared object file: No such file or directory")

    from anycharv_core.jobs import doctor

    monkeypatch.setattr(doctor.metadata, "version", version)
    monkeypatch.setattr(doctor.importlib, "import_module", load)
    assert examine([tmp_path]) == 1
    printed = capsys.readouterr().out
    assert "pip install av" in printed and "overwrite each other" in printed
    assert "pip uninstall opencv-python; pip install opencv-python-headless" in printed


def test_demo_tells_where_its_files_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def made(out: Path, clips: int, model: str, progress: Callable) -> dict[str, object]:
        progress(1, 2)
        (out / f"{model}.mp4").write_bytes(b"")
        return {"clips": clips}

    monkeypatch.setitem(sys.modules, "anycharv_core.jobs.demo", SimpleNamespace(run=made))
    for name, model in (
        ("demo", "embedded"),
        ("demo-animate", "embedded-animate"),
        ("demo-animate2", "embedded-animate2"),
        ("demo-anywhere", "embedded-anywhere"),
    ):
        assert main([name, "--out", str(tmp_path), "--clips", "2"]) == 0
        assert str(tmp_path / f"{model}.mp4") in capsys.readouterr().out
