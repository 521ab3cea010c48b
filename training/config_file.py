"""A YAML file read into a `Config`, and checked: what is laid beneath every phase, and what is at odds."""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from anycharv_core.errors import UserError
from anycharv_core.foreign import parse_yaml, read_yaml
from anycharv_core.models import ObjectGuiderConfig, PoseGuiderConfig, UNetConfig
from anycharv_core.models.config import DiTConfig
from anycharv_core.models.fields import Fields
from anycharv_core.models.schedule import TRAIN_STEPS
from anycharv_core.models.slots import FRAMES
from training.config import BACKGROUND, CACHE, DIFFUSION, JOURNEYS, Config, Data, Engine, Objective, Part, Phase
from training.sections import build, mapping, merged, path, shown, unknown


def read_config(file: str | Path, changes: Sequence[str] = ()) -> Config:
    """The config in a YAML file, changed by `changes` like "phases.boost.lr=1e-6", their values YAML too.

    Raises UserError naming the file and the key where something is missing, unknown, of another type, out of range
    or in conflict with the rest.
    """
    raw = read_yaml(file)
    if not isinstance(raw, dict):
        raise UserError(f"{file} is not a training config: it must hold keys such as 'phases'.")
    for change in changes:
        _change(raw, change)
    try:
        return parse(raw)
    except UserError as error:
        raise UserError(f"{file}: {error}") from None


def parse(raw: Mapping[str, Any]) -> Config:
    """The config that `raw`, as YAML gives it, describes; raises UserError as `read_config` does."""
    raw = dict(raw)
    engine = _renamed(mapping(raw.pop("engine", None), "engine"), "engine")
    run_wide = {f.name for f in dataclasses.fields(Engine)}
    whole = {key: value for key, value in engine.items() if key in run_wide}
    common = {key: value for key, value in engine.items() if key not in run_wide}
    phase_keys = [f.name for f in dataclasses.fields(Phase)]
    for key in common:
        if key not in phase_keys:
            raise unknown("engine", key, [*run_wide, *phase_keys])
    for key, kind in (("data", Data), ("objective", Objective)):
        below = mapping(raw.pop(key, None), key)
        build(kind, below, key)
        common[key] = merged(below, mapping(common.get(key), f"engine.{key}"))
    common["data"].setdefault("seed", raw.get("seed", 0))
    raw["phases"] = {
        name: _phase(common, each, f"phases.{name}") for name, each in mapping(raw.get("phases"), "phases").items()
    }
    config = build(Config, raw | {"engine": whole}, "")
    _check(config)
    return config


def _phase(common: Mapping[str, Any], own: Any, where: str) -> dict[str, Any]:
    """A phase with what holds for all laid beneath it, and with its held-out data spelled out."""
    phase = merged(common, _renamed(mapping(own, where), where))
    phase["data"] = mapping(phase["data"], f"{where}.data")
    held_out = dict(mapping(phase.get("validate"), f"{where}.validate"))
    changes = mapping(held_out.get("data"), f"{where}.validate.data")
    held_out["data"] = {**phase["data"], "split": "heldout", **changes}
    # What the phase itself says is checked first, so that its mistakes are not blamed on its held-out data.
    build(Data, phase["data"], f"{where}.data")
    return phase | {"validate": held_out}


def _renamed(section: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The section with the names of today: older files call `grad_clip` `clip`."""
    section = dict(section)
    if "clip" in section:
        if "grad_clip" in section:
            raise UserError(f"'{path(where, 'clip')}' is the old name of 'grad_clip': leave one of them out.")
        section["grad_clip"] = section.pop("clip")
    return section


def _check(config: Config) -> None:
    """Raises UserError where sections are at odds with each other."""
    if not config.phases:
        raise UserError("'phases' is empty: a training needs at least one.")
    if config.schedule.offset not in range(TRAIN_STEPS):
        raise UserError(
            f"'settings.noise_scheduler_kwargs.steps_offset' is {shown(config.schedule.offset)}: use 0 to "
            f"{TRAIN_STEPS - 1}."
        )
    before: dict[str, Phase] = {}
    for name, phase in config.phases.items():
        where = f"phases.{name}"
        if not re.fullmatch(r"\w[\w-]{0,63}", name) or name == CACHE:
            raise UserError(
                f"The phase {shown(name)} names a folder: use letters, digits, - and _, and not '{CACHE}'."
            )
        _check_phase(phase, where)
        for section, key in ((phase.data, "data"), (phase.validate.data, "validate.data")):
            _check_data(section, f"{where}.{key}", before)
        maker = phase.pairs.model
        if maker is not None and (maker not in before or before[maker].task == "pairs"):
            raise UserError(
                f"'{where}.pairs.model' is {shown(maker)}, which is not an earlier phase that trains; name one."
            )
        before[name] = phase
    for part, network in (config.networks or {}).items():
        if part not in typing.get_args(Part):
            raise unknown("networks", part, typing.get_args(Part))
        if part.endswith("_unet"):
            UNetConfig.from_dict(network, path("networks", part))
        elif part == "pose_guider":
            PoseGuiderConfig.from_dict(network, path("networks", part))
        elif part == "object_guider":
            ObjectGuiderConfig.from_dict(network, path("networks", part))
        elif part == "transformer":
            DiTConfig.from_dict(network, path("networks", part))
        elif part in ("control", "reference", "bml"):
            Fields(network, path("networks", part)).whole("rank" if part == "bml" else "blocks")
    _check_kind(config)
    for part in config.init.additions or {}:
        if part not in typing.get_args(Part):
            raise unknown("init.additions", part, typing.get_args(Part))


# Options of an objective that AnimateAnywhere's has no place for.
_OF_UNETS = "outside", "inside", "min_snr", "mask_input", "object_input", "drop_objects", "drop_depth"


def _check_kind(config: Config) -> None:
    """Raises UserError where phases ask for what a model of the config's kind does not have."""
    if config.is_dit and (others := config.init.files().keys() - {"base", "model", "prompt"}):
        raise UserError(
            f"'init.{min(others)}' is of UNets: AnimateAnywhere starts from 'init.base', 'init.model' and "
            "'init.prompt' alone; leave it out."
        )
    for name, phase in config.phases.items():
        where = f"phases.{name}"
        transformers = {"transformer", "control", "reference", "bml"} & set(phase.train)
        losses = phase.objective.epipolar.weight or phase.objective.vgg.weight
        if not config.is_dit:
            if transformers or losses or phase.data.world in JOURNEYS or BACKGROUND in phase.data.conditions:
                raise UserError(
                    f"'{where}' trains AnimateAnywhere (its parts, its losses or its puppets), but neither "
                    "'networks.transformer' nor 'init.base' is given: give one of them."
                )
            continue
        if set(phase.train) - transformers or phase.lora or phase.graphs or phase.task in ("distil", "pairs"):
            raise UserError(
                f"'{where}' asks for what only UNets have: of AnimateAnywhere train transformer, control, "
                "reference and bml, without a LoRA, graphs, pairs or distillation."
            )
        for data, key in ((phase.data, "data"), (phase.validate.data, "validate.data")):
            puppets, ready = data.world in JOURNEYS, data.conditions == (BACKGROUND,)
            if not (puppets if data.source == "puppets" else ready and data.source == "shards"):
                raise UserError(
                    f"'{where}.{key}' has no background: use puppets of the world travel or wander, or shards "
                    f"with conditions: [{BACKGROUND}]."
                )
        if phase.frames % FRAMES:
            raise UserError(
                f"'{where}.frames' is {phase.frames}: AnimateAnywhere is trained on multiples of {FRAMES}."
            )
        if phase.export.parts is not None:
            raise UserError(
                f"'{where}.export.parts' is set, but a model of AnimateAnywhere is written whole: leave it out."
            )
        unread = [key for key in _OF_UNETS if getattr(phase.objective, key) != getattr(Objective(), key)]
        if unread:
            raise UserError(
                f"'{where}.objective.{unread[0]}' is of UNets, which AnimateAnywhere is trained without: leave "
                "it out."
            )
        if phase.objective.vgg.weight and phase.objective.vgg.file is None:
            raise UserError(f"'{where}.objective.vgg.file' is missing: name torchvision's VGG16 weights.")


def _check_phase(phase: Phase, where: str) -> None:
    if phase.batch % phase.accumulate:
        raise UserError(
            f"'{where}.batch' is {phase.batch}, which its 'accumulate', {phase.accumulate}, does not divide; "
            "choose a multiple of it."
        )
    if phase.task in (*DIFFUSION, "decoder") and not phase.steps:
        raise UserError(f"'{where}.steps' is 0: give the number of steps.")
    if phase.task in DIFFUSION:
        if phase.lora is not None and phase.train:
            raise UserError(f"'{where}.train' must be empty: a phase with 'lora' trains that alone.")
        if phase.lora is None and not phase.train:
            raise UserError(f"'{where}.train' is empty: list what the phase trains, or give it a 'lora'.")
        if phase.train == ("motion",) and not phase.motion:
            raise UserError(f"'{where}.motion' is false, but the phase trains the motion modules alone: set it.")
    if phase.task == "distil" and phase.distil.steps * phase.distil.substeps > TRAIN_STEPS:
        raise UserError(
            f"'{where}.distil' asks for {phase.distil.steps} steps of {phase.distil.substeps}, but there are only "
            f"{TRAIN_STEPS} timesteps: lower one of them."
        )
    if phase.lora is not None and not phase.lora.targets:
        raise UserError(f"'{where}.lora.targets' is empty: name at least one, such as to_q.")
    if phase.validate.every and not phase.validate.timesteps:
        raise UserError(f"'{where}.validate.timesteps' is empty: name at least one.")


def _check_data(data: Data, where: str, before: Mapping[str, Phase]) -> None:
    for key in ("strength", "padding", "context", "rows", "columns", "scale"):
        low, high = getattr(data, key) or (0, 0)
        if low > high:
            raise UserError(f"'{where}.{key}' is [{low:g}, {high:g}]: give the lower number first.")
    if data.source == "shards" and data.scale and data.scale[0] < 1:
        raise UserError(
            f"'{where}.scale' begins at {data.scale[0]:g}: a person made smaller would bare the one in the video; "
            "give numbers from 1 on, or use puppets."
        )
    if data.source != "puppets" and data.depth_twins:
        raise UserError(f"'{where}.depth_twins' is for puppets; leave it out.")
    if data.source == "pairs" and (data.conditions or data.scale or data.carried):
        raise UserError(
            f"'{where}.source' is 'pairs', which hold neither objects nor depth nor persons of another size: "
            "leave conditions, scale and carried out."
        )
    if data.made_by is not None:
        if data.made_by not in before or before[data.made_by].task != "pairs":
            raise UserError(
                f"'{where}.made_by' is {shown(data.made_by)}, which is not an earlier phase that makes pairs; "
                "name one."
            )
    elif data.source != "puppets" and data.path is None:
        raise UserError(
            f"'{where}.source' is '{data.source}', but '{where}.path' names no folder: set it to theirs."
        )


def _change(raw: dict[str, Any], change: str) -> None:
    name, sign, text = change.partition("=")
    *parents, last = name.strip().split(".")
    if not sign or not all((*parents, last)):
        raise UserError(f"--set '{change}' is not a change: write it like phases.boost.lr=1e-6.")
    at = raw
    for key in parents:
        if at.get(key) is None:
            at[key] = {}
        at = at[key]
        if not isinstance(at, dict):
            raise UserError(f"--set '{change}': '{key}' holds a value, so no key can be set in it.")
    at[last] = parse_yaml(text, f"--set '{change}'")
