"""Where memory runs out a video takes longer, and comes out the same."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from anycharv_core import Pipeline
from anycharv_core.errors import UserError
from anycharv_core.inference import backend as backends
from anycharv_core.inference.backend import TorchBackend
from anycharv_core.inference.memory import Ladder, Rung

FRAMES, HEIGHT, WIDTH = 5, 24, 32


@pytest.fixture
def pipe(tiny_model: Path) -> Pipeline:
    """A model as on a card: with every step down still before it."""
    pipe = Pipeline.from_pretrained(tiny_model)
    backend_of(pipe).ladder = Ladder()
    return pipe


def backend_of(pipe: Pipeline) -> TorchBackend:
    assert isinstance(pipe.backend, TorchBackend)
    return pipe.backend


def make(pipe: Pipeline) -> np.ndarray:
    rng = np.random.default_rng(0)
    frames = rng.integers(256, size=(FRAMES, HEIGHT, WIDTH, 3), dtype=np.uint8)
    mask = np.full((FRAMES, HEIGHT, WIDTH), 255, np.uint8)
    made = pipe(frames[0], frames, mask, frames, steps=2, guidance_scale=2.0).frames
    assert isinstance(made, np.ndarray)
    return made


def full(holder: Any, name: str, when: Callable[..., bool], monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Lets `holder.name` run out of memory when its arguments say so; returns the rows of every call that ran."""
    work, ran = getattr(holder, name), []

    def run(x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if when(x):
            raise torch.OutOfMemoryError("CUDA out of memory.")
        ran.append(len(x))
        return work(x, *args, **kwargs)

    monkeypatch.setattr(holder, name, run)
    return ran


def steps_down(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if "Memory is short" in record.getMessage()]


def test_rows_go_through_the_denoising_unet_apart(
    pipe: Pipeline, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected = make(pipe)
    unet = backend_of(pipe).networks.denoising_unet
    ran = full(unet, "forward", lambda x: len(x) > FRAMES, monkeypatch)
    assert np.abs(make(pipe).astype(int) - expected).max() <= 1
    assert ran == [FRAMES] * 4, "two steps, of two calls each"
    assert len(steps_down(caplog)) == 1 and "one after another" in steps_down(caplog)[0]


def test_rows_are_apart_beforehand_where_they_would_not_fit(
    pipe: Pipeline, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected = make(pipe)
    monkeypatch.setattr(backends, "free_memory", lambda device: 1000)
    ran = full(backend_of(pipe).networks.denoising_unet, "forward", lambda x: False, monkeypatch)
    assert np.abs(make(pipe).astype(int) - expected).max() <= 1
    assert ran == [FRAMES] * 4 and len(steps_down(caplog)) == 1


@pytest.mark.parametrize("name", ["encode", "decode"])
def test_frames_go_through_the_vae_one_at_a_time(
    name: str, pipe: Pipeline, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected = make(pipe)
    ran = full(backend_of(pipe).networks.vae, name, lambda x: len(x) > 1, monkeypatch)
    assert np.abs(make(pipe).astype(int) - expected).max() <= 1
    assert set(ran) == {1} and len(steps_down(caplog)) == 1


def test_then_it_takes_tiles(
    pipe: Pipeline, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected = make(pipe)
    vae = backend_of(pipe).networks.vae
    full(vae, "decode", lambda x: not vae.use_tiling, monkeypatch)
    assert np.abs(make(pipe).astype(int) - expected).max() <= 1
    assert [rung in steps_down(caplog)[at] for at, rung in enumerate(("one at a time", "tiles"))] == [True, True]
    assert len(steps_down(caplog)) == 2


def test_then_networks_take_turns(
    pipe: Pipeline, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Of a card there is only the name here: where a network was sent to is all that can be seen."""
    backend = backend_of(pipe)
    networks = backend.networks
    names = {id(network): name for name, network in vars(networks).items() if network is not None}
    there = set(names.values())

    def move(network: nn.Module, place: Any) -> nn.Module:
        (there.discard if place == "cpu" else there.add)(names[id(network)])
        return network

    def alone(*_: Any) -> bool:
        return there != {"reference_unet"}

    monkeypatch.setattr(nn.Module, "to", move)
    latents, image_embed = torch.zeros(1, 4, 8, 8), torch.zeros(1, 16)
    expected = backend.reference_tokens(latents, image_embed)
    full(networks.reference_unet, "forward", alone, monkeypatch)
    backend.device = torch.device("cuda")
    for made, token in zip(backend.reference_tokens(latents, image_embed), expected, strict=True):
        assert torch.equal(made, token)
    assert there == {"reference_unet"} and backend.ladder.taken == {Rung.TURNS}
    assert len(steps_down(caplog)) == 1


def test_in_the_end_one_sentence_says_what_to_lower(
    pipe: Pipeline, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    full(backend_of(pipe).networks.vae, "decode", lambda x: True, monkeypatch)
    with pytest.raises(UserError, match="give a smaller --size"):
        make(pipe)
    assert len(steps_down(caplog)) == 3


def test_a_cpu_has_no_other_memory_to_wait_in(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = TorchBackend.from_pretrained(tiny_model)
    calls = []

    def forward(*args: Any) -> None:
        calls.append(1)
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes.")

    monkeypatch.setattr(backend.networks.reference_unet, "forward", forward)
    with pytest.raises(UserError, match="memory is not enough"):
        backend.reference_tokens(torch.zeros(1, 4, 8, 8), torch.zeros(1, 16))
    assert len(calls) == 1


def test_what_is_no_full_memory_is_not_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    def broken() -> None:
        raise RuntimeError("shapes cannot be multiplied")

    with caplog.at_level(logging.WARNING), pytest.raises(RuntimeError, match="multiplied"):
        Ladder().run(broken, *Rung)
    assert not caplog.records
