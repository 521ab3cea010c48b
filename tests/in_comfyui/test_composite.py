"""AnyCharV Composite."""

from __future__ import annotations

import torch
from comfy_pack import core, execute


def test_composite_keeps_the_original_bit_for_bit() -> None:
    torch.manual_seed(0)
    feather = core("anycharv_core.media.masks").feather
    original = torch.rand(3, 45, 70, 3)
    mask = torch.zeros(3, 45, 70)
    mask[0, 10:20, 10:30] = 1
    mask[2, :, :5] = 1
    for generated in (torch.rand(3, 45, 70, 3), torch.rand(3, 48, 72, 3), torch.rand(3, 28, 40, 3)):
        (result,) = execute("AnyCharVComposite", generated=generated, original=original, mask=mask, feather=3)
        for frame in range(3):
            outside = torch.from_numpy(feather((mask[frame] * 255).byte().numpy(), 3, 3)) == 0
            assert torch.equal(result[frame][outside], original[frame][outside])
        assert not torch.equal(result[0], original[0])
        assert torch.equal(result[1], original[1])
    (hard,) = execute("AnyCharVComposite", generated=original * 0, original=original, mask=mask, feather=0)
    assert torch.equal(hard == 0, (mask == 1)[..., None].expand_as(hard))


def test_composite_undoes_what_conditioning_did() -> None:
    """A picture sent to the working size and back lies where it lay."""
    pipeline, recipes = core("nodes.backend"), core("anycharv_core.systems.anycharv")
    composite = core("nodes.composite")
    recipe = recipes.RECIPES["default"]

    class Pipe:
        settings, multiple = {"size": [64, 64]}, 4

    for source in ((540, 960), (1920, 1080), (854, 480), (64, 64), (333, 517)):
        for asked in ((0, 0), (512, 512), (256, 512)):
            size = pipeline.node_size(Pipe, "default", source, asked)
            canvas = recipe.canvas(source, source, size, Pipe.multiple)
            assert composite.original_canvas(source, canvas.padded).inner == canvas.inner, (source, asked)
