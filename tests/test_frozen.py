"""What is not trained takes less memory, and changes no result."""

from __future__ import annotations

import copy

import needs
import pytest
import torch
from training_runs import clips, fresh
from training_runs import own_precision as own_precision

from anycharv_core.checkpoints.checkpoint import LIBRARY_PARTS
from training.config import Lora, Objective, Phase
from training.frozen import narrow_frozen
from training.loop import new_optimizer
from training.offload import OffloadedAdamW
from training.trainee import Trainee, choose_trained, trained_parameters

PHASES = {
    "spatial": Phase(train=("spatial",)),
    "motion": Phase(train=("motion",), motion=True),
    "lora": Phase(lora=Lora(rank=4), motion=True),
}


def learned(phase: Phase, precision: str) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Loss and gradients under autocast, frozen weights of that precision."""
    nets = fresh()
    torch.manual_seed(3)
    choose_trained(nets, phase)
    for net in (nets.denoising_unet, nets.reference_unet, nets.pose_guider):
        narrow_frozen(net, precision)
    with torch.autocast("cpu", torch.bfloat16):
        loss = Trainee(nets, Objective(), phase.motion, 0, "x")(clips(2))["loss"]
    loss.backward()
    return loss, {name: p.grad for name, p in trained_parameters(nets)}


@pytest.mark.parametrize("name", PHASES)
def test_narrow_frozen_weights_change_no_bit(name: str) -> None:
    if name == "lora":
        needs.installed("peft")
    (loss, gradients), (narrow, others) = (learned(PHASES[name], precision) for precision in ("fp32", "bf16"))
    assert torch.equal(loss, narrow)
    assert gradients.keys() == others.keys()
    for key, value in gradients.items():
        assert value.dtype == torch.float32 and torch.equal(value, others[key]), key


def test_only_frozen_layers_are_narrow_and_norms_are_not() -> None:
    nets = fresh()
    choose_trained(nets, PHASES["motion"])
    narrow_frozen(nets.denoising_unet, "bf16")
    for name, p in nets.denoising_unet.named_parameters():
        if p.requires_grad or "norm" in name:
            assert p.dtype == torch.float32, name
    assert nets.denoising_unet.conv_in.weight.dtype == torch.bfloat16
    narrow_frozen(nets.reference_unet, "fp32")
    assert {p.dtype for p in nets.reference_unet.parameters()} == {torch.float32}


def test_encoders_are_set_aside_and_fetched_for_validation() -> None:
    trainee, batch = Trainee(fresh(), Objective(), False, 0, "x"), clips(1)
    whole = copy.deepcopy(trainee)
    trainee.set_aside()
    assert set(trainee.aside) == set(LIBRARY_PARTS)
    assert not any(name.startswith(LIBRARY_PARTS) for name in trainee.state_dict())
    with torch.no_grad():
        for task in ({"task": "sample", "steps": 1, "guidance": 1.0}, {"task": "held_out", "timesteps": (500,)}):
            assert torch.equal(trainee(batch, **task), whole(batch, **task))
    encoded = {**batch, **whole.encode(batch)}
    assert torch.equal(trainee(encoded)["loss"], whole(encoded)["loss"])
    kept = Trainee(fresh(train=("image_encoder",)), Objective(), False, 0, "x")
    kept.set_aside()
    assert set(kept.aside) == {"vae"}


def test_an_offloaded_optimizer_is_adamw_to_the_bit(monkeypatch) -> None:
    monkeypatch.setattr("training.offload.CHUNK", 40)
    shapes, draw = ((3, 5), (7,), (60,), (2, 2)), torch.Generator().manual_seed(0)
    start = [torch.randn(shape, generator=draw) for shape in shapes]

    def run(optimizer: str, stop: int = 0) -> list[torch.Tensor]:
        parameters = [torch.nn.Parameter(value.clone()) for value in start]
        phase = Phase(optimizer=optimizer, lr=0.1, weight_decay=0.1)
        own, steps = new_optimizer(phase, parameters), torch.Generator().manual_seed(1)
        for step in range(6):
            for p in parameters[: 3 if step % 2 else 4]:
                p.grad = torch.randn(p.shape, generator=steps)
            own.step()
            own.zero_grad()
            if step == stop:
                kept = copy.deepcopy(own.state_dict())
                own = new_optimizer(phase, parameters)
                own.load_state_dict(kept)
        return parameters

    assert all(torch.equal(*pair) for pair in zip(run("adamw"), run("adamw_offload"), strict=True))
    assert all(torch.equal(*pair) for pair in zip(run("adamw"), run("adamw_offload", 3), strict=True))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a graphics card")
def test_an_offloaded_state_lies_in_main_memory() -> None:
    p = torch.nn.Parameter(torch.randn(1000, device="cuda"))
    optimizer = OffloadedAdamW([p], lr=0.1)
    p.grad = torch.ones_like(p)
    optimizer.step()
    assert {value.device.type for value in optimizer.state[p].values()} == {"cpu"}
