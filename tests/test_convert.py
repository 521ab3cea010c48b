"""Model files: `anycharv convert`, and those that are broken or foreign."""

from __future__ import annotations

import resource
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from cli_files import Files, Run, command, refused
from cli_files import files as files
from cli_files import run as run
from safetensors.torch import load_file, save_file

from anycharv_core import Pipeline, UserError
from anycharv_core.checkpoints.single_file import write_single
from anycharv_core.systems import read_checkpoint, write_folder


def _stranger(key: str) -> Callable[[Path, Path], Path]:
    def make(path: Path, model: Path) -> Path:
        save_file({key: torch.zeros(2)}, path / "a.safetensors")
        return path / "a.safetensors"

    return make


def _truncated(path: Path, model: Path) -> Path:
    write_single(read_checkpoint(model), path / "a.safetensors")
    data = (path / "a.safetensors").read_bytes()
    (path / "a.safetensors").write_bytes(data[: len(data) // 2])
    return path / "a.safetensors"


def _changed(part: str, change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path, Path], Path]:
    def make(path: Path, model: Path) -> Path:
        checkpoint = read_checkpoint(model)
        checkpoint.weights = {name: dict(weights) for name, weights in checkpoint.weights.items()}
        change(checkpoint.weights[part])
        write_folder(checkpoint, path / "model")
        return path / "model"

    return make


def _torn_config(path: Path, model: Path) -> Path:
    write_folder(read_checkpoint(model), path / "model")
    (path / "model" / "pose_guider" / "config.json").write_text("{")
    return path / "model"


BROKEN = [
    (_stranger("lora_unet_down.lora_up.weight"), "a LoRA"),
    (_stranger("double_blocks.0.img_attn.qkv.weight"), "a Flux"),
    (_stranger("model.diffusion_model.input_blocks.0.0.weight"), "a plain Stable Diffusion"),
    (_stranger("something.weight"), "another model's file"),
    (_stranger("denoising_unet.conv_in.weight"), "without AnyCharV metadata"),
    (_truncated, "torn"),
    (_changed("denoising_unet", lambda w: w.update({"conv_in.bias": torch.full((32,), torch.nan)})), "NaN"),
    (_changed("vae", lambda w: w.update({"encoder.conv_in.bias": torch.full((8,), torch.nan)})), "NaN"),
    (_changed("denoising_unet", lambda w: w.update({"conv_in.weight": torch.zeros(32, 4, 3, 3)})), "conv_in"),
    (_changed("reference_unet", lambda w: w.pop("conv_in.bias")), "lack key 'conv_in.bias'"),
    (_changed("pose_guider", lambda w: w.update({"extra": torch.zeros(1)})), "unexpected key 'extra'"),
    (_torn_config, "config.json is not valid JSON"),
]


@pytest.mark.parametrize(("make", "words"), BROKEN, ids=[words for _, words in BROKEN])
@pytest.mark.parametrize("verb", ["generate", "convert"])
def test_broken_and_foreign_models_are_named(
    files: Files, tiny_model: Path, tmp_path: Path, run: Run, verb: str, make: Callable, words: str
) -> None:
    model = make(tmp_path, tiny_model)
    if verb == "generate":
        refused(run(*command(files, model, tmp_path / "a.mp4")), words)
        assert not (tmp_path / "a.mp4").exists()
    else:
        refused(run("convert", model, tmp_path / "new"), words)
        assert not (tmp_path / "new").exists()


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return {
        f"{file.parent.name}.{key}": value
        for file in folder.glob("*/*.safetensors")
        for key, value in load_file(file).items()
    }


@pytest.mark.parametrize("dtype", [None, "fp16"])
def test_convert_there_and_back(tiny_model: Path, tmp_path: Path, run: Run, dtype: str | None) -> None:
    start = tiny_model
    if dtype:
        assert run("convert", tiny_model, tmp_path / "start", "--dtype", dtype) == (0, "")
        start = tmp_path / "start"
    assert run("convert", start, tmp_path / "one.safetensors") == (0, "")
    assert run("convert", tmp_path / "one.safetensors", tmp_path / "back") == (0, "")
    before, after = weights_of(start), weights_of(tmp_path / "back")
    assert before.keys() == after.keys() and len(before) > 100
    for key, value in before.items():
        assert value.dtype == after[key].dtype and torch.equal(value, after[key]), key
    Pipeline.from_pretrained(tmp_path / "back")


def test_convert_keeps_the_settings(tiny_model: Path, tmp_path: Path, run: Run) -> None:
    model = read_checkpoint(tiny_model)
    model.settings = {"size": [16, 16]}
    write_single(model, tmp_path / "a.safetensors")
    assert run("convert", tmp_path / "a.safetensors", tmp_path / "b")[0] == 0
    assert run("convert", tmp_path / "b", tmp_path / "c.safetensors")[0] == 0
    assert read_checkpoint(tmp_path / "c.safetensors").settings == {"size": [16, 16]}


def test_convert_puts_parts_in(tiny_model: Path, tmp_path: Path, run: Run) -> None:
    model = read_checkpoint(tiny_model)
    for part in ("vae", "image_encoder"):
        del model.weights[part], model.configs[part]
    write_folder(model, tmp_path / "bare")
    parts = ["--vae", tiny_model / "vae", "--image-encoder", tiny_model / "image_encoder"]
    assert run("convert", tmp_path / "bare", tmp_path / "whole.safetensors", *parts)[0] == 0
    Pipeline.from_pretrained(tmp_path / "whole.safetensors")
    with pytest.raises(UserError, match="--image-encoder"):
        Pipeline.from_pretrained(tmp_path / "bare", vae=tiny_model / "vae")


def test_convert_replaces_only_when_told_and_only_models(tiny_model: Path, tmp_path: Path, run: Run) -> None:
    single, folder = tmp_path / "a.safetensors", tmp_path / "model"
    single.write_bytes(b"old")
    refused(run("convert", tiny_model, single), "--force")
    assert single.read_bytes() == b"old"
    assert run("convert", tiny_model, single, "--force")[0] == 0
    assert run("convert", single, folder)[0] == 0
    refused(run("convert", single, folder), "--force")
    assert run("convert", single, folder, "--force", "--dtype", "bf16")[0] == 0
    (folder / "holiday.jpg").touch()
    refused(run("convert", single, folder, "--force"), "holiday.jpg")
    assert (folder / "holiday.jpg").exists()
    refused(run("convert", tiny_model, tmp_path / "a.ckpt"), ".safetensors")
    refused(run("convert", tiny_model, tmp_path / "no" / "a.safetensors"), "folder does not exist")
    refused(run("convert", tiny_model, tmp_path / "no" / "model"), "folder does not exist")


@pytest.mark.parametrize("target", ["a.safetensors", "model"])
def test_convert_on_a_full_disk(tiny_model: Path, tmp_path: Path, run: Run, target: str) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        result = run("convert", tiny_model, tmp_path / target)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    refused(result, f"/{target}", "choose another disk")
    assert list(tmp_path.iterdir()) == []
