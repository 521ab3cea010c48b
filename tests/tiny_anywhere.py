"""A tiny AnimateAnywhere with random weights, alone and beside its base."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from dit_nets import TINY, randomised
from safetensors.torch import save_file

from anycharv_core.checkpoints.checkpoint import Checkpoint
from anycharv_core.checkpoints.dit_networks import untrained_dit
from anycharv_core.models.schedule import NoiseSchedule

SIZE = 32
VAE: dict[str, Any] = {"_class_name": "ClipCodec", "latent_channels": 4, "block_out_channels": [8, 8, 8]}
CONFIGS: dict[str, dict[str, Any]] = {
    "transformer": TINY,
    "control": {"blocks": 2},
    "reference": {"blocks": 2},
    "bml": {"rank": 4},
    "prompt": {},
    "vae": VAE,
}
SETTINGS: dict[str, Any] = {
    "system": "anywhere",
    "size": [SIZE, SIZE],
    "frames": 8,
    "steps": 2,
    "guidance_scale": 2.5,
    "image_scale": 1.0,
    "noise_scheduler_kwargs": NoiseSchedule(offset=0, scaled=True).to_dict(),
}


def checkpoint(**configs: Any) -> Checkpoint:
    """Its weights are such that nothing it is given goes without effect."""
    return Checkpoint(CONFIGS | configs, _weights(CONFIGS | configs), dict(SETTINGS))


def _weights(configs: dict[str, dict[str, Any]]) -> dict[str, dict[str, torch.Tensor]]:
    nets = untrained_dit(configs)
    weights = {}
    for seed, (part, module) in enumerate(nets.modules.items()):
        weights[part] = randomised(module, seed).state_dict()
    generator = torch.Generator().manual_seed(9)
    weights["prompt"]["embeds"] = torch.randn(weights["prompt"]["embeds"].shape, generator=generator)
    return weights


def write_base(model: Checkpoint, folder: Path, shards: int = 3) -> Path:
    """What the model's base brings, laid out as CogVideoX1.5-5B-I2V is."""
    for part in ("transformer", "vae"):
        (folder / part).mkdir(parents=True)
        (folder / part / "config.json").write_text(json.dumps(model.configs[part]))
    stem = "diffusion_pytorch_model"
    save_file(model.weights["vae"], folder / "vae" / f"{stem}.safetensors")
    keys = sorted(model.weights["transformer"])
    if shards == 1:
        save_file(model.weights["transformer"], folder / "transformer" / f"{stem}.safetensors")
        return folder
    index = {}
    for number in range(shards):
        name = f"{stem}-{number + 1:05}-of-{shards:05}.safetensors"
        own = {key: model.weights["transformer"][key] for key in keys[number::shards]}
        save_file(own, folder / "transformer" / name)
        index |= dict.fromkeys(own, name)
    content = {"metadata": {"total_size": 1}, "weight_map": index}
    (folder / "transformer" / f"{stem}.safetensors.index.json").write_text(json.dumps(content))
    return folder
