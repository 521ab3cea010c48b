"""Model files whose configs are not those of their weights: one sentence each, before anything is built."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import CONFIGS
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from anycharv_core import UserError
from anycharv_core.checkpoints.folders import read_library_part
from anycharv_core.checkpoints.networks import build_networks
from anycharv_core.checkpoints.single_file import write_single
from anycharv_core.systems import read_checkpoint

SETTINGS = {"size": [64, 64], "steps": 2, "noise_scheduler_kwargs": {"prediction_type": "v_prediction"}}


@pytest.fixture(scope="module")
def weights(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    path = tmp_path_factory.mktemp("single") / "one.safetensors"
    write_single(read_checkpoint(tiny_model), path)
    return load_file(path)


def changed(given: Any, place: str, value: Any) -> Any:
    """A copy with the setting at a place such as "vae.block_out_channels" replaced; "" is all of it."""
    if not place:
        return value
    made = copy.deepcopy(given)
    *above, last = place.split(".")
    inner = made
    for key in above:
        inner = inner[key]
    inner[last] = value
    return made


def load(tmp_path: Path, weights: dict[str, Tensor], configs: Any = CONFIGS, settings: Any = SETTINGS) -> None:
    metadata = {"format": "anycharv", "configs": json.dumps(configs), "settings": json.dumps(settings)}
    save_file(weights, tmp_path / "bad.safetensors", metadata)
    build_networks(read_checkpoint(tmp_path / "bad.safetensors"))


def test_the_file_before_it_is_spoilt_is_read(tmp_path: Path, weights) -> None:
    load(tmp_path, weights)


HUGE = 10**6
BAD_CONFIGS = [
    ("", "text"),
    ("", None),
    ("", [1]),
    ("", {}),
    ("denoising_unet", "text"),
    ("denoising_unet", []),
    ("vae", None),
    ("image_encoder", 3),
    ("denoising_unet.in_channels", "9"),
    ("denoising_unet.in_channels", -9),
    ("denoising_unet.out_channels", 0),
    ("denoising_unet.out_channels", 2.0),
    ("denoising_unet.block_out_channels", 32),
    ("denoising_unet.block_out_channels", []),
    ("denoising_unet.block_out_channels", [32, "64"]),
    ("denoising_unet.block_out_channels", [32, 2**40]),
    ("denoising_unet.block_out_channels", [32] * 10_000),
    ("denoising_unet.block_out_channels", [HUGE, HUGE]),
    ("denoising_unet.down_block_types", "CrossAttnDownBlock3D"),
    ("denoising_unet.down_block_types", [None, None]),
    ("denoising_unet.up_block_types", ["UpBlock3D"]),
    ("denoising_unet.layers_per_block", HUGE),
    ("denoising_unet.layers_per_block", 2),
    ("denoising_unet.layers_per_block", [1, 1]),
    ("denoising_unet.layers_per_block", True),
    ("denoising_unet.attention_head_dim", 0),
    ("denoising_unet.attention_head_dim", 5),
    ("denoising_unet.attention_head_dim", [4]),
    ("denoising_unet.cross_attention_dim", None),
    ("denoising_unet.norm_num_groups", 7),
    ("denoising_unet.norm_eps", "small"),
    ("denoising_unet.norm_eps", -1),
    ("denoising_unet.flip_sin_to_cos", "yes"),
    ("denoising_unet.freq_shift", 16),
    ("denoising_unet.use_motion_module", "no"),
    ("denoising_unet.motion_module_kwargs", []),
    ("denoising_unet.motion_module_kwargs.attention_block_types", ["Temporal_Self"] * 10_000),
    ("denoising_unet.motion_module_kwargs.num_transformer_block", HUGE),
    ("denoising_unet.motion_module_kwargs.num_attention_heads", 7),
    ("denoising_unet.motion_module_kwargs.temporal_position_encoding_max_len", HUGE),
    ("denoising_unet.motion_module_resolutions", 1),
    ("pose_guider.block_out_channels", [8] * 10_000),
    ("pose_guider.block_out_channels", "wide"),
    ("pose_guider.conditioning_channels", HUGE),
    ("vae.block_out_channels", [8, HUGE]),
    ("vae.layers_per_block", HUGE),
    ("vae.latent_channels", 5),
    ("vae.norm_num_groups", 5),
    ("vae.scaling_factor", 0),
    ("vae.scaling_factor", "half"),
    ("vae.down_block_types", [1, 2]),
    ("vae.down_block_types", ["x" * 1000] * 2),
    ("image_encoder.hidden_size", HUGE),
    ("image_encoder.intermediate_size", 2**40),
    ("image_encoder.num_hidden_layers", HUGE),
    ("image_encoder.num_hidden_layers", -1),
    ("image_encoder.num_attention_heads", 3),
    ("image_encoder.image_size", "32"),
    ("image_encoder.image_size", HUGE),
    ("image_encoder.patch_size", 0),
    ("image_encoder.hidden_act", "none of these"),
    ("image_encoder.layer_norm_eps", "small"),
]


@pytest.mark.parametrize(("place", "value"), BAD_CONFIGS)
def test_a_config_that_cannot_be_is_one_sentence(
    tmp_path: Path, weights, place: str, value: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    register, built = nn.Module.register_parameter, []

    def counted(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and not parameter.is_meta:
            built.append(parameter.numel())
        register(module, name, parameter)

    monkeypatch.setattr(nn.Module, "register_parameter", counted)
    with pytest.raises(UserError) as caught:
        load(tmp_path, weights, changed(CONFIGS, place, value))
    message = str(caught.value)
    assert "\n" not in message and 20 < len(message) < 400 + len(str(tmp_path))
    assert sum(built) <= sum(tensor.numel() for tensor in weights.values())


BAD_SETTINGS = [
    ("", [1]),
    ("", "text"),
    ("size", 64),
    ("size", [64]),
    ("size", ["64", "64"]),
    ("size", [-64, 64]),
    ("steps", 2.5),
    ("steps", "ten"),
    ("guidance_scale", "strong"),
    ("pose_scale", 0),
    ("pose_scale", HUGE),
    ("noise_scheduler_kwargs", []),
    ("noise_scheduler_kwargs.prediction_type", ["v_prediction"]),
    ("noise_scheduler_kwargs.timestep_spacing", 3),
    ("noise_scheduler_kwargs.rescale_betas_zero_snr", "yes"),
    ("noise_scheduler_kwargs.steps_offset", 0.5),
    ("noise_scheduler_kwargs.steps_offset", HUGE),
]


@pytest.mark.parametrize(("place", "value"), BAD_SETTINGS)
def test_a_setting_that_cannot_be_is_one_sentence(tmp_path: Path, weights, place: str, value: Any) -> None:
    with pytest.raises(UserError) as caught:
        load(tmp_path, weights, settings=changed(SETTINGS, place, value))
    assert "\n" not in str(caught.value)


def test_weights_of_an_unknown_part_are_refused(tmp_path: Path, weights) -> None:
    with pytest.raises(UserError, match="weights of 'other' but no config"):
        load(tmp_path, weights | {"other.weight": torch.zeros(1)})


def test_weights_of_whole_numbers_are_refused(tmp_path: Path, weights) -> None:
    key = "denoising_unet.conv_in.bias"
    with pytest.raises(UserError, match=r"'conv_in.bias' is of torch.int64"):
        load(tmp_path, weights | {key: weights[key].long()})


@pytest.mark.parametrize(
    "value",
    [
        torch.zeros(()),
        torch.zeros(0),
        torch.zeros(32, dtype=torch.complex64),
        torch.zeros(32).to_sparse(),
        5,
        None,
    ],
    ids=str,
)
def test_a_weight_that_cannot_be_is_one_sentence(tiny_model: Path, tmp_path: Path, value: Any) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    path = folder / "denoising_unet" / "diffusion_pytorch_model.safetensors"
    own = load_file(path)
    path.unlink()
    for changed_weights in (own | {"conv_in.bias": value}, own | {3: own["conv_in.bias"]}):
        torch.save(changed_weights, path.with_suffix(".bin"))
        with pytest.raises(UserError) as caught:
            build_networks(read_checkpoint(folder))
        assert "\n" not in str(caught.value)


def test_weights_of_8_bits_are_read(tiny_model: Path, tmp_path: Path) -> None:
    checkpoint = read_checkpoint(tiny_model)
    write_single(checkpoint, tmp_path / "small.safetensors", torch.float8_e4m3fn)
    nets = build_networks(read_checkpoint(tmp_path / "small.safetensors"))
    torch.testing.assert_close(
        nets.denoising_unet.conv_in.weight,
        checkpoint.weights["denoising_unet"]["conv_in.weight"],
        atol=0.02,
        rtol=0.1,
    )


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("down_block_types", [1, 2]),
        ("norm_num_groups", 0),
        ("block_out_channels", [8, 64]),
        ("layers_per_block", 9),
    ],
)
def test_a_vae_folder_that_cannot_be_is_one_sentence(
    tiny_model: Path, tmp_path: Path, key: str, value: Any
) -> None:
    folder = Path(shutil.copytree(tiny_model / "vae", tmp_path / "vae"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {key: value}))
    with pytest.raises(UserError) as caught:
        read_library_part("vae", folder)
    assert "\n" not in str(caught.value)


def test_a_part_that_does_not_fit_its_neighbour_is_named(tmp_path: Path, weights) -> None:
    configs = copy.deepcopy(CONFIGS)
    configs["image_encoder"]["projection_dim"] = 8
    key = "image_encoder.visual_projection.weight"
    with pytest.raises(UserError, match="image_encoder has 8 channels, but denoising_unet takes 16"):
        load(tmp_path, weights | {key: weights[key][:8].clone()}, configs)


@pytest.mark.parametrize("place", ["denoising_unet", "vae", "image_encoder"])
def test_a_folders_config_that_cannot_be_is_named(tiny_model: Path, tmp_path: Path, place: str) -> None:

    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    (folder / place / "config.json").write_text('["no", "settings"]')
    with pytest.raises(UserError, match="must hold settings by their names"):
        read_checkpoint(folder)
