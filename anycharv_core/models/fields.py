"""Settings from files that others made, read as what they must be."""

from __future__ import annotations

import itertools
import math
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..errors import UserError

MOST = 2**20  # no size of a network is larger


class Fields:
    """The settings of a config from a file, each read as what it must be; called `name` in messages.

    Every method raises UserError where the setting is missing (None counts as missing) and has no default, or is
    anything else.
    """

    def __init__(self, config: Any, name: str):
        if not isinstance(config, Mapping):
            raise UserError(f"{name} is {reprlib.repr(config)}, but it must hold settings by their names.")
        self.config, self.name = config, name

    def has(self, key: str) -> bool:
        """Whether the setting is there."""
        return self.config.get(key) is not None

    def whole(self, key: str, default: int | None = None) -> int:
        """A whole number from 1 to `MOST`."""
        value = self._value(key, default)
        if not _is_whole(value):
            raise self._wrong(key, f"a whole number from 1 to {MOST}")
        return value

    def wholes(self, key: str, count: int | None = None, default: Sequence[int] | None = None) -> tuple[int, ...]:
        """A list of such numbers; `count` of them where that is given, which one number may stand for."""
        value = self._value(key, default)
        if count is not None and _is_whole(value):
            return (value,) * count
        if not isinstance(value, list | tuple) or not value or not all(map(_is_whole, value)):
            raise self._wrong(key, f"a list of whole numbers from 1 to {MOST}")
        return self._counted(key, value, count)

    def text(self, key: str) -> str:
        """A text."""
        value = self._value(key)
        if not isinstance(value, str):
            raise self._wrong(key, "a text")
        return value

    def texts(self, key: str, count: int | None = None) -> tuple[str, ...]:
        """A list of texts, `count` of them where that is given."""
        value = self._value(key)
        if not isinstance(value, list | tuple) or not value or not all(isinstance(each, str) for each in value):
            raise self._wrong(key, "a list of names")
        return self._counted(key, value, count)

    def number(
        self, key: str, default: float | None = None, above: float = -math.inf, below: float = math.inf
    ) -> float:
        """A number between two limits."""
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not above < value < below:
            limits = f" above {above:g}" * (above > -math.inf) + f" below {below:g}" * (below < math.inf)
            raise self._wrong(key, f"a number{limits}")
        return value

    def flag(self, key: str, default: bool | None = None) -> bool:
        """True or false."""
        value = self._value(key, default)
        if not isinstance(value, bool):
            raise self._wrong(key, "true or false")
        return value

    def choice(self, key: str, known: Sequence[str], default: str | None = None) -> str:
        """One of the known texts."""
        value = self._value(key, default)
        if value not in known:
            raise self._wrong(key, f"one of {', '.join(map(repr, known))}")
        return value

    def section(self, key: str) -> Fields:
        """Settings inside the setting."""
        return Fields(self._value(key), f"{key} in {self.name}")

    def check_fixed(self, fixed: Mapping[str, Any]) -> None:
        """Raises UserError unless each of these settings is left out or has its one supported value."""
        for key, value in fixed.items():
            if self.config.get(key, value) != value:
                asked = reprlib.repr(self.config[key])
                raise UserError(f"{self.name} sets {key}={asked}, but only {value!r} is supported.")

    def check_divides(self, key: str, values: Sequence[int], by: Iterable[int]) -> None:
        """Raises UserError where one of `values`, of the setting `key`, is not divisible by one of `by`."""
        for value, divisor in itertools.product(values, by):
            if value % divisor:
                raise UserError(
                    f"{self.name} has {key} {value}, which is not divisible by its number of heads or groups, "
                    f"{divisor}."
                )

    def _value(self, key: str, default: Any = None) -> Any:
        value = self.config.get(key)
        if value is None:
            value = default
        if value is None:
            raise UserError(f"{self.name} has no '{key}' setting: it is another model's, or damaged.")
        return value

    def _counted(self, key: str, value: Sequence[Any], count: int | None) -> tuple[Any, ...]:
        if count not in (None, len(value)):
            raise UserError(f"{self.name} has {len(value)} {key}, but {count} block_out_channels.")
        return tuple(value)

    def _wrong(self, key: str, right: str) -> UserError:
        return UserError(f"{self.name} has {key}={reprlib.repr(self.config[key])}, but it must be {right}.")


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MOST
