"""How much memory of a graphics card a phase takes, reckoned without one.

What is kept between steps follows from the number of parameters; what a step needs on top is found by running it
on tensors that have shapes but no numbers, and watching which are alive at once.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from anycharv_core.checkpoints.checkpoint import LIBRARY_PARTS
from anycharv_core.checkpoints.dit_networks import DiTNetworks, untrained_dit
from anycharv_core.checkpoints.networks import Networks, untrained
from anycharv_core.models.dit import grid_of
from anycharv_core.models.layers import sdpa
from anycharv_core.models.slots import layout
from training.config import Phase
from training.frozen import narrow_frozen

GIB = 2**30
# AdamW's two averages per parameter; in 8 bits (Dettmers et al., 2022) with a float32 scale per block of 256; in
# main memory.
OPTIMIZER_BYTES = {"adamw": 8.0, "adamw8bit": 2 * (1 + 4 / 256), "adamw_offload": 0.0}
# The CUDA context, cuDNN's and cuBLAS's scratch space, and what the allocator leaves unused between tensors.
OVERHEAD = 1.5 * GIB


@dataclass(frozen=True)
class Memory:
    """Bytes by kind. `activations`: what a step has alive at most, beside the gradients of the trained weights."""

    trained: float
    frozen: float
    gradients: float
    optimizer: float
    average: float
    activations: float
    overhead: float = OVERHEAD

    @property
    def total(self) -> float:
        return sum(vars(self).values())

    def __str__(self) -> str:
        kinds = ", ".join(f"{name} {size / GIB:.1f}" for name, size in vars(self).items())
        return f"{self.total / GIB:.1f} GiB ({kinds})"


def estimate(trained: int, frozen: int, optimizer: str, ema: bool, activations: float) -> Memory:
    """Memory of one process that holds everything itself (no FSDP, no ZeRO).

    trained: number of parameters, float32, as the gradients and the average are; frozen: bytes of the others.
    """
    return Memory(
        trained=4 * trained,
        frozen=frozen,
        gradients=4 * trained,
        optimizer=OPTIMIZER_BYTES[optimizer] * trained,
        average=4 * trained if ema else 0,
        activations=activations,
    )


def peak_bytes(step: Callable[[], Tensor]) -> int:
    """The most bytes that are alive at once of all that `step()` and the backward pass of its result allocate.

    Tensors that were there before do not count. Under FakeTensorMode nothing is computed and nothing allocated.
    """
    with _Meter() as meter:
        step().backward()
    return meter.peak


def phase_memory(
    configs: Mapping[str, Mapping[str, Any]],
    size: tuple[int, int],
    frames: int,
    clips: int,
    choose: Callable[[Networks], Mapping[str, nn.Module] | None],
    optimizer: str = "adamw",
    ema: bool = False,
    precision: str = "bf16",
    motion: bool = True,
    cached: bool = True,
    guidance: float | None = None,
) -> Memory:
    """Memory of a step on `clips` clips at a time of `frames` frames of `size` (width, height).

    configs: of every part. `choose(networks)` turns on what is trained, a LoRA and checkpointing too, and gives
    the copies that a teacher keeps, whose `guidance` is given then. precision: "fp32", or "bf16" by autocast over
    float32 weights, frozen ones as `narrow_frozen` leaves them. The VAE and the image encoder are frozen: with
    `cached` encodings they are not on the card; else they count with their weights, not with what encoding needs,
    which is over when the step begins.
    """
    with torch.device("meta"):
        nets = untrained(configs)
        for net in vars(nets).values():
            if net is not None:
                net.requires_grad_(False)
        copies = choose(nets) or {}
    own = {part: net for part, net in vars(nets).items() if net is not None}
    step_nets = [*(net for part, net in own.items() if part not in LIBRARY_PARTS), *copies.values()]
    for net in step_nets:
        narrow_frozen(net, precision)
    on_card = (
        step_nets if cached else [*step_nets, *(net for net in (nets.vae, nets.image_encoder) if net is not None)]
    )
    teacher = None if guidance is None else Networks(**(vars(nets) | dict(copies)))

    def step() -> Callable[[], Tensor]:
        return _step(nets, configs, size, frames, clips, precision, motion, teacher, guidance or 1.0)

    return _reckoned(step_nets, on_card, step, optimizer, ema, precision)


def dit_memory(
    configs: Mapping[str, Mapping[str, Any]],
    size: tuple[int, int],
    clips: int,
    phase: Phase,
    choose: Callable[[DiTNetworks], Any],
    precision: str = "bf16",
) -> Memory:
    """The same of a phase of AnimateAnywhere, without the decoder that its VGG loss runs on crops."""
    with torch.device("meta"):
        nets = untrained_dit(configs)
        for net in nets.modules.values():
            net.requires_grad_(False)
        choose(nets)
    used = {"transformer", "prompt", *phase.train}
    step_nets = [net for part, net in nets.modules.items() if part in used]
    for net in step_nets:
        narrow_frozen(net, precision)
    on_card = step_nets if phase.cache.variants else [*step_nets, nets.vae]

    def step() -> Callable[[], Tensor]:
        return _dit_step(nets, configs, size, clips, phase, precision)

    return _reckoned(step_nets, on_card, step, phase.optimizer, bool(phase.ema), precision)


def _reckoned(
    step_nets: Sequence[nn.Module],
    on_card: Sequence[nn.Module],
    new_step: Callable[[], Callable[[], Tensor]],
    optimizer: str,
    ema: bool,
    precision: str,
) -> Memory:
    """Memory of networks on a card, of which `step_nets`, on the meta device, take part in a step."""
    parameters = [p for net in on_card for p in net.parameters()]
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    frozen = sum(p.numel() * p.element_size() for p in parameters if not p.requires_grad)
    with FakeTensorMode():
        for net in step_nets:
            _imagine(net)
            if precision == "bf16":
                _normalise_in_float32(net)
        activations = max(0, peak_bytes(new_step()) - 4 * trained)
    return estimate(trained, frozen, optimizer, ema, activations)


def _imagine(net: nn.Module) -> None:
    """Turns weights on the meta device, which autocast passes over, into ones of an imagined CPU."""
    for module in net.modules():
        for name, p in list(module.named_parameters(recurse=False)):
            own = nn.Parameter(torch.empty(p.shape, dtype=p.dtype), requires_grad=p.requires_grad)
            setattr(module, name, own)
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, torch.empty(buffer.shape, dtype=buffer.dtype))


def _normalise_in_float32(net: nn.Module) -> None:
    """As autocast does on CUDA but not on a CPU."""
    for module in net.modules():
        if isinstance(module, (nn.GroupNorm, nn.LayerNorm)):
            module.register_forward_pre_hook(lambda _, inputs: (inputs[0].float(),))


def _step(
    nets: Networks,
    configs: Mapping[str, Mapping[str, Any]],
    size: tuple[int, int],
    frames: int,
    clips: int,
    precision: str,
    motion: bool,
    teacher: Networks | None = None,
    guidance: float = 1.0,
) -> Callable[[], Tensor]:
    from training.objective import guided, predict

    unet = nets.denoising_unet.cfg
    ratio = 2 ** (len(configs["vae"]["block_out_channels"]) - 1)
    width, height = (-(-side // ratio) for side in size)
    latents = torch.randn(clips, frames, unet.out_channels, height, width)
    encoded = {
        "latents": latents,
        "scene": torch.randn_like(latents),
        "mask": torch.ones(clips, frames, 1, height, width),
        "reference": torch.randn_like(latents[:, 0]),
        "embeds": torch.randn(clips, unet.cross_attention_dim),
        "pose": torch.zeros(clips, frames, size[1], size[0], 3, dtype=torch.uint8),
    }

    def step() -> Tensor:
        at = torch.zeros(clips, dtype=torch.long)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            if teacher is not None:
                with torch.no_grad():
                    guided(teacher, encoded, guidance, motion, sdpa)(latents, at)
            # The one that a card uses.
            v = predict(nets, encoded, latents, at, 0, motion, sdpa)
        return (v.float() - latents).square().mean()

    return step


def _dit_step(
    nets: DiTNetworks,
    configs: Mapping[str, Mapping[str, Any]],
    size: tuple[int, int],
    clips: int,
    phase: Phase,
    precision: str,
) -> Callable[[], Tensor]:
    from training.anywhere import Model, predict

    ratio = 2 ** (len(configs["vae"]["block_out_channels"]) - 1)
    width, height = (-(-side // ratio) for side in size)
    latents = torch.randn(clips, layout(phase.frames).latents, nets.transformer.cfg.out_channels, height, width)
    single = torch.randn_like(latents[:, 0])
    encoded = {"latents": latents, "pose": torch.randn_like(latents), "picture": single, "reference": single}
    model, epipolar = Model(nets, phase.train, 1.0, 1.0), phase.objective.epipolar
    count = len(nets.transformer.blocks())
    blocks = range(min(epipolar.blocks or count, count) if epipolar.weight else 0)

    def step() -> Tensor:
        at = torch.zeros(clips, dtype=torch.long)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            made = predict(model, encoded, latents, at, 0, blocks, sdpa)
            loss = (made.latents.float() - latents).square().mean()
            queries = torch.zeros(clips, epipolar.queries, dtype=torch.long)
            for block, hidden in made.hidden.items():
                seen = nets.transformer.attention_map(
                    block, hidden, at, queries, grid_of(latents), bank=made.bank, learner=model.learner
                )
                loss = loss + seen.square().mean()
        return loss

    return step


class _Meter(TorchDispatchMode):
    """Adds up the storages that operations bring into being, for as long as each is alive."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._alive: dict[int, weakref.ref] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for tensor in tree_iter((args, kwargs)):
            if isinstance(tensor, Tensor):
                self._count(tensor, 0)  # there before the step
        result = function(*args, **(kwargs or {}))
        for tensor in tree_iter(result):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                self._count(tensor, storage.nbytes())
        self.peak = max(self.peak, self.now)
        return result

    def _count(self, tensor: Tensor, size: int) -> None:
        storage = tensor.untyped_storage()
        key = id(storage)
        if key in self._alive:
            return

        def gone(_: weakref.ref) -> None:
            del self._alive[key]
            self.now -= size

        self._alive[key] = weakref.ref(storage, gone)
        self.now += size
