"""Shards of puppet videos."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from anycharv_core.media.masks import mask_box
from anycharv_core.puppets import render, sample_character, sample_motion, sample_scene
from training.data.shards import EXTRAS, ClipWriter, join_tars, write_lines, write_tar


def write_folder(folder: Path, lengths: dict[str, list[int]], extras: bool = False) -> list[np.ndarray]:
    """Shards with a puppet video per name, in clips of the lengths given; returns all clips' frames. extras: with
    objects and depth, everybody holding a ball."""
    rows, frames, size = [], [], (64, 64)
    for number, (video, parts) in enumerate(lengths.items()):
        character = sample_character(number)
        start, row = 0, {"source": video, "stamp": [1, 1], "video": video, "fps": 25.0, "shots": 1, "clips": []}
        motion = sample_motion(number, sum(parts), character.proportions)
        if extras:
            character = replace(character, held="ball")
        clip = render(character, motion, sample_scene(number), size, parts=extras)
        layers = [clip.mask]
        if clip.parts is not None:
            layers += [clip.parts.objects, (clip.parts.depth_pictures() >> 8).astype(np.uint8)]
        members = []
        for length in parts:
            key, stop = f"{video}_{start:06d}", start + length
            (folder / key).mkdir()
            with ClipWriter(folder / key, size, EXTRAS.values() if extras else ()) as writer:
                for place in range(start, stop):
                    writer.write(clip.frames[place], *(layer[place] for layer in layers))
            boxes = [list(mask_box(mask)) for mask in clip.mask[start:stop]]
            poses = "".join(json.dumps(pose) + "\n" for pose in clip.poses().take(range(start, stop)).keypoints())
            members += [
                *((f"{key}.{member}", file) for member, file in writer.files.items()),
                (f"{key}.pose.jsonl", poses.encode()),
                (f"{key}.json", json.dumps({"boxes": boxes}).encode()),
            ]
            row["clips"].append(
                {
                    "key": key,
                    "start": start,
                    "frames": length,
                    "size": list(size),
                    "window": [0, 0, *size],
                    "references": list(range(length)),
                    "person_height": 0.8,
                    "enlarged": 1.0,
                }
            )
            frames.append(clip.frames[start:stop])
            start = stop
        write_tar(folder / f"{video}.part.tar", members)
        rows.append(row)
    places = join_tars(folder / "000000.tar", [folder / f"{row['video']}.part.tar" for row in rows])
    for row in rows:
        for clip in row["clips"]:
            clip["members"] = places[clip["key"]]
        row |= {"shard": "000000.tar", "shard_bytes": (folder / "000000.tar").stat().st_size}
    write_lines(folder / "manifest.jsonl", rows)
    return frames
