"""AnimateAnywhere where memory is short, and what of diffusers attaches to its networks."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import tiny_anywhere
import torch
from test_anywhere import inputs
from torch import nn

from anycharv_core.errors import UserError
from anycharv_core.inference import anywhere
from anycharv_core.inference.anywhere import AnywhereBackend
from anycharv_core.inference.memory import Rung
from anycharv_core.inference.pipeline import Pipeline

LARGE = ("transformer", "control", "reference")
# Takes tensors, has their shapes, and calls itself by another name than they do, as a card may.
CARD = torch.device("meta:0")


def backend_on(device: str | torch.device) -> AnywhereBackend:
    model = tiny_anywhere.checkpoint()
    return AnywhereBackend.of_checkpoint(model, "model", None, None, device, torch.float32, False)


@pytest.fixture
def backend() -> AnywhereBackend:
    return backend_on("cpu")


def made(backend: AnywhereBackend, **more: Any) -> torch.Tensor:
    return Pipeline(backend)(**inputs() | more).latents


def offloaded(backend: AnywhereBackend, folder: Path, **how: Any) -> None:
    """Lets diffusers keep the large networks' weights in files, but while it knows them to be used."""
    from diffusers.hooks import apply_group_offloading

    cpu = torch.device("cpu")
    for part in LARGE:
        net = getattr(backend.networks, part)
        apply_group_offloading(net, cpu, cpu, offload_to_disk_path=str(folder / part), **how)


def test_layers_can_be_away_until_they_are_called_and_blocks_cannot(
    backend: AnywhereBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    once = {"steps": 1, "guidance_scale": 1.0}
    wanted = made(backend, **once)
    # What diffusers has of a weight that is in its file: no number, so that using it shows.
    monkeypatch.setattr(torch, "empty_like", lambda x, **how: torch.full_like(x, math.nan, **how))
    offloaded(backend, tmp_path / "layers", offload_type="leaf_level")
    assert all(p.isnan().all() for part in LARGE for p in getattr(backend.networks, part).parameters())
    assert (made(backend, **once) - wanted).abs().max() <= 1e-4
    blocks = backend_on("cpu")
    offloaded(blocks, tmp_path / "blocks", offload_type="block_level", num_blocks_per_group=1)
    assert made(blocks, **once).isnan().any()


def test_weights_can_be_kept_in_a_narrower_format(backend: AnywhereBackend) -> None:
    from diffusers.hooks import apply_layerwise_casting

    wanted = made(backend)
    for part in LARGE:
        net = getattr(backend.networks, part)
        apply_layerwise_casting(net, torch.bfloat16, torch.float32, skip_modules_pattern=("norm",))
    assert 0 < (made(backend) - wanted).abs().max() / wanted.abs().max() < 0.1


class Card:
    """Where networks and layers were sent to."""

    def __init__(self, backend: AnywhereBackend, monkeypatch: pytest.MonkeyPatch):
        self.names = {id(module): name for name, module in backend.networks.modules.items()}
        self.there: set[str] = set()
        self.streamed: list[str] = []
        monkeypatch.setattr(nn.Module, "to", lambda network, place: self.move(network, place))
        monkeypatch.setattr("diffusers.hooks.apply_group_offloading", self.stream)

    def move(self, network: nn.Module, place: Any) -> nn.Module:
        name = self.names[id(network)]
        (self.there.discard if str(place) == "cpu" else self.there.add)(name)
        return network

    def stream(self, network: nn.Module, to: Any, home: torch.device, offload_type: str) -> None:
        assert (to, home.type, offload_type) == (CARD, "cpu", "leaf_level")
        self.there.discard(self.names[id(network)])
        self.streamed.append(self.names[id(network)])


def weigh(*networks: nn.Module) -> int:
    return sum(p.nbytes for network in networks for p in network.parameters())


def card_of(free: float, monkeypatch: pytest.MonkeyPatch) -> AnywhereBackend:
    """A backend on a card that has so many bytes."""
    monkeypatch.setattr(anywhere, "free_memory", lambda device: free)
    return backend_on(CARD)


def test_networks_lie_on_the_card_where_they_fit_together(
    backend: AnywhereBackend, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    whole = weigh(*backend.networks.modules.values())
    for free, place, said in ((2 * whole, "meta", 0), (0.9 * whole, "cpu", 1)):
        caplog.clear()
        card = card_of(free, monkeypatch)
        assert {p.device.type for net in card.networks.modules.values() for p in net.parameters()} == {place}
        assert (Rung.TURNS in card.ladder.taken) == bool(said)
        assert [Rung.TURNS.value in each.getMessage() for each in caplog.records] == [True] * said


def make_room(backend: AnywhereBackend) -> int:
    """Asks for room for 2 latents of 8 x 8 and a reference; returns the bytes that are computed at least."""
    tokens = [torch.zeros(1, 4, 4, 32)] * 2
    backend._make_room((2, 4, 8, 8), tokens)
    return (anywhere.ALIVE * (3 + 16) + 2 * 2 * 16) * 32 * 4


def test_what_does_not_fit_is_known_before_sampling(
    backend: AnywhereBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed = make_room(backend)
    step = weigh(*backend._denoising)
    for free, rungs in (
        (step + computed, {Rung.TURNS}),
        (step + computed - 1, {Rung.TURNS, Rung.LAYERS}),
        (computed, {Rung.TURNS, Rung.LAYERS}),
    ):
        card = card_of(free, monkeypatch)
        make_room(card)
        assert card.ladder.taken - {Rung.TILES} == rungs
    card = card_of(computed - 1, monkeypatch)
    with pytest.raises(UserError, match="are free for it: give a smaller --size or fewer --frames"):
        make_room(card)
    # Main memory is no different, but that no network can leave it.
    steps: list[int] = []
    with pytest.raises(UserError, match="are free for it"):
        made(backend, progress=lambda done, total: steps.append(done))
    assert not steps


def test_networks_on_the_card_make_way_for_what_is_computed(
    backend: AnywhereBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, computed = weigh(*backend.networks.modules.values()), make_room(backend)
    backend = card_of(2 * whole, monkeypatch)
    for free, rungs in ((computed, set()), (computed - 1, {Rung.TURNS})):
        monkeypatch.setattr(anywhere, "free_memory", lambda device, free=free: free)
        make_room(backend)
        assert backend.ladder.taken - {Rung.TILES} == rungs


def test_in_the_end_layers_take_turns(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    backend = card_of(1000, monkeypatch)
    nets = backend.networks
    card = Card(backend, monkeypatch)

    def run(*given: Any) -> list[torch.Tensor]:
        if not card.streamed:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return []

    monkeypatch.setattr(nets.reference, "forward", run)
    monkeypatch.setattr(nets.prompt, "forward", lambda: None)
    assert backend.reference_tokens(torch.zeros(1, 4, 8, 8), torch.zeros(1, 0)) == []
    assert card.streamed == list(LARGE)
    assert card.there == {"prompt"}, "what is streamed is not moved as a whole"
    backend._take_turns(*backend._denoising)
    assert card.there == {"prompt", "bml"} and card.streamed == list(LARGE)
    assert len(caplog.records) == 2 and "layers" in caplog.records[-1].getMessage()
    card.streamed.clear()
    with pytest.raises(UserError, match="this clip: give a smaller --size or fewer --frames, or --dtype bf16"):
        backend.reference_tokens(torch.zeros(1, 4, 8, 8), torch.zeros(1, 0))


def test_layers_need_accelerate(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = card_of(1000, monkeypatch)
    backend.ladder.take(Rung.LAYERS)
    monkeypatch.setattr(anywhere, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install accelerate"):
        backend._take_turns(backend.networks.transformer)


NAMES = [r"transformer_blocks\.\d+\.attn1"]


def test_taylorseer_attaches(backend: AnywhereBackend) -> None:
    from diffusers.hooks import TaylorSeerCacheConfig, apply_taylorseer_cache

    given = {"steps": 6, "guidance_scale": 2.5}
    wanted = made(backend, **given)

    def cached(interval: int) -> AnywhereBackend:
        own = backend_on("cpu")
        config = TaylorSeerCacheConfig(
            cache_interval=interval,
            disable_cache_before_step=1,
            taylor_factors_dtype=torch.float32,
            cache_identifiers=NAMES,
        )
        own.attach_cache(apply_taylorseer_cache, config)
        return own

    assert torch.equal(made(cached(1), **given), wanted)
    backend = cached(2)
    calls = []
    attention = backend.networks.transformer.blocks()[1].attn1
    attention.to_q.register_forward_hook(lambda *_: calls.append(1))
    short = made(backend, **given)
    assert len(calls) == 6, "of two predictions in each of six steps"
    assert 0 < (short - wanted).abs().max() / wanted.abs().max() < 0.1
    assert torch.equal(made(backend, **given), short), "a clip finds nothing of the one before"


def test_other_caches_of_diffusers_do_not_attach(backend: AnywhereBackend) -> None:
    from diffusers import hooks

    wanted = made(backend)
    for apply, config in (
        (hooks.apply_first_block_cache, hooks.FirstBlockCacheConfig()),
        (hooks.apply_mag_cache, hooks.MagCacheConfig(calibrate=True)),
    ):
        with pytest.raises(ValueError, match="not registered"):
            backend.attach_cache(apply, config)
    config = hooks.PyramidAttentionBroadcastConfig(2, current_timestep_callback=lambda: 500)
    backend.attach_cache(hooks.apply_pyramid_attention_broadcast, config)
    assert torch.equal(made(backend), wanted), "it finds no attention that it knows"
    config = hooks.FasterCacheConfig(current_timestep_callback=lambda: 500)
    backend.attach_cache(hooks.apply_faster_cache, config)
    with pytest.raises(ValueError, match="unpack"):
        made(backend, guidance_scale=1.0)
