"""Animate Anyone's checkpoints: its published layout, single files, and what is wrong with a folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import UNET
from safetensors.torch import load_file
from tiny_animate import MOTION, V1
from tiny_animate import folder as folder
from tiny_animate import published as published

from anycharv_core import Pipeline, UserError
from anycharv_core.checkpoints.networks import build_networks
from anycharv_core.cli import main
from anycharv_core.files import MANIFEST
from anycharv_core.models import DenoisingUNet, PoseGuider, PoseGuiderConfig, ReferenceNet, UNetConfig
from anycharv_core.models.schedule import NoiseSchedule
from anycharv_core.systems import read_checkpoint
from anycharv_core.systems.animate_anyone import ANIMATE_ANYONE, SD15
from anycharv_core.systems.anycharv import ANYCHARV


def official_config(v1: bool) -> dict[str, Any]:
    kwargs = UNET["motion_module_kwargs"] | {
        "num_attention_heads": 8,
        "temporal_position_encoding_max_len": 24 if v1 else 32,
    }
    return SD15 | {
        "use_inflated_groupnorm": not v1,
        "use_motion_module": True,
        "motion_module_resolutions": [1, 2, 4, 8],
        "motion_module_mid_block": not v1,
        "motion_module_kwargs": kwargs,
    }


@pytest.mark.parametrize(("v1", "count", "million"), [(True, 560, 417.9), (False, 588, 454.4)])
def test_the_full_size_layout(v1: bool, count: int, million: float) -> None:
    with torch.device("meta"):
        denoising = DenoisingUNet(UNetConfig.from_dict(official_config(v1))).state_dict()
        reference = ReferenceNet(UNetConfig.from_dict(SD15)).state_dict()
        guider = PoseGuider(PoseGuiderConfig(320, block_out_channels=(16, 32, 96, 256))).state_dict()
    motion = {key: value for key, value in denoising.items() if ".motion_modules." in key}
    codes = [value for key, value in motion.items() if key.endswith(".pe")]
    assert len(motion) == count and {len(code[0]) for code in codes} == {24 if v1 else 32}
    assert len(codes) == (40 if v1 else 42)
    assert sum(key.startswith("mid_block") for key in motion) == (0 if v1 else 28)
    assert sum(v.numel() for v in motion.values()) / 1e6 == pytest.approx(million, abs=0.2)
    base = [value.numel() for key, value in denoising.items() if key not in motion]
    assert (len(base), len(reference), len(guider)) == (686, 682, 16)
    assert sum(base) / 1e6 == pytest.approx(859.5, abs=0.1)
    assert sum(v.numel() for v in guider.values()) / 1e6 == pytest.approx(1.09, abs=0.01)
    assert not {key for key in reference if key.startswith("conv_norm_out") or key.startswith("conv_out")}


def test_the_variant_is_read_from_the_weights(published: Path, tiny_model: Path) -> None:
    made = Pipeline.from_pretrained(published)
    cfg = made.backend.networks.denoising_unet.cfg
    assert made.system is ANIMATE_ANYONE and cfg.in_channels == 4
    v1 = cfg.joint_norm
    assert made.backend.schedule == (V1 if v1 else NoiseSchedule())
    assert (cfg.motion.mid_block, cfg.motion.max_len) == ((False, 24) if v1 else (True, 32))
    assert Pipeline.from_pretrained(tiny_model).system is ANYCHARV


def test_layout_to_single_file_and_back(published: Path, tmp_path: Path) -> None:
    assert main(["convert", str(published), str(tmp_path / "one.safetensors")]) == 0
    assert main(["convert", str(tmp_path / "one.safetensors"), str(tmp_path / "back")]) == 0
    names = sorted(path.relative_to(published) for path in published.rglob("*") if path.is_file())
    back = tmp_path / "back"
    written = sorted(p.relative_to(back) for p in back.rglob("*") if p.is_file() and p.name != MANIFEST)
    assert names == written
    for name in names:
        first, second = published / name, tmp_path / "back" / name
        if name.suffix == ".json":
            # The VAE's library writes its defaults out.
            before, after = (json.loads(path.read_text()) for path in (first, second))
            assert after == before if "vae" not in name.parts else after == after | before
            continue
        read = load_file if name.suffix == ".safetensors" else torch.load
        before, after = read(first), read(second)
        assert before.keys() == after.keys()
        assert all(torch.equal(v, after[k]) and v.dtype == after[k].dtype for k, v in before.items())
        assert second.stat().st_size == pytest.approx(first.stat().st_size, rel=0.01)


def test_settings_follow_from_the_motion_file(published: Path, tmp_path: Path) -> None:
    """As with the published weights, beside which there are no settings."""
    copy = Path(shutil.copytree(published, tmp_path / "copy"))
    (copy / "inference.json").unlink()
    read, original = read_checkpoint(copy), read_checkpoint(published)
    assert read.settings == original.settings
    wanted, found = (UNetConfig.from_dict(c.configs["denoising_unet"]) for c in (original, read))
    assert (found.joint_norm, found.motion.max_len) == (wanted.joint_norm, wanted.motion.max_len)


def motion_of(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / MOTION, weights_only=True)


def v1_motion(folder: Path) -> dict[str, torch.Tensor]:
    kept = {key: value for key, value in motion_of(folder).items() if not key.startswith("mid_block.")}
    return {key: value[:, :24].clone() if key.endswith(".pe") else value for key, value in kept.items()}


@pytest.mark.parametrize("version", ["v1", "v2", "v3"])
def test_animatediff_files_take_the_motion_files_place(folder: Path, version: str) -> None:
    motion, name = motion_of(folder), {"v1": "mm_sd_v15.ckpt", "v2": "mm_sd_v15_v2.ckpt", "v3": "v3_sd15_mm.ckpt"}
    (folder / MOTION).unlink()
    if version == "v1":
        motion = v1_motion_settings(folder, motion)
    elif version == "v3":
        motion = {key: value for key, value in motion.items() if not key.startswith("mid_block.")}
    content: dict[str, Any] = {f"module.{key}": value for key, value in motion.items()}
    if version != "v2":
        content = {"epoch": 1, "global_step": 2, "state_dict": content}
    torch.save(content, folder / name[version])
    checkpoint = read_checkpoint(folder)
    build_networks(checkpoint)
    read = {k: v for k, v in checkpoint.weights["denoising_unet"].items() if ".motion_modules." in k}
    assert read.keys() == motion.keys() and all(torch.equal(read[key], motion[key]) for key in motion)


def v1_motion_settings(folder: Path, motion: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    settings = json.loads((folder / "inference.json").read_text())
    settings["unet_additional_kwargs"]["motion_module_mid_block"] = False
    settings["unet_additional_kwargs"]["motion_module_kwargs"]["temporal_position_encoding_max_len"] = 24
    (folder / "inference.json").write_text(json.dumps(settings))
    kept = {key: value for key, value in motion.items() if not key.startswith("mid_block.")}
    return {key: value[:, :24].clone() if key.endswith(".pe") else value for key, value in kept.items()}


def test_a_motion_file_without_a_mid_block_computes_what_an_untrained_one_does(folder: Path) -> None:
    """AnimateDiff v3 in v2 settings: the release leaves those modules' projections at zero."""
    motion = motion_of(folder)
    zero = {k: torch.zeros_like(v) for k, v in motion.items() if k.startswith("mid_block.") and "proj_out" in k}
    assert zero
    torch.save(motion | zero, folder / MOTION)
    first = build_networks(read_checkpoint(folder)).denoising_unet
    torch.save({k: v for k, v in motion.items() if not k.startswith("mid_block.")}, folder / MOTION)
    second = build_networks(read_checkpoint(folder)).denoising_unet
    x, image, pose = torch.randn(3, 4, 8, 8), torch.randn(1, 16), torch.randn(3, 32, 8, 8)
    outputs = (net(x, torch.zeros(1), image, pose, None, frames=3) for net in (first, second))
    torch.testing.assert_close(*outputs)


def spoil_missing(folder: Path) -> None:
    (folder / MOTION).unlink()


def spoil_v1(folder: Path) -> None:
    torch.save(v1_motion(folder), folder / MOTION)


def spoil_width(folder: Path) -> None:
    motion = motion_of(folder)
    key = next(key for key in motion if key.endswith("proj_in.weight"))
    torch.save(motion | {key: torch.zeros(7, 7)}, folder / MOTION)


def spoil_fewer(folder: Path) -> None:
    torch.save({k: v for k, v in motion_of(folder).items() if not k.startswith("up_blocks.1.")}, folder / MOTION)


def spoil_other_model(folder: Path) -> None:
    torch.save({"double_blocks.0.weight": torch.zeros(1)}, folder / MOTION)


def spoil_guider(folder: Path) -> None:
    torch.save({"weight": torch.zeros(1)}, folder / "pose_guider.pth")


def spoil_reference(folder: Path) -> None:
    (folder / "reference_unet.pth").unlink()


def spoil_config(folder: Path) -> None:
    shutil.rmtree(folder / "stable-diffusion-v1-5")


def spoil_settings(folder: Path) -> None:
    (folder / "inference.json").write_text("[]")


SPOILT = {
    spoil_missing: r"has no motion_module\.pth",
    spoil_v1: "motion modules for 24 frames, without the mid block, but inference.json is set for 32",
    spoil_width: "another architecture .*another size of",
    spoil_fewer: "another architecture .*it has no 'up_blocks.1.",
    spoil_other_model: "no AnimateDiff motion file",
    spoil_guider: "not a pose guider",
    spoil_reference: r"has no reference_unet\.pth",
    spoil_config: r"has no stable-diffusion-v1-5/unet/config\.json",
    spoil_settings: "does not hold unet_additional_kwargs",
}


@pytest.mark.parametrize("spoil", SPOILT, ids=lambda spoil: spoil.__name__)
def test_a_spoilt_folder_is_named_in_one_sentence(folder: Path, spoil: Any) -> None:
    spoil(folder)
    with pytest.raises(UserError, match=SPOILT[spoil]) as error:
        Pipeline.from_pretrained(folder)
    assert "\n" not in str(error.value)


def test_empty_settings_of_the_motion_modules_mean_a_model_of_pictures(folder: Path) -> None:
    """An empty unet_additional_kwargs raised KeyError."""
    (folder / "inference.json").write_text(json.dumps({"unet_additional_kwargs": {}}))
    (folder / MOTION).unlink()
    checkpoint = read_checkpoint(folder)
    assert checkpoint.configs["denoising_unet"]["use_inflated_groupnorm"] is False
    assert build_networks(checkpoint).denoising_unet.cfg.motion is None
