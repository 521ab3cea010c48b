"""Seeded damage to files: to the structure of the formats that have one, and to the bytes of all."""

from __future__ import annotations

import copy
import json
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import yaml

# Put into JSON as they stand, where no value of Python's would come out so.
_RAW = {
    "@nan@": "NaN",
    "@infinity@": "-Infinity",
    "@large@": "1e999",
    "@long@": "9" * 500,
    "@deep@": "[" * 5000 + "]" * 5000,
    "@objects@": '{"a":' * 300 + "1" + "}" * 300,
    "@half@": r'"\ud800"',
    "@zero@": r'"a\u0000b"',
}
_ODD: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 3, 7, 0.5, -0.5, 1e-320, 255, 65536, 2**31, 2**31 - 1, -(2**31), 2**63),
    *(
        2**64,
        10**9,
        10**30,
        1e6,
        1e300,
        -1e300,
        "",
        "x",
        "1",
        "1e-5",
        "../../etc/passwd",
        "/dev/zero",
        "a\n\u2028",
    ),
    *("a" * 5000, [], {}, [[]], [None], [1, "2", None], {"a": 1}, {"": []}, [0] * 3000, [[0, 0], [0]], *_RAW),
)
_CHUNKS = (
    *(b"cHRM", b"gAMA", b"pHYs", b"tRNS", b"zTXt", b"iTXt", b"tEXt", b"iCCP", b"eXIf", b"PLTE", b"acTL", b"sRGB"),
)
_HOSTILE = ("empty", "folder", "pipe", "loop", "zeros", "gone", "device")


def damage(path: Path, random: Random) -> str:
    """Damages the file at `path` in one to three ways, mostly of its own format; returns what was done."""
    if random.random() < 0.03:
        return _replace(path, random.choice(_HOSTILE))
    content = path.read_bytes()
    done = []
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        of_format = _BY_SUFFIX.get(path.suffix)
        way = of_format if of_format is not None and random.random() < 0.75 else _bytes
        try:
            content = way(content, random)
        except (ValueError, LookupError, TypeError, RecursionError, struct.error, yaml.YAMLError):
            way = _bytes  # an earlier way has left nothing of the format
            content = way(content, random)
        done.append(way.__name__.strip("_"))
    path.write_bytes(content)
    return "+".join(done)


def odd(value: Any, random: Random) -> Any:
    """JSON content with one place of it replaced, removed, doubled or renamed."""
    root = [copy.deepcopy(value)]
    places: list[tuple[Any, Any]] = []
    _collect(root, places)
    holder, key = random.choice(places)
    way = random.random()
    if way < 0.65:
        holder[key] = copy.deepcopy(random.choice(_ODD))
    elif way < 0.8:
        del holder[key]
    elif isinstance(holder, list):
        holder.insert(key, copy.deepcopy(holder[random.randrange(len(holder))]))
    elif way < 0.9:
        holder[random.choice(("", "a", "x" * 300, "0", str(key) + "s"))] = holder.pop(key)
    else:
        holder[key] = copy.deepcopy(random.choice(list(holder.values())))
    return root[0] if root else None


def _collect(holder: Any, places: list[tuple[Any, Any]]) -> None:
    keys = range(len(holder)) if isinstance(holder, list) else list(holder)
    # Long lists of numbers would be most of all places.
    for key in list(keys)[:12]:
        places.append((holder, key))
        if isinstance(holder[key], (list, dict)) and holder[key]:
            _collect(holder[key], places)


def dumped(value: Any) -> str:
    text = json.dumps(value)
    for mark, raw in _RAW.items():
        text = text.replace(f'"{mark}"', raw)
    return text


def _json(content: bytes, random: Random) -> bytes:
    return dumped(odd(json.loads(content), random)).encode()


def _jsonl(content: bytes, random: Random) -> bytes:
    lines = content.splitlines()
    number = random.randrange(len(lines))
    lines[number] = _json(lines[number], random)
    return b"\n".join(lines)


def _yaml(content: bytes, random: Random) -> bytes:
    value = odd(yaml.safe_load(content), random)
    if random.random() < 0.5:
        return dumped(value).encode()  # nearly all JSON is YAML
    return yaml.safe_dump(value, allow_unicode=True).encode()


def _safetensors(content: bytes, random: Random) -> bytes:
    length = int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    inner = [key for key in ("configs", "settings") if key in header.get("__metadata__", {})]
    way = random.random()
    if inner and way < 0.7:
        key = random.choice(inner)
        header["__metadata__"][key] = dumped(odd(json.loads(header["__metadata__"][key]), random))
        text = json.dumps(header).encode()
    elif way < 0.9:
        text = dumped(odd(header, random)).encode()
    else:
        text = content[8 : 8 + length]
        data = _bytes(data, random)
    size = random.choice((len(text),) * 9 + (2**63, 0, len(text) + 7))
    return size.to_bytes(8, "little") + text + data


def _png(content: bytes, random: Random) -> bytes:
    """Chunks whose checksums are right."""
    chunks, at = [], 8
    while at < len(content):
        (size,) = struct.unpack(">I", content[at : at + 4])
        chunks.append((content[at + 4 : at + 8], content[at + 8 : at + 8 + size]))
        at += size + 12
    number = random.randrange(len(chunks))
    way = random.random()
    if way < 0.4:
        unzipped = b"a\0\0" + zlib.compress(b"x" * 10**6)
        filler = random.choice((b"", b"\0", random.randbytes(3), random.randbytes(40), unzipped))
        chunks.insert(max(1, number), (random.choice(_CHUNKS), filler))
    elif way < 0.8:
        chunks[number] = (chunks[number][0], _bytes(chunks[number][1], random))
    elif way < 0.9:
        del chunks[number]
    else:
        chunks.insert(number, chunks[random.randrange(len(chunks))])
    return content[:8] + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


def _bytes(content: bytes, random: Random) -> bytes:
    data = bytearray(content)
    at = random.randrange(len(data) + 1)
    way = random.randrange(7)
    if way == 0:
        return bytes(data[:at])
    if way == 1:
        data[at:at] = random.randbytes(random.choice((1, 4, 100)))
    elif way == 2:
        del data[at : at + random.choice((1, 4, 100))]
    elif way == 3:
        data[at : at + 8] = random.choice(
            (b"\0" * 8, b"\xff" * 8, struct.pack("<q", 2**62), struct.pack(">q", 2**31))
        )
    elif way == 4:
        other = random.randrange(len(data) + 1)
        data[at:at] = data[other : other + random.choice((4, 64, 1000))]
    else:
        # Most of what matters lies near the beginning.
        for _ in range(random.choice((1, 1, 3, 10))):
            place = random.randrange(min(len(data), 400) if random.random() < 0.5 else len(data)) if data else 0
            data[place : place + 1] = random.randbytes(1)
    return bytes(data)


_BY_SUFFIX: dict[str, Callable[[bytes, Random], bytes]] = {
    ".json": _json,
    ".jsonl": _jsonl,
    ".yaml": _yaml,
    ".safetensors": _safetensors,
    ".png": _png,
}


def _replace(path: Path, kind: str) -> str:
    path.unlink()
    if kind == "empty":
        path.touch()
    elif kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "loop":
        path.symlink_to(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "zeros":
        path.write_bytes(bytes(1000))
    return kind
