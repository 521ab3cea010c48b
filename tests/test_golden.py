"""The official recipe against a small recording of the official release; see data/README.md."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from anycharv_core import Pipeline
from anycharv_core.checkpoints.checkpoint import Checkpoint
from anycharv_core.checkpoints.networks import untrained
from anycharv_core.models.layers import MotionModule
from anycharv_core.models.windows import closed_loop_windows
from anycharv_core.systems import write_folder
from anycharv_core.systems.anycharv import RECIPES

GOLDEN = Path(__file__).parent / "data" / "golden.safetensors"
with safe_open(GOLDEN, "np") as file:
    RECORDED = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
    CONFIGS, CASES = (json.loads(file.metadata()[key]) for key in ("configs", "cases"))
RIGHT, WRONG = 5e-4, 5e-3


def spread(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """float64 in 0..1 without order: SplitMix64 of the name's CRC-32 and each element's index."""
    x = np.arange(math.prod(shape), dtype=np.uint64) + np.uint64(zlib.crc32(name.encode()) << 32)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
    return ((x ^ (x >> np.uint64(31))) >> np.uint64(11)).reshape(shape) / 2.0**53


def weight(name: str, value: Tensor) -> Tensor:
    """Matrices within 1 / sqrt(fan-in), norms near one, small biases; tables such as `pe` keep theirs."""
    if name.endswith(".pe") or not value.is_floating_point():
        return value
    wave = 2 * spread(name, tuple(value.shape)) - 1
    if value.ndim > 1:
        wave /= math.sqrt(value[0].numel())
    else:
        wave = 0.1 * wave if name.endswith("bias") else 1 + 0.2 * wave
    return torch.from_numpy(wave).float()


def fill(part: str, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: weight(f"{part}.{key}", value) for key, value in weights.items()}


def pictures(case: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The arguments reference, scene, mask and pose, each of a size of its own, mask in all greys."""
    sizes = case["sizes"].items()
    return {name: (256 * spread(name, tuple(shape))).astype(np.uint8) for name, shape in sizes}


@pytest.fixture(scope="module")
def pipe(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    networks = untrained(CONFIGS)
    folder = tmp_path_factory.mktemp("golden")
    weights = {part: fill(part, module.state_dict()) for part, module in vars(networks).items() if module}
    write_folder(Checkpoint(CONFIGS, weights), folder)
    return Pipeline.from_pretrained(folder)


def run(pipe: Pipeline, name: str, **changes: np.ndarray) -> tuple[float, np.ndarray]:
    """Largest error of the final latents, and the frames."""
    case = CASES[name]
    noise, expected = (torch.from_numpy(RECORDED[f"{name}.{key}"]) for key in ("noise", "latents"))
    settings = {key: case[key] for key in ("steps", "guidance_scale")}
    out = pipe(**pictures(case) | changes, **settings, noise=noise, recipe="official")
    return (out.latents - expected).abs().max().item(), out.frames


@pytest.mark.parametrize("name", CASES)
def test_latents_and_pixels_equal_the_release(pipe: Pipeline, name: str) -> None:
    error, frames = run(pipe, name)
    assert error <= RIGHT
    # Truncation turns a rounding error at a whole level into one level.
    assert np.abs(frames[0].astype(int) - RECORDED[f"{name}.pixels"]).max() <= 1


def test_missing_motion_modules_are_seen(pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MotionModule, "forward", lambda module, x, cond: x)
    assert run(pipe, "single")[0] > WRONG


def test_a_missing_bank_is_seen(pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipe.backend.networks.denoising_unet, "project_bank", lambda tokens: None)
    assert run(pipe, "single")[0] > WRONG


def test_a_binarised_mask_is_seen(pipe: Pipeline) -> None:
    mask = pictures(CASES["single"])["mask"]
    assert run(pipe, "single", mask=np.where(mask >= 128, np.uint8(255), np.uint8(0)))[0] > WRONG


def test_averaged_windows_are_seen(pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    averaging = replace(RECIPES["official"], windows=lambda frames, _: closed_loop_windows(frames, True))
    monkeypatch.setitem(RECIPES, "official", averaging)
    assert run(pipe, "windows")[0] > WRONG
