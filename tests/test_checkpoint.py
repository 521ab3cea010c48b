"""Weights on disk: layouts, dtypes, and files that are not what they should be."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from anycharv_core import Pipeline, UserError
from anycharv_core.checkpoints.networks import build_networks
from anycharv_core.checkpoints.single_file import write_single
from anycharv_core.systems import read_checkpoint, write_folder

DENOISING = Path("denoising_unet") / "diffusion_pytorch_model.safetensors"


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def test_single_file_and_folder_hold_the_same(tiny_model: Path, tmp_path: Path) -> None:
    write_single(read_checkpoint(tiny_model), tmp_path / "one.safetensors")
    single = read_checkpoint(tmp_path / "one.safetensors")
    write_folder(single, tmp_path / "again")
    again = read_checkpoint(tmp_path / "again")
    original = read_checkpoint(tiny_model)
    for part, weights in original.weights.items():
        for key, value in weights.items():
            assert torch.equal(value, single.weights[part][key])
            assert torch.equal(value, again.weights[part][key])
    build_networks(again)


@pytest.mark.parametrize("suffix", [".bin", ".pth"])
def test_pickled_state_dicts_are_read(folder: Path, suffix: str) -> None:
    weights = load_file(folder / DENOISING)
    (folder / DENOISING).unlink()
    torch.save(weights, (folder / DENOISING).with_suffix(suffix))
    read = read_checkpoint(folder).weights["denoising_unet"]
    assert all(torch.equal(read[key], value) for key, value in weights.items())


def test_pickles_can_run_nothing(folder: Path, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    (folder / DENOISING).unlink()
    torch.save({"weight": Evil()}, (folder / DENOISING).with_suffix(".bin"))
    with pytest.raises(UserError, match=r"torn or not a weights file"):
        read_checkpoint(folder)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_precisions(tiny_model: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    write_single(read_checkpoint(tiny_model), tmp_path / "one.safetensors", dtype)
    stored = load_file(tmp_path / "one.safetensors")
    assert stored["denoising_unet.conv_in.weight"].dtype == dtype
    assert next(v for k, v in stored.items() if k.endswith(".pe")).dtype == torch.float32
    nets = build_networks(read_checkpoint(tmp_path / "one.safetensors"), dtype=dtype)
    assert all(p.dtype == dtype for p in nets.denoising_unet.parameters())


def test_parts_left_out_are_asked_for(folder: Path, tiny_model: Path) -> None:
    shutil.rmtree(folder / "vae")
    with pytest.raises(UserError, match=r"has no vae: pass vae="):
        Pipeline.from_pretrained(folder)
    given = Pipeline.from_pretrained(folder, vae=tiny_model / "vae")
    whole = Pipeline.from_pretrained(tiny_model)
    for a, b in zip(given.backend.networks.vae.parameters(), whole.backend.networks.vae.parameters(), strict=True):
        assert torch.equal(a, b)


def edit_weights(folder: Path, change: dict) -> None:
    weights = load_file(folder / DENOISING) | change
    save_file({k: v for k, v in weights.items() if v is not None}, folder / DENOISING)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"conv_in.bias": None}, "lack key 'conv_in.bias'"),
        ({"extra.weight": torch.zeros(1)}, "unexpected key 'extra.weight'"),
        ({"conv_in.bias": torch.zeros(7)}, r"'conv_in.bias' has shape \(7,\)"),
        ({"conv_in.bias": torch.full((32,), torch.nan)}, "NaN or infinite values in 'conv_in.bias'"),
    ],
)
def test_wrong_weights_are_named(folder: Path, change: dict, sentence: str) -> None:
    edit_weights(folder, change)
    with pytest.raises(UserError, match=sentence):
        Pipeline.from_pretrained(folder)


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("double_blocks.0.img_attn.qkv.weight", "Flux"),
        ("lora_unet_down_blocks_0.lora_up.weight", "LoRA"),
        ("model.diffusion_model.input_blocks.0.0.weight", "Stable Diffusion"),
        ("nonsense", "another model"),
    ],
)
def test_a_file_of_another_model_is_recognised(tmp_path: Path, key: str, name: str) -> None:
    save_file({key: torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match=name):
        read_checkpoint(tmp_path / "other.safetensors")


def test_a_torn_file_is_named(tiny_model: Path, tmp_path: Path) -> None:
    write_single(read_checkpoint(tiny_model), tmp_path / "one.safetensors")
    whole = (tmp_path / "one.safetensors").read_bytes()
    for length in (0, 5, 2000, len(whole) - 1):
        (tmp_path / "torn.safetensors").write_bytes(whole[:length])
        with pytest.raises(UserError, match="torn"):
            read_checkpoint(tmp_path / "torn.safetensors")


def test_networks_that_do_not_pair_are_refused(folder: Path) -> None:
    config = json.loads((folder / "pose_guider" / "config.json").read_text())
    config["conditioning_embedding_channels"] = 16
    (folder / "pose_guider" / "config.json").write_text(json.dumps(config))
    path = folder / "pose_guider" / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    save_file(weights | {k: weights[k][:16] for k in ("conv_out.weight", "conv_out.bias")}, path)
    with pytest.raises(UserError, match="gives 16 channels, but denoising_unet takes 32"):
        Pipeline.from_pretrained(folder)
