"""Shards of prepared videos: WebDataset tar files, read here by byte offset, without unpacking.

A clip KEY of F frames at one size is four members of `000000.tar`:

    KEY.mp4         frames: H.264, every frame a key frame, 4:4:4, CRF 10, 25 frames to the second of file time
    KEY.mask.mkv    masks of the person, 0 or 255: FFV1, every frame a key frame, 25 to the second
    KEY.pose.jsonl  line i is frame i's POSE_KEYPOINT, of the frames' canvas, nobody but the person in it
    KEY.objects.mkv, KEY.depth.mkv   where they were given: masks of what the person holds, as those of the person;
                    depth 0 to 255, nearer being larger and 0 unknown
    KEY.json        size, frames, the video's own fps, boxes per frame, window and place in the source; where they
                    were given, the cameras of its frames

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
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any

import av
import numpy as np
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc, VideoReformatter

from anycharv_core.errors import UserError
from anycharv_core.files import atomic_path
from anycharv_core.foreign import MOST_JSON_BYTES, parse_json, read_bytes
from anycharv_core.media.cameras import Cameras
from anycharv_core.media.pixels import EXACT
from anycharv_core.media.pose import Poses, parse_poses
from training.sections import Range, build, shown

MANIFEST, QUARANTINE = "manifest.jsonl", "quarantine.jsonl"
FRAMES, MASKS, POSES, FACTS = "mp4", "mask.mkv", "pose.jsonl", "json"
EXTRAS = {"objects": "objects.mkv", "depth": "depth.mkv"}  # by the condition they are
_RATE = 25  # of file time, whatever the video's own; both containers hold its ticks exactly
_CRF = 10


class ClipWriter:
    """Encodes a clip's frames, masks and whatever else is grey into `folder`, as `files` to be taken from there by
    their kind of member.

    Use it in a `with` statement; size: (width, height) of every frame; extras: kinds of member beside the masks.
    """

    def __init__(self, folder: Path, size: tuple[int, int], extras: Iterable[str] = ()):
        self.files = {member: folder / f"clip.{member}" for member in (FRAMES, MASKS, *extras)}
        self.count = 0
        self._size = size
        self._reformatter = VideoReformatter()

    def __enter__(self) -> ClipWriter:
        with ExitStack() as stack:
            pictures, *greys = (
                # Else Matroska draws a random number, and no two runs would give the same shard.
                stack.enter_context(av.open(f"file:{path}", "w", container_options={"fflags": "bitexact"}))
                for path in self.files.values()
            )
            intra = {"g": "1", "keyint_min": "1", "bf": "0"}
            self._pictures = (
                pictures,
                self._stream(pictures, "libx264", "yuv444p", {"crf": str(_CRF), "preset": "fast", **intra}),
            )
            context = self._pictures[1].codec_context
            context.color_range, context.colorspace = ColorRange.MPEG, Colorspace.ITU709
            context.color_primaries, context.color_trc = ColorPrimaries.BT709, ColorTrc.BT709
            lossless = {"level": "3", "slicecrc": "1", "g": "1"}
            self._greys = [(grey, self._stream(grey, "ffv1", "gray", lossless)) for grey in greys]
            for _, stream in self._greys:
                stream.codec_context.color_range = ColorRange.JPEG
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

    def write(self, frame: np.ndarray, *greys: np.ndarray) -> None:
        """Add a frame uint8 [H, W, 3], its mask uint8 [H, W], and its extras."""
        picture = self._reformatter.reformat(
            av.VideoFrame.from_ndarray(frame, "rgb24"),
            format="yuv444p",
            dst_colorspace=Colorspace.ITU709,
            interpolation=EXACT,
            src_color_range=ColorRange.JPEG,
            dst_color_range=ColorRange.MPEG,
        )
        images = [picture, *(av.VideoFrame.from_ndarray(grey, "gray") for grey in greys)]
        for (container, stream), image in zip((self._pictures, *self._greys), images, strict=True):
            image.pts, image.time_base = self.count, Fraction(1, _RATE)
            container.mux(stream.encode(image))
        self.count += 1

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        with self._stack:
            if kind is None:
                for container, stream in (self._pictures, *self._greys):
                    container.mux(stream.encode(None))


Number = Annotated[int, Range(0, 2**48)]


@dataclass(frozen=True)
class ClipRow:
    """A clip in the manifest; `Clip` says what its keys are. window: of the video's frames, that was cut out;
    person_height: in parts of the picture's; enlarged: how much to fill its size."""

    key: str
    start: Number
    frames: Annotated[int, Range(1, 10**6)]
    size: tuple[Annotated[int, Range(1, 16384)], Annotated[int, Range(1, 16384)]]
    references: tuple[Number, ...]
    members: dict[str, tuple[Number, Number]] = field(default_factory=dict)
    window: tuple[int, ...] = ()
    person_height: float = 0.0
    enlarged: float = 1.0


@dataclass(frozen=True)
class SourceRow:
    """A file that was looked at: its name, its size and time, and why it was put aside."""

    source: str
    stamp: tuple[int, ...]
    reason: str = ""


@dataclass(frozen=True)
class VideoRow:
    """A line of the manifest: a video, by the hash of its content, and its clips."""

    video: str
    clips: tuple[ClipRow, ...]
    shard: str = ""
    shard_bytes: Number = 0
    part_bytes: Number = 0
    source: str = ""
    stamp: tuple[int, ...] | None = None
    fps: float = 25.0
    frames: Number = 0
    shots: Number = 1


@dataclass(frozen=True)
class _Boxes:
    boxes: tuple[tuple[int, int, int, int] | None, ...]


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
        """What the clip's own JSON says."""
        name = f"{self.key}.{FACTS} in {self.shard}"
        return checked(parse_json(self.read(FACTS), name), None, name)

    def boxes(self) -> list[list[int] | None]:
        """Around the person in every frame (x0, y0, x1, y1), None where nobody is seen."""
        boxes = build(_Boxes, {"boxes": self.facts().get("boxes")}, f"{self.key}.{FACTS} in {self.shard}").boxes
        if len(boxes) != self.frames:
            raise lost(self.shard, f"damaged in {self.key}.{FACTS}")
        return [box and list(box) for box in boxes]

    def cameras(self, numbers: Sequence[int]) -> Cameras | None:
        """Those of frames, in the clip's pixels; None where none were given."""
        found = self.facts().get("cameras")
        if found is None:
            return None
        try:
            packed = np.array(found, np.float64)
        except (TypeError, ValueError):
            packed = np.zeros(0)
        if packed.shape != (self.frames, 3, 7) or not np.isfinite(packed).all():
            raise lost(self.shard, f"damaged in {self.key}.{FACTS}")
        return Cameras.unpacked(packed[list(numbers)])

    def poses(self, numbers: Sequence[int]) -> Poses:
        name = f"{self.key}.{POSES} in {self.shard}"
        lines = self.read(POSES).splitlines()
        if len(lines) != self.frames:
            raise lost(self.shard, f"damaged in {self.key}.{POSES}")
        return parse_poses([parse_json(lines[number], name) for number in numbers], name=name)

    def pictures(self, numbers: Sequence[int]) -> np.ndarray:
        """Frames uint8 [len(numbers), H, W, 3], RGB; `numbers` rise."""
        return self._decoded(FRAMES, numbers)

    def masks(self, numbers: Sequence[int]) -> np.ndarray:
        """uint8 [len(numbers), H, W], 0 or 255; `numbers` rise."""
        return self._decoded(MASKS, numbers)

    def extra(self, condition: str, numbers: Sequence[int]) -> np.ndarray:
        """One of `EXTRAS`, uint8 [len(numbers), H, W]; `numbers` rise. Raises UserError where there is none."""
        if EXTRAS[condition] not in self.members:
            raise UserError(
                f"{self.shard} holds no {condition} for {self.key}: prepare the videos with --{condition}-dir, or "
                f"leave {condition} out of the data's conditions."
            )
        return self._decoded(EXTRAS[condition], numbers)

    def _decoded(self, member: str, numbers: Sequence[int]) -> np.ndarray:
        wanted = set(numbers)
        pictures: list[np.ndarray] = []
        reformatter = VideoReformatter()
        try:
            with self.shard.open("rb") as file, av.open(_Section(file, *self.members[member]), "r") as container:
                stream = self._stream(container)
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
        except (OSError, ValueError, av.FFmpegError) as error:
            raise lost(self.shard, f"damaged in {self.key}.{member}") from error
        shape = (*self.size[::-1], 3) if member == FRAMES else self.size[::-1]
        if len(pictures) != len(wanted) or any(picture.shape != shape for picture in pictures):
            raise lost(self.shard, f"damaged in {self.key}.{member}")
        return np.stack(pictures)

    def _stream(self, container: Any) -> Any:
        """The pictures in a member. Raises ValueError where they are not what was written."""
        streams = container.streams.video
        if len(streams) != 1 or streams[0].codec_context is None or not streams[0].time_base:
            raise ValueError("no pictures that can be decoded")
        context = streams[0].codec_context
        if (context.width, context.height) != self.size:
            raise ValueError("pictures of another size")
        return streams[0]


def lost(shard: Path, what: str) -> UserError:
    return UserError(
        f"The shard {shard} is {what}: restore it from a copy, or run prepare_dataset again with the same "
        "arguments, which makes it again."
    )


def read_lines(path: Path, kind: type[Any] | None = None) -> list[dict[str, Any]]:
    """The objects of a JSON Lines file; none where there is no file. kind: the dataclass that each must fill.

    Raises UserError where it cannot be read or is something else.
    """
    if not path.exists():
        return []
    rows = []
    for number, line in enumerate(read_bytes(path, MOST_JSON_BYTES).splitlines(), start=1):
        if line.strip():
            rows.append(checked(parse_json(line, f"Line {number} of {path}"), kind, f"line {number} of {path}"))
    return rows


def checked(row: Any, kind: type[Any] | None, name: str) -> dict[str, Any]:
    """`row` as it is, where it fills the dataclass `kind` (any mapping for None).

    Raises UserError naming `name` otherwise.
    """
    try:
        if not isinstance(row, dict):
            raise UserError("it holds no keys")
        if kind is not None:
            build(kind, row, "")
    except UserError as error:
        raise UserError(f"{name} is damaged: {str(error).rstrip('.')}; restore it from a copy.") from error
    return row


def write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def fault(folder: Path, row: dict[str, Any]) -> str | None:
    """What is wrong with the shard that a line of the manifest names: "missing", "cut short" or nothing."""
    shard = folder / row["shard"]
    if not shard.is_file():
        return "missing"
    return "cut short" if shard.stat().st_size != row["shard_bytes"] else None


def read_manifest(folder: Path) -> list[dict[str, Any]]:
    """The lines of a prepared folder's manifest, each a `VideoRow`; none where there is no manifest.

    Raises UserError where one is damaged.
    """
    rows = read_lines(folder / MANIFEST, VideoRow)
    for row in rows:
        # The name is joined to the folder, and what is torn is removed.
        if not re.fullmatch(r"\d{6,}\.tar", row["shard"]):
            raise UserError(
                f"{folder / MANIFEST} names {shown(row['shard'])}, which is not a shard; restore it from a copy."
            )
        for clip in row["clips"]:
            members = clip["members"]
            if not {FRAMES, MASKS, POSES, FACTS} <= members.keys() or any(
                sum(place) > row["shard_bytes"] for place in members.values()
            ):
                raise UserError(
                    f"{folder / MANIFEST} is damaged: {shown(clip['key'])} lies outside its shard; restore it."
                )
            if any(number >= clip["frames"] for number in clip["references"]):
                raise UserError(
                    f"{folder / MANIFEST} is damaged: a reference of {shown(clip['key'])} is past its end; "
                    "restore it from a copy."
                )
    return rows


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
