"""What the values of the command line's options may be: each function reads one, or says what is wrong with it."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable
from pathlib import Path


def to_path(text: str) -> Path:
    if not text:
        raise argparse.ArgumentTypeError("the path is empty; name a file or a folder")
    return Path(text)


def to_size(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d{1,5})[xX](\d{1,5})", text)
    size = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 0 < min(size) <= max(size) <= 16384:
        raise argparse.ArgumentTypeError(f"'{text}' is not a size; write it like 512x768")
    return size


def to_numbers(count: int) -> Callable[[str], tuple[float, ...]]:
    """Reads `count` numbers with commas between them, the first of them the index of a frame."""

    def read(text: str) -> tuple[float, ...]:
        try:
            frame, *rest = text.split(",")
            numbers = (int(frame), *map(float, rest))
        except ValueError:
            numbers = ()
        if len(numbers) != count or not all(0 <= number < math.inf for number in numbers):
            raise argparse.ArgumentTypeError(f"'{text}' is not {count} numbers from 0 on with commas between them")
        return numbers

    return read


def to_count(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and 1 <= int(text) <= 1000):
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number from 1 to 1000")
    return int(text)


def to_crf(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and int(text) <= 51):
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number from 0 to 51")
    return int(text)


def to_number(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and 1 <= int(text) <= 10**6):
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number from 1 to a million")
    return int(text)


def to_rate(text: str) -> float:
    value = to_finite(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number from 1 to 1000")
    return value


def to_seed(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and int(text) < 2**63):
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number from 0 to 2^63 - 1")
    return int(text)


def to_finite(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < 1000:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number from 0 to 1000")
    return value
