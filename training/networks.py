"""The networks as a phase finds them, and the trained model as a phase leaves it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from anycharv_core.checkpoints import state_dicts
from anycharv_core.checkpoints.checkpoint import Checkpoint
from anycharv_core.checkpoints.cogvideox import without_base
from anycharv_core.checkpoints.dit_networks import DiTNetworks
from anycharv_core.checkpoints.networks import Networks
from anycharv_core.checkpoints.single_file import write_single
from anycharv_core.errors import UserError
from anycharv_core.files import atomic_path, owned_folder
from anycharv_core.jobs.precision import DTYPES
from anycharv_core.models.dit_branches import copy_trunk
from anycharv_core.systems import write_folder
from training.config import Config, Lora, Phase
from training.lora import FILE, add_lora, lora_state_dict, merge_lora, write_lora
from training.start.dit import initialise_dit
from training.start.initialise import initialise

WEIGHTS = "weights.safetensors"  # what a phase trained, float32; a phase that has it is done
MODEL = "model"  # what Pipeline.from_pretrained reads: MODEL.safetensors or the folder MODEL

DENOISER = "denoising_unet"

Configs = dict[str, dict[str, Any]]
Nets = Networks | DiTNetworks


def build(config: Config, folders: Sequence[Path], say: Callable[[str], None]) -> tuple[Nets, Configs]:
    """The networks on the CPU, frozen, with what the phases in `folders` trained, in that order; and the
    config of every part.

    Raises UserError where an initial file or a phase's weights are missing or do not fit.
    """
    torch.manual_seed(config.seed)
    nets: Nets
    if config.is_dit:
        nets, configs = initialise_dit(config.init, config.networks, say, config.schedule)
    else:
        nets, configs = initialise(config.init, config.networks, say, schedule=config.schedule)
    for folder in folders:
        weights = read_weights(folder)
        load_into(nets, weights, folder / WEIGHTS)
        trains_base = any(name.startswith("transformer.") for name in weights)
        if isinstance(nets, DiTNetworks) and trains_base and config.init.model is None:
            # What begins as copies of the base does so when that is trained.
            for branch in (nets.control, nets.reference):
                copy_trunk(nets.transformer, branch)
    return nets, configs


def read_weights(folder: Path) -> dict[str, Tensor]:
    """What the phase in `folder` trained, by `<part>.<name>`."""
    path = folder / WEIGHTS
    if not path.exists():
        raise UserError(f"{path} is missing: train the phase {folder.name} first.")
    return state_dicts.read_weights(path)


def load_into(nets: Nets, weights: dict[str, Tensor], source: Path) -> None:
    """Copies weights by `<part>.<name>` into the networks; `source` is named where they do not fit."""
    with torch.no_grad():
        for name, value in weights.items():
            part, _, key = name.partition(".")
            own = getattr(nets, part).state_dict().get(key)
            if own is None or own.shape != value.shape:
                raise UserError(
                    f"{source} holds '{name}', for which these networks have no place: they changed since; train "
                    "into another folder."
                )
            own.copy_(value)


def check_export(nets: Nets, phase: Phase, name: str) -> None:
    """Raises UserError where the phase of that name is to write parts that there are none of, which would be known
    only after its training."""
    if lacking := [part for part in phase.export.parts or () if getattr(nets, part, None) is None]:
        raise UserError(
            f"'phases.{name}.export.parts' names {lacking[0]}, which these networks do not have: leave it out."
        )


def export_weights(
    nets: Nets, configs: Configs, weights: dict[str, Tensor], config: Config, phase: Phase, folder: Path
) -> None:
    """Writes the model of a finished phase, and then, as the sign that it is finished, what it trained."""
    load_into(nets, weights, folder / WEIGHTS)
    own = {part: net.state_dict() for part, net in vars(nets).items() if net is not None}
    export = phase.export
    parts: dict[str, Any] = own if export.parts is None else {str(part): own[part] for part in export.parts}
    checkpoint = Checkpoint({part: configs[part] for part in parts}, parts, config.settings_of(phase))
    if config.init.base is not None and not any("transformer" in each.train for each in config.phases.values()):
        checkpoint = without_base(checkpoint)
    dtype = DTYPES[export.dtype]
    if export.layout != "folder":
        write_single(checkpoint, folder / f"{MODEL}.safetensors", dtype)
    if export.layout != "single":
        with owned_folder(folder / MODEL) as tmp:
            write_folder(checkpoint, tmp, dtype)
    with atomic_path(folder / WEIGHTS) as tmp:
        save_file({name: value.contiguous() for name, value in weights.items()}, tmp)


def export_lora(
    nets: Nets, weights: dict[str, Tensor], lora: Lora, motion: bool, folder: Path
) -> dict[str, Tensor]:
    """Writes the LoRA file that was trained; returns the denoising UNet's weights that it changes, changed.

    nets: without LoRA; weights: the trained factors by their names in the module.
    """
    assert isinstance(nets, Networks)  # the config's check saw to it
    unet = nets.denoising_unet
    before = {key: value.clone() for key, value in unet.state_dict().items()}
    adapted = copy.deepcopy(unet)
    add_lora(adapted, lora, motion)
    factors = {key.removeprefix(f"{DENOISER}."): value for key, value in weights.items()}
    adapted.load_state_dict(factors, strict=False)
    factors = lora_state_dict(adapted)
    write_lora(factors, folder / FILE)
    merged = merge_lora(before, factors)
    return {f"{DENOISER}.{key}": value for key, value in merged.items() if not torch.equal(value, before[key])}


def model_path(folder: Path) -> Path:
    """The trained model in a finished phase's folder."""
    whole = folder / MODEL
    return whole if whole.is_dir() else whole.with_suffix(".safetensors")
