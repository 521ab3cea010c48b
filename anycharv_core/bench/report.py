"""Scores of many clips as means with confidence intervals, as JSON and as a Markdown table."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..files import atomic_path, write_error

DRAWS, CONFIDENCE = 2000, 0.95
NOT_MEASURED = "not measured"

Values = Sequence[float] | str
"""A metric's value for every clip (NaN where a clip has none), or why it was not measured."""


def summarise(values: Values) -> dict[str, Any]:
    """The mean over clips and its percentile bootstrap interval (Efron and Tibshirani 1993, chapter 13).

    Clips are drawn with replacement by a generator of one seed, so equal values give equal intervals, and methods
    scored on the same clips are resampled alike.

    Returns:
        "mean", "low", "high" (the 95 % interval) and "clips", the number with a value; or "not measured" with
        the reason.
    """
    if isinstance(values, str):
        return {NOT_MEASURED: values}
    known = np.array([value for value in values if not math.isnan(value)], np.float64)
    if not known.size:
        return {NOT_MEASURED: "no clip has a value"}
    drawn = np.random.default_rng(0).integers(len(known), size=(DRAWS, len(known)))
    tail = (1 - CONFIDENCE) / 2
    # A quantile that is one of the means: between two infinite ones nothing can be interpolated.
    low, high = np.quantile(known[drawn].mean(axis=1), (tail, 1 - tail), method="inverted_cdf")
    return {"mean": float(known.mean()), "low": float(low), "high": float(high), "clips": len(known)}


def markdown(rows: Mapping[str, Mapping[str, Mapping[str, Any]]], corner: str) -> str:
    """A table of `summarise`d metrics by row name; under it stands why something was not measured."""
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    lines = [f"| {corner} | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    reasons: dict[str, str] = {}
    for name, row in rows.items():
        lines.append(f"| {name} | " + " | ".join(_cell(row[column]) for column in columns) + " |")
        reasons |= {column: row[column][NOT_MEASURED] for column in columns if NOT_MEASURED in row[column]}
    notes = [f"- {column} {NOT_MEASURED}: {reason}" for column, reason in reasons.items()]
    return "\n".join([*lines, *([""] if notes else []), *notes]) + "\n"


def _cell(summary: Mapping[str, Any]) -> str:
    if NOT_MEASURED in summary:
        return NOT_MEASURED
    if "low" not in summary:
        return _number(summary["mean"])
    return f"{_number(summary['mean'])} [{_number(summary['low'])}, {_number(summary['high'])}]"


def _number(value: float) -> str:
    size = abs(value)
    return f"{value:.2f}" if size >= 10 else f"{value:.3f}" if size >= 0.001 or not size else f"{value:.1e}"


def make_folder(path: Path) -> None:
    """Raises UserError where the folder cannot be made."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(path, error) from None


def write_report(folder: Path, name: str, report: Mapping[str, Any], table: str) -> None:
    """Writes NAME.json and NAME.md to `folder`. JSON has no infinity: it becomes the string "inf"."""
    with atomic_path(folder / f"{name}.json") as temporary:
        temporary.write_text(json.dumps(_plain(report), indent=2, allow_nan=False) + "\n", encoding="utf-8")
    with atomic_path(folder / f"{name}.md") as temporary:
        temporary.write_text(table, encoding="utf-8")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else "inf" if value > 0 else "-inf"
    return value
