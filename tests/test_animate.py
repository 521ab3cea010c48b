"""Animate Anyone: the networks of its first configuration, the pipeline, keying, rescaling."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from keypoint_files import people_of
from tiny_animate import FRAMES, SIZE, configs, figure
from tiny_animate import inputs as inputs
from tiny_animate import model as model
from tiny_animate import published as published

from anycharv_core import Pipeline, UserError
from anycharv_core.checkpoints.single_file import write_single
from anycharv_core.media.chroma_key import key_colour, key_onto, on_colour
from anycharv_core.media.pose import body_points, parse_poses
from anycharv_core.models import DenoisingUNet, UNetConfig
from anycharv_core.preprocess.retarget import rescale
from anycharv_core.systems import read_checkpoint
from anycharv_core.systems.animate_anyone import RECIPES as ANIMATE_RECIPES


@pytest.fixture(scope="module")
def pipe(model: Path) -> Pipeline:
    return Pipeline.from_pretrained(model)


def test_the_first_configuration_normalises_frames_jointly() -> None:
    torch.manual_seed(0)
    net = DenoisingUNet(UNetConfig.from_dict(configs(v1=True)["denoising_unet"])).requires_grad_(False)
    x, image, pose = torch.randn(4, 4, 8, 8), torch.randn(1, 16), torch.randn(4, 32, 8, 8)
    joint = torch.nn.GroupNorm(16, 32)
    h = net.conv_in(x) + pose
    expected = joint(h.unflatten(0, (2, 2)).transpose(1, 2)).transpose(1, 2).flatten(0, 1)
    norm = net.down_blocks[0].resnets[0].norm1
    seen = []
    handle = norm.register_forward_hook(lambda module, given, out: seen.append(out))
    clips = net(x, torch.zeros(1), image, pose, None, frames=2)
    handle.remove()
    torch.testing.assert_close(seen[0].transpose(1, 2).flatten(0, 1), expected)
    # One clip's frames never touch another's.
    alone = net(x[2:], torch.zeros(1), image, pose[2:], None, frames=2)
    torch.testing.assert_close(clips[2:], alone, atol=1e-5, rtol=1e-5)


def test_default_frames_have_the_poses_size(pipe: Pipeline, inputs: dict) -> None:
    out = pipe(**inputs, steps=1)
    assert out.frames.shape == (FRAMES, SIZE, 28, 3) and out.latents.shape == (FRAMES, 4, SIZE // 2, 14)
    streamed = pipe(inputs["reference"], pose=iter(inputs["pose"]), steps=1)
    assert np.array_equal(np.stack(list(streamed.frames)), out.frames)
    smaller = pipe(**inputs, steps=1, size=(16, 16))
    assert smaller.frames.shape == (FRAMES, 16, 14, 3)


def test_the_reference_keeps_its_proportions_and_fills_up_with_its_edges() -> None:
    picture = np.zeros((40, 20, 3), np.uint8)
    picture[10:30, 5:15] = 255
    canvas = ANIMATE_RECIPES["default"].canvas(None, (64, 32), None, 8)
    placed = ANIMATE_RECIPES["default"].reference(np.maximum(picture, 9), canvas)
    rows, columns = np.nonzero(placed[..., 0] > 132)
    assert (np.ptp(rows) + 1, np.ptp(columns) + 1) == (16, 8)
    assert (placed[:, :20] == 9).all()


def test_default_averages_where_official_sums(pipe: Pipeline) -> None:
    for guidance in (1.0, 3.0):
        windows = ANIMATE_RECIPES["default"].windows(40, guidance)
        assert windows.average and all(list(w) == sorted(w) for w in windows.indices)
    assert not ANIMATE_RECIPES["official"].windows(40, 1.0).average
    assert ANIMATE_RECIPES["official"].windows(40, 3.0).indices[1][0] == 20


def test_a_scene_behind_the_keyed_character(pipe: Pipeline, inputs: dict) -> None:
    scene = np.random.default_rng(1).integers(256, size=(FRAMES, SIZE, 28, 3), dtype=np.uint8)
    alpha = np.zeros((40, 24), np.uint8)
    alpha[5:35, 5:20] = 255
    key = key_colour(inputs["reference"], alpha)
    plain = pipe(on_colour(inputs["reference"], alpha, key), pose=inputs["pose"], steps=1).frames
    out = pipe(**inputs, scene=scene, reference_mask=alpha, steps=1).frames
    expected = np.stack([key_onto(*pair, key) for pair in zip(plain, scene, strict=True)])
    assert np.array_equal(out, expected)


def test_a_scene_outside_the_masks_is_untouched(pipe: Pipeline, inputs: dict) -> None:
    scene = np.random.default_rng(1).integers(256, size=(FRAMES, SIZE, 28, 3), dtype=np.uint8)
    mask = np.zeros((FRAMES, SIZE, 28), np.uint8)
    mask[:, 10:20, 10:20] = 255
    out = pipe(**inputs, scene=scene, mask=mask, steps=1).frames
    made = pipe(**inputs, steps=1).frames
    assert np.array_equal(out[:, :8], scene[:, :8]) and np.array_equal(out[:, 13:17, 13:17], made[:, 13:17, 13:17])


def test_keying_keeps_the_character_and_the_scene() -> None:
    picture, alpha = np.full((8, 8, 3), (10, 200, 30), np.uint8), np.full((8, 8), 255, np.uint8)
    key = key_colour(picture, alpha)
    assert max(abs(a - b) for a, b in zip(key, (10, 200, 30), strict=True)) > 120
    made = np.full((8, 8, 3), key, np.uint8)
    made[2:5, 2:5] = picture[0, 0]
    made[6, 6] = np.clip(np.array(key, int) + np.array([-20, 20, -9]), 0, 255)
    scene = np.random.default_rng(0).integers(256, size=(8, 8, 3), dtype=np.uint8)
    out = key_onto(made, scene, key)
    assert (out[2:5, 2:5] == picture[0, 0]).all()
    outside = np.ones((8, 8), bool)
    outside[2:5, 2:5] = False
    assert np.array_equal(out[outside], scene[outside])


def test_bad_input_is_named_in_one_sentence(pipe: Pipeline, tiny_model: Path, inputs: dict) -> None:
    scene = np.zeros((FRAMES, SIZE, 28, 3), np.uint8)
    mask = np.zeros((FRAMES, SIZE, 28), np.uint8)
    swap = Pipeline.from_pretrained(tiny_model)
    cases = [
        (pipe, {"size": (17, 16)}, "17x16 is not divisible by 2; use 16x16"),
        (pipe, {"size": (17, 16), "recipe": "official"}, "17x16 is not divisible by 2"),
        (pipe, {"pose": None}, "no pose"),
        (pipe, {"pose": inputs["pose"][:0]}, "pose has no frames"),
        (pipe, {"mask": mask}, "a mask but no scene"),
        (pipe, {"scene": scene}, "needs a matte"),
        (pipe, {"scene": scene, "recipe": "official"}, "knows no scene"),
        (pipe, {"scene": scene[:3], "mask": mask}, "scene has 3 frames but the pose has more"),
        (pipe, {"scene": scene, "mask": mask[:, :9]}, "masks of the scene's size"),
        (pipe, {"noise": torch.zeros(1, 4, 2, 2)}, "noise has shape"),
        (swap, {}, "replaces a person in a scene"),
    ]
    for asked, change, sentence in cases:
        with pytest.raises(UserError, match=sentence) as error:
            asked(**{"steps": 1} | inputs | change)
        assert "\n" not in str(error.value)


def test_rescaling_takes_the_characters_length_and_place() -> None:
    clip = parse_poses([figure((200, 100), 0.5, (100 + step, 20)) for step in range(5)])
    reference = parse_poses(figure((100, 100), 0.8, (5, 5)))
    frames = rescale(clip, reference).people
    # The picture lies in the middle of the clip's canvas, 50 pixels from its left.
    wanted = body_points(people_of(figure((200, 100), 0.8, (55, 5)))[0])
    np.testing.assert_allclose(body_points(frames[2][0])[:, :2], wanted[:, :2], atol=1e-3)
    np.testing.assert_allclose(body_points(frames[3][0])[1] - body_points(frames[2][0])[1], (1.6, 0, 0), atol=1e-3)
    stretched = rescale(clip, reference, keep_aspect=False).people
    assert body_points(stretched[2][0])[1, 0] == pytest.approx(2 * (0.8 * 50 + 5), abs=1e-3)


def test_a_single_file_animates_as_the_folder(published: Path, inputs: dict, tmp_path: Path) -> None:
    write_single(read_checkpoint(published), tmp_path / "one.safetensors")
    pipes = (Pipeline.from_pretrained(path) for path in (published, tmp_path / "one.safetensors"))
    first, second = (pipe(**inputs, steps=2).latents for pipe in pipes)
    # Not to the bit: where a file places a weight in memory decides which kernel a CPU library picks.
    torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-5)
