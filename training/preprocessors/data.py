"""Crowd clips on disk, rendered once for all three nets.

python -m training.preprocessors.data --out DIR [--clips 2000] [--workers 2]
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np

from anycharv_core.errors import UserError
from anycharv_core.files import check_owned, owned_folder
from anycharv_core.puppets.crowd import SITUATIONS, Crowd, sample_crowd
from training import commands

SIZE, FRAMES, PEOPLE = 256, 8, 3
CLIPS = 2000


@dataclass(frozen=True)
class Clips:
    """N clips of FRAMES frames; clip i is of situation SITUATIONS[i % 5].

    frames: uint8 [N,T,S,S,3] RGB. labels: uint8 [N,T,S,S], 1 + the number of the person seen there or 0.
    keypoints: float32 [N,T,PEOPLE,18,3], score 1 inside the frame. boxes: int64 [N,T,PEOPLE,4] around what is
    seen, ends exclusive, zeros without. The arrays may be memory-mapped.
    """

    frames: np.ndarray
    labels: np.ndarray
    keypoints: np.ndarray
    boxes: np.ndarray


def load(folder: Path) -> Clips:
    """The clips that `main` wrote to `folder`, memory-mapped. Raises UserError where it holds none."""
    try:
        return Clips(*(np.load(folder / f"{name}.npy", mmap_mode="r") for name in Clips.__dataclass_fields__))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{folder} holds no clips ({error}); make them with python -m training.preprocessors.data."
        ) from error


def pack(crowd: Crowd) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The four arrays of `Clips` for one clip."""
    frames, people = crowd.boxes.shape[:2]
    labels = np.zeros(crowd.frames.shape[:3], np.uint8)
    for p in range(people):
        labels[crowd.masks[:, p] > 0] = p + 1
    keypoints = np.zeros((frames, PEOPLE, 18, 3), np.float32)
    boxes = np.zeros((frames, PEOPLE, 4), np.int64)
    keypoints[:, :people], boxes[:, :people] = crowd.keypoints, crowd.boxes
    return crowd.frames, labels, keypoints, boxes


def _clip(index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    cv2.setNumThreads(1)
    return pack(sample_crowd(index, SITUATIONS[index % len(SITUATIONS)], FRAMES, SIZE, "train"))


def write(folder: Path, clips: int, workers: int) -> None:
    """Renders `clips` clips of the training split into `folder`, which is replaced."""
    shapes = {
        "frames": (np.uint8, (FRAMES, SIZE, SIZE, 3)),
        "labels": (np.uint8, (FRAMES, SIZE, SIZE)),
        "keypoints": (np.float32, (FRAMES, PEOPLE, 18, 3)),
        "boxes": (np.int64, (FRAMES, PEOPLE, 4)),
    }
    with owned_folder(folder) as tmp, get_context("spawn").Pool(workers) as pool:
        arrays = [
            np.lib.format.open_memmap(tmp / f"{name}.npy", "w+", dtype, (clips, *shape))
            for name, (dtype, shape) in shapes.items()
        ]
        for i, clip in enumerate(pool.imap(_clip, range(clips), chunksize=4)):
            for array, values in zip(arrays, clip, strict=True):
                array[i] = values


def repaint(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The picture uint8 [H,W,3] as a worse or differently lit camera has it: gains, and at times blurred."""
    if rng.random() < 0.4:
        height, width = picture.shape[:2]
        factor = rng.uniform(0.35, 0.9)
        small = max(int(width * factor), 8), max(int(height * factor), 8)
        picture = cv2.resize(np.ascontiguousarray(picture), small, interpolation=cv2.INTER_AREA)
        picture = cv2.resize(picture, (width, height), interpolation=cv2.INTER_LINEAR)
    gain = rng.uniform(0.75, 1.2) * rng.uniform(0.92, 1.08, 3)
    return np.clip(picture * gain.astype(np.float32) + np.float32(rng.uniform(-12, 12)), 0, 255).astype(np.uint8)


def main(argv: Sequence[str] | None = None) -> int:
    parser = commands.new_parser("preprocessors.data", __doc__)
    add = parser.add_argument
    add("--out", type=Path, required=True, help="folder to write")
    add("--clips", type=int, default=CLIPS, help="number of clips, default %(default)s")
    add("--workers", type=int, default=2, help="processes, default %(default)s")
    args = parser.parse_args(argv)

    def work() -> None:
        if args.clips < 1 or args.workers < 1:
            raise UserError("--clips and --workers must be at least 1.")
        check_owned(args.out)
        write(args.out, args.clips, args.workers)

    return commands.run("data", work, "stopped; nothing is written.")


if __name__ == "__main__":
    sys.exit(main())
