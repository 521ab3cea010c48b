"""AnyCharV Composite."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from comfy_pack import conditioned, core, execute, load, picture

Size = tuple[int, int]


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


def restored(placing: Any, scene: np.ndarray, size: tuple[int, int], **inputs: Any) -> np.ndarray:
    """A picture placed on the canvas, enlarged to `size` and put back over a black one of the scene's size, in
    0..1."""
    placed = image(resize(placing.place(scene), size))
    whole = torch.ones(1, *scene.shape[:2])
    (result,) = execute(
        "AnyCharVComposite", generated=placed, original=image(scene) * 0, mask=whole, feather=0, **inputs
    )
    return result[0].numpy()


def image(array: np.ndarray) -> torch.Tensor:
    return picture(array[None])


def resize(array: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return core("anycharv_core.media.imaging").resize(array, size)


def whole_frames(canvas: Any) -> Any:
    return core("anycharv_core.media.canvas").CanvasPath(canvas)


def slope(width: int, height: int) -> np.ndarray:
    """Brightness that tells where a pixel lies: rising to the right in red, and downwards in green."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return np.stack([x, y, 0 * x], axis=-1).round().astype(np.uint8)


@pytest.mark.parametrize("enlarged", [1, 2])
@pytest.mark.parametrize("asked", [(72, 72), (64, 96), (0, 0)])
@pytest.mark.parametrize("source", [(65, 65), (71, 66), (120, 67), (64, 64)])
def test_composite_undoes_what_conditioning_did(source: Size, asked: Size, enlarged: int) -> None:
    """A picture comes back to where it lay, also where a canvas guessed from the sizes is another: 65x65 asked
    72x72 could as well have been padded."""
    parts = load()
    scene, mask = slope(*source), torch.zeros(1, source[1], source[0])
    mask[:, 20:40, 20:40] = 1
    made = conditioned(
        *parts, frames=1, width=asked[0], height=asked[1], scene=image(scene), mask=mask, pose=image(scene)
    )
    canvas = made["canvas"].canvas
    size = tuple(enlarged * side for side in canvas.padded)
    back = restored(canvas, scene, size, canvas=made["canvas"])
    # Half a pixel of the source, or of the canvas where that is smaller.
    pixel = 1 / min(*source, *canvas.inner)
    assert np.abs(back - scene / 255).max() < 1.5 * pixel


def test_composite_undoes_the_official_recipes_stretching() -> None:
    canvas = core("anycharv_core.systems.anycharv").RECIPES["official"].canvas((90, 50), (64, 64), (64, 64), 8)
    scene = slope(90, 50)
    placed = image(resize(scene, canvas.padded))
    (result,) = execute(
        "AnyCharVComposite",
        generated=placed,
        original=image(scene) * 0,
        mask=torch.ones(1, 50, 90),
        feather=0,
        canvas=whole_frames(canvas),
    )
    assert np.abs(result[0].numpy() - scene / 255).max() < 1.5 / 50


@pytest.mark.parametrize("larger", [1, 2])
def test_a_canvas_that_follows_the_person_comes_back_to_its_place(larger: int) -> None:
    scene = np.stack([slope(160, 120)] * 4)
    masks = torch.zeros(4, 120, 160)
    for index in range(4):
        masks[index, 50:90, 40 + 4 * index : 60 + 4 * index] = 1
    made = conditioned(
        *load(),
        frames=4,
        scene=picture(scene),
        mask=masks,
        pose=picture(scene),
        width=64,
        height=64,
        canvas="person",
        context=0.2,
    )
    path = made["canvas"]
    assert path.windows.shape == (4, 4) and made["latent"]["samples"].shape[-2:] == (16, 16)
    placed = np.stack([path.at(index).place(frame) for index, frame in enumerate(scene)])
    originals = np.stack([slope(larger * 160, larger * 120)] * 4)
    shown = masks.repeat_interleave(larger, 1).repeat_interleave(larger, 2)
    (result,) = execute(
        "AnyCharVComposite",
        generated=picture(placed),
        original=picture(originals) * 0,
        mask=shown,
        feather=0,
        canvas=path,
    )
    inside = shown[..., None] > 0
    error = (result - picture(originals)).abs()[inside.expand_as(result)]
    assert error.max() < 1.5 / 64 and not result[~inside.expand_as(result)].any()


def test_a_canvas_that_follows_refuses_another_number_of_frames() -> None:
    masks = torch.zeros(4, 120, 160)
    masks[:, 50:90, 40:60] = 1
    scene = picture(np.stack([slope(160, 120)] * 4))
    path = conditioned(*load(), frames=4, scene=scene, mask=masks, pose=scene, canvas="person")["canvas"]
    with pytest.raises(Exception, match="follows a person through 4 frames but original has 3"):
        execute(
            "AnyCharVComposite",
            generated=torch.zeros(3, 64, 64, 3),
            original=scene[:3],
            mask=masks[:3],
            feather=0,
            canvas=path,
        )


def test_composite_without_a_canvas_logs_what_it_assumes(caplog: pytest.LogCaptureFixture) -> None:
    canvas = core("anycharv_core.media.canvas").Canvas((60, 40), (60, 40), (64, 40))
    scene = slope(60, 40)
    back = restored(canvas, scene, canvas.padded)
    assert "frames of 60x40 were scaled to 60x40 and padded to 64x40" in caplog.text
    assert np.abs(back - scene / 255).max() < 1e-6
    caplog.clear()
    restored(canvas, scene, canvas.padded, canvas=whole_frames(canvas))
    restored(core("anycharv_core.media.canvas").Canvas(*[(60, 40)] * 3), scene, (60, 40))
    assert not caplog.text


def test_an_assumed_canvas_is_right_at_the_models_own_size() -> None:
    backend, recipes = core("nodes.backend"), core("anycharv_core.systems.anycharv")
    composite = core("nodes.composite")
    recipe = recipes.RECIPES["default"]

    pipe = core("anycharv_core.inference.pipeline").Pipeline.from_pretrained("embedded")

    for source in ((540, 960), (1920, 1080), (854, 480), (64, 64), (333, 517)):
        for asked in ((0, 0), (512, 512), (256, 512)):
            size = backend.node_size(pipe, recipe, source, asked)
            canvas = recipe.canvas(source, source, size, pipe.backend.multiple)
            assert composite.assumed_canvas(source, canvas.padded).inner == canvas.inner, (source, asked)


def test_even_sides_leave_out_a_pixel() -> None:
    original, mask = torch.rand(2, 63, 65, 3, generator=torch.Generator().manual_seed(0)), torch.zeros(2, 63, 65)
    mask[:, 20:30, 20:30] = 1
    settings = {"generated": torch.rand(2, 64, 72, 3), "original": original, "mask": mask, "feather": 2}
    (whole,), (even,) = (execute("AnyCharVComposite", **settings, even_sides=even) for even in (False, True))
    assert whole.shape == original.shape and torch.equal(even, whole[:, :62, :64])


@pytest.mark.parametrize("padded", [(96, 64), (104, 72)])
def test_the_scene_is_kept_as_the_one_node_keeps_it(padded: Size) -> None:
    paste_back = core("anycharv_core.inference.finish").PasteBack
    recipe = core("anycharv_core.systems.anycharv").ANYCHARV.recipe("default")
    scene = np.random.default_rng(0).integers(60, 180, (64, 96, 3), dtype=np.uint8)
    mask = np.zeros((64, 96), np.uint8)
    mask[8:56, 16:80] = 255
    redrawn = scene + np.uint8(9)
    redrawn[24:40, 40:56] = 255
    made = np.pad(redrawn, [(0, padded[1] - 64), (0, padded[0] - 96), (0, 0)])
    placing = core("anycharv_core.media.canvas").Canvas((96, 64), (96, 64), padded)
    settings = {"generated": image(made), "original": image(scene), "canvas": whole_frames(placing), "feather": 1}
    for keep in (False, True):
        (result,) = execute("AnyCharVComposite", **settings, mask=image(mask), keep_scene=keep)
        expected = paste_back([scene], [mask], replace(recipe, keeps_scene=keep))(made, placing)
        assert np.abs(result[0].numpy() * 255 - expected).max() <= 1
        kept = (result == image(scene)).all(dim=3)[0, 10:54, 18:78].float().mean()
        assert (0.5 < kept < 0.9) if keep else kept == 0
