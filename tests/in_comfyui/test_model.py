"""The native MODEL: what ComfyUI's machinery can do to it, and what it computes once."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any
from unittest.mock import patch

import comfy.memory_management
import comfy.sd
import pytest
import torch
from comfy_extras.nodes_hooks import CreateHookLora, PairConditioningSetProperties
from comfy_pack import conditioned, core, execute, load, models_folder, sampled
from test_weights import add_lora


def test_attention_is_comfyuis_and_can_be_overridden() -> None:
    parts = load()
    made = conditioned(*parts)
    seen = []

    def counting(attention: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        seen.append(args[0].shape)
        return attention(*args, **kwargs)

    def none(attention: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        return torch.zeros_like(args[0])

    results = []
    for override in (counting, none):
        model = parts[0].clone()
        model.model_options["transformer_options"]["optimized_attention_override"] = override
        results.append(sampled(model, made))
    network = parts[0].model.diffusion_model
    blocks = network.spatial_blocks()
    temporal = [
        m for m in network.modules() if isinstance(m, core("anycharv_core.models.layers").TemporalAttention)
    ]
    # Spatial attention runs twice: rows without the bank, and rows with it.
    assert len(seen) == 2 * (2 * len(blocks) + len(temporal))
    assert torch.equal(results[0], sampled(parts[0], made))
    assert not torch.allclose(results[1], results[0], atol=1e-2)


def test_bank_and_pose_features_are_computed_once_per_run() -> None:
    parts = load()
    made = conditioned(*parts, frames=30)
    model = core("nodes.model")
    projected, guided = [], []
    project, guide = model.NativeUNet.project_bank, model.PoseGuider.forward

    def projecting(self: Any, tokens: Any) -> Any:
        projected.append(len(tokens))
        return project(self, tokens)

    def guiding(self: Any, pose: torch.Tensor, *more: Any) -> torch.Tensor:
        guided.append(len(pose))
        return guide(self, pose, *more)

    with (
        patch.object(model.NativeUNet, "project_bank", projecting),
        patch.object(model.PoseGuider, "forward", guiding),
    ):
        sampled(parts[0], made, steps=3)
        assert (len(projected), sum(guided)) == (1, 30)
        sampled(parts[0], made, steps=1)
        assert (len(projected), sum(guided)) == (2, 60)


def test_weights_patched_by_hooks_reach_bank_and_pose_features(tmp_path: Path) -> None:
    """A LoRA as a hook on both conditionings does what it does on the model."""
    parts = load()
    made = conditioned(*parts)
    expected = sampled(add_lora(parts[0], tmp_path), made)
    (hooks,) = CreateHookLora().create_hook(f"{tmp_path.name}.safetensors", 1.0, 0.0)
    positive, negative = PairConditioningSetProperties().set_properties(
        made["positive"], made["negative"], 1.0, "default", hooks=hooks
    )
    hooked = sampled(parts[0], made | {"positive": positive, "negative": negative})
    assert torch.allclose(hooked, expected, atol=1e-4)
    assert not torch.allclose(hooked, sampled(parts[0], made), atol=1e-2)


def test_network_can_be_called_without_comfyuis_options() -> None:
    parts = load()
    made = conditioned(*parts, frames=2)
    context, options = made["positive"][0]
    network = parts[0].model.diffusion_model
    video = options[core("nodes.model").VIDEO]
    x = torch.cat([torch.ones(2, *video.shape[1:]), video.scene], dim=1).to(network.dtype)
    call = {"frame_numbers": torch.arange(2), "video": video}
    inputs = x, torch.full((2,), 500.0), context.expand(2, -1, -1).to(network.dtype)
    plain = network(*inputs, **call)
    assert torch.equal(plain, network(*inputs, transformer_options={"cond_or_uncond": [0]}, **call))


@pytest.mark.parametrize("name", ["../secret", "../secret.safetensors", "/etc/hostname", "there/../../secret", ""])
def test_loader_joins_no_unchecked_name_to_a_folder(name: str) -> None:
    folder = models_folder()
    (folder.parent / "secret").mkdir()
    (folder.parent / "secret.safetensors").touch()
    (folder / "there").mkdir()
    with pytest.raises(core("anycharv_core.errors").UserError, match="holds no checkpoint"):
        execute("AnyCharVLoader", checkpoint=name, dtype="auto")


def test_loading_a_vae_silences_nobody_else(caplog: pytest.LogCaptureFixture) -> None:
    build = comfy.sd.VAE.__init__

    def busy(self: Any, *args: Any, **kwargs: Any) -> None:
        logging.warning("from another thread")
        build(self, *args, **kwargs)

    with patch.object(comfy.sd.VAE, "__init__", busy):
        load()
    assert "from another thread" in caplog.text
    assert "No VAE weights" not in caplog.text


def test_layers_that_make_no_weights_are_filled(monkeypatch: pytest.MonkeyPatch) -> None:
    """With dynamic VRAM, ComfyUI's default on many cards, they have none before some are loaded."""
    plain = load("embedded", "fp32")
    monkeypatch.setattr(comfy.memory_management, "aimdo_enabled", True)
    lazy = load("embedded", "fp32")
    for place in (0, 1, 3):
        ours, theirs = (parts[place].model.state_dict() for parts in (plain, lazy))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(value, theirs[key]) for key, value in ours.items())
