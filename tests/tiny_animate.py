"""A tiny Animate Anyone of either configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import CONFIGS, UNET

from anycharv_core.checkpoints.checkpoint import Checkpoint
from anycharv_core.checkpoints.networks import untrained
from anycharv_core.media.pose import BODY
from anycharv_core.models.schedule import NoiseSchedule
from anycharv_core.systems import write_folder

SIZE, FRAMES = 32, 5
V1 = NoiseSchedule("epsilon", zero_snr=False, leading=True)
MOTION = "motion_module.pth"


def configs(v1: bool) -> dict[str, Any]:
    """A tiny Animate Anyone of the first or the second configuration."""
    base = CONFIGS["reference_unet"]
    own = {"use_inflated_groupnorm": not v1, "use_motion_module": True, "motion_module_mid_block": not v1}
    kwargs = UNET["motion_module_kwargs"] | {"temporal_position_encoding_max_len": 24 if v1 else 32}
    return CONFIGS | {"denoising_unet": base | own | {"motion_module_kwargs": kwargs}}


def make(folder: Path, v1: bool) -> Path:
    torch.manual_seed(0)
    chosen = configs(v1)
    weights = {part: module.state_dict() for part, module in vars(untrained(chosen)).items() if module}
    settings = {"noise_scheduler_kwargs": (V1 if v1 else NoiseSchedule()).to_dict()}
    write_folder(Checkpoint(chosen, weights, settings), folder)
    return folder


@pytest.fixture(scope="module", params=[True, False], ids=["v1", "v2"])
def published(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("animate") / "model", request.param)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One of the second configuration, to be spoilt."""
    return make(tmp_path / "model", v1=False)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("animate") / "model", v1=False)


@pytest.fixture
def inputs() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "reference": rng.integers(256, size=(40, 24, 3), dtype=np.uint8),
        "pose": rng.integers(256, size=(FRAMES, SIZE, 28, 3), dtype=np.uint8),
    }


UPRIGHT = {0: (50, 20), 1: (50, 30), 8: (45, 60), 9: (45, 75), 10: (45, 90)}
UPRIGHT |= {11: (55, 60), 12: (55, 75), 13: (55, 90)}


def figure(size: tuple[int, int], scale: float, shift: tuple[float, float]) -> dict[str, Any]:
    points = np.zeros((18, 3))
    for joint, place in UPRIGHT.items():
        points[joint] = (*(scale * np.array(place) + shift), 1.0)
    people = [{BODY: points.ravel().tolist()}]
    return {"canvas_width": size[0], "canvas_height": size[1], "people": people}
