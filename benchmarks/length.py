"""Memory and time of `anycharv generate` by the length of the video: a frame must cost the same in all of them.

    python -m benchmarks.length [--frames 100 1000 10000] [--size 64] [--out results.json]

Each video is made in a process of its own, by the embedded model in one step. What may grow is what is known of
every frame, its skeleton above all; pictures, latents and features are kilobytes here and megabytes elsewhere.
Seconds are of the processor, so that other work on the machine does not count. Give three lengths or more: what it
costs to start does not count either, so that the last two are compared with the first two.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

from PIL import Image

from anycharv_core.jobs.inputs import Replacement
from anycharv_core.jobs.replace import ReplaceJob, generate
from anycharv_core.media.masks import mask_box
from anycharv_core.media.pose import write_poses
from anycharv_core.media.video_write import VideoWriter
from anycharv_core.puppets.task import sample_swap

SHOT = 100  # frames that are rendered, and come again until the video is long enough
# Of growth per frame: here a frame is 12,288 bytes, its skeleton 3,312 in memory.
ALLOWED = 2_000
ALLOWED_SLOWER = 1.1


def make_job(folder: Path, frames: int, size: int) -> ReplaceJob:
    """A puppet's shot over and over, and all that is needed to put another in its place."""
    swap = sample_swap(0, SHOT, size)
    shots = [index % SHOT for index in range(frames)]
    video, boxes, pose, reference = (folder / name for name in ("v.mp4", "boxes.json", "pose.json", "r.png"))
    with VideoWriter(video, size, size, rate=Fraction(25)) as writer:
        for index in shots:
            writer.write(swap.driving.frames[index])
    around = [mask_box(mask) for mask in swap.driving.mask]
    boxes.write_text(json.dumps([None if around[i] is None else [int(x) for x in around[i]] for i in shots]))
    write_poses(pose, swap.poses().take(shots))
    Image.fromarray(swap.reference).save(reference)
    return ReplaceJob(
        video=video,
        people=(Replacement(reference, boxes, pose),),
        out=folder / "out.mp4",
        steps=1,
        device="cpu",
        canvas="frame",
    )


def measure(frames: int, size: int) -> dict[str, Any]:
    """Makes a video of this many frames in this process; bytes are the process's peak."""
    with tempfile.TemporaryDirectory() as folder:
        job = make_job(Path(folder), frames, size)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        started = time.process_time()
        report = generate(job)
        seconds = time.process_time() - started
    return {
        "frames": frames,
        "bytes_before": before,
        "peak_bytes": report["peak_memory_bytes"]["process"],
        "cpu_seconds": round(seconds, 2),
        "seconds": report["seconds"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, nargs="+", default=[100, 1000, 10_000])
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--only", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.only:
        print(json.dumps(measure(args.only, args.size)))
        return
    runs = []
    for frames in args.frames:
        command = [sys.executable, "-m", "benchmarks.length", "--only", str(frames), "--size", str(args.size)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        runs.append(json.loads(done.stdout.splitlines()[-1]))
        print(json.dumps(runs[-1]), file=sys.stderr)
    first, last = (_each_more(*runs[start : start + 2]) for start in (0, len(runs) - 2))
    growth, slower = last["peak_bytes"], last["cpu_seconds"] / first["cpu_seconds"]
    text = json.dumps({"runs": runs, "bytes_per_frame": round(growth), "slower": round(slower, 3)}, indent=2)
    print(text)
    if args.out:
        args.out.write_text(text + "\n", encoding="utf-8")
    if growth > ALLOWED or slower > ALLOWED_SLOWER:
        raise SystemExit(
            f"In the longest video a frame takes {growth:.0f} bytes and {slower:.2f} times as long; at most "
            f"{ALLOWED} and {ALLOWED_SLOWER} are allowed."
        )


def _each_more(shorter: dict[str, Any], longer: dict[str, Any]) -> dict[str, float]:
    """What a frame more costs between two runs."""
    frames = longer["frames"] - shorter["frames"]
    return {name: (longer[name] - shorter[name]) / frames for name in ("peak_bytes", "cpu_seconds")}


if __name__ == "__main__":
    main()
