"""One YAML file per model: its networks, its data and its phases, every key of it checked.

A phase may say anew what `engine`, `data` and `objective` at the top say for all of them.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from anycharv_core.errors import UserError
from anycharv_core.models.schedule import NoiseSchedule, schedule_of
from training.data import Data

Built = TypeVar("Built")

KINDS = {tuple: "a list", int: "a whole number", float: "a number", bool: "true or false", str: "a text"}


@dataclass(frozen=True)
class Objective:
    """Options of the loss, off unless the config says so.

    drop: share of clips trained without reference, for classifier-free guidance. terminal: extra share of
    clips at pure noise, where sampling starts. outside, inside: loss weights of the scene and of the masked
    area around the character, whose own weight is 1. min_snr: the gamma of Hang et al., "Efficient Diffusion
    Training via Min-SNR Weighting Strategy"; 0 is off. noise_offset: strength of a noise that is equal in all
    pixels and frames of a clip. mask_input: whether the network is told the mask, as in the paper; the ablation
    goes without.
    """

    drop: float = 0.0
    terminal: float = 0.0
    outside: float = 1.0
    inside: float = 1.0
    min_snr: float = 0.0
    noise_offset: float = 0.0
    mask_input: bool = True


@dataclass(frozen=True)
class Validate:
    """Every `every` steps (0: never), on `clips` held-out clips: the loss at `timesteps`, and a sheet of the
    first `sheet` clips sampled in `steps` with `guidance`. `data` changes the phase's data."""

    every: int = 0
    clips: int = 8
    timesteps: tuple[int, ...] = (100, 300, 500, 700, 900, 999)
    sheet: int = 3
    steps: int = 10
    guidance: float = 1.0
    data: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Cache:
    """Encode each clip once, in `variants` augmentations that come back every `variants` epochs; 0 is off."""

    variants: int = 0


@dataclass(frozen=True)
class Export:
    """The trained model: "single" file, official "folder", or "both", in `dtype`; `parts` None: all there are."""

    layout: Literal["single", "folder", "both"] = "folder"
    dtype: Literal["fp16", "bf16", "fp32"] = "fp16"
    parts: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Phase:
    """One phase of the training.

    task: "diffusion" is eq. 2 and 3; "codec" and "decoder" are for the embedded model's PatchCodec; "pairs"
    makes the self-boosting pairs, with `pairs` as settings (training/make_pairs.py). train: names from
    training/trainee.py's TRAINABLE. motion: the motion modules take part. batch: clips per optimiser step over
    all processes, `accumulate` portions of it one after another. lr: peak; linear `warmup`, then "constant" or
    "cosine" to a tenth. ema: decay of the moving average that is validated and exported; 0 is off. clip:
    largest gradient norm; 0 is off. checkpointing: activations are computed again on the way back.
    save_every: steps between checkpoints, of which `keep` stay. lora: settings of training/lora.py.
    """

    task: Literal["diffusion", "codec", "decoder", "pairs"] = "diffusion"
    train: tuple[str, ...] = ()
    motion: bool = False
    steps: int = 0
    batch: int = 1
    accumulate: int = 1
    frames: int = 1
    lr: float = 1e-5
    warmup: int = 0
    schedule: Literal["constant", "cosine"] = "constant"
    optimizer: Literal["adamw", "adamw8bit"] = "adamw"
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.01
    ema: float = 0.0
    clip: float = 1.0
    checkpointing: bool = False
    log_every: int = 50
    save_every: int = 500
    keep: int = 2
    data: Data = field(default_factory=Data)
    objective: Objective = field(default_factory=Objective)
    validate: Validate = field(default_factory=Validate)
    cache: Cache = field(default_factory=Cache)
    export: Export = field(default_factory=Export)
    pairs: dict[str, Any] = field(default_factory=dict)
    lora: dict[str, Any] | None = None


@dataclass(frozen=True)
class Engine:
    """What holds for the whole run. Every key of `Phase` may stand in `engine` too, for all phases.

    precision: of the arithmetic; weights stay float32. workers: processes that read or render samples.
    tracker: where the losses are drawn.
    """

    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    workers: int = 0
    tracker: Literal["tensorboard", "wandb", "none"] = "tensorboard"


@dataclass(frozen=True)
class Config:
    """The whole file. networks: config of each part, freshly initialised, or None where `init` (see
    training/initialise.py) names the files to begin with. settings: what the pipeline then uses by default."""

    phases: dict[str, Phase]
    seed: int = 0
    networks: dict[str, dict[str, Any]] | None = None
    init: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    engine: Engine = field(default_factory=Engine)

    @property
    def schedule(self) -> NoiseSchedule:
        """What is predicted, on which noise: `noise_scheduler_kwargs` of the settings, or AnyCharV's."""
        return schedule_of(self.settings)


def read_config(path: str | Path, changes: Sequence[str] = ()) -> Config:
    """The config in a YAML file, changed by `changes` like "phases.boost.lr=1e-6", their values YAML too.

    Raises UserError naming the file and the key where something is missing, unknown or of another kind.
    """
    try:
        raw = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); give a training config.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid YAML ({' '.join(str(error).split())}).") from error
    if not isinstance(raw, dict):
        raise UserError(f"{path} is not a training config: it must hold keys such as 'phases'.")
    for change in changes:
        _change(raw, change)
    try:
        return parse(raw)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def parse(raw: Mapping[str, Any]) -> Config:
    """The config that `raw`, as YAML gives it, describes; raises UserError as `read_config` does."""
    raw = dict(raw)
    engine = _mapping(raw.pop("engine", None), "engine")
    run_wide = {f.name for f in dataclasses.fields(Engine)}
    whole = {key: value for key, value in engine.items() if key in run_wide}
    common = {key: value for key, value in engine.items() if key not in run_wide}
    phase_keys = [f.name for f in dataclasses.fields(Phase)]
    for key in common:
        if key not in phase_keys:
            raise _unknown("engine", key, [*run_wide, *phase_keys])
    kinds = {"data": Data, "objective": Objective}
    for key, kind in kinds.items():
        below = _mapping(raw.pop(key, None), key)
        build(kind, below, key)
        common[key] = _merged(below, _mapping(common.get(key), f"engine.{key}"))
    common["data"].setdefault("seed", raw.get("seed", 0))
    phases = _mapping(raw.get("phases"), "phases")
    raw["phases"] = {name: _merged(common, _mapping(phase, f"phases.{name}")) for name, phase in phases.items()}
    config = build(Config, raw | {"engine": whole}, "")
    _check(config)
    return config


def plain(config: Any) -> Any:
    """A config, or a part of it, as YAML and JSON can hold it."""
    if dataclasses.is_dataclass(config):
        return {f.name: plain(getattr(config, f.name)) for f in dataclasses.fields(config)}
    if isinstance(config, Mapping):
        return {key: plain(value) for key, value in config.items()}
    return [plain(value) for value in config] if isinstance(config, (list, tuple)) else config


def build(kind: type[Built], raw: Mapping[str, Any], where: str) -> Built:
    """A dataclass from a mapping, checked key by key against its annotations.

    Raises UserError naming the path of the first key that is unknown (with the closest valid one), missing
    or of another kind.
    """
    hints = typing.get_type_hints(kind)
    fields = {f.name: f for f in dataclasses.fields(kind)}
    for key in raw:
        if key not in fields:
            raise _unknown(where, key, list(fields))
    for name, each in fields.items():
        required = each.default is dataclasses.MISSING and each.default_factory is dataclasses.MISSING
        if required and name not in raw:
            raise UserError(f"the key '{_path(where, name)}' is missing.")
    return kind(**{key: _value(hints[key], value, _path(where, key)) for key, value in raw.items()})


def _value(hint: Any, value: Any, where: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        return _value(next(a for a in args if a is not type(None)), value, where)
    if dataclasses.is_dataclass(hint):
        return build(hint, _mapping(value, where), where)
    if origin is dict:
        items = _mapping(value, where).items()
        return {str(key): _value(args[1], each, _path(where, key)) for key, each in items}
    if origin is tuple and isinstance(value, (list, tuple)):
        if args[-1] is not Ellipsis and len(args) != len(value):
            raise UserError(f"'{where}' is {list(value)}, but it must be a list of {len(args)} values.")
        return tuple(_value(args[0], each, f"{where}[{i}]") for i, each in enumerate(value))
    if origin is Literal:
        if value in args:
            return value
        raise UserError(f"'{where}' is {value!r}, but it must be one of {', '.join(map(str, args))}.")
    if hint is float and isinstance(value, (int, float, str)) and not isinstance(value, bool):
        try:
            return float(value)  # YAML 1.1 takes 1e-5 for a word
        except ValueError:
            pass
    elif hint is Any or (isinstance(value, origin or hint) and (hint is bool) == isinstance(value, bool)):
        return value
    name = KINDS.get(origin or hint, str(hint))
    raise UserError(f"'{where}' is {value!r}, but it must be {name}.")


def _check(config: Config) -> None:
    for name, phase in config.phases.items():
        for key in ("batch", "accumulate", "frames", "keep", "log_every", "save_every"):
            if getattr(phase, key) < 1:
                raise UserError(f"'phases.{name}.{key}' is {getattr(phase, key)}, but it must be at least 1.")
        if phase.batch % phase.accumulate:
            raise UserError(
                f"'phases.{name}.batch' is {phase.batch}, which its 'accumulate', {phase.accumulate}, does not "
                "divide; choose a multiple of it."
            )
        maker = phase.data.made_by
        if maker is not None and (maker not in config.phases or config.phases[maker].task != "pairs"):
            raise UserError(f"'phases.{name}.data.made_by' is '{maker}', which is no phase that makes pairs.")
        held_out_data(phase)


def held_out_data(phase: Phase) -> Data:
    """The data that the phase is validated on: its `validate.data` over its own, split "heldout"."""
    return build(Data, {**plain(phase.data), "split": "heldout", **phase.validate.data}, "validate.data")


def _change(raw: dict[str, Any], change: str) -> None:
    path, sign, text = change.partition("=")
    *parents, last = path.strip().split(".")
    if not sign or not all((*parents, last)):
        raise UserError(f"--set '{change}' is not like phases.boost.lr=1e-6.")
    at = raw
    for key in parents:
        if at.get(key) is None:
            at[key] = {}
        at = at[key]
        if not isinstance(at, dict):
            raise UserError(f"--set '{change}': '{key}' holds a value, not further keys.")
    try:
        at[last] = yaml.safe_load(text)
    except yaml.YAMLError:
        raise UserError(f"--set '{change}': what follows '=' is not valid YAML.") from None


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """`above` laid over `below`, mapping by mapping."""
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merged(merged[key], value) if both else value
    return merged


def _mapping(value: Any, where: str) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise UserError(f"'{where}' is {value!r}, but it must hold keys.")
    return value


def _unknown(where: str, key: Any, valid: Sequence[str]) -> UserError:
    close = difflib.get_close_matches(str(key), valid, 1, cutoff=0.0)
    nearest = _path(where, close[0])
    return UserError(f"there is no key '{_path(where, key)}'; the closest valid one is '{nearest}'.")


def _path(where: str, key: Any) -> str:
    return f"{where}.{key}" if where else str(key)
