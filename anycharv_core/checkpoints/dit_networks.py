"""AnimateAnywhere's modules from a checkpoint: built from its configs, checked against its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..models.config import DiTConfig
from ..models.dit import DiT
from ..models.dit_branches import ControlDiT, Prompt, ReferenceDiT, copy_trunk
from ..models.dit_layers import MotionLearner
from .check import check_dit_ends
from .checkpoint import Checkpoint
from .networks import check_keys, fill, library_part, new_library_part


@dataclass
class DiTNetworks:
    """The modules of one model; `vae` is a diffusers AutoencoderKLCogVideoX or a ClipCodec, `bml` the background
    motion learner, each None where a checkpoint lacks it."""

    transformer: DiT
    control: ControlDiT
    reference: ReferenceDiT
    prompt: Prompt
    bml: MotionLearner | None = None
    vae: Any = None

    @property
    def modules(self) -> dict[str, nn.Module]:
        """Those that are there, by the names of their parts."""
        return {part: module for part, module in vars(self).items() if module is not None}


def build_dit_networks(
    checkpoint: Checkpoint, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> DiTNetworks:
    """Builds every part the checkpoint has, in inference mode.

    Raises UserError naming the part and the first offending key when weights and config disagree.
    """
    configs = checkpoint.configs
    check_dit_ends(configs)
    with torch.device("meta"):
        nets = _networks({part: config for part, config in configs.items() if part in checkpoint.weights})
    for part, module in nets.modules.items():
        check_keys(part, module, checkpoint.weights[part])
    if "vae" in checkpoint.weights:
        nets.vae = library_part("vae", configs["vae"], checkpoint.weights["vae"])
    fill(nets.modules, checkpoint, device, dtype)
    return nets


def untrained_dit(configs: Mapping[str, Mapping[str, Any]]) -> DiTNetworks:
    """Every part that `configs` describes, freshly initialised: the branches are copies of the transformer."""
    check_dit_ends(configs)
    nets = _networks(configs)
    for branch in (nets.control, nets.reference):
        copy_trunk(nets.transformer, branch)
    if "vae" in configs:
        nets.vae = new_library_part("vae", configs["vae"])
    return nets


def _networks(configs: Mapping[str, Mapping[str, Any]]) -> DiTNetworks:
    cfg = DiTConfig.from_dict(configs["transformer"])
    return DiTNetworks(
        DiT(cfg),
        ControlDiT(cfg, configs["control"]["blocks"]),
        ReferenceDiT(cfg, configs["reference"]["blocks"]),
        Prompt(cfg),
        MotionLearner(cfg, configs["bml"]["rank"]) if "bml" in configs else None,
    )
