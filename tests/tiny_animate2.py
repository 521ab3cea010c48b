"""A tiny Animate Anyone 2 with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from conftest import CONFIGS, UNET
from torch import nn

from anycharv_core.checkpoints.checkpoint import Checkpoint
from anycharv_core.checkpoints.networks import untrained
from anycharv_core.systems import write_folder

SIZE = 32


def configs() -> dict[str, dict[str, Any]]:
    own: dict[str, Any] = {
        "reference_blocks": "mid_up",
        "object_blending": {"channels": 1},
    }
    return CONFIGS | {
        "denoising_unet": UNET | own,
        "pose_guider": CONFIGS["pose_guider"] | {"block_out_channels": [8, 32], "depth_modulation": True},
        "object_guider": {"latent_channels": 4, "block_out_channels": UNET["block_out_channels"]},
    }


def checkpoint() -> Checkpoint:
    """Its weights are such that nothing it is given goes without effect."""
    torch.manual_seed(0)
    networks = untrained(configs())
    for network in (networks.denoising_unet, networks.pose_guider):
        for weight in network.parameters():
            if not weight.any():
                nn.init.normal_(weight, std=0.1)
    weights = {part: network.state_dict() for part, network in vars(networks).items()}
    return Checkpoint(configs(), weights, {"blocks": [5, 3]})


def make(folder: Path) -> Path:
    write_folder(checkpoint(), folder)
    return folder


def inputs(frames: int = 3) -> dict[str, np.ndarray]:
    """What a pipeline is given: everything, of `frames` frames of SIZE pixels a side."""
    rng = np.random.default_rng(0)
    mask, objects = np.zeros((2, frames, SIZE, SIZE), np.uint8)
    mask[:, 6:26, 8:20], objects[:, 14:20, 18:24] = 255, 255
    pose = np.zeros((frames, SIZE, SIZE, 3), np.uint8)
    pose[:, 8:24, 12:15, 0] = 255
    return {
        "reference": rng.integers(0, 256, (SIZE, SIZE, 3), np.uint8),
        "scene": rng.integers(0, 256, (frames, SIZE, SIZE, 3), np.uint8),
        "mask": mask,
        "pose": pose,
        "objects": objects,
        "depth": rng.integers(1, 256, (frames, SIZE, SIZE), np.uint8),
    }
