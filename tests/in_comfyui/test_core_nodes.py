"""ComfyUI's own nodes around our MODEL and VAE, beside those that patch it."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import folder_paths
import pytest
import torch
from comfy.context_windows import IndexListContextHandler
from comfy_extras.nodes_context_windows import ContextWindowsManualNode
from comfy_extras.nodes_custom_sampler import (
    BasicScheduler,
    CFGGuider,
    KSamplerSelect,
    RandomNoise,
    SamplerCustomAdvanced,
)
from comfy_extras.nodes_model_merging import ModelMergeSimple, ModelSave
from comfy_pack import conditioned, core, execute, ksampled, load, sampled
from test_replace import replaced
from test_weights import add_lora
from torch import Tensor

import nodes

STEPS = 8


def alike(one: Tensor, other: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1])


def staged(model: Any, made: dict[str, Any], first: int, last: int, latent: Any, more: bool) -> dict[str, Any]:
    """KSampler (Advanced) for the steps from `first` to `last`; more: others follow."""
    noise, left = "disable" if first else "enable", "enable" if more else "disable"
    ends = made["positive"], made["negative"], latent, first, last, left
    return nodes.KSamplerAdvanced().sample(model, noise, 42, STEPS, 2.0, "euler", "sgm_uniform", *ends)[0]


def test_two_stages_are_one_run() -> None:
    parts = load()
    made = conditioned(*parts)
    half = staged(parts[0], made, 0, 3, made["latent"], more=True)
    whole = staged(parts[0], made, 0, STEPS, made["latent"], more=False)["samples"]
    both = staged(parts[0], made, 3, STEPS, half, more=False)["samples"]
    assert not torch.allclose(half["samples"], whole, atol=1e-2)
    assert torch.allclose(both, whole, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "scheduler"), [("euler", "sgm_uniform"), ("dpmpp_2m", "karras"), ("lcm", "simple")]
)
def test_custom_samplers_give_the_same_video(name: str, scheduler: str) -> None:
    parts = load()
    made = conditioned(*parts)
    (guider,) = CFGGuider.execute(parts[0], made["positive"], made["negative"], 2.0).args
    (sigmas,) = BasicScheduler.execute(parts[0], scheduler, STEPS, 1.0).args
    sampler, noise = KSamplerSelect.execute(name).args[0], RandomNoise.execute(42).args[0]
    latent = SamplerCustomAdvanced.execute(noise, guider, sampler, sigmas, made["latent"]).args[0]
    assert alike(latent["samples"], sampled(parts[0], made, steps=STEPS)) > 0.8


def test_vae_in_tiles() -> None:
    parts = load()
    _, _, vae, _ = parts
    latent = {"samples": sampled(parts[0], conditioned(*parts, width=128, height=128))}
    with torch.inference_mode():  # as ComfyUI runs nodes
        whole = nodes.VAEDecode().decode(vae, latent)[0]
        tiled = nodes.VAEDecodeTiled().decode(vae, latent, 64, 16)[0]
        assert tiled.shape == whole.shape and (whole - tiled).abs().mean() < 0.01
        encoded = nodes.VAEEncodeTiled().encode(vae, whole, 64, 16)[0]["samples"]
        assert alike(encoded, nodes.VAEEncode().encode(vae, whole)[0]["samples"]) > 0.99


@pytest.fixture
def saving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], str]:
    """Saves a MODEL by ComfyUI's node where the Loader looks, and gives its name there."""
    folder_paths.add_model_folder_path("anycharv", str(tmp_path / "anycharv"))
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))

    def save(model: Any) -> str:
        ModelSave().save(model, f"anycharv/{tmp_path.name}")
        return max((tmp_path / "anycharv").iterdir()).name

    return save


def test_saved_model_is_loaded_again(saving: Callable[[Any], str], tmp_path: Path) -> None:
    parts = load()
    made = conditioned(*parts)
    with_lora = add_lora(parts[0], tmp_path)
    again = load(saving(with_lora))
    assert torch.allclose(sampled(again[0], made), sampled(with_lora, made), atol=1e-4)
    assert not torch.allclose(sampled(again[0], made), sampled(parts[0], made), atol=1e-2)
    assert torch.equal(sampled(again[0], conditioned(*again)), sampled(again[0], made))
    (merged,) = ModelMergeSimple().merge(parts[0], with_lora, 1.0)
    assert torch.equal(sampled(load(saving(merged))[0], made), sampled(parts[0], made))


def test_saved_model_needs_its_checkpoint(saving: Callable[[Any], str], monkeypatch: pytest.MonkeyPatch) -> None:
    model = load()[0]
    monkeypatch.setattr(model.model, "origin", "another")
    with pytest.raises(core("anycharv_core.errors").UserError, match="put that checkpoint back"):
        load(saving(model))


@pytest.mark.parametrize(
    ("schedule", "fuse", "freenoise"),
    [
        ("standard_static", "pyramid", False),
        ("standard_uniform", "overlap-linear", False),
        ("looped_uniform", "relative", True),
        ("batched", "flat", False),
    ],
)
def test_context_windows_of_every_schedule(schedule: str, fuse: str, freenoise: bool) -> None:
    model, made, whole = long_video()
    settings = 16, 4, schedule, 1, False, fuse, 0, freenoise
    (windowed,) = ContextWindowsManualNode.execute(model, *settings).args
    assert alike(ksampled(windowed, made, steps=1, cfg=1.0), whole) > 0.98


@cache
def long_video() -> tuple[Any, dict[str, Any], Tensor]:
    """MODEL, what it samples, and what comes out without windows."""
    parts = load()
    made = conditioned(*parts, frames=30)
    return parts[0], made, sampled(parts[0], made, steps=1, cfg=1.0)


def test_one_node_takes_context_windows() -> None:
    seen = []

    class Watched(IndexListContextHandler):
        def get_resized_cond(self, *args: Any, **kwargs: Any) -> Any:
            seen.append(len(args[2].index_list))
            return super().get_resized_cond(*args, **kwargs)

    settings = 16, 4, "standard_static", 1, False, "flat", 0, False
    (windowed,) = ContextWindowsManualNode.execute(load()[0], *settings).args
    windowed.model_options["context_handler"].__class__ = Watched
    clip = execute("AnyCharVPuppetClip", seed=3, frames=30, size=96)
    path = replaced(clip[0], clip, clip[2], model=windowed)
    assert core("anycharv_core.media.video_read").probe(path).frames == 30
    assert set(seen) == {16}  # the recipe's own are longer
