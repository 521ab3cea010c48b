"""The encoded clips on disk: which data and which networks they belong to."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from shard_files import write_folder
from tiny_training import recipe, write
from training_runs import own_precision as own_precision

from training.config import Data
from training.data import cache
from training.data.cache import identity
from training.data.shards import MANIFEST, read_lines, write_lines
from training.train import main


def test_data_prepared_anew_under_the_same_path_are_encoded_anew(tmp_path: Path) -> None:
    shards, out = tmp_path / "shards", tmp_path / "run"
    config = recipe(steps=2, cache={"variants": 1})
    config["data"] = {"source": "shards", "path": str(shards), "size": [16, 16]}
    command = [str(write(tmp_path, config)), "--out", str(out), "--cpu"]
    caches = []
    for lengths in ({"a": [4], "b": [5]}, {"a": [4], "b": [5]}, {"a": [5], "b": [4]}):
        shutil.rmtree(shards, ignore_errors=True)
        shutil.rmtree(out / "compose", ignore_errors=True)
        shards.mkdir()
        write_folder(shards, lengths)
        assert main(command) == 0
        caches.append(sorted(path.name for path in (out / "cache").iterdir()))
    assert caches[0] == caches[1] and len(caches[0]) == 1
    assert len(caches[2]) == 2


def test_what_tells_data_apart(tmp_path: Path) -> None:
    assert identity(Data(path=None)) == identity(Data(seed=1))
    row = {"video": "a", "stamp": [1, 1], "shard": "000000.tar", "shard_bytes": 7, "clips": []}
    write_lines(tmp_path / MANIFEST, [row])
    shards = Data(source="shards", path=str(tmp_path))
    seen = {identity(shards)}
    write_lines(tmp_path / MANIFEST, [row | {"stamp": [1, 2]}])
    assert {identity(shards)} == seen, "a copied video is the same video"
    for change in ({"shard_bytes": 8}, {"video": "b"}, {"clips": [{"key": "a"}]}):
        write_lines(tmp_path / MANIFEST, [row | change])
        seen.add(identity(shards))
    assert len(seen) == 4 and len(read_lines(tmp_path / MANIFEST)) == 1


def test_what_tells_pairs_apart(tmp_path: Path) -> None:
    pairs, seen = Data(source="pairs", path=str(tmp_path)), set()
    for name, content in (
        ("pairs.json", {"seed": 0}),
        ("pairs.json", {"seed": 1}),
        ("000000.json", {"pairs": [{"offset": 0}]}),
        ("000000.json", {"pairs": [{"offset": 512}]}),
        ("000001.json", {"pairs": []}),
    ):
        (tmp_path / name).write_text(json.dumps(content))
        seen.add(identity(pairs))
    assert len(seen) == 5


def test_a_torn_file_is_encoded_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    out = tmp_path / "run"
    command = [str(write(tmp_path, recipe(steps=2, cache={"variants": 1}))), "--out", str(out), "--cpu"]
    assert main(command) == 0
    files = sorted((out / "cache").rglob("*.safetensors"))
    content = files[0].read_bytes()
    files[0].write_bytes(content[:-5])
    shutil.rmtree(out / "compose")
    assert main(command) == 0
    assert files[0].read_bytes() == content
    assert [record.getMessage() for record in caplog.records if record.name == "training.data.cache"] == [
        f"{files[0]} is torn, so it is made again."
    ]


def test_encodings_in_memory_train_what_those_in_files_do(tmp_path: Path) -> None:
    weights = []
    for resident in (False, True):
        config = recipe(steps=3, cache={"variants": 2, "resident": resident})
        out = tmp_path / str(resident)
        assert main([str(write(tmp_path, config)), "--out", str(out), "--cpu"]) == 0
        weights.append(load_file(out / "compose" / "weights.safetensors"))
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_encodings_that_memory_has_no_room_for_are_said_in_a_sentence(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(cache, "free_memory", lambda device: 1e3)
    config = write(tmp_path, recipe(steps=1, cache={"variants": 1, "resident": True}))
    assert main([str(config), "--out", str(tmp_path / "run"), "--cpu"]) == 2
    assert "leave cache.resident out" in capsys.readouterr().err
