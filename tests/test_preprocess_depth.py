"""Depth and objects that `anycharv preprocess` finds, by models small enough to run in milliseconds."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from test_preprocess import FRAMES, SIDE, own_cache, prepare, read, stage
from tiny_sam2 import tiny_config

from anycharv_core import UserError
from anycharv_core.preprocess.depth import DepthEstimator, depth_pictures
from anycharv_core.preprocess.segment import Segmenter, plan

__all__ = ["own_cache", "stage"]


@pytest.fixture(scope="module")
def estimator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Depth Anything's architecture with random weights."""
    from transformers import (
        DepthAnythingConfig,
        DepthAnythingForDepthEstimation,
        Dinov2Config,
        DPTImageProcessor,
    )

    backbone = Dinov2Config(
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        mlp_ratio=2,
        image_size=28,
        patch_size=14,
        out_features=["stage1", "stage2", "stage3", "stage4"],
        reshape_hidden_states=False,
    )
    config = DepthAnythingConfig(
        backbone_config=backbone,
        reassemble_hidden_size=32,
        neck_hidden_sizes=[8, 8, 8, 8],
        fusion_hidden_size=8,
        head_hidden_size=8,
    )
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("depth")
    model = DepthAnythingForDepthEstimation(config)
    with torch.no_grad():
        model.head.conv3.bias.fill_(1.0)  # or the last ReLU may leave nothing
    model.save_pretrained(folder)
    DPTImageProcessor(
        size={"height": 56, "width": 56}, keep_aspect_ratio=True, ensure_multiple_of=14
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import Sam2VideoModel

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("sam2")
    Sam2VideoModel(tiny_config()).save_pretrained(folder)
    return folder


def test_a_frame_s_depth_has_its_size_and_depends_on_it(estimator: Path) -> None:
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (2, 40, 60, 3), np.uint8)
    found = [DepthEstimator(estimator).nearness(frame) for frame in frames]
    assert found[0].shape == (40, 60) and found[0].dtype == np.float32 and not np.array_equal(*found)


def glpn(folder: Path, bias: float) -> Path:
    """A model that tells metres: the whole frame is `10 * sigmoid(bias)` away."""
    from transformers import GLPNConfig, GLPNForDepthEstimation, GLPNImageProcessor

    config = GLPNConfig(
        num_encoder_blocks=4,
        depths=[1] * 4,
        hidden_sizes=[4] * 4,
        num_attention_heads=[1] * 4,
        mlp_ratios=[1] * 4,
        decoder_hidden_size=4,
    )
    model = GLPNForDepthEstimation(config)
    with torch.no_grad():
        model.head.head[-1].weight.zero_()
        model.head.head[-1].bias.fill_(bias)
    model.save_pretrained(folder)
    GLPNImageProcessor().save_pretrained(folder)
    return folder


def test_who_is_fewer_metres_away_is_nearer(tmp_path: Path) -> None:
    frame = np.zeros((32, 64, 3), np.uint8)
    near, far = (
        DepthEstimator(glpn(tmp_path / name, bias)).nearness(frame) for name, bias in (("near", -1), ("far", 1))
    )
    np.testing.assert_allclose(near, (1 + np.exp(1)) / 10, rtol=1e-4)
    np.testing.assert_allclose(far, (1 + np.exp(-1)) / 10, rtol=1e-4)


@pytest.mark.parametrize(
    ("config", "metres"),
    [
        ({"model_type": "depth_anything", "depth_estimation_type": "relative"}, False),
        ({"model_type": "depth_anything", "depth_estimation_type": "metric"}, True),
        ({"model_type": "prompt_depth_anything", "depth_estimation_type": "metric"}, True),
        ({"model_type": "dpt"}, False),
        ({"model_type": "depth_pro"}, False),
        ({"model_type": "glpn"}, True),
        ({"model_type": "tipsv2_dpt"}, True),
        ({"model_type": "zoedepth"}, True),
    ],
    ids=lambda each: "-".join(each.values()) if isinstance(each, dict) else "",
)
def test_near_is_large_whatever_a_kind_of_model_tells(config: dict[str, str], metres: bool) -> None:
    """What transformers' own `predicted_depth` is, by the sources of each kind."""
    told = SimpleNamespace(predicted_depth=torch.tensor([[[1.0, 2.0], [1.0, 2.0]]]))
    model = Mock(return_value=told, config=SimpleNamespace(**config))
    estimator = DepthEstimator("")
    estimator._loaded = model, Mock(return_value={"pixel_values": torch.zeros(1, 3, 2, 2)})
    left, right = estimator.nearness(np.zeros((2, 2, 3), np.uint8))[0]
    assert (left > right) == metres


def test_depth_lies_on_the_frame_whatever_a_processor_would_pad(estimator: Path, tmp_path: Path) -> None:
    from transformers import DPTImageProcessor

    shutil.copytree(estimator, tmp_path / "padding")
    padding = DPTImageProcessor.from_pretrained(estimator, do_pad=True, size_divisor=112)
    padding.save_pretrained(tmp_path / "padding")
    frame = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    shown = [DepthEstimator(folder).nearness(frame) for folder in (estimator, tmp_path / "padding")]
    assert np.array_equal(*shown)


def test_what_is_no_depth_model_is_said(tmp_path: Path, segmenter: Path) -> None:
    for folder in (tmp_path, segmenter):
        with pytest.raises(UserError, match="is no depth estimation model of transformers"):
            DepthEstimator(folder).nearness(np.zeros((28, 28, 3), np.uint8))


class Ramp(DepthEstimator):
    """Nearer to the right, and in later frames."""

    def __init__(self) -> None:
        super().__init__("")
        self.seen = 0

    def nearness(self, frame: np.ndarray) -> np.ndarray:
        self.seen += 1
        return np.broadcast_to(np.arange(frame.shape[1], dtype=np.float32) + 10 * self.seen, frame.shape[:2])


def test_pictures_have_one_range_for_the_whole_video_and_nothing_off_the_person() -> None:
    masks = np.zeros((3, 8, 10), np.uint8)
    masks[:2, 2:6, 2:8] = 255
    made = list(depth_pictures(Ramp(), np.zeros((3, 8, 10, 3), np.uint8), masks))
    assert all((picture[mask == 0] == 0).all() for picture, mask in zip(made, masks, strict=True))
    assert made[0][3, 2] == 1 and made[1][3, 7] == 255 and not made[2].any()
    assert (np.diff(made[0][3, 2:8].astype(int)) > 0).all() and (made[1][masks[1] > 0] > made[0].max()).all()


def test_a_thing_is_followed_to_the_end_of_its_shot() -> None:
    places = [None, (3.0, 4.0), *[None] * 30]
    assert plan(places, gap=len(places)) == ["empty", "start", *["follow"] * 30]
    assert plan(places) == ["empty", "start", *["empty"] * 30]
    assert plan(places, cuts=[5], gap=len(places))[4:7] == ["follow", "empty", "empty"]


def test_a_click_and_a_box_are_different_prompts(segmenter: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (3, 48, 64, 3), np.uint8)
    made = [
        np.stack(list(Segmenter(segmenter).masks(frames, [place, None, None], gap=3)))
        for place in ((20.0, 20.0), (10.0, 10.0, 30.0, 30.0))
    ]
    assert made[0].shape == made[1].shape == (3, 48, 64) and not np.array_equal(*made)


def test_the_command_writes_both_beside_the_masks(
    stage: Path, tmp_path: Path, estimator: Path, segmenter: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    things = ["--objects", "1,40,60", "--objects", "0,10,20,60,90", "--segmenter", segmenter]
    more = [*things, "--depth-model", estimator]
    assert prepare(stage, out, *more) == 0
    objects, depth, masks = (read(out / f"{name}.mkv") for name in ("objects", "depth", "mask"))
    assert objects.shape == depth.shape == (FRAMES, SIDE, 2 * SIDE) and set(np.unique(objects)) <= {0, 255}
    assert np.array_equal(depth > 0, masks >= 128)
    report = json.loads((out / "report.json").read_text())
    assert report["objects"] == [[1, 40, 60], [0, 10, 20, 60, 90]] and report["depth_model"] == str(estimator)
    assert all(str(out / f"{name}.mkv") in capsys.readouterr().out for name in ("objects",))
    assert prepare(stage, out, "--objects", "99,1,1", "--segmenter", segmenter) == 2
    assert "name frame 99, but the video has 6" in capsys.readouterr().err
    assert prepare(stage, out, "--people", "1,2", "--objects", "0,1,1", "--segmenter", segmenter) == 2
    assert "are what one person holds" in capsys.readouterr().err
    assert prepare(stage, out, "--objects", "0,1") == 2
    assert "is not 3 or 5 numbers" in capsys.readouterr().err
