"""The seam around a replaced person on real videos, where a canvas follows them and where it does not.

    python -m benchmarks.seam --clips DIR --model DIR [--frames 24] [--size 256x256] [--steps 4]

Every folder of --clips holds a video.mp4, its mask.mkv and its pose.json. The scores are those of `anycharv
evaluate`, taken outside the mask, where the video itself is the truth. Random weights will do: the scores say what
shows around whatever a network draws. "grey, hard edge" is a grey person pasted without a soft edge.
"""

from __future__ import annotations

import argparse
import sys
from itertools import islice
from pathlib import Path

import numpy as np

from anycharv_core import Pipeline
from anycharv_core.bench.report import markdown, summarise
from anycharv_core.bench.seam import SEAMS, Seam, seam
from anycharv_core.media.canvas import FRAME, PERSON
from anycharv_core.media.mask_read import read_gray
from anycharv_core.media.pose import read_poses
from anycharv_core.media.video_read import read_frames
from anycharv_core.options import to_size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--clips", type=Path, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--frames", type=int, default=24)
    parser.add_argument("--size", type=to_size, default=(256, 256), metavar="WxH")
    parser.add_argument("--steps", type=int, default=4)
    args = parser.parse_args()
    pipe = Pipeline.from_pretrained(args.model)
    rows: dict[str, dict[str, Seam]] = {}
    for folder in sorted(path for path in args.clips.iterdir() if path.is_dir()):
        scene = np.stack(list(islice(read_frames(folder / "video.mp4"), args.frames)))
        mask = np.stack(list(islice(read_gray(folder / "mask.mkv"), args.frames)))
        pose = read_poses(folder / "pose.json", (scene.shape[2], scene.shape[1])).take(range(len(scene)))
        grey = np.where((mask >= 128)[..., None], np.uint8(128), scene)
        found = {"grey, hard edge": seam(grey, scene, mask, inside=False)}
        for canvas in (FRAME, PERSON):
            settings = {"steps": args.steps, "size": args.size, "canvas": canvas}
            made = pipe(scene[0], scene, mask, pose, **settings).frames
            assert isinstance(made, np.ndarray)
            found[f"canvas {canvas}"] = seam(made, scene, mask, inside=False)
        print(folder.name, found, file=sys.stderr, flush=True)
        rows[folder.name] = found
    table = {
        f"{clip}: {name}": {score: summarise([value]) for score, value in zip(SEAMS, each, strict=True)}
        for clip, found in rows.items()
        for name, each in found.items()
    }
    print(markdown(table, "video"))


if __name__ == "__main__":
    main()
