"""The door for files that others made: ordinary files only, within limits, one sentence for the rest."""

from __future__ import annotations

import json
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file

from anycharv_core.checkpoints.state_dicts import read_weights
from anycharv_core.errors import UserError
from anycharv_core.foreign import (
    MOST_DEPTH,
    check_file,
    parse_json,
    parse_yaml,
    read_bytes,
    read_header,
    read_json,
    read_json_rows,
    read_picture,
)


def refused(call, *given) -> str:
    with pytest.raises(UserError) as caught:
        call(*given)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 500
    return message


def test_only_ordinary_files_are_opened_and_nothing_waits_for_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "loop.json").symlink_to(tmp_path / "loop.json")
    assert "pipe or a device" in refused(read_json, tmp_path / "pipe.json")
    assert "pipe or a device" in refused(read_json, "/dev/zero")
    assert "symbolic links" in refused(read_json, tmp_path / "loop.json")
    assert "too long" in refused(read_json, tmp_path / ("x" * 300))
    for path in (tmp_path, tmp_path / "none", "zero\0byte", ""):
        assert "is not there or is not a file" in refused(read_json, path)
    (tmp_path / "good.json").write_text("[1]")
    (tmp_path / "link.json").symlink_to(tmp_path / "good.json")
    assert check_file(tmp_path / "link.json") == 3 and read_json(tmp_path / "link.json") == [1]
    assert "more than 2 bytes" in refused(read_bytes, tmp_path / "good.json", 2)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[" * 100_000 + "]" * 100_000, "nested more than 64 deep"),
        ('{"a":' * 1000 + "1" + "}" * 1000, "nested more than 64 deep"),
        ("[1e999]", "too large or not finite"),
        ("[-1e999]", "too large or not finite"),
        ("[" + "9" * 400 + "]", "too large or not finite"),
        ("9" * 5000, "not valid JSON"),
        ("[NaN]", "not valid JSON"),
        ("[-Infinity]", "not valid JSON"),
        (r'["\ud800"]', "damaged"),
        (r'{"a\u0000": 1}', "damaged"),
        ("", "not valid JSON"),
        (b"\xff\xfe[\x00]\x00", "not valid JSON"),
        (b'["\xe4"]', "not valid JSON"),
    ],
)
def test_json_beyond_the_limits_costs_one_sentence(text, reason: str) -> None:
    message = refused(parse_json, text, "a.json")
    assert message.startswith("a.json ") and reason in message


def test_ordinary_json_passes() -> None:
    value = {
        "brackets": "[{" * 100,
        "escaped": '"' + "[" * 100,
        "seed": 2**63 - 1,
        "x": 1e-300,
        "clef": "\U0001d11e",
    }
    assert parse_json(json.dumps(value), "a") == value
    assert parse_json(b"\xef\xbb\xbf" + json.dumps(value, ensure_ascii=False).encode(), "a") == value
    deep = "[" * MOST_DEPTH + "]" * MOST_DEPTH
    assert json.dumps(parse_json(deep, "a")) == deep


def test_the_number_of_values_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anycharv_core.foreign.MOST_JSON_VALUES", 100)
    assert "more than 100 values" in refused(parse_json, "[" + "[],{}," * 40 + "1]", "a.json")
    assert parse_json("[1,2,3]", "a.json") == [1, 2, 3]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[" * 10_000 + "]" * 10_000, "nested more than"),
        ("a: &a [*a]", "no value before it"),
        ("a: *b", "no value before it"),
        ("a: .inf", "not finite"),
        ("a: " + "9" * 400, "too large"),
        ("a: 2001-99-99", "not valid YAML"),
        ("a: 2001-09-09", "holds a date"),
        ("a: !!bool maybe", "not valid YAML"),
        ("a: !!timestamp never", "not valid YAML"),
        ("a: !!int ''", "not valid YAML"),
        ("a: !!python/object/apply:os.getcwd []", "not valid YAML"),
        ("? [1]\n: 2", "not valid YAML"),
        ("a: 1\n--- \nb: 2", "not valid YAML"),
        (b"\xff\xfea\x00", "not valid YAML"),
        ("a: \0", "not valid YAML"),
    ],
)
def test_yaml_beyond_the_limits_costs_one_sentence(text, reason: str) -> None:
    message = refused(parse_yaml, text, "a.yaml")
    assert message.startswith("a.yaml ") and reason in message


def test_yaml_aliases_are_counted_written_out() -> None:
    laughs = "a0: &a0 [1, 1]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 40))
    assert "more than 100,000 values" in refused(parse_yaml, laughs, "a.yaml")
    merges = "a0: &a0 {x: 1}\n" + "".join(f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}]}}\n" for i in range(1, 40))
    assert "more than 100,000 values" in refused(parse_yaml, merges, "a.yaml")
    assert parse_yaml("a: &a {x: 1}\nb: {<<: *a, y: 2}\nc: *a", "a") == {
        "a": {"x": 1},
        "b": {"x": 1, "y": 2},
        "c": {"x": 1},
    }


def png(*chunks: tuple[bytes, bytes], size: tuple[int, int] = (2, 2)) -> bytes:
    """A gray PNG with extra chunks before its pixels."""
    head = struct.pack(">IIBBBBB", *size, 8, 0, 0, 0, 0)
    rows = zlib.compress(b"".join(b"\0" + b"\x80" * size[0] for _ in range(size[1] if size[1] < 100 else 1)))
    whole = [(b"IHDR", head), *chunks, (b"IDAT", rows), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in whole
    )


@pytest.mark.parametrize("kind", [b"cHRM", b"gAMA", b"pHYs", b"tRNS", b"zTXt", b"iCCP", b"sRGB", b"iTXt", b"eXIf"])
def test_a_png_with_a_damaged_chunk_is_read_or_refused(tmp_path: Path, kind: bytes) -> None:
    for length in (0, 1, 3):
        path = tmp_path / f"{length}.png"
        path.write_bytes(png((kind, b"\x01\0\xff"[:length])))
        try:
            assert read_picture(path).size == (2, 2)
        except UserError as error:
            assert "give a complete PNG or JPEG" in str(error)


def test_other_bad_pictures_are_refused_in_one_sentence(tmp_path: Path) -> None:
    bomb = tmp_path / "bomb.png"
    bomb.write_bytes(png(size=(30000, 30000)))
    assert "is not a picture" in refused(read_picture, bomb)
    wide = tmp_path / "wide.png"
    wide.write_bytes(png(size=(100_000, 1)))
    assert "at most 32768 a side" in refused(read_picture, wide)
    dds = tmp_path / "a.dds"
    dds.write_bytes(b"DDS " + struct.pack("<I", 124) + b"\xff" * 120)
    assert "is not a picture" in refused(read_picture, dds)
    unzipped = tmp_path / "text.png"
    unzipped.write_bytes(png((b"zTXt", b"a\0\0" + zlib.compress(b"\0" * 10**8))))
    assert "is not a picture" in refused(read_picture, unzipped)
    os.mkfifo(tmp_path / "pipe.png")
    assert "pipe or a device" in refused(read_picture, tmp_path / "pipe.png")


@pytest.mark.parametrize("suffix", ["jpg", "tiff", "png", "webp"])
def test_a_picture_is_turned_upright_whatever_else_its_metadata_say(tmp_path: Path, suffix: str) -> None:
    pixels = np.zeros((4, 8, 3), np.uint8)
    pixels[:, :4] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / f"a.{suffix}", exif=exif.tobytes())
    upright = np.asarray(read_picture(tmp_path / f"a.{suffix}"))
    assert upright.shape == (8, 4, 3) and upright[:3].min() > 200 and upright[5:].max() < 60
    # A tag of an unknown type, which PIL cannot write again.
    odd = b"Exif\0\0II*\0\x08\0\0\0\x02\0" + struct.pack("<HHII", 0x0112, 3, 1, 6)
    odd += struct.pack("<HHII", 0x9999, 99, 1, 0) + b"\0\0\0\0"
    if suffix == "jpg":
        Image.fromarray(pixels).save(tmp_path / "odd.jpg", exif=odd)
        assert read_picture(tmp_path / "odd.jpg").size == (4, 8)


def header(path: Path, rows: object, data: bytes = b"", length: int | None = None) -> Path:
    text = rows if isinstance(rows, bytes) else json.dumps(rows).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def test_a_safetensors_header_is_checked_against_the_file(tmp_path: Path) -> None:
    good = tmp_path / "good.safetensors"
    save_file({"a": torch.zeros(2, 3), "b": torch.zeros(0, dtype=torch.bfloat16)}, good, {"format": "pt"})
    read = read_header(good)
    assert read.metadata == {"format": "pt"} and read.shapes == {"a": (2, 3), "b": (0,)}
    path = tmp_path / "bad.safetensors"
    row = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    for rows, data, length in (
        ({}, b"", 2**63),
        ({}, b"", 0),
        (b"[" * 100_000, b"", None),
        (b"\xff\xff", b"", None),
        ([], b"", None),
        ({"__metadata__": {"configs": {}}}, b"", None),
        ({"a": row}, b"", None),
        ({"a": 3}, b"1234", None),
        ({"a": row | {"shape": [2**40, 2**40]}}, b"1234", None),
        ({"a": row | {"shape": [-1]}}, b"1234", None),
        ({"a": row | {"shape": 1e300}}, b"1234", None),
        ({"a": row | {"dtype": []}}, b"1234", None),
        ({"a": row | {"data_offsets": [4, 0]}}, b"1234", None),
    ):
        message = refused(read_header, header(path, rows, data, length))
        assert message.startswith(f"{path} is torn or not a safetensors file (")
        assert refused(read_weights, path)
    path.write_bytes(b"123")
    assert "torn" in refused(read_header, path)


def test_weights_that_stand_for_more_than_is_stored_are_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1).expand(10**6, 10**6)}, tmp_path / "large.pth")
    assert "does not hold all values of 'a'" in refused(read_weights, tmp_path / "large.pth")
    torch.save({"a": torch.zeros(3).to_sparse()}, tmp_path / "sparse.pth")
    assert "plain tensors" in refused(read_weights, tmp_path / "sparse.pth")
    os.mkfifo(tmp_path / "pipe.safetensors")
    assert "pipe or a device" in refused(read_weights, tmp_path / "pipe.safetensors")
    torch.save({"a": torch.zeros(3)}, tmp_path / "good.pth")
    assert read_weights(tmp_path / "good.pth")["a"].shape == (3,)


# Text with a zero in it is refused as damaged.
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=3)


@given(st.recursive(st.none() | st.booleans() | st.integers(-9, 9) | TEXT, st.lists, max_leaves=8))
def test_rows_are_what_the_whole_file_holds(tmp_path_factory, value):
    path = tmp_path_factory.getbasetemp() / "rows.json"
    for text in (json.dumps(value), f" {json.dumps(value, indent=1)}\n "):
        path.write_text(text)
        assert list(read_json_rows(path)) == (value if isinstance(value, list) else [value])


@pytest.mark.parametrize(
    "text", ["", "[", "[1", "[1,", "[1,]", "[,1]", "[1 2]", "[1] 2", "[1]]", "1 2", "nul", "[NaN]", '["\\ud800"]']
)
def test_rows_that_are_no_json_are_refused_before_the_first(tmp_path, text):
    path = tmp_path / "rows.json"
    path.write_text(text)
    with pytest.raises(UserError) as whole:
        read_json(path)
    with pytest.raises(UserError) as rows:
        read_json_rows(path)
    assert str(rows.value).split(" (")[0] == str(whole.value).split(" (")[0]
