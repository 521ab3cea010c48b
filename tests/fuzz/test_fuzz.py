"""Damaged inputs of every kind: each is read, or refused in one sentence, in bounded time and memory.

The damage is a function of the kind and the number of the case: a failure names both, and
`pytest tests/fuzz -k "kind"` finds it again.
"""

from __future__ import annotations

import shutil
import traceback
from pathlib import Path
from random import Random

import pytest
from bounds import TooLongError, bounded
from corpus import KINDS, Kind
from mutate import damage

from anycharv_core.errors import UserError


def fault(kind: Kind, whole: Path, place: Path, number: int) -> str | None:
    """What is wrong with how case `number` was taken, or None."""
    random = Random(f"{kind.name} {number}")
    shutil.copytree(whole.parent, place, symlinks=True)
    path = place / whole.name
    files = sorted(file for file in (path.rglob("*") if path.is_dir() else [path]) if file.is_file())
    chosen = random.choice(files)
    done = f"{kind.name} {number}: {chosen.relative_to(place)} ({damage(chosen, random)})"
    before = sorted(place.rglob("*"))
    try:
        with bounded():
            kind.read(path)
    except UserError as error:
        message = str(error)
        if not message or "\n" in message or len(message) > 1000:
            return f"{done}: {message[:300]!r} is not one sentence"
    except (Exception, TooLongError):
        return f"{done}\n{''.join(traceback.format_exc().splitlines(keepends=True)[-8:])}"
    return None if sorted(place.rglob("*")) == before else f"{done}: files were left behind"


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name.replace(" ", "_"))
def test_damaged_inputs_are_read_or_refused(kind: Kind, tmp_path: Path) -> None:
    (tmp_path / "whole" / "in").mkdir(parents=True)
    whole = kind.make(tmp_path / "whole" / "in")
    kind.read(whole)
    faults = []
    for number in range(kind.cases):
        place = tmp_path / "case"
        faults.append(fault(kind, whole, place, number))
        shutil.rmtree(place)
    found = [each for each in faults if each]
    assert not found, f"{len(found)} of {kind.cases} cases:\n" + "\n".join(found[:8])
