"""Shards of prepared videos: WebDataset tar files, read here by byte offset, without unpacking.

A clip KEY of F frames at one size is four members of `000000.tar`:

    KEY.mp4         frames: H.264, every frame a key frame, 4:4:4, CRF 10, 25 frames to the second of file time
    KEY.mask.mkv    masks of the person, 0 or 255: FFV1, every frame a key frame, 25 to the second
    KEY.pose.jsonl  line i is frame i's POSE_KEYPOINT, of the frames' canvas, nobody but the person in it
    KEY.json        size, frames, the video's own fps, boxes per frame, window and place in the source

Frames are not the source's own bits, because those can only be entered at their key frames, seconds apart, and
a window of them in a bucket's size is what training reads: all-intra costs three times the space and decodes any
frame by itself. Not lossless either, which is ten times as large for what no VAE sees. Chroma is kept whole, and
masks are lossless: a lossy mask has a fringe that the network learns to read.

`manifest.jsonl` has a line for every finished video with its clips and where their members lie.
"""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc, VideoReformatter

from anycharv_core.errors import UserError
from anycharv_core.files import atomic_path
from anycharv_core.foreign import MOST_JSON_BYTES, parse_json, read_bytes
from anycharv_core.media.pose import Poses, parse_poses
from anycharv_core.media.video_read import EXACT

MANIFEST, QUARANTINE = "manifest.jsonl", "quarantine.jsonl"
FRAMES, MASKS, POSES, FACTS = "mp4", "mask.mkv", "pose.jsonl", "json"
_RATE = 25  # of file time, whatever the video's own; both containers hold its ticks exactly
_CRF = 10
_MOST_SIDE = 16384


class ClipWriter:
    """Encodes a clip's frames and masks into `folder`, as `frames` and `masks` files to be taken from there.

    Use it in a `with` statement; size: (width, height) of every frame.
    """

    def __init__(self, folder: Path, size: tuple[int, int]):
        self.frames, self.masks, self.count = folder / f"clip.{FRAMES}", folder / f"clip.{MASKS}", 0
        self._size = size
        self._reformatter = VideoReformatter()

    def __enter__(self) -> ClipWriter:
        with ExitStack() as stack:
            pictures, masks = (
                # Else Matroska draws a random number, and no two runs would give the same shard.
                stack.enter_context(av.open(f"file:{path}", "w", container_options={"fflags": "bitexact"}))
                for path in (self.frames, self.masks)
            )
            intra = {"g": "1", "keyint_min": "1", "bf": "0"}
            self._pictures = (
                pictures,
                self._stream(pictures, "libx264", "yuv444p", {"crf": str(_CRF), "preset": "fast", **intra}),
            )
            context = self._pictures[1].codec_context
            context.color_range, context.colorspace = ColorRange.MPEG, Colorspace.ITU709
            context.color_primaries, context.color_trc = ColorPrimaries.BT709, ColorTrc.BT709
            self._masks = masks, self._stream(masks, "ffv1", "gray", {"level": "3", "slicecrc": "1", "g": "1"})
            self._masks[1].codec_context.color_range = ColorRange.JPEG
            self._stack = stack.pop_all()
        return self

    def _stream(self, container: Any, codec: str, pixels: str, options: dict[str, str]) -> Any:
        width, height = self._size
        stream = container.add_stream(
            codec,
            rate=_RATE,
            width=width,
            height=height,
            pix_fmt=pixels,
            time_base=Fraction(1, _RATE),
            options=options,
        )
        stream.codec_context.thread_count = 1
        return stream

    def write(self, frame: np.ndarray, mask: np.ndarray) -> None:
        """Add a frame uint8 [H, W, 3] and its mask uint8 [H, W]."""
        picture = self._reformatter.reformat(
            av.VideoFrame.from_ndarray(frame, "rgb24"),
            format="yuv444p",
            dst_colorspace=Colorspace.ITU709,
            interpolation=EXACT,
            src_color_range=ColorRange.JPEG,
            dst_color_range=ColorRange.MPEG,
        )
        for (container, stream), image in (
            (self._pictures, picture),
            (self._masks, av.VideoFrame.from_ndarray(mask, "gray")),
        ):
            image.pts, image.time_base = self.count, Fraction(1, _RATE)
            container.mux(stream.encode(image))
        self.count += 1

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        with self._stack:
            if kind is None:
                for container, stream in (self._pictures, self._masks):
                    container.mux(stream.encode(None))


@dataclass(frozen=True)
class Clip:
    """A clip in a shard. start: its first frame in the video; references: frames of it that show the person
    well; members: kind of member -> (offset, size) in the shard, in bytes."""

    key: str
    video: str
    shard: Path
    start: int
    frames: int
    size: tuple[int, int]
    references: tuple[int, ...]
    members: dict[str, tuple[int, int]]

    def read(self, member: str) -> bytes:
        """Raises UserError where the shard is missing or torn."""
        offset, size = self.members[member]
        try:
            with self.shard.open("rb") as file:
                file.seek(offset)
                content = file.read(size)
        except OSError as error:
            raise lost(self.shard, error.strerror or str(error)) from error
        if len(content) < size:
            raise lost(self.shard, "cut short")
        return content

    def facts(self) -> dict[str, Any]:
        """What KEY.json holds; of `boxes` there is one per frame. Raises UserError as `read` does."""
        facts = parse_json(self.read(FACTS), f"{self.shard}, {self.key}.{FACTS}")
        boxes = facts.get("boxes") if isinstance(facts, dict) else None
        if not isinstance(boxes, list) or len(boxes) != self.frames or not all(map(_is_box, boxes)):
            raise lost(self.shard, f"damaged in {self.key}.{FACTS}")
        return facts

    def poses(self, numbers: Sequence[int]) -> Poses:
        """Raises UserError as `read` does, or where the poses are no POSE_KEYPOINT."""
        lines, name = self.read(POSES).splitlines(), f"{self.shard}, {self.key}.{POSES}"
        if len(lines) != self.frames:
            raise lost(self.shard, f"damaged in {self.key}.{POSES}")
        return parse_poses([parse_json(lines[number], name) for number in numbers], name=name)

    def pictures(self, numbers: Sequence[int]) -> np.ndarray:
        """Frames uint8 [len(numbers), H, W, 3], RGB; `numbers` rise."""
        return self._decoded(FRAMES, numbers)

    def masks(self, numbers: Sequence[int]) -> np.ndarray:
        """uint8 [len(numbers), H, W], 0 or 255; `numbers` rise."""
        return self._decoded(MASKS, numbers)

    def _decoded(self, member: str, numbers: Sequence[int]) -> np.ndarray:
        wanted = set(numbers)
        pictures: list[np.ndarray] = []
        reformatter = VideoReformatter()
        try:
            with self.shard.open("rb") as file, av.open(_Section(file, *self.members[member])) as container:
                stream = container.streams.video[0]
                stream.codec_context.thread_count = 1
                container.seek(round(numbers[0] / (_RATE * stream.time_base)), stream=stream)
                for packet in container.demux(stream):
                    if packet.pts is None:
                        break
                    number = round(packet.pts * stream.time_base * _RATE)
                    if number > numbers[-1]:
                        break
                    if number in wanted:
                        pictures += [_array(frame, reformatter) for frame in stream.decode(packet)]
                pictures += [_array(frame, reformatter) for frame in stream.decode(None)]
        except (OSError, ValueError, LookupError, ArithmeticError, MemoryError, av.FFmpegError) as error:
            raise lost(self.shard, f"damaged in {self.key}.{member}") from error
        width, height = self.size
        if len(pictures) != len(wanted) or any(picture.shape[:2] != (height, width) for picture in pictures):
            raise lost(self.shard, f"damaged in {self.key}.{member}")
        return np.stack(pictures)


def lost(shard: Path, what: str) -> UserError:
    return UserError(
        f"The shard {shard} is {what}: bring it back from a copy, or run prepare_dataset again with the same "
        "arguments, which makes it anew."
    )


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON Lines file; none where there is no file.

    Raises UserError where it cannot be read or is something else.
    """
    if not path.exists():
        return []
    rows = []
    for number, line in enumerate(read_bytes(path, MOST_JSON_BYTES).splitlines(), 1):
        rows.append(parse_json(line, f"{path}, line {number},"))
        if not isinstance(rows[-1], dict):
            raise _damaged(path, number)
    return rows


def read_manifest(folder: Path) -> list[dict[str, Any]]:
    """The lines of the manifest of a prepared folder; none where there is none yet.

    Raises UserError where it cannot be read, or where a line is not one that `prepare_dataset` writes.
    """
    path = folder / MANIFEST
    rows = read_lines(path)
    for number, row in enumerate(rows, 1):
        if not _is_video(row):
            raise _damaged(path, number)
    return rows


def _damaged(path: Path, number: int) -> UserError:
    return UserError(f"{path} is damaged in line {number}; bring it back from a copy.")


def _is_video(row: dict[str, Any]) -> bool:
    shard, stored, clips, stamp = (row.get(key) for key in ("shard", "shard_bytes", "clips", "stamp"))
    return (
        all(isinstance(row.get(key), str) for key in ("video", "source"))
        and isinstance(stamp, list)
        and all(map(_is_count, stamp))
        # Nothing but a file beside the manifest: a torn shard is removed by this name.
        and isinstance(shard, str)
        and re.fullmatch(r"[0-9]+\.tar", shard) is not None
        and _is_count(stored)
        and isinstance(clips, list)
        and all(isinstance(clip, dict) and _is_clip(clip, stored) for clip in clips)
    )


def _is_clip(clip: dict[str, Any], stored: int) -> bool:
    size, references, members = (clip.get(key) for key in ("size", "references", "members"))
    return (
        isinstance(clip.get("key"), str)
        and _is_count(clip.get("start"))
        and _is_count(clip.get("frames"))
        and isinstance(size, list)
        and len(size) == 2
        and all(_is_count(side) and 1 <= side <= _MOST_SIDE for side in size)
        and isinstance(references, list)
        and all(_is_count(number) and number < clip["frames"] for number in references)
        and isinstance(members, dict)
        and {FRAMES, MASKS, POSES, FACTS} <= members.keys()
        and all(
            isinstance(place, list) and len(place) == 2 and all(map(_is_count, place)) and sum(place) <= stored
            for place in members.values()
        )
    )


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_box(value: Any) -> bool:
    """Whether it is null, or x0, y0, x1, y1 of a box that is not empty."""
    if not value:
        return value is None
    numbers = isinstance(value, list) and len(value) == 4 and all(type(side) in (int, float) for side in value)
    return numbers and value[0] < value[2] and value[1] < value[3] and max(map(abs, value)) <= _MOST_SIDE


def write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def fault(folder: Path, row: dict[str, Any]) -> str | None:
    """What is wrong with the shard that a line of the manifest names: "missing", "cut short" or nothing."""
    shard = folder / row["shard"]
    if not shard.is_file():
        return "missing"
    return "cut short" if shard.stat().st_size != row["shard_bytes"] else None


def open_shards(folder: Path) -> list[Clip]:
    """All clips of a prepared folder, in the order of the manifest, whose shards are all there.

    Raises UserError where it isn't one, holds no clip, or a shard is missing or torn.
    """
    rows = read_manifest(folder)
    if not rows:
        raise UserError(f"{folder} holds no prepared videos; make them with python -m training.prepare_dataset.")
    for row in {row["shard"]: row for row in rows}.values():
        wrong = fault(folder, row)
        if wrong:
            raise lost(folder / row["shard"], wrong)
    return [
        Clip(
            key=clip["key"],
            video=row["video"],
            shard=folder / row["shard"],
            start=clip["start"],
            frames=clip["frames"],
            size=tuple(clip["size"]),
            references=tuple(clip["references"]),
            members={name: (offset, size) for name, (offset, size) in clip["members"].items()},
        )
        for row in rows
        for clip in row["clips"]
    ]


def write_tar(path: Path, members: Iterable[tuple[str, bytes | Path]]) -> None:
    """A tar of named contents; the same contents make the same bytes."""
    with atomic_path(path) as temporary, tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in members:
            content = content.read_bytes() if isinstance(content, Path) else content
            _add(tar, name, content)


def join_tars(path: Path, parts: Iterable[Path]) -> dict[str, dict[str, tuple[int, int]]]:
    """One tar of several; returns key -> kind of member -> (offset, size)."""
    with atomic_path(path) as temporary:
        with tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar:
            for part in parts:
                with tarfile.open(part) as source:
                    for member in source:
                        tar.addfile(member, source.extractfile(member))
        places: dict[str, dict[str, tuple[int, int]]] = {}
        with tarfile.open(temporary) as tar:
            for member in tar:
                key, _, kind = member.name.partition(".")
                places.setdefault(key, {})[kind] = (member.offset_data, member.size)
    return places


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


def _array(frame: av.VideoFrame, reformatter: VideoReformatter) -> np.ndarray:
    if frame.format.name == "gray":
        return frame.to_ndarray()
    return reformatter.reformat(frame, format="rgb24", interpolation=EXACT).to_ndarray()


class _Section:
    """A part of an open file as a file of its own, for FFmpeg."""

    def __init__(self, file: Any, offset: int, size: int):
        self._file, self._offset, self._size, self._at = file, offset, size, 0

    def read(self, count: int = -1) -> bytes:
        left = max(0, self._size - self._at)
        self._file.seek(self._offset + self._at)
        content = self._file.read(left if count < 0 else min(count, left))
        self._at += len(content)
        return content

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = offset + (0, self._at, self._size)[whence]
        return self._at

    def tell(self) -> int:
        return self._at
