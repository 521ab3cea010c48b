"""The default recipe's promises, and the sentences for input that does not fit together."""

from pathlib import Path

import numpy as np
import pytest
import torch

from anycharv_core import Pipeline, UserError
from anycharv_core.inference.finish import FEATHER
from anycharv_core.media.canvas import FRAME, Canvas
from anycharv_core.media.masks import feather
from anycharv_core.systems.anycharv import RECIPES

WIDTH, HEIGHT, FRAMES = 37, 29, 5


@pytest.fixture(scope="module")
def pipe(tiny_model: Path) -> Pipeline:
    return Pipeline.from_pretrained(tiny_model)


@pytest.fixture
def clip() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    mask = np.zeros((FRAMES, HEIGHT, WIDTH), np.uint8)
    mask[:, 8:20, 10:22] = 255
    mask[2] = 0
    return {
        "reference": rng.integers(256, size=(40, 24, 3), dtype=np.uint8),
        "scene": rng.integers(256, size=(FRAMES, HEIGHT, WIDTH, 3), dtype=np.uint8),
        "mask": mask,
        "pose": rng.integers(256, size=(FRAMES, 2 * HEIGHT, 2 * WIDTH, 3), dtype=np.uint8),
    }


@pytest.mark.parametrize("size", [None, (20, 20)])
def test_pixels_outside_the_mask_are_the_input(pipe: Pipeline, clip: dict, size: tuple | None) -> None:
    out = pipe(**clip, steps=2, size=size)
    assert out.frames.shape == clip["scene"].shape and out.frames.dtype == np.uint8
    width = max(1, round(FEATHER * HEIGHT))
    outside = np.stack([feather(m, width, width) for m in clip["mask"]]) == 0
    assert np.array_equal(out.frames[outside], clip["scene"][outside])
    inside = clip["mask"] > 0
    assert (out.frames[inside] != clip["scene"][inside]).mean() > 0.9


def test_frames_without_a_person_pass_through(pipe: Pipeline, clip: dict) -> None:
    assert np.array_equal(pipe(**clip, steps=1).frames[2], clip["scene"][2])


def test_stretches_without_a_person_are_not_sampled(pipe: Pipeline) -> None:
    frames = 60
    clip = {name: np.zeros((frames, 16, 16, 3), np.uint8) for name in ("scene", "pose")}
    mask = np.zeros((frames, 16, 16), np.uint8)
    mask[:3, 4:12, 4:12] = 255
    calls = []
    reference = np.zeros((16, 16, 3), np.uint8)
    out = pipe(reference, mask=mask, **clip, steps=1, progress=lambda done, total: calls.append(total))
    assert calls == [1]
    scene = pipe.backend.encode(clip["scene"][-1:])
    torch.testing.assert_close(out.latents[-1:], scene)


def test_iterators_give_the_same_and_give_an_iterator(pipe: Pipeline, clip: dict) -> None:
    whole = pipe(**clip, steps=1)
    streams = {name: iter(clip[name]) for name in ("scene", "mask", "pose")}
    streamed = pipe(clip["reference"], **streams, steps=1)
    assert iter(streamed.frames) is streamed.frames
    assert np.array_equal(np.stack(list(streamed.frames)), whole.frames)


def test_seed_decides_and_noise_overrides(pipe: Pipeline, clip: dict) -> None:
    first, again, other = (pipe(**clip, steps=1, seed=seed).latents for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    noise = torch.randn(first.shape)
    given = [pipe(**clip, steps=1, seed=seed, noise=noise).latents for seed in (1, 2)]
    assert torch.equal(*given)


def test_guidance_of_one_is_the_conditional_half(pipe: Pipeline, clip: dict) -> None:
    one, nearly, three = (pipe(**clip, steps=1, guidance_scale=g).latents for g in (1.0, 1.00001, 3.0))
    torch.testing.assert_close(one, nearly, atol=1e-3, rtol=1e-3)
    assert (one - three).abs().max() > 1e-3


def test_alpha_and_mask_remove_the_reference_background(pipe: Pipeline, clip: dict) -> None:
    alpha = np.zeros(clip["reference"].shape[:2], np.uint8)
    alpha[10:30, 5:20] = 255
    black = clip["reference"] * (alpha > 0)[..., None]
    expected = pipe(**clip | {"reference": black}, steps=1, canvas=FRAME).latents
    assert torch.equal(pipe(**clip, reference_mask=alpha, steps=1, canvas=FRAME).latents, expected)
    rgba = np.dstack([clip["reference"], alpha])
    assert torch.equal(pipe(**clip | {"reference": rgba}, steps=1, canvas=FRAME).latents, expected)
    assert not torch.equal(pipe(**clip, steps=1, canvas=FRAME).latents, expected)


def test_the_reference_keeps_its_proportions() -> None:
    picture = np.full((40, 10, 3), 255, np.uint8)
    canvas = Canvas((64, 32), (64, 32), (64, 32))
    placed = RECIPES["default"].reference(picture, canvas)
    rows, columns = np.nonzero(placed[..., 0] > 128)
    assert (np.ptp(rows) + 1, np.ptp(columns) + 1) == (32, 8)


def test_a_canvas_pads_and_never_stretches() -> None:
    canvas = RECIPES["default"].canvas((37, 29), (74, 58), None, 8)
    assert canvas == Canvas((37, 29), (37, 29), (40, 32))
    picture = np.random.default_rng(0).integers(256, size=(29, 37, 3), dtype=np.uint8)
    placed = canvas.place(picture)
    assert np.array_equal(placed[:29, :37], picture) and np.array_equal(placed[31, 39], picture[28, 36])
    assert np.array_equal(canvas.restore(placed), picture)


def test_official_output_is_the_whole_vae_picture(pipe: Pipeline, clip: dict) -> None:
    out = pipe(**clip, steps=1, recipe="official")
    assert out.frames.shape == (FRAMES, 2 * HEIGHT, 2 * WIDTH, 3)
    assert pipe(**clip, steps=1, recipe="official", size=(21, 16)).frames.shape == (FRAMES, 16, 20, 3)


def test_half_precision_stays_close(tiny_model: Path, clip: dict) -> None:
    noise = torch.randn(FRAMES, 4, 15, 19, generator=torch.Generator().manual_seed(0))
    full, half = (
        Pipeline.from_pretrained(tiny_model, dtype=dtype)(**clip, steps=2, noise=noise).latents
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert half.dtype == torch.float32
    assert (full - half).abs().mean() < 0.1 * full.abs().mean()


def blank(*shape: int, value: int = 0) -> np.ndarray:
    return np.full(shape, value, np.uint8)


BAD = {
    "frames of one size": ({"scene": [blank(HEIGHT, WIDTH, 3), blank(9, 9, 3)]}, "scene changes size"),
    "uint8": ({"scene": np.zeros((FRAMES, HEIGHT, WIDTH, 3), np.float32)}, "scene must be uint8"),
    "channels": ({"pose": blank(FRAMES, HEIGHT, WIDTH, 4)}, r"pose must be uint8 \[H, W, 3\]"),
    "3-channel mask": ({"mask": blank(FRAMES, HEIGHT, WIDTH, 3)}, r"mask must be uint8 \[H, W\]"),
    "mask length": ({"mask": blank(2, HEIGHT, WIDTH, value=255)}, "mask has 2 frames but the scene has"),
    "pose length": ({"pose": blank(9, HEIGHT, WIDTH, 3)}, "scene has 5 frames but the pose has more"),
    "mask size": ({"mask": blank(FRAMES, 9, 9, value=255)}, "masks of the scene's size"),
    "pose shape": ({"pose": blank(FRAMES, 64, 16, 3)}, "scene's proportions"),
    "empty mask": ({"mask": blank(FRAMES, HEIGHT, WIDTH)}, "mask is empty"),
    "no frames": ({name: [] for name in ("scene", "mask", "pose")}, "no frames"),
    "recipe": ({"recipe": "secret"}, "no recipe 'secret'"),
    "steps": ({"steps": 0}, "steps is 0"),
    "noise": ({"noise": torch.zeros(1, 4, 2, 2)}, "noise has shape"),
    "reference": ({"reference": blank(8, 8)}, "reference must be uint8"),
    "reference mask": ({"reference_mask": blank(8, 8)}, "reference mask must be uint8"),
    "black reference mask": (
        {"reference": blank(8, 8, 3), "reference_mask": blank(8, 8)},
        "reference mask is black everywhere; mark the character",
    ),
    "transparent reference": (
        {"reference": blank(8, 8, 4)},
        "reference is transparent everywhere; give a picture",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named_in_one_sentence(pipe: Pipeline, clip: dict, name: str) -> None:
    change, sentence = BAD[name]
    with pytest.raises(UserError, match=sentence) as error:
        pipe(**{"steps": 1} | clip | change)
    assert "\n" not in str(error.value)
