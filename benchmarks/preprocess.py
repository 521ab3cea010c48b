"""Scores the preprocessors on held-out crowds, whose truth is exact: skeletons, identities and masks.

    python -m benchmarks.preprocess [--clips 10] [--model embedded] [--segmenter embedded] --out FILE.json

Runs what `anycharv preprocess` runs, DWPose, tracks, choice of a person and SAM 2, for everybody in `--clips`
clips of each situation (see anycharv_core/puppets/crowd.py). Prints a Markdown table; FILE.json has it too.

A person shows in a frame with at least MIN_AREA of its pixels. True people and tracks are paired frame by frame,
boxes overlapping (IoU) by MIN_OVERLAP at least, at the greatest total overlap; a person's own track is the one
paired with it most often.

found: share of a person's frames in which any track is paired with it.
switches: how often a person's paired track changes, frames without one skipped; a total, not a mean.
PCK@0.1: share of true points in sight (on the person's mask, 2 pixels of slack) that its own track has with a
score above 0.3 within a tenth of the longer side of the box around the person's true points in the frame.
PCK@0.1 hidden: the same for points in the frame but behind something.
mask IoU: mean over the frames in which the person shows, of the masks made from its own track's boxes.
ghosts: share of frames without the person whose mask marks MIN_AREA or more.
cuts: right and found, over all clips.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from scipy.optimize import linear_sum_assignment

from anycharv_core.files import atomic_path
from anycharv_core.media.pose import MIN_SCORE, body_points
from anycharv_core.preprocess.choose import chosen_boxes
from anycharv_core.preprocess.dwpose import DWPose
from anycharv_core.preprocess.find import Findings, find_people
from anycharv_core.preprocess.models import pose_files, segmenter_name
from anycharv_core.preprocess.segment import Segmenter
from anycharv_core.preprocess.tracking import Track
from anycharv_core.puppets.crowd import SITUATIONS, Crowd, sample_crowd

MIN_AREA = 0.001
MIN_OVERLAP = 0.3
REACH = 0.1
SLACK = 2

Row = dict[str, float | int | str | None]


@dataclass
class Tally:
    """Everything counted over the clips of a situation, before it becomes shares and means."""

    found: list[bool] = field(default_factory=list)
    seen: list[bool] = field(default_factory=list)
    hidden: list[bool] = field(default_factory=list)
    ious: list[float] = field(default_factory=list)
    ghosts: list[bool] = field(default_factory=list)
    switches: int = 0
    cuts: Counter[str] = field(default_factory=Counter)

    def add(self, other: Tally) -> None:
        for name in ("found", "seen", "hidden", "ious", "ghosts"):
            getattr(self, name).extend(getattr(other, name))
        self.switches += other.switches
        self.cuts += other.cuts

    def row(self) -> Row:
        def mean(values: Sequence[float]) -> float | None:
            return round(float(np.mean(values)), 3) if values else None

        true, found, right = (self.cuts[name] for name in ("true", "found", "right"))
        return {
            "found": mean(self.found),
            "switches": self.switches,
            "PCK@0.1": mean(self.seen),
            "PCK@0.1 hidden": mean(self.hidden),
            "mask IoU": mean(self.ious),
            "ghosts": mean(self.ghosts),
            "cuts": f"{right} of {true}, {found - right} false",
        }


def score(crowd: Crowd, dwpose: DWPose, segmenter: Segmenter) -> Tally:
    """One clip through the whole path, everybody in it chosen in turn."""
    tally = Tally()
    findings = find_people(crowd.frames, dwpose.poses)
    true, found = set(crowd.cuts), set(findings.cuts)
    tally.cuts.update(true=len(true), found=len(found), right=len(true & found))

    shows = (crowd.masks > 0).mean((2, 3)) >= MIN_AREA
    pairs = paired(crowd, findings.tracks, shows)
    for person in range(crowd.masks.shape[1]):
        mine = pairs[:, person]
        tally.found += (mine[shows[:, person]] >= 0).tolist()
        known = mine[mine >= 0]
        tally.switches += int((np.diff(known) != 0).sum())
        own = int(np.bincount(known).argmax()) if len(known) else None
        _score_points(tally, crowd, person, findings, own, shows[:, person])
        if own is None:
            tally.ious += [0.0] * int(shows[:, person].sum())
            continue
        boxes = chosen_boxes(findings.tracks[own])
        masks = list(segmenter.masks(crowd.frames, boxes, findings.cuts))
        for mask, truth, shown in zip(masks, crowd.masks[:, person], shows[:, person], strict=True):
            if shown:
                tally.ious.append(float(((mask > 0) & (truth > 0)).sum() / ((mask > 0) | (truth > 0)).sum()))
            elif not truth.any():
                tally.ghosts.append(bool((mask > 0).mean() >= MIN_AREA))
    return tally


def paired(crowd: Crowd, tracks: Sequence[Track], shows: np.ndarray) -> np.ndarray:
    """int [F, P]: the track paired with each person in each frame, or -1."""
    pairs = np.full(shows.shape, -1)
    for t, people in enumerate(shows):
        rows, columns = np.flatnonzero(people), [i for i, track in enumerate(tracks) if track.people[t] >= 0]
        if not len(rows) or not columns:
            continue
        overlap = np.array([[_overlap(crowd.boxes[t, p], tracks[i].boxes[t]) for i in columns] for p in rows])
        for a, b in zip(*linear_sum_assignment(-overlap), strict=True):
            if overlap[a, b] >= MIN_OVERLAP:
                pairs[t, rows[a]] = columns[b]
    return pairs


def _overlap(one: np.ndarray, other: np.ndarray) -> float:
    shared = (np.minimum(one[2:], other[2:]) - np.maximum(one[:2], other[:2])).clip(0).prod()
    return float(shared / ((one[2:] - one[:2]).prod() + (other[2:] - other[:2]).prod() - shared))


def _score_points(
    tally: Tally, crowd: Crowd, person: int, findings: Findings, own: int | None, shows: np.ndarray
) -> None:
    kernel = np.ones((2 * SLACK + 1,) * 2, np.uint8)
    for t in np.flatnonzero(shows):
        truth = crowd.keypoints[t, person]
        inside = truth[:, 2] > 0
        if not inside.any():
            continue
        limit = REACH * np.ptp(truth[inside, :2], axis=0).max()
        index = -1 if own is None else int(findings.tracks[own].people[t])
        made = body_points(findings.poses.people[t][index]) if index >= 0 else np.zeros((18, 3), np.float32)
        near = np.linalg.norm(made[:, :2] - truth[:, :2], axis=1) <= limit
        right = near & (made[:, 2] > MIN_SCORE)
        x, y = truth[:, :2].astype(int).T
        sight = cv2.dilate(crowd.masks[t, person], kernel)[y, x] > 0
        tally.seen += right[inside & sight].tolist()
        tally.hidden += right[inside & ~sight].tolist()


def table(rows: dict[str, Row]) -> str:
    columns = list(next(iter(rows.values())))
    lines = ["| situation | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name, row in rows.items():
        lines.append(f"| {name} | " + " | ".join("-" if row[c] is None else str(row[c]) for c in columns) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--clips", type=int, default=10, help="of each situation")
    parser.add_argument("--frames", type=int, default=24)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--model", default="embedded", help="the pose files, see `anycharv preprocess`")
    parser.add_argument("--segmenter", default="embedded")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()

    dwpose, segmenter = DWPose(*pose_files(args.model)), Segmenter(segmenter_name(args.segmenter))
    rows, whole = {}, Tally()
    for situation in SITUATIONS:
        tally = Tally()
        for seed in range(args.clips):
            tally.add(score(sample_crowd(seed, situation, args.frames, args.size), dwpose, segmenter))
        rows[situation] = tally.row()
        whole.add(tally)
        print(situation, rows[situation], flush=True)
    rows["all"] = whole.row()
    clips = args.clips * len(SITUATIONS)
    report = {"clips": clips, "frames per clip": args.frames, "size": args.size, "scores": rows}
    with atomic_path(args.out) as tmp:
        tmp.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(table(rows))


if __name__ == "__main__":
    main()
