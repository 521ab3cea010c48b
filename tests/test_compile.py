"""The denoising UNet under torch.compile: one graph, few of them, and a sentence where it fails."""

from collections.abc import Callable
from functools import partial

import pytest
import torch

from anycharv_core.errors import UserError
from anycharv_core.inference.compiling import compiled
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
        motion=MotionConfig(heads=4, max_len=6, mid_block=False),
    )
    torch.manual_seed(0)
    return DenoisingUNet(config).requires_grad_(False).eval()


def test_the_whole_unet_is_one_graph_for_any_number_of_frames(unet: DenoisingUNet) -> None:
    graphs = []

    def count(graph: torch.fx.GraphModule, _: list[torch.Tensor]) -> Callable[..., object]:
        graphs.append(graph)
        return graph

    torch.compiler.reset()
    whole = torch.compile(unet.denoise, backend=count, fullgraph=True)  # raises where the graph would break
    image = unet.project_image(torch.randn(2, 16))
    bank = unet.project_bank([torch.randn(1, 16, WIDTH)] * len(unet.spatial_blocks()))
    with torch.inference_mode():
        for frames in (2, 3, 5):
            rows = 2 * frames
            call = torch.randn(rows, 9, 4, 4), torch.tensor([7]), image, torch.randn(rows, WIDTH, 4, 4), bank
            made, expected = (run(*call, frames, frames)[0] for run in (whole, unet.denoise))
            assert torch.allclose(made, expected, atol=1e-5)
    assert len(graphs) == 2  # one for the first number of frames, and one for all others


def test_what_torch_cannot_compile_is_said_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("no compiler")

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=fail))
    with pytest.raises(UserError, match=r"no compiler.*leave --compile out"):
        compiled(torch.neg)(torch.ones(2))
