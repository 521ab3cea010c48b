"""Where a training of AnimateAnywhere starts: CogVideoX as it is published, or networks of one's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from anycharv_core.checkpoints.cogvideox import read_transformer
from anycharv_core.checkpoints.dit_networks import DiTNetworks, untrained_dit
from anycharv_core.checkpoints.folders import read_library_part
from anycharv_core.checkpoints.networks import check_keys
from anycharv_core.checkpoints.state_dicts import read_weights
from anycharv_core.errors import UserError
from anycharv_core.models.dit_branches import copy_trunk
from training.config import Init

# What the paper says of its own parts, or what stands in docs for it.
PARTS: dict[str, dict[str, Any]] = {"control": {"blocks": 18}, "reference": {"blocks": 18}, "bml": {"rank": 128}}


def dit_configs(files: Init, networks: Mapping[str, Mapping[str, Any]] | None) -> dict[str, dict[str, Any]]:
    """The config of every part that is known without files: the recipe's, over the paper's own parts."""
    own = {part: dict(config) for part, config in (networks or {}).items()}
    return {**PARTS, **own, "prompt": {}} if files.base is not None else {**own, "prompt": {}}


def initialise_dit(
    files: Init, networks: Mapping[str, Mapping[str, Any]] | None, say: Callable[[str], None] = print
) -> tuple[DiTNetworks, dict[str, dict[str, Any]]]:
    """The networks of a recipe, float32, frozen, and the config of every part, as a checkpoint stores it.

    ControlNet and ReferenceNet begin as copies of the base. Raises UserError naming the file where one is not
    what it should be.
    """
    configs = dit_configs(files, networks)
    weights = None
    if files.base is not None:
        base = Path(files.base)
        config, weights = read_transformer(base)
        configs["transformer"] = config or configs.get("transformer", {})
        configs["vae"], vae = read_library_part("vae", base / "vae")
    for part in ("transformer", "control", "reference", "vae"):
        if part not in configs:
            raise UserError(f"'networks.{part}' is missing: give its config, or name CogVideoX as 'init.base'.")
    nets = untrained_dit(configs)
    if weights is not None:
        check_keys("transformer", nets.transformer, weights)
        nets.transformer.load_state_dict(weights)
        check_keys("vae", nets.vae, vae)
        nets.vae.load_state_dict(vae)
        for branch in (nets.control, nets.reference):
            copy_trunk(nets.transformer, branch)
        say(f"transformer: {len(weights)} tensors from {files.base}; control and reference begin as its copies")
    if files.prompt is not None:
        _read_prompt(nets, Path(files.prompt))
    for module in nets.modules.values():
        module.requires_grad_(False)
    return nets, configs


@torch.no_grad()
def _read_prompt(nets: DiTNetworks, path: Path) -> None:
    embeds, own = read_weights(path).get("embeds"), nets.prompt.embeds
    if embeds is None or embeds.shape != own.shape:
        raise UserError(
            f"{path} does not hold 'embeds' of {own.shape[0]} x {own.shape[1]}: give the text of this base."
        )
    own.copy_(embeds)
