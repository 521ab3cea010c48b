"""What preprocess caches: damaged results are made again, and a full disk leaves nothing behind."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from anycharv_core.errors import UserError
from anycharv_core.files import MANIFEST
from anycharv_core.media.pose import POINTS, Poses
from anycharv_core.preprocess.cache import cache_folder, cached
from anycharv_core.preprocess.find import Findings
from anycharv_core.preprocess.tracking import Track

FINDINGS = Findings(
    Poses(64, 48, [np.full((1, POINTS, 3), 0.5)] * 4),
    [Track(boxes=np.ones((4, 4)), people=np.zeros(4, np.int64), looks=np.ones((4, 3)))],
    [2],
)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANYCHARV_CACHE", str(tmp_path / "cache"))


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """No file may grow past `size` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_findings_come_back_from_the_cache(caplog: pytest.LogCaptureFixture) -> None:
    folder = cached("people", "key", FINDINGS.save)
    assert cached("people", "key", lambda folder: pytest.fail("made twice")) == folder
    back = Findings.load(folder)
    assert back.cuts == [2] and np.array_equal(back.poses.people[3], FINDINGS.poses.people[3])
    assert np.array_equal(back.tracks[0].boxes, np.ones((4, 4)))
    assert not caplog.records


@pytest.mark.parametrize("name", ["poses.safetensors", "tracks.safetensors", MANIFEST])
@pytest.mark.parametrize("damage", ["torn", "changed", "gone"])
def test_what_was_damaged_since_is_made_again(caplog: pytest.LogCaptureFixture, name: str, damage: str) -> None:
    folder = cached("people", "key", FINDINGS.save)
    path = folder / name
    content = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(content[:20] if damage == "torn" else content[:-1] + b"#")
    assert Findings.load(cached("people", "key", FINDINGS.save)).cuts == [2]
    (record,) = caplog.records
    assert "is damaged, so what it held is made again" in record.getMessage()
    assert path.read_bytes() == content


def test_a_full_disk_is_said_in_one_sentence_and_leaves_nothing() -> None:
    with full_disk(100), pytest.raises(UserError) as caught:
        cached("people", "key", FINDINGS.save)
    assert "Cannot write" in str(caught.value) and "\n" not in str(caught.value)
    assert list(cache_folder().iterdir()) == []
