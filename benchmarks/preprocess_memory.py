"""Peak memory of `anycharv preprocess` on a short and on a long clip: it must not grow with the clip.

    python -m benchmarks.preprocess_memory [--frames 5000] [--out results.json]

Each clip is prepared in a process of its own with the embedded models. What may grow is what is kept of every
frame, skeletons above all, some kilobytes; frames and masks are megabytes.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from fractions import Fraction
from pathlib import Path

from anycharv_core.jobs.preprocess import PreprocessJob, preprocess
from anycharv_core.media.video_write import VideoWriter
from anycharv_core.puppets import render, sample_character, sample_motion, sample_scene

SHORT = 300
SIZE = (480, 360)
SHOT = 150  # frames rendered at a time
# Of growth per frame: a frame of this clip is 518,400 bytes, its skeleton, a list of numbers, some 13,000.
ALLOWED = 40_000


def write_clip(path: Path, frames: int) -> None:
    """Shots of one puppet in ever new scenes."""
    character = sample_character(0, "heldout")
    with VideoWriter(path, *SIZE, rate=Fraction(25)) as video:
        for start in range(0, frames, SHOT):
            motion = sample_motion(start, min(SHOT, frames - start), character.proportions, "heldout")
            for frame in render(character, motion, sample_scene(start, "heldout"), SIZE).frames:
                video.write(frame)


def measure(frames: int) -> dict[str, float]:
    """Prepares a clip in this process; bytes are the process's peak."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["ANYCHARV_CACHE"] = f"{folder}/cache"
        clip = Path(folder, "clip.mp4")
        write_clip(clip, frames)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        started = time.perf_counter()
        job = PreprocessJob(clip, Path(folder, "out"), pose_model="embedded", segmenter="embedded", device="cpu")
        preprocess(job)
        seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"frames": frames, "bytes_before": before, "peak_bytes": peak, "seconds": round(seconds, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=5000)
    parser.add_argument("--only", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.only:
        print(json.dumps(measure(args.only)))
        return
    runs = []
    for frames in (SHORT, args.frames):
        command = [sys.executable, "-m", "benchmarks.preprocess_memory", "--only", str(frames)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        runs.append(json.loads(done.stdout.splitlines()[-1]))
    growth = (runs[1]["peak_bytes"] - runs[0]["peak_bytes"]) / (args.frames - SHORT)
    text = json.dumps({"runs": runs, "bytes_per_frame": round(growth)}, indent=2)
    print(text)
    if args.out:
        args.out.write_text(text + "\n", encoding="utf-8")
    if growth > ALLOWED:
        raise SystemExit(f"The peak grows by {growth:.0f} bytes a frame; at most {ALLOWED} are allowed.")


if __name__ == "__main__":
    main()
