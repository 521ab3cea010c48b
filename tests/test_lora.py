"""LoRAs of the denoising UNet: trained by peft, merged here, read by ComfyUI."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import needs
import pytest
import torch
from comfyui_server import COMFYUI, PYTHON
from conftest import UNET
from safetensors.torch import load_file
from torch import Tensor

from anycharv_core.errors import UserError
from anycharv_core.models import DenoisingUNet, UNetConfig
from anycharv_core.systems import read_checkpoint
from training.config import Lora
from training.lora import (
    ALPHA,
    DOWN,
    FILE,
    PREFIX,
    UP,
    add_lora,
    base_state_dict,
    lora_state_dict,
    main,
    merge_lora,
    write_lora,
)

needs.installed("peft")
REPO = Path(__file__).parents[1]


def new_unet() -> DenoisingUNet:
    torch.manual_seed(0)
    return DenoisingUNet(UNetConfig.from_dict(UNET))


def output(unet: DenoisingUNet, dtype: torch.dtype = torch.float32) -> Tensor:
    """Of fixed inputs, with a reference bank, which the LoRA's layers project too."""
    draw = torch.Generator().manual_seed(1)

    def rand(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw).to(dtype)

    bank = unet.project_bank([rand(1, 16, b.norm1.normalized_shape[0]) for b in unet.spatial_blocks()])
    return unet(rand(2, 9, 8, 8), torch.tensor([300]), rand(2, 16), rand(2, 32, 8, 8), bank, frames=2)


def trained(lora: Lora, motion: bool = True) -> DenoisingUNet:
    """A UNet whose LoRA has learned something."""
    unet = new_unet()
    draw = torch.Generator().manual_seed(2)
    for parameter in add_lora(unet, lora, motion):
        parameter.data = 0.2 * torch.randn(parameter.shape, generator=draw)
    return unet


def test_a_new_lora_changes_nothing_and_is_all_that_is_trained() -> None:
    plain = output(new_unet())
    unet = new_unet()
    parameters = add_lora(unet, Lora(rank=4), motion=False)
    assert torch.allclose(output(unet), plain, atol=1e-5)
    names = [name for name, p in unet.named_parameters() if p.requires_grad]
    assert len(names) == len(parameters) and all(".lora_" in name for name in names)
    assert not any("motion_modules" in name or "attn2.to_q" in name for name in names)
    layers = {name.split(".lora_")[0].rsplit("transformer_blocks.0.", 1)[1] for name in names}
    assert layers == {
        "attn1.to_q",
        "attn1.to_k",
        "attn1.to_v",
        "attn1.to_out.0",
        "attn2.to_v",
        "attn2.to_out.0",
        "ff.net.0.proj",
        "ff.net.2",
    }
    more = add_lora(new_unet(), Lora(rank=4), motion=True)
    assert len(more) > len(parameters)


def test_every_trained_weight_gets_a_gradient() -> None:
    unet = trained(Lora(rank=2))
    output(unet).square().mean().backward()
    for name, parameter in unet.named_parameters():
        assert (parameter.grad is not None and bool(parameter.grad.any())) == parameter.requires_grad, name


@pytest.mark.parametrize("alpha", [None, 1.0])
def test_merged_it_does_what_it_did_beside(alpha: float | None) -> None:
    unet = trained(Lora(rank=4, alpha=alpha))
    base = base_state_dict(unet)
    assert base.keys() == new_unet().state_dict().keys()
    assert all(torch.equal(base[key], value) for key, value in new_unet().state_dict().items())
    merged = new_unet()
    merged.load_state_dict(merge_lora(base, lora_state_dict(unet)))
    beside = output(unet)
    assert torch.allclose(output(merged), beside, atol=1e-5)
    assert (output(new_unet()) - beside).abs().max() > 0.01


def test_a_file_goes_on_where_it_stopped(tmp_path: Path) -> None:
    lora = Lora(rank=3, alpha=6.0, targets=("to_q", "to_v"))
    unet = trained(lora)
    write_lora(lora_state_dict(unet), tmp_path / FILE)
    stored = load_file(tmp_path / FILE)
    assert all(key.startswith(PREFIX) and key.endswith((DOWN, UP, ALPHA)) for key in stored)
    again = new_unet()
    add_lora(again, replace(lora, start=str(tmp_path / FILE)), motion=True)
    assert torch.equal(output(again), output(unet))
    for other in ({"rank": 4}, {"alpha": 3.0}, {"targets": ("to_q",)}, {"targets": ("to_q", "to_v", "to_k")}):
        with pytest.raises(UserError, match=r"settings|among"):
            add_lora(new_unet(), replace(lora, **other, start=str(tmp_path / FILE)), motion=True)


def test_its_weights_are_float32_beside_narrow_ones() -> None:
    unet = new_unet().bfloat16()
    parameters = add_lora(unet, Lora(rank=2), motion=True)
    assert {p.dtype for p in parameters} == {torch.float32}
    assert output(unet, torch.bfloat16).dtype == torch.bfloat16


def test_layers_that_are_not_there_are_named() -> None:
    with pytest.raises(UserError, match="to_x"):
        add_lora(new_unet(), Lora(targets=("to_x",)), motion=True)


def test_another_models_lora_is_refused() -> None:
    lora = {f"{PREFIX}conv_in{UP}": torch.zeros(7, 2), f"{PREFIX}conv_in{DOWN}": torch.zeros(2, 9)}
    with pytest.raises(UserError, match="conv_in"):
        merge_lora(new_unet().state_dict(), lora)
    with pytest.raises(UserError, match="lora_unet_x"):
        merge_lora(new_unet().state_dict(), {"lora_unet_x.lora_up.weight": torch.zeros(1)})


def test_the_command_merges_it_into_a_model(tiny_model: Path, tmp_path: Path, capsys) -> None:
    write_lora(lora_state_dict(trained(Lora(rank=2))), tmp_path / FILE)
    out = tmp_path / "merged.safetensors"
    assert main([str(tiny_model), str(tmp_path / FILE), "--out", str(out), "--strength", "0.5"]) == 0
    before, after = (read_checkpoint(path).weights for path in (tiny_model, out))
    changed = {
        key
        for key, value in before["denoising_unet"].items()
        if not torch.equal(value, after["denoising_unet"][key])
    }
    assert changed and all(
        key.endswith(
            (
                "to_q.weight",
                "to_k.weight",
                "to_v.weight",
                "to_out.0.weight",
                "ff.net.0.proj.weight",
                "ff.net.2.weight",
            )
        )
        for key in changed
    )
    assert main([str(tiny_model), str(tmp_path / "none.safetensors"), "--out", str(out)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("lora: ") and said.count("\n") == 1


INSIDE = """
import json, sys
tests, lora, merged = sys.argv[1:]
sys.path.insert(0, tests)
import comfy_pack as checks
checks.folder_paths.add_model_folder_path("loras", str(checks.Path(lora).parent))
checks.folder_paths.add_model_folder_path("anycharv", str(checks.Path(merged).parent))
parts = checks.load()
made = checks.conditioned(*parts)
loaded, = checks.nodes.LoraLoaderModelOnly().load_lora_model_only(parts[0], checks.Path(lora).name, 1.0)
plain, beside = checks.sampled(parts[0], made), checks.sampled(loaded, made)
inside = checks.sampled(checks.load(checks.Path(merged).name)[0], made)
print(json.dumps({"patches": len(loaded.patches), "changed": float((plain - beside).abs().max()),
                  "apart": float((inside - beside).abs().max())}))
"""


@pytest.mark.comfyui
@needs.comfyui
def test_comfyui_reads_the_file_and_samples_as_with_the_merged_model(tmp_path: Path) -> None:
    checkpoint = read_checkpoint("embedded")
    unet = DenoisingUNet(UNetConfig.from_dict(checkpoint.configs["denoising_unet"]))
    unet.load_state_dict(checkpoint.weights["denoising_unet"])
    draw = torch.Generator().manual_seed(0)
    for parameter in add_lora(unet, Lora(rank=4, alpha=2.0), motion=True):
        parameter.data = 0.1 * torch.randn(parameter.shape, generator=draw)
    lora = lora_state_dict(unet)
    (tmp_path / "loras").mkdir()
    (tmp_path / "models").mkdir()
    write_lora(lora, tmp_path / "loras" / FILE)
    merged = tmp_path / "models" / "merged.safetensors"
    assert main(["embedded", str(tmp_path / "loras" / FILE), "--out", str(merged)]) == 0
    command = [
        str(PYTHON),
        "-c",
        INSIDE,
        str(REPO / "tests" / "in_comfyui"),
        str(tmp_path / "loras" / FILE),
        str(merged),
    ]
    done = subprocess.run(command, cwd=COMFYUI, capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "lora key not loaded" not in done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["patches"] == len(lora) // 3
    assert result["changed"] > 0.05
    assert result["apart"] < 0.02 * result["changed"]
