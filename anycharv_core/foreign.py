"""The one door for files that others made: JSON, YAML, pictures and the headers of .safetensors files.

What is opened here is an ordinary file, and what it holds stays within limits that no real input comes near: a
pipe never blocks, and a hostile or damaged file costs one sentence, neither a traceback nor the memory.
"""

from __future__ import annotations

import json
import math
import os
import re
import reprlib
import stat
import struct
import warnings
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from .errors import UserError

# An hour of one person's keypoints is 0.7 GB of JSON with 36 million numbers.
MOST_JSON_BYTES, MOST_JSON_VALUES = 2**30, 2**26
MOST_YAML_BYTES, MOST_YAML_VALUES = 2**18, 100_000
MOST_PICTURE_BYTES, MOST_SIDE = 2**30, 32768
MOST_HEADER_BYTES, MOST_TENSORS = 10**8, 10**6
MOST_DEPTH = 64
_WHOLE_BELOW = 2**64

# Formats in which characters and masks come. PIL knows others, whose readers are old, or start a program.
_FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "TGA", "AVIF", "JPEG2000")
# All of these come out of PIL, and of PyYAML, for text or bytes that are damaged in one place or another.
_PARSER_ERRORS = (
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    AttributeError,
    RuntimeError,
    AssertionError,
)
_PICTURE_ERRORS = (
    *(*_PARSER_ERRORS, OSError, SyntaxError, EOFError, MemoryError),
    *(struct.error, zlib.error, Image.DecompressionBombError),
)

_ORIENTATION = 0x0112  # the Exif tag
_TURNS: dict[Any, Image.Transpose] = {  # by what the tag holds, which may be anything
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Bits of a value of each type of safetensors.
_BITS = {
    **dict.fromkeys(("F4",), 4),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
}

_SPACE = re.compile(r"[ \t\n\r]*")
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
_NO_BRACKET = bytes(set(range(256)) - set(b"[]{}"))
# What no number out of range, no half character and no zero byte does without: rare enough to then look closely.
_SUSPECT = re.compile(rb"\d{19}|[eE]\+?\d{3}|\\u(?:[dD][89a-fA-F]|0000)")


def check_file(path: str | Path) -> int:
    """The size in bytes of an ordinary file, which may be reached through symbolic links.

    Raises UserError where there is none, or where it is a folder, a pipe or a device.
    """
    try:
        found = Path(path).stat()
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a zero byte in the name
        found = None
    except OSError as error:
        raise unreadable(path, error) from error
    if found is None or stat.S_ISDIR(found.st_mode):
        raise UserError(f"{path} is not there or is not a file; check the path.")
    if not stat.S_ISREG(found.st_mode):
        raise UserError(f"{path} is a pipe or a device; save what it gives as a file, and give that.")
    return found.st_size


def open_file(path: str | Path) -> BinaryIO:
    """An ordinary file, opened to read bytes. Raises UserError as `check_file` does."""
    check_file(path)
    try:
        return Path(path).open("rb")
    except OSError as error:
        raise unreadable(path, error) from error


def unreadable(path: str | Path, error: OSError) -> UserError:
    """The sentence for a file or folder that could not be read; the caller raises it."""
    if isinstance(error, PermissionError):
        return UserError(f"{path} may not be read; change its permissions.")
    return UserError(f"{path} cannot be read ({error.strerror or error}); check the path.")


def read_bytes(path: str | Path, most: int) -> bytes:
    """The content of an ordinary file of at most `most` bytes. Raises UserError as `check_file` does."""
    with open_file(path) as file:
        try:
            # Python makes room for all that is asked for, before it knows how little there is.
            content = file.read(min(most, os.fstat(file.fileno()).st_size) + 1)
        except OSError as error:
            raise unreadable(path, error) from error
    if len(content) > most:
        raise UserError(f"{path} holds more than {most:,} bytes, too many for such a file; check the path.")
    return content


def read_json(path: str | Path, most: int = MOST_JSON_BYTES) -> Any:
    """The content of a JSON file of at most `most` bytes, in UTF-8 with or without a byte order mark.

    Raises UserError where the file cannot be read, is not JSON, or is refused by `parse_json`.
    """
    return parse_json(read_bytes(path, most), str(path))


def read_json_rows(path: str | Path) -> Iterator[Any]:
    """The elements of the list that a JSON file holds, or else its one value, each made when it is asked for.

    Raises UserError as `read_json` does, before the first.
    """
    name = str(path)
    content = _within_limits(read_bytes(path, MOST_JSON_BYTES), name)
    suspect = bool(_SUSPECT.search(content))
    text = _decoded(content, name)
    del content
    for value in _rows(text, name):  # to know that all of it is JSON
        if suspect:
            check_values(value, name, MOST_JSON_VALUES)
    return _rows(text, name)


def _rows(text: str, name: str) -> Iterator[Any]:
    decoder = json.JSONDecoder(parse_constant=_no_number)

    def after_space(place: int) -> int:
        return _SPACE.match(text, place).end()  # type: ignore[union-attr]  # it matches nothing, too

    place = after_space(0)
    rows = text[place : place + 1] == "["
    try:
        place = after_space(place + rows)
        ended = rows and text[place : place + 1] == "]"
        while not ended:
            value, place = decoder.raw_decode(text, place)
            yield value
            place = after_space(place)
            ended = not rows or text[place : place + 1] == "]"
            if not ended:
                if text[place : place + 1] != ",":
                    raise json.JSONDecodeError("Expecting ',' delimiter", text, place)
                place = after_space(place + 1)
        place = after_space(place + rows)
        if place < len(text):
            raise json.JSONDecodeError("Extra data", text, place)
    except ValueError as error:
        raise _no_json(name, error) from error


def parse_json(text: bytes | str, name: str) -> Any:
    """What a JSON text holds: numbers are finite, whole ones below 2^64 in size, nesting is at most 64 deep.

    Raises UserError, naming `name`, where the text is not JSON or goes beyond that.
    """
    content = _within_limits(text, name)
    try:
        value = json.loads(_decoded(content, name), parse_constant=_no_number)
    except ValueError as error:
        raise _no_json(name, error) from error
    if _SUSPECT.search(content):
        check_values(value, name, MOST_JSON_VALUES)
    return value


def _within_limits(text: bytes | str, name: str) -> bytes:
    content = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    # Before anything is built: the parser recurses, and a value takes many times the bytes it is written in.
    if _depth(content) > MOST_DEPTH and _depth(_STRING.sub(b"", content)) > MOST_DEPTH:
        raise UserError(f"{name} is nested more than {MOST_DEPTH} deep; give the file as its program wrote it.")
    if content.count(b",") + content.count(b"[") + content.count(b"{") > MOST_JSON_VALUES:
        raise UserError(f"{name} holds more than {MOST_JSON_VALUES:,} values; split it.")
    return content


def _decoded(content: bytes, name: str) -> str:
    try:
        # The signature variant: some Windows editors begin the file with a byte order mark.
        return content.decode("utf-8-sig")
    except ValueError as error:
        raise _no_json(name, error) from error


def _no_json(name: str, error: ValueError) -> UserError:
    return UserError(f"{name} is not valid JSON ({error}); correct it, or write it again.")


def check_values(value: Any, name: str, most: int) -> None:
    """Raises UserError unless `value`, as JSON or YAML gives it, is made of lists, mappings, texts, finite
    numbers, whole ones below 2^64 in size, true, false and null, at most `most` of them and at most 64 deep."""
    level, count = [value], 0
    for _ in range(MOST_DEPTH + 1):
        below: list[Any] = []
        for each in level:
            if isinstance(each, dict):
                below.extend(each)
                below.extend(each.values())
            elif isinstance(each, list):
                below.extend(each)
            else:
                _check_value(each, name)
        count += len(level)
        if count > most:
            raise UserError(f"{name} holds more than {most:,} values; give a smaller file.")
        if not below:
            return
        level = below
    raise UserError(f"{name} is nested more than {MOST_DEPTH} deep.")


def _check_value(value: Any, name: str) -> None:
    if isinstance(value, str):
        if "\0" in value or any("\ud800" <= character <= "\udfff" for character in value):
            raise UserError(f"{name} holds damaged text, {reprlib.repr(value)}; write the file again.")
    elif isinstance(value, (int, float)):
        if not (math.isfinite(value) if isinstance(value, float) else -_WHOLE_BELOW < value < _WHOLE_BELOW):
            raise UserError(
                f"{name} holds a number that is too large or not finite, {reprlib.repr(value)}; correct it."
            )
    elif value is not None:
        raise UserError(
            f"{name} holds a {type(value).__name__} ({reprlib.repr(value)}), which has no use here; remove it."
        )


def _depth(content: bytes) -> int:
    brackets = np.frombuffer(content.translate(None, _NO_BRACKET), np.uint8)
    steps = np.where((brackets == ord("[")) | (brackets == ord("{")), np.int8(1), np.int8(-1))
    return int(np.cumsum(steps, dtype=np.int32).max(initial=0))


def _no_number(text: str) -> Any:
    raise ValueError(f"{text} is not a finite number")


def read_yaml(path: str | Path) -> Any:
    """The content of a YAML file in UTF-8 of at most 256 KiB. Raises UserError as `parse_yaml` does."""
    return parse_yaml(read_bytes(path, MOST_YAML_BYTES), str(path))


def parse_yaml(text: bytes | str, name: str) -> Any:
    """What one YAML document holds: what `check_values` lets pass.

    Raises UserError, naming `name`, where the text is not YAML, goes beyond that, or where its aliases would make
    more than 100,000 values of it.
    """
    import yaml  # only training reads YAML, and huggingface_hub brings it

    try:
        # Given bytes, PyYAML would take UTF-16 too.
        content = text.decode("utf-8-sig") if isinstance(text, bytes) else text
        # Aliases are expanded and nesting is followed while it builds, so both are measured before.
        _measure(yaml.parse(content, yaml.SafeLoader), name)
        value = yaml.safe_load(content)
    except UserError:
        raise
    except (yaml.YAMLError, *_PARSER_ERRORS) as error:
        raise UserError(f"{name} is not valid YAML ({' '.join(str(error).split())}).") from error
    check_values(value, name, MOST_YAML_VALUES)
    return value


def _measure(events: Iterable[Any], name: str) -> None:
    """Raises UserError where a YAML document is nested too deep or holds too much, every alias written out."""
    sizes: dict[str, int] = {}
    open_: list[tuple[str | None, int]] = [(None, 0)]
    for event in events:
        kind, anchor = type(event).__name__, getattr(event, "anchor", None)
        size = 0
        if kind == "AliasEvent":
            if anchor not in sizes:
                raise UserError(f"{name} is not valid YAML (the alias *{anchor} has no value before it).")
            size = sizes[anchor]
        elif kind == "ScalarEvent":
            size = 1
        elif kind in ("SequenceStartEvent", "MappingStartEvent"):
            open_.append((anchor, 1))
            if len(open_) > MOST_DEPTH:
                raise UserError(f"{name} is nested more than {MOST_DEPTH} deep.")
            continue
        elif kind in ("SequenceEndEvent", "MappingEndEvent"):
            anchor, size = open_.pop()
        if anchor is not None:
            sizes[anchor] = size
        open_[-1] = (open_[-1][0], open_[-1][1] + size)
        if open_[-1][1] > MOST_YAML_VALUES:
            raise UserError(f"{name} holds more than {MOST_YAML_VALUES:,} values; give a smaller file.")


def read_picture(path: str | Path, mode: str | None = None) -> Image.Image:
    """A picture, decoded and turned upright, of at most 179 million pixels.

    PNG, JPEG, WebP, TIFF, BMP, GIF (its first frame), PPM, TGA, and AVIF and JPEG 2000 where PIL has them.

    Args:
        mode: PIL's name of the channels to convert to; None gives "RGBA" where there is transparency, else "RGB".

    Raises UserError where the file cannot be read, is another kind of picture, has more than 8 bits a channel, is
    damaged or too large.
    """
    if check_file(path) > MOST_PICTURE_BYTES:
        raise UserError(f"{path} holds more than {MOST_PICTURE_BYTES:,} bytes; give a smaller picture.")
    Image.init()
    formats = [name for name in _FORMATS if name in Image.OPEN]
    try:
        with open_file(path) as file, warnings.catch_warnings():
            # PIL warns of more than 90 million pixels, which today's telephones take, and of odd metadata.
            warnings.simplefilter("ignore")
            with Image.open(file, formats=formats) as opened:
                if max(opened.size) > MOST_SIDE:
                    raise UserError(
                        f"{path} is {opened.width}x{opened.height}; give one of at most {MOST_SIDE} a side."
                    )
                if opened.mode.startswith(("I", "F")):
                    raise UserError(f"{path} has more than 8 bits a channel; save it as an ordinary PNG.")
                opened.load()
                transparent = "A" in opened.getbands() or "transparency" in opened.info
                return _upright(opened).convert(mode or ("RGBA" if transparent else "RGB"))
    except UserError:
        raise
    except _PICTURE_ERRORS as error:
        raise UserError(f"{path} is not a picture that can be read; give a complete PNG or JPEG.") from error


def png_size(path: str | Path) -> tuple[int, int] | None:
    """The (width, height) that the header of a PNG names, None where it has no such header.

    Raises UserError where the file cannot be read.
    """
    with open_file(path) as file:
        header = file.read(24)
    if len(header) < 24 or header[:8] != b"\x89PNG\r\n\x1a\n" or header[12:16] != b"IHDR":
        return None
    return int.from_bytes(header[16:20], "big"), int.from_bytes(header[20:24], "big")


def _upright(picture: Image.Image) -> Image.Image:
    """Not by PIL's `exif_transpose`, which also writes the metadata again and fails where that is odd."""
    turn = _TURNS.get(picture.getexif().get(_ORIENTATION))
    return picture if turn is None else picture.transpose(turn)


@dataclass(frozen=True)
class Header:
    """What the header of a .safetensors file says: its texts, and the shape of every tensor by its name."""

    metadata: dict[str, str]
    shapes: dict[str, tuple[int, ...]]


def read_header(path: str | Path) -> Header:
    """The header of a .safetensors file, checked against the file's own size; no tensor is read.

    Raises UserError where the file cannot be read, or is torn or not a .safetensors file.
    """
    size = check_file(path)
    with open_file(path) as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or not 2 <= length <= min(size - 8, MOST_HEADER_BYTES):
            raise _torn(path, "its header does not fit into it")
        content = file.read(length)
    try:
        rows = parse_json(content, "its header")
    except UserError as error:
        raise _torn(path, str(error).rstrip(".")) from error
    if not isinstance(rows, dict) or len(rows) > MOST_TENSORS:
        raise _torn(path, "its header lists no tensors")
    metadata = rows.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise _torn(path, "its metadata is not made of texts")
    shapes = {}
    for key, row in rows.items():
        if not isinstance(row, dict) or not _fits(row, size - 8 - length):
            raise _torn(path, f"its header says of {reprlib.repr(key)} what cannot be")
        shapes[key] = tuple(row["shape"])
    return Header(metadata, shapes)


def _fits(row: dict[str, Any], stored: int) -> bool:
    shape, place, dtype = row.get("shape"), row.get("data_offsets"), row.get("dtype")
    if not isinstance(shape, list) or not isinstance(place, list) or not isinstance(dtype, str):
        return False
    if not all(type(number) is int and 0 <= number < 2**48 for number in (*shape, *place)):
        return False
    if len(place) != 2 or not place[0] <= place[1] <= stored:
        return False
    bits = _BITS.get(dtype)
    return bits is not None and math.prod(shape) * bits == (place[1] - place[0]) * 8


def _torn(path: str | Path, reason: str) -> UserError:
    return UserError(f"{path} is torn or not a safetensors file ({reason}): fetch it again.")
