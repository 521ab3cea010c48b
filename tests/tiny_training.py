"""A training small enough for tests: the whole config in one function."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml
from conftest import CONFIGS

RECIPES = sorted((Path(__file__).parents[1] / "training" / "configs").glob("*.yaml"))
CODEC = {"_class_name": "PatchCodec", "latent_channels": 4, "block_out_channels": [8, 16], "scaling_factor": 1.0}
# Motion modules normalise in 32 groups, whatever the config says.
SMALL = {"block_out_channels": [32, 32], "norm_num_groups": 8}
NETWORKS = {name: {**config, **(SMALL if name.endswith("unet") else {})} for name, config in CONFIGS.items()} | {
    "vae": CODEC
}
PHASE = {
    "train": ["denoising_unet", "reference_unet", "pose_guider"],
    "steps": 6,
    "batch": 2,
    "frames": 2,
    "lr": 1e-2,
    "ema": 0.9,
    "save_every": 2,
    "log_every": 1,
    "export": {"layout": "single", "dtype": "fp32"},
}


def recipe(**phase: Any) -> dict[str, Any]:
    """A config of one phase, `compose`, on 8 puppet clips of 16 x 16 pixels, changed by `phase`."""
    return {
        "seed": 0,
        "networks": deepcopy(NETWORKS),
        "data": {"source": "puppets", "size": [16, 16], "clips": 8},
        "objective": {"drop": 0.3},
        "engine": {"tracker": "none"},
        "phases": {"compose": deepcopy(PHASE) | phase},
    }


def write(folder: Path, config: dict[str, Any]) -> Path:
    """The config as a file in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return path


def long_recipe() -> dict[str, Any]:
    """A recipe whose last phases nobody would meet for days."""
    config = recipe()
    config["phases"]["pairs"] = {"task": "pairs", "pairs": {"pairs": 4, "model": "compose"}}
    config["phases"]["last"] = PHASE | {"data": {"source": "pairs", "made_by": "pairs"}}
    config["phases"]["lora"] = PHASE | {"train": [], "lora": {"rank": 4}}
    return config
