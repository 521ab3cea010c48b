"""Turns a folder of videos into shards to train on: cuts, one person's skeleton, exact masks, crops.

    python -m training.prepare_dataset VIDEOS_DIR --out DIR [--buckets 576x1024,1024x576] [--workers N | --ray]

Every video is split at its cuts, where the most prominent person is out of sight, and into pieces of at most
--max-frames; the pieces are cropped around the person to the bucket of the nearest proportions. Stopped at any
moment, also by kill -9, the same command goes on: finished videos are not looked at again. A video that can't be
used is named with the reason in DIR/quarantine.jsonl; to try it again, delete its line. training/data/shards.py
describes the format; DIR/statistics.json sums up what there is.
"""

from __future__ import annotations

import json
import shutil
import typing
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from anycharv_core.errors import UserError
from anycharv_core.files import atomic_path, write_error
from anycharv_core.foreign import read_json
from training import commands
from training.data.camera_files import Source
from training.data.shards import (
    MANIFEST,
    QUARANTINE,
    SourceRow,
    VideoRow,
    checked,
    fault,
    join_tars,
    read_lines,
    read_manifest,
    write_lines,
)
from training.prepare.parallel import run_all
from training.prepare.video import Settings, prepare_video, stamp

SHARD_BYTES = 512 * 2**20
VIDEOS = {".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".wmv", ".flv"}
SETTINGS, STATISTICS, PARTS = "settings.json", "statistics.json", "parts"

Row = dict[str, Any]


def prepare_dataset(
    videos: Path,
    out: Path,
    settings: Settings,
    workers: int = 0,
    ray: bool = False,
    gpus: float = 0,
    shard_bytes: int = SHARD_BYTES,
) -> Row:
    """Prepares every video below `videos` that is not finished yet; returns the statistics.

    A finished video is a tar in `out`/parts with its manifest line beside it, until as many as fill a shard are
    joined: the shard takes its name, then the manifest is replaced, then the parts go. Whatever moment it is
    stopped at, the next run finds every finished video in one of these places.

    Raises UserError where there is no video, where another process is at work in `out` or it was made with other
    settings, or where it cannot be written.
    """
    sources = _sources(videos)
    with commands.alone(out):
        _start(out, settings)
        return _prepare(sources, videos, out, settings, workers, ray, gpus, shard_bytes)


def _prepare(
    sources: Sequence[Path],
    videos: Path,
    out: Path,
    settings: Settings,
    workers: int,
    ray: bool,
    gpus: float,
    shard_bytes: int,
) -> Row:
    book = _Book(out, shard_bytes)
    seen = book.seen()
    todo = [source for source in sources if (source.relative_to(videos).as_posix(), *stamp(source)) not in seen]
    print(f"{len(sources)} videos, {len(todo)} of them to prepare.", flush=True)
    known = frozenset(row["video"] for row in book.finished())
    work = partial(prepare_video, videos=videos, settings=settings, parts=out / PARTS, known=known)
    for done, row in enumerate(run_all(work, todo, workers, ray, gpus), 1):
        print(f"{done}/{len(todo)} {row['source']}: {book.enter(row)}", flush=True)
    book.close()
    statistics = summed_up(book.rows, book.quarantined.values())
    with atomic_path(out / STATISTICS) as temporary:
        temporary.write_text(json.dumps(statistics, indent=2) + "\n", encoding="utf-8")
    return statistics


class _Book:
    """What is finished: `rows` in shards, `parts` waiting for one, `quarantined` by source."""

    def __init__(self, out: Path, shard_bytes: int):
        self.out, self.shard_bytes = out, shard_bytes
        self.rows = self._sound(read_manifest(out))
        self.quarantined = {row["source"]: row for row in read_lines(out / QUARANTINE, SourceRow)}
        sharded = {row["video"] for row in self.rows}
        self.parts: dict[str, Row] = {}
        for path in sorted((out / PARTS).iterdir()):
            if path.is_dir():
                shutil.rmtree(path)
            elif path.stem in sharded or path.name.startswith(".writing-"):
                path.unlink()  # the run was stopped before it could
            elif path.suffix == ".json":
                self.parts[path.stem] = _part(path)

    def _sound(self, rows: list[Row]) -> list[Row]:
        """The rows whose shards are all there; what is lost is forgotten, and so made again."""
        wrong = {row["shard"]: fault(self.out, row) for row in rows}
        sound = [row for row in rows if not wrong[row["shard"]]]
        for shard in sorted(name for name, what in wrong.items() if what):
            lost = sum(row["shard"] == shard for row in rows)
            print(f"The shard {shard} is {wrong[shard]}: its {lost} videos are prepared again.", flush=True)
        if len(sound) < len(rows):
            write_lines(self.out / MANIFEST, sound)
            for shard in wrong:
                if wrong[shard]:
                    (self.out / shard).unlink(missing_ok=True)
        return sound

    def finished(self) -> list[Row]:
        return [*self.rows, *self.parts.values()]

    def seen(self) -> set[tuple[Any, ...]]:
        """Name, size and time of the files that were finished or found unfit."""
        return {(row["source"], *row["stamp"]) for row in (*self.finished(), *self.quarantined.values())}

    def enter(self, row: Row) -> str:
        """Takes down what became of a video, and says it in a few words."""
        if "reason" not in row:
            twin = self._twin(row)
            if twin is not None and twin["source"] == row["source"]:
                twin["stamp"] = row["stamp"]
                self._save()
                return "unchanged"
            if twin is not None:
                self._forget_part(row)
                row = {name: row[name] for name in ("source", "stamp")}
                row["reason"] = f"its content is that of {twin['source']}, which is prepared"
        if "reason" in row:
            self.quarantined[row["source"]] = row
            write_lines(self.out / QUARANTINE, self.quarantined.values())
            return f"put aside: {row['reason']}"
        if self.quarantined.pop(row["source"], None):
            write_lines(self.out / QUARANTINE, self.quarantined.values())
        self.parts[row["video"]] = row
        if sum(part["part_bytes"] for part in self.parts.values()) >= self.shard_bytes:
            self.close()
        return f"{len(row['clips'])} clips, {sum(clip['frames'] for clip in row['clips'])} frames"

    def _twin(self, row: Row) -> Row | None:
        """The finished video of the same content."""
        twin = next((old for old in self.finished() if old["video"] == row["video"]), None)
        if twin is None and "clips" not in row:  # another worker was first, and its report is on the way
            self.parts[row["video"]] = twin = _part(self.out / PARTS / f"{row['video']}.json")
        return twin

    def _forget_part(self, row: Row) -> None:
        if row["video"] not in self.parts:
            for suffix in (".json", ".tar"):
                (self.out / PARTS / f"{row['video']}{suffix}").unlink(missing_ok=True)

    def close(self) -> None:
        """Joins the waiting parts to a shard."""
        if not self.parts:
            return
        number = max((int(row["shard"].partition(".")[0]) for row in self.rows), default=-1) + 1
        shard = self.out / f"{number:06d}.tar"
        waiting = sorted(self.parts.values(), key=lambda row: row["source"])
        places = join_tars(shard, [self.out / PARTS / f"{row['video']}.tar" for row in waiting])
        size = shard.stat().st_size
        for row in waiting:
            del row["part_bytes"]
            for clip in row["clips"]:
                clip["members"] = places[clip["key"]]
            self.rows.append(row | {"shard": shard.name, "shard_bytes": size})
        self._save()
        self.parts = {}
        for row in waiting:
            self._forget_part(row)

    def _save(self) -> None:
        write_lines(self.out / MANIFEST, self.rows)


def summed_up(rows: Sequence[Row], quarantined: Iterable[Row]) -> Row:
    """Counts of videos, clips and frames, clips by bucket, and 10, 50 and 90 per cent quantiles of what clips
    have: frames, frames per second, the person's height in parts of the picture's, and enlargement."""
    clips = [clip for row in rows for clip in row["clips"]]
    values = {
        "frames": [clip["frames"] for clip in clips],
        "fps": [row["fps"] for row in rows for _ in row["clips"]],
        "person_height": [clip["person_height"] for clip in clips],
        "enlarged": [clip["enlarged"] for clip in clips],
        "shots": [row["shots"] for row in rows],
    }
    return {
        "videos": len(rows),
        "quarantined": len(list(quarantined)),
        "clips": len(clips),
        "frames": sum(values["frames"]),
        "buckets": dict(Counter("x".join(map(str, clip["size"])) for clip in clips)),
        "quantiles": {
            name: [round(float(x), 3) for x in np.quantile(found, (0.1, 0.5, 0.9))]
            for name, found in values.items()
            if found
        },
    }


def _part(path: Path) -> Row:
    """The row of a finished video. Raises UserError where it is damaged."""
    row = checked(read_json(path), VideoRow, str(path))
    if row["video"] != path.stem:
        raise UserError(f"{path} is of another video; delete it with its .tar, and that video is prepared again.")
    return row


def _sources(videos: Path) -> list[Path]:
    if not videos.is_dir():
        raise UserError(f"{videos} is not a folder; name the folder that holds the videos.")
    found = sorted(path for path in videos.rglob("*") if path.suffix.lower() in VIDEOS and path.is_file())
    if not found:
        raise UserError(f"{videos} holds no videos ({', '.join(sorted(VIDEOS))}); name another folder.")
    return found


def _start(out: Path, settings: Settings) -> None:
    """Makes the folder, or checks that it was made with the same settings."""
    try:
        (out / PARTS).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(out, error) from error
    ready = (settings.poses_dir, settings.masks_dir, settings.objects_dir, settings.depth_dir)
    for folder in filter(None, (*ready, settings.cameras_dir)):
        if not folder.is_dir():
            raise UserError(f"{folder} is not a folder; name the one that holds what is ready for each video.")
    path, wanted = out / SETTINGS, json.loads(json.dumps(vars(settings), default=str))
    if path.exists():
        before = checked(read_json(path), None, str(path))
        for name, value in wanted.items():
            if before.get(name) != value:
                raise UserError(
                    f"{out} was begun with {name} = {before.get(name)}, not {value}: give the same arguments, or "
                    "another --out."
                )
        return
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(wanted, indent=2) + "\n", encoding="utf-8")


def parse_sizes(text: str) -> tuple[tuple[int, int], ...]:
    """ "576x1024,768x768" -> ((576, 1024), (768, 768)). Raises UserError where it is something else."""
    try:
        sizes = tuple((int(width), int(height)) for width, height in (part.split("x") for part in text.split(",")))
    except ValueError:
        sizes = ()
    if not sizes or min(min(size) for size in sizes) < 16:
        raise UserError(f"--buckets {text} is not a list of sizes: write it like 576x1024,768x768.")
    return sizes


def main(argv: Sequence[str] | None = None) -> int:
    parser = commands.new_parser("prepare_dataset", __doc__)
    add = parser.add_argument
    add("videos", type=Path, help="folder of videos, its subfolders too")
    add("--out", type=Path, required=True, help="folder of the shards; one that was stopped goes on")
    add("--pose-model", help="folder of DWPose's two ONNX files, or 'embedded' for puppets")
    add("--segmenter", help="folder or hub id of a SAM 2 video model, or 'embedded' for puppets")
    add("--poses-dir", type=Path, help="ready POSE_KEYPOINT files, NAME.json for each video")
    add("--masks-dir", type=Path, help="ready masks, NAME.mkv or a folder NAME for each video")
    add("--objects-dir", type=Path, help="masks of what the person holds, as --masks-dir, for Animate Anyone 2")
    add("--depth-dir", type=Path, help="grey depth, as --masks-dir, nearer being brighter and black unknown")
    add("--cameras-dir", type=Path, help="camera files of HumanVid, NAME.txt, of the videos that have one")
    add("--cameras-from", choices=typing.get_args(Source), help="which of its files they are; they differ")
    add("--buckets", default="576x1024,1024x576,768x768", help="sizes WxH, default %(default)s")
    add("--max-frames", type=int, default=300, help="longest clip in frames, default %(default)s")
    add("--min-frames", type=int, default=24, help="shortest clip in frames, default %(default)s")
    add("--device", help="cuda, mps or cpu")
    add(
        "--workers",
        type=int,
        default=0,
        help="videos prepared at a time, each in a process; by default one, in this process",
    )
    add("--ray", action="store_true", help="on the ray cluster that RAY_ADDRESS names")
    add("--gpus", type=float, default=0, help="with --ray: share of a card for each video")
    args = parser.parse_args(argv)

    def work() -> None:
        settings = Settings(
            pose_model=args.pose_model,
            segmenter=args.segmenter,
            poses_dir=args.poses_dir and args.poses_dir.resolve(),
            masks_dir=args.masks_dir and args.masks_dir.resolve(),
            objects_dir=args.objects_dir and args.objects_dir.resolve(),
            depth_dir=args.depth_dir and args.depth_dir.resolve(),
            cameras_dir=args.cameras_dir and args.cameras_dir.resolve(),
            cameras_from=args.cameras_from,
            buckets=parse_sizes(args.buckets),
            min_frames=args.min_frames,
            max_frames=args.max_frames,
            device=args.device,
        )
        counts = prepare_dataset(
            args.videos.resolve(), args.out.resolve(), settings, args.workers, args.ray, args.gpus
        )
        print(f"{counts['videos']} videos in {counts['clips']} clips of {counts['frames']} frames in all.")
        if counts["quarantined"]:
            print(f"{counts['quarantined']} videos cannot be used; {args.out / QUARANTINE} says why.")
        if counts["videos"] == 1:
            print("A single video is enough to fit one character, but not for pairs: those need two.")

    return commands.run("prepare_dataset", work, "stopped; the same command goes on with what is missing.")
