"""Damaged and hostile recipes, manifests, indices and shards: one sentence each, never a traceback."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from shard_files import write_folder
from tiny_training import NETWORKS, RECIPES, long_recipe, recipe

from anycharv_core.errors import UserError
from training import checkpoints, networks
from training.config import Config, Data
from training.config_file import parse, read_config
from training.data.pairs import PairClips, png, read_pairs
from training.data.shards import MANIFEST, QUARANTINE, open_shards, read_lines, write_lines, write_tar
from training.data.sources import open_dataset
from training.prepare.dataset import Settings, prepare_dataset

ODD: list[Any] = [
    *(
        None,
        True,
        False,
        0,
        -1,
        1,
        2**31,
        2**63,
        -(2**63),
        0.5,
        -0.0,
        1e308,
        "",
        "x",
        "1e-5",
        "inf",
        "../..",
        "\n",
    ),
    *([], [0], [[]], [None, "x"], [1, 2, 3], {}, {"x": 1}, {"": None}, {1: 2}, {None: []}),
]


def damaged(value: Any, rng: random.Random) -> Any:
    """A copy with one to three places changed, removed, doubled or made odd."""
    value = copy.deepcopy(value)
    for _ in range(rng.randint(1, 3)):
        places: list[tuple[Any, Any]] = []
        level: list[Any] = [value]
        while level:
            each = level.pop()
            keys = list(each) if isinstance(each, dict) else range(len(each)) if isinstance(each, list) else ()
            places += [(each, key) for key in keys]
            level += [each[key] for key in keys]
        if not places:
            return rng.choice(ODD)
        holder, key = rng.choice(places)
        what = rng.random()
        if what < 0.15:
            del holder[key]
        elif what < 0.25 and isinstance(holder, dict):
            holder[rng.choice([f"{key}x", str(key)[1:], 3, ""])] = holder[key]
        else:
            holder[key] = copy.deepcopy(rng.choice(ODD))
    return value


def one_sentence(call: Callable[[], Any]) -> Any:
    """What `call` gives, or None where it says in one sentence why not; anything else fails the test."""
    try:
        return call()
    except UserError as error:
        said = str(error)
        assert said and len(said) < 1500 and "Traceback" not in said
        return None


def test_no_damaged_recipe_is_more_than_a_sentence() -> None:
    rng, read = random.Random(0), 0
    recipes = [long_recipe(), *(yaml.safe_load(path.read_text()) for path in RECIPES)]
    for _ in range(400):
        config = one_sentence(lambda: parse(damaged(rng.choice(recipes), rng)))
        read += isinstance(config, Config)
    assert 20 < read < 380, "some changes are harmless"


def test_aliases_that_double_are_refused(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x]"] + [f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 40)]
    (tmp_path / "bomb.yaml").write_text("\n".join(lines))
    with pytest.raises(UserError, match=r"bomb\.yaml holds more than"):
        read_config(tmp_path / "bomb.yaml")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    write_folder(folder, {"a": [3], "b": [2, 3]})
    return folder


def test_no_damaged_manifest_is_more_than_a_sentence(shards: Path, tmp_path: Path) -> None:
    rng, rows, opened = random.Random(1), read_lines(shards / MANIFEST), 0
    (tmp_path / "000000.tar").symlink_to(shards / "000000.tar")

    def use() -> int:
        dataset = open_dataset(Data(source="shards", path=str(tmp_path), size=(32, 32)), 2)
        return len([dataset[index, 0] for index in range(len(dataset))])

    for _ in range(80):
        text = "".join(json.dumps(row) + "\n" for row in damaged(rows, rng))
        (tmp_path / MANIFEST).write_text(text, encoding="utf-8")
        opened += one_sentence(use) is not None
    assert 5 < opened < 75


@pytest.mark.parametrize("name", ["../x.tar", "/etc/passwd", "000000.tar/../../x", "notes.txt", ""])
def test_a_manifest_names_nothing_but_its_own_shards(shards: Path, tmp_path: Path, name: str) -> None:
    """What is torn is removed, so a foreign name would be a file lost."""
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "v.mp4").write_bytes(b"no video")
    out, kept = tmp_path / "out", tmp_path / "x.tar"
    out.mkdir()
    kept.write_bytes(b"somebody's")
    (out / "notes.txt").write_bytes(b"somebody's")
    write_lines(out / MANIFEST, [row | {"shard": name} for row in read_lines(shards / MANIFEST)])
    with pytest.raises(UserError, match="not a shard"):
        prepare_dataset(tmp_path / "videos", out, Settings("embedded", "embedded"))
    assert kept.read_bytes() == (out / "notes.txt").read_bytes() == b"somebody's"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (QUARANTINE, "3\n"),
        (QUARANTINE, '{"source": 3}\n'),
        (QUARANTINE, "{\n"),
        ("settings.json", "[]"),
        ("parts/0123.json", '{"video": "4567", "clips": []}'),
        ("parts/0123.json", "null"),
    ],
)
def test_a_damaged_book_of_what_is_prepared_is_named(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "v.mp4").write_bytes(b"no video")
    (tmp_path / "out" / "parts").mkdir(parents=True)
    (tmp_path / "out" / name).write_text(content)
    with pytest.raises(UserError, match=Path(name).name.replace(".", r"\.")):
        prepare_dataset(tmp_path / "videos", tmp_path / "out", Settings("embedded", "embedded"))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two pairs of two frames of 16 x 16 pixels."""
    folder, rng = tmp_path_factory.mktemp("pairs"), np.random.default_rng(0)
    picture, mask = rng.integers(0, 256, (16, 16, 3), np.uint8), np.full((16, 16), 255, np.uint8)
    members = []
    for key in ("00000000", "00000001"):
        for number in range(2):
            layers = {"frame": picture, "scene": picture, "mask": mask, "character": mask, "pose": picture}
            members += [(f"{key}.{number:03d}.{kind}.png", png(layer)) for kind, layer in layers.items()]
        members.append((f"{key}.reference.png", png(picture)))
    write_tar(folder / "000000.tar", members)
    row = {"frames": 2, "size": [16, 16], "origin": {"driving": {"video": "a"}}}
    rows = [row | {"key": "00000000", "offset": 0}, row | {"key": "00000001", "offset": 0}]
    (folder / "000000.json").write_text(json.dumps({"tried": 2, "pairs": rows}))
    return folder


def used(folder: Path) -> int:
    dataset = PairClips(Data(source="pairs", path=str(folder)), 2)
    return len([dataset[index, 0] for index in range(len(dataset))])


def test_no_damaged_index_of_pairs_is_more_than_a_sentence(pairs: Path, tmp_path: Path) -> None:
    assert used(pairs) == 2
    rng, index, opened = random.Random(2), json.loads((pairs / "000000.json").read_text()), 0
    (tmp_path / "000000.tar").symlink_to(pairs / "000000.tar")
    (tmp_path / "1 of mine.json").write_text("{}")  # no number, so not a shard's
    for _ in range(150):
        (tmp_path / "000000.json").write_text(json.dumps(damaged(index, rng)))
        opened += one_sentence(lambda: used(tmp_path)) is not None
    assert 5 < opened < 145


def test_no_damaged_shard_of_pairs_is_more_than_a_sentence(pairs: Path, tmp_path: Path) -> None:
    rng, content, opened = random.Random(3), (pairs / "000000.tar").read_bytes(), 0
    (tmp_path / "000000.json").write_bytes((pairs / "000000.json").read_bytes())
    for _ in range(120):
        spoiled = bytearray(content[: rng.choice([len(content), rng.randrange(len(content))])])
        for _ in range(rng.randint(1, 30)):
            spoiled[rng.randrange(len(spoiled))] = rng.randrange(256)
        (tmp_path / "000000.tar").write_bytes(spoiled)
        opened += one_sentence(lambda: used(tmp_path)) is not None
    assert opened < 115


def test_no_damaged_shard_of_videos_is_more_than_a_sentence(shards: Path, tmp_path: Path) -> None:
    rng, content, opened = random.Random(4), (shards / "000000.tar").read_bytes(), 0
    (tmp_path / MANIFEST).write_bytes((shards / MANIFEST).read_bytes())
    for _ in range(60):
        spoiled = bytearray(content)
        for _ in range(rng.randint(1, 300)):
            spoiled[rng.randrange(len(spoiled))] = rng.randrange(256)
        (tmp_path / "000000.tar").write_bytes(spoiled)

        def use() -> int:
            found = [
                (c.pictures([0, 1]), c.masks([0, 1]), c.poses([0, 1]), c.boxes()) for c in open_shards(tmp_path)
            ]
            return len(found)

        opened += one_sentence(use) is not None
    assert opened < 60


def test_a_picture_that_says_it_is_huge_is_not_decoded(pairs: Path, tmp_path: Path) -> None:
    huge = png(np.zeros((16, 16, 3), np.uint8))
    huge = huge[:16] + (60_000).to_bytes(4, "big") * 2 + huge[24:]
    names = [f"00000000.{number:03d}.{kind}.png" for number in range(2) for kind in ("frame", "scene", "pose")]
    write_tar(tmp_path / "000000.tar", [(name, huge) for name in names])
    (tmp_path / "000000.json").write_bytes((pairs / "000000.json").read_bytes())
    with pytest.raises(UserError, match=r"no PNG of 16x16"):
        read_pairs(tmp_path)[0].clip(range(2))


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"step": 1, "files": []}', '{"step": 1, "files": {"a": {}}}']
)
def test_a_checkpoint_with_a_damaged_manifest_is_passed_over(tmp_path: Path, content: str) -> None:
    (tmp_path / "step-00000002").mkdir()
    (tmp_path / "step-00000002" / "manifest.json").write_text(content)
    (tmp_path / "step-mine").mkdir()
    said: list[str] = []
    assert checkpoints.newest(tmp_path, said.append) is None
    assert len(said) == 1 and "is torn" in said[0]


def test_no_damaged_networks_are_more_than_a_sentence() -> None:
    rng, built = random.Random(5), 0

    def build() -> networks.Networks:
        config = parse(recipe() | {"networks": damaged(NETWORKS, rng)})
        return networks.build(config, [], lambda line: None)[0]

    for _ in range(120):
        built += one_sentence(build) is not None
    assert built < 60
