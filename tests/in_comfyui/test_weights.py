"""What ComfyUI does with the weights: precision, LoRAs, streaming, and letting go of them."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any
from unittest.mock import patch

import comfy.model_management
import folder_paths
import pytest
import torch
from comfy_pack import ADDED, animated, animation, conditioned, core, execute, load, sampled
from safetensors.torch import save_file

import nodes


def test_half_precision_is_near_full() -> None:
    made, differences = {}, {}
    for dtype in ("fp32", "fp16", "bf16"):
        parts = load(dtype=dtype)
        made[dtype] = sampled(parts[0], conditioned(*parts))
        expected = core("anycharv_core.jobs.precision").DTYPES[dtype]
        assert parts[0].model.diffusion_model.conv_in.weight.dtype == expected
        differences[dtype] = float((made[dtype] - made["fp32"]).abs().mean() / made["fp32"].abs().mean())
    assert differences["fp16"] < 1e-2 and differences["bf16"] < 5e-2, differences


def test_what_a_checkpoint_lacks_comes_from_comfyuis_folders(tmp_path: Path) -> None:
    loader = core("nodes.loader")
    files = [tmp_path / loader.VAE_FILE, tmp_path / loader.ENCODER_FILE]
    for folder, file in zip(("vae", "clip_vision"), files, strict=True):
        save_file({"weight": torch.zeros(1)}, file)
        folder_paths.add_model_folder_path(folder, str(tmp_path))
    with (
        patch.object(loader, "_vae", return_value=None),
        patch.object(loader, "_clip_vision", return_value=None),
        patch("comfy.sd.VAE", side_effect=lambda sd: sd),
        patch("comfy.clip_vision.load", side_effect=lambda path: path),
    ):
        *_, vae, encoder = load()
    assert vae.keys() == {"weight"} and encoder == str(files[1])


def add_lora(model: Any, folder: Path) -> Any:
    """The model with random LoRAs on its spatial attention, saved in `folder` and loaded by ComfyUI's node."""
    torch.manual_seed(0)
    lora = {}
    for key, value in model.model.diffusion_model.state_dict().items():
        if "attentions" in key and key.endswith(("to_q.weight", "to_k.weight", "to_out.0.weight")):
            name = "lora_unet_" + key.removesuffix(".weight").replace(".", "_")
            lora[f"{name}.lora_down.weight"] = torch.randn(4, value.shape[1])
            lora[f"{name}.lora_up.weight"] = torch.randn(value.shape[0], 4) * 0.2
            lora[f"{name}.alpha"] = torch.tensor(4.0)
    file = f"{folder.name}.safetensors"
    save_file(lora, folder / file)
    folder_paths.add_model_folder_path("loras", str(folder))
    (with_lora,) = nodes.LoraLoaderModelOnly().load_lora_model_only(model, file, 1.0)
    assert len(with_lora.patches) == len(lora) // 3
    return with_lora


@pytest.mark.parametrize("name", ["embedded", "embedded-animate"])
def test_lora_changes_the_output(name: str, tmp_path: Path) -> None:
    parts = load(name)
    model, made = parts[0], conditioned(*parts) if name == "embedded" else animated(*parts, animation())
    with_lora = add_lora(model, tmp_path)
    before, changed = sampled(model, made), sampled(with_lora, made)
    assert (before - changed).abs().max() > 0.05
    assert torch.equal(before, sampled(model, made))


def test_streamed_weights_give_the_same_output() -> None:
    """Half of the layers, then all of them, streamed as with --lowvram and --novram on a card.

    ComfyUI does not take those beside --cpu, so what they do to the networks is done to them here.
    """
    parts = load()
    model, net = parts[:2]
    whole = sampled(model, conditioned(*parts))
    for share in (0.5, 0.0):
        comfy.model_management.unload_all_models()
        for patcher in (model, net):
            patcher.load(patcher.load_device, lowvram_model_memory=max(1, int(patcher.model_size() * share)))
        # Left to itself, ComfyUI would load models this small in full.
        with patch.object(comfy.model_management, "load_models_gpu"):
            assert torch.equal(whole, sampled(model, conditioned(*parts)))
        for patcher in (model, net):
            assert any(getattr(m, "comfy_cast_weights", False) for m in patcher.model.modules())


def test_loading_the_pack_imports_no_slow_library() -> None:
    assert not {"diffusers", "transformers", "onnxruntime"} & ADDED


def test_preprocessors_are_dropped_after_the_run() -> None:
    """Neither onnxruntime's sessions nor SAM 2's weights stay, once for both smoothings and the mask."""
    kinds = (core("anycharv_core.preprocess.dwpose").DWPose, core("anycharv_core.preprocess.segment").Segmenter)
    _, scene, *_ = execute("AnyCharVPuppetClip", seed=3, frames=2, size=128)
    for smoothing in (0.0, 0.5):
        poses, drawn = execute("AnyCharVDWPose", images=scene, model="embedded", smoothing=smoothing, fps=24.0)
        assert len(poses) == 2 and drawn.shape == scene.shape
    boxes = [[{"x": 30, "y": 10, "width": 60, "height": 100}]] * 2
    (mask,) = execute("AnyCharVSegment", images=scene, boxes=boxes, model="embedded")
    assert mask.shape == scene.shape[:3] and set(mask.unique().tolist()) <= {0.0, 1.0}
    gc.collect()
    assert [kept for kept in gc.get_objects() if isinstance(kept, kinds)] == []
