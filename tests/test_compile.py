"""The denoising UNet under torch.compile: one graph, few of them, and a sentence where it fails."""

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch

from anycharv_core import Pipeline
from anycharv_core.errors import UserError
from anycharv_core.inference.compiling import compiled
from anycharv_core.inference.shortcuts import NONE, Shortcuts
from anycharv_core.models import DenoisingUNet, MotionConfig, UNetConfig

WIDTH = 32


@pytest.fixture(scope="module")
def unet() -> DenoisingUNet:
    config = UNetConfig(
        in_channels=9,
        out_channels=4,
        block_out_channels=(WIDTH,),
        down_attention=(True,),
        up_attention=(True,),
        layers_per_block=1,
        heads=(4,),
        cross_attention_dim=16,
        motion=MotionConfig(heads=4, max_len=8, mid_block=False),
    )
    torch.manual_seed(0)
    return DenoisingUNet(config).requires_grad_(False).eval()


def test_the_whole_unet_is_one_graph_for_any_number_of_frames(unet: DenoisingUNet) -> None:
    graphs = []

    def count(graph: torch.fx.GraphModule, _: list[torch.Tensor]) -> Callable[..., object]:
        graphs.append(graph)
        return graph

    torch.compiler.reset()
    # Raises where the graph would break. Dynamic from the start: without, the first number has a graph of its own.
    whole = torch.compile(unet.denoise, backend=count, fullgraph=True, dynamic=True)
    image = unet.project_image(torch.randn(2, 16))
    bank = unet.project_bank([torch.randn(1, 16, WIDTH)] * len(unet.spatial_blocks()))
    with torch.inference_mode():
        for frames in (3, 5, 7):
            rows = 2 * frames
            call = torch.randn(rows, 9, 4, 4), torch.tensor([7]), image, torch.randn(rows, WIDTH, 4, 4), bank
            made, expected = (run(*call, frames, frames)[0] for run in (whole, unet.denoise))
            assert torch.allclose(made, expected, atol=1e-5)
    assert len(graphs) == 1


@pytest.mark.parametrize("shortcuts", [NONE, Shortcuts(deep_cache=2)])
def test_a_pipeline_runs_what_was_compiled(shortcuts: Shortcuts, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def counting(function: Callable[..., object]) -> Callable[..., object]:
        return lambda *given, **settings: calls.append(function) or function(*given, **settings)

    monkeypatch.setattr(torch, "compile", counting)
    pictures = np.random.default_rng(0).integers(256, size=(5, 32, 32, 3), dtype=np.uint8)
    mask = np.full((2, 32, 32), 255, np.uint8)
    made = [
        Pipeline.from_pretrained("embedded", compile=compile)(
            pictures[0], pictures[1:3], mask, pictures[3:], steps=2, canvas="frame", shortcuts=shortcuts
        )
        for compile in (False, True)
    ]
    assert torch.equal(made[0].latents, made[1].latents)
    assert len(calls) == 2


def test_what_torch_cannot_compile_is_said_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("no compiler")

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=fail))
    with pytest.raises(UserError, match=r"no compiler.*leave --compile out"):
        compiled(torch.neg)(torch.ones(2))
