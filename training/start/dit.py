"""Where a training of AnimateAnywhere starts: CogVideoX as it is published, a model, or networks of one's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from anycharv_core.checkpoints.checkpoint import Weights
from anycharv_core.checkpoints.cogvideox import read_transformer
from anycharv_core.checkpoints.dit_networks import DiTNetworks, untrained_dit
from anycharv_core.checkpoints.folders import read_library_part
from anycharv_core.checkpoints.networks import check_keys
from anycharv_core.checkpoints.state_dicts import read_weights
from anycharv_core.errors import UserError
from anycharv_core.models.dit_branches import copy_trunk
from anycharv_core.models.schedule import NoiseSchedule
from anycharv_core.systems import read_checkpoint
from training.config import Init
from training.start.initialise import check_schedule

# What the paper says of its own parts, or what stands in docs for it.
PARTS: dict[str, dict[str, Any]] = {"control": {"blocks": 18}, "reference": {"blocks": 18}, "bml": {"rank": 128}}


def dit_configs(files: Init, networks: Mapping[str, Mapping[str, Any]] | None) -> dict[str, dict[str, Any]]:
    """The config of every part that is known without files: the recipe's, over the paper's own parts."""
    own = {part: dict(config) for part, config in (networks or {}).items()}
    return {**PARTS, **own, "prompt": {}} if files.base is not None else {**own, "prompt": {}}


def initialise_dit(
    files: Init,
    networks: Mapping[str, Mapping[str, Any]] | None,
    say: Callable[[str], None] = print,
    schedule: NoiseSchedule = NoiseSchedule(),
) -> tuple[DiTNetworks, dict[str, dict[str, Any]]]:
    """The networks of a recipe, float32, frozen, and the config of every part, as a checkpoint stores it.

    schedule: what the recipe trains with, which must be that of `files.model`. ControlNet and ReferenceNet begin
    as copies of the base where no model brings them. Raises UserError naming the file where one is not what it
    should be.
    """
    configs = dit_configs(files, networks)
    given: dict[str, Weights] = {}
    if files.model is not None:
        given = _of_model(files, configs, schedule)
    elif files.base is not None:
        base = Path(files.base)
        config, given["transformer"] = read_transformer(base)
        configs["transformer"] = config or configs.get("transformer", {})
        configs["vae"], given["vae"] = read_library_part("vae", base / "vae")
    for part in ("transformer", "control", "reference", "vae"):
        if part not in configs:
            raise UserError(f"'networks.{part}' is missing: give its config, or name CogVideoX as 'init.base'.")
    nets = untrained_dit(configs)
    for part, weights in given.items():
        module = getattr(nets, part)
        check_keys(part, module, weights)
        module.load_state_dict(weights)
        say(f"{part}: {len(weights)} tensors from {files.model or files.base}")
    for part in ("control", "reference"):
        if part not in given:
            copy_trunk(nets.transformer, getattr(nets, part))
    if files.prompt is not None:
        _read_prompt(nets, Path(files.prompt))
    for module in nets.modules.values():
        module.requires_grad_(False)
    return nets, configs


def _of_model(files: Init, configs: dict[str, dict[str, Any]], schedule: NoiseSchedule) -> dict[str, Weights]:
    """The parts of `files.model`, on its base where that is apart; its configs win where the recipe has none."""
    assert files.model is not None
    model = read_checkpoint(files.model, None if files.base is None else Path(files.base))
    if not model.is_dit:
        raise UserError(f"{files.model} has no transformer: give a model of AnimateAnywhere as 'init.model'.")
    check_schedule(files.model, model, schedule)
    for part, config in model.configs.items():
        configs.setdefault(part, dict(config))
    return model.weights


@torch.no_grad()
def _read_prompt(nets: DiTNetworks, path: Path) -> None:
    embeds, own = read_weights(path).get("embeds"), nets.prompt.embeds
    if embeds is None or embeds.shape != own.shape:
        raise UserError(
            f"{path} does not hold 'embeds' of {own.shape[0]} x {own.shape[1]}: give the text of this base."
        )
    own.copy_(embeds)
