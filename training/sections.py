"""Sections of a config: dataclasses filled from what YAML holds, every key, kind and range checked.

The annotations are the schema: `int`, `float`, `bool`, `str`, `tuple[X, ...]`, `dict[K, V]`, `Literal`,
`X | None`, another dataclass, `Any`, and `Annotated[X, Range(...)]` for a number with bounds.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import reprlib
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any, Literal, TypeVar

from anycharv_core.errors import UserError

Section = TypeVar("Section")

KINDS = {tuple: "a list", int: "a whole number", float: "a number", bool: "true or false", str: "a text"}


@dataclass(frozen=True)
class Range:
    """The numbers from `low` to `high`, both included, or above `low` where it is `above`."""

    low: float
    high: float = math.inf
    above: bool = False

    def __contains__(self, number: float) -> bool:
        return (self.low < number if self.above else self.low <= number) and number <= self.high

    def __str__(self) -> str:
        lowest = f"above {self.low:g}" if self.above else f"at least {self.low:g}"
        return lowest if self.high == math.inf else f"{lowest} and at most {self.high:,.9g}"


def build(kind: type[Section], raw: Any, where: str) -> Section:
    """A dataclass from a mapping, checked key by key against its annotations.

    Raises UserError naming the path of the first key that is unknown (with the closest valid one), missing, of
    another kind or out of range.
    """
    fields, hints = _schema(typing.cast(Any, kind))
    raw = mapping(raw, where)
    for key in raw:
        if key not in fields:
            raise unknown(where, key, list(fields))
    for name, each in fields.items():
        required = each.default is dataclasses.MISSING and each.default_factory is dataclasses.MISSING
        if required and name not in raw:
            raise UserError(f"the key '{path(where, name)}' is missing.")
    return kind(**{key: _value(hints[key], value, path(where, key)) for key, value in raw.items()})


@lru_cache
def _schema(kind: Any) -> tuple[dict[str, dataclasses.Field[Any]], dict[str, Any]]:
    """Fields and annotations of a dataclass by name."""
    fields = {f.name: f for f in dataclasses.fields(kind)}
    return fields, typing.get_type_hints(kind, include_extras=True)


def plain(config: Any) -> Any:
    """A config, or a part of it, as YAML and JSON can hold it."""
    if dataclasses.is_dataclass(config):
        return {f.name: plain(getattr(config, f.name)) for f in dataclasses.fields(config)}
    if isinstance(config, Mapping):
        return {key: plain(value) for key, value in config.items()}
    return [plain(value) for value in config] if isinstance(config, (list, tuple)) else config


def mapping(value: Any, where: str) -> Mapping[str, Any]:
    """`value` where it holds keys, an empty one for None. Raises UserError otherwise."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise UserError(f"{repr(where) if where else 'it'} is {shown(value)}, but it must hold keys.")
    return value


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """`above` laid over `below`, mapping by mapping."""
    result = dict(below)
    for key, value in above.items():
        both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = merged(result[key], value) if both else value
    return result


def unknown(where: str, key: Any, valid: Sequence[str]) -> UserError:
    """The sentence for a key that does not exist, with the closest one that does; the caller raises it."""
    close = difflib.get_close_matches(str(key)[:100], valid, 1, cutoff=0.0)
    name = path(where, str(key)[:100])
    return UserError(f"there is no key '{name}'; the closest valid one is '{path(where, close[0])}'.")


def path(where: str, key: Any) -> str:
    """The name of a key in the section `where`: "phases.boost.lr"."""
    return f"{where}.{key}" if where else str(key)


def shown(value: Any) -> str:
    """A value as a message shows it: the beginning of a long one."""
    return reprlib.repr(value)


def _value(hint: Any, value: Any, where: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        number = _value(args[0], value, where)
        if number not in args[1]:
            raise UserError(f"'{where}' is {shown(number)}, but it must be {args[1]}.")
        return number
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        return _value(next(a for a in args if a is not type(None)), value, where)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return build(hint, mapping(value, where), where)
    if origin is dict:
        return {
            _value(args[0], key, where): _value(args[1], each, path(where, key))
            for key, each in mapping(value, where).items()
        }
    if origin is tuple and isinstance(value, (list, tuple)):
        if args[-1] is not Ellipsis and len(args) != len(value):
            raise UserError(f"'{where}' is {shown(value)}, but it must be a list of {len(args)} values.")
        return tuple(_value(args[0], each, f"{where}[{i}]") for i, each in enumerate(value))
    if origin is Literal:
        if isinstance(value, str) and value in args:
            return value
        close = difflib.get_close_matches(str(value)[:100], args, 1)
        hint_at = f"; '{close[0]}' is the closest" if close else ""
        raise UserError(f"'{where}' is {shown(value)}, but it must be one of {', '.join(args)}{hint_at}.")
    if hint is Any or _is(origin or hint, value):
        return value
    if hint is float and isinstance(value, (int, float, str)) and not isinstance(value, bool):
        number = _number(value)
        if number is not None and math.isfinite(number):
            return number
        if number is not None:
            raise UserError(f"'{where}' is {shown(value)}, but it must be a finite number.")
    raise UserError(f"'{where}' is {shown(value)}, but it must be {KINDS.get(origin or hint, str(hint))}.")


def _number(value: int | float | str) -> float | None:
    try:
        return float(value)  # YAML 1.1 takes 1e-5 for a word
    except ValueError:
        return None
    except OverflowError:
        return math.inf


def _is(kind: type, value: Any) -> bool:
    if kind is float or not isinstance(value, kind) or isinstance(value, bool) != (kind is bool):
        return False
    # No file system has a name with such characters, and no command gives one.
    return not isinstance(value, str) or all(c >= " " and not "\ud800" <= c <= "\udfff" for c in value)
