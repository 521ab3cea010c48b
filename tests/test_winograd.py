"""Convolutions the short way equal torch's, and are taken only where they are shorter."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from anycharv_core import Pipeline
from anycharv_core.models import winograd
from anycharv_core.models.winograd import LEAST_CHANNELS, WinogradConv2d, convolve, shorten


@pytest.mark.parametrize(
    ("rows", "inner", "outer", "height", "width"),
    [
        (1, 8, 5, 2, 2),
        (3, 4, 6, 10, 34),  # several lines of a picture at once, the lines of which no power of two shares
        (7, 5, 3, 6, 8),  # several pictures at once
        (1, 3, 4, 4, 2 * winograd.TILES + 6),  # a line longer than a block
    ],
)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_equal_to_torch(rows, inner, outer, height, width, layout):
    torch.manual_seed(0)
    x = torch.randn(rows, inner, height, width).to(memory_format=layout)
    weight = torch.randn(outer, inner, 3, 3).to(memory_format=layout)
    for bias in (torch.randn(outer), None):
        wanted = F.conv2d(x, weight, bias, padding=1)
        torch.testing.assert_close(convolve(x, weight, bias), wanted, atol=2e-5, rtol=1e-5)


def convolutions(*modules):
    network = nn.Sequential(*modules)
    shorten(network)
    return network


def test_only_wide_ones_of_stride_one_are_shortened():
    wide = LEAST_CHANNELS
    network = convolutions(
        nn.Conv2d(wide, wide, 3, padding=1),
        nn.Conv2d(wide, wide, 3, stride=2, padding=1),
        nn.Conv2d(wide, wide, 1),
        nn.Conv2d(wide, wide, 3),
        nn.Conv2d(wide, wide // 2, 3, padding=1),
        nn.Conv2d(wide, wide, 3, padding=1, groups=2),
    )
    assert [type(module) is WinogradConv2d for module in network] == [True] + [False] * 5
    assert set(network.state_dict()) == {f"{i}.{name}" for i in range(6) for name in ("weight", "bias")}


@pytest.mark.parametrize("shape", [(1, 32, 32), (1, 23, 32), (1, 32, 21), (1, 4, 4)])
def test_any_size_gives_what_torch_gives(shape, monkeypatch):
    taken = []
    monkeypatch.setattr(winograd, "convolve", lambda *args: taken.append(args) or convolve(*args))
    torch.manual_seed(0)
    network = convolutions(nn.Conv2d(LEAST_CHANNELS, LEAST_CHANNELS, 3, padding=1))
    x = torch.randn(shape[0], LEAST_CHANNELS, *shape[1:])
    with torch.no_grad():
        found = network(x)
        wanted = F.conv2d(x, network[0].weight, network[0].bias, padding=1)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    assert len(taken) == (shape == (1, 32, 32))


def test_training_and_bfloat16_keep_torchs(monkeypatch):
    def refuse(*args):
        raise AssertionError("taken")

    monkeypatch.setattr(winograd, "convolve", refuse)
    network = convolutions(nn.Conv2d(LEAST_CHANNELS, LEAST_CHANNELS, 3, padding=1))
    x = torch.randn(1, LEAST_CHANNELS, 32, 32)
    network(x).sum().backward()
    assert network[0].weight.grad is not None
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert network(x).dtype == torch.bfloat16
    with torch.no_grad():
        network.bfloat16()(x.bfloat16())


def test_a_pipeline_in_float32_takes_it(tiny_model, monkeypatch):
    rng = np.random.default_rng(0)
    pictures = {
        "reference": rng.integers(256, size=(64, 64, 3), dtype=np.uint8),
        "scene": rng.integers(256, size=(2, 64, 64, 3), dtype=np.uint8),
        "pose": rng.integers(256, size=(2, 64, 64, 3), dtype=np.uint8),
        "mask": np.full((2, 64, 64), 255, np.uint8),
    }

    def latents():
        return Pipeline.from_pretrained(tiny_model)(**pictures, steps=2, recipe="official").latents

    wanted = latents()
    taken = []
    monkeypatch.setattr(winograd, "LEAST_CHANNELS", 8)
    monkeypatch.setattr(winograd, "LEAST_TILES", 16)
    monkeypatch.setattr(winograd, "convolve", lambda *args: taken.append(args) or convolve(*args))
    torch.testing.assert_close(latents(), wanted, atol=1e-4, rtol=1e-4)
    assert taken
