"""Trains the puppet pose net: one ONNX file behind the contract of DWPose's dw-ll_ucoco_384.onnx.

    python -m training.preprocessors.pose --data DIR --state DIR --out puppet_pose.onnx

DIR of --data is what `training.preprocessors.data` wrote. Contract: `input` [batch,3,384,288] float32, the crop
around a person's box times 1.25, BGR less the mean over the deviation below -> `simcc_x` [batch,133,576] and
`simcc_y` [batch,133,768], whose maxima are the score and, halved, the place in the crop. Of the 133 whole-body
points of COCO the puppets have the first 17; the others never score.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.preprocessors.data import Clips, repaint
from training.preprocessors.detector import conv
from training.preprocessors.export import settle, write_onnx
from training.preprocessors.train import COMMON, Batch, Course, command

WIDTH, HEIGHT, POOL, CELL, SPLIT = 288, 384, 4, 8, 2
POINTS, WHOLE_BODY = 17, 133
PADDING = 1.25
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
# COCO's points in OpenPose's numbers, and each one's mirror image.
COCO = (0, 15, 14, 17, 16, 5, 2, 6, 3, 7, 4, 11, 8, 12, 9, 13, 10)
MIRROR = (0, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11, 14, 13, 16, 15)
# Standard deviation of the labels, and of the bumps that cells become in the output, in cells.
BLUR = 0.7
SEED = 2
PHASE = COMMON(steps=2100, batch=16, lr=3e-3, ema=0.995, grad_clip=10.0)


class Residual(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.body = nn.Sequential(conv(width, width), conv(width, width))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class PoseNet(nn.Module):
    """Crops [B,3,96,72] (the input averaged over 4 x 4 pixels) -> logits of heat [B,17,48,36] and score [B,17]."""

    def __init__(self) -> None:
        super().__init__()
        a, b, c, d = 24, 32, 56, 80
        self.fine = nn.Sequential(conv(3, a), conv(a, b, 2), Residual(b))
        self.middle = nn.Sequential(conv(b, c, 2), Residual(c))
        self.coarse = nn.Sequential(conv(c, d, 2), Residual(d), Residual(d))
        self.up = nn.Conv2d(d, c, 1)
        self.mix = Residual(c)
        self.out = nn.Conv2d(c, b, 1)
        self.heat = nn.Sequential(Residual(b), nn.Conv2d(b, POINTS, 1))
        self.score = nn.Sequential(conv(d, d, 2), nn.Flatten(), nn.Linear(d * 6 * 5, POINTS))

    def forward(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        fine = self.fine(pooled)
        middle = self.middle(fine)
        coarse = self.coarse(middle)
        middle = self.mix(middle + F.interpolate(self.up(coarse), size=middle.shape[-2:]))
        heat = self.heat(fine + F.interpolate(self.out(middle), scale_factor=2.0))
        return heat, self.score(coarse)


def bumps(cells: int) -> Tensor:
    """[cells, bins]: what a cell adds to the bins of its axis, a bump around its middle."""
    bins = torch.arange(cells * CELL * SPLIT) / (CELL * SPLIT)
    return torch.exp(-0.5 * ((bins - (torch.arange(cells)[:, None] + 0.5)) / BLUR) ** 2)


class Released(nn.Module):
    """The pose net as the released file is called."""

    def __init__(self, net: PoseNet):
        super().__init__()
        self.net = net
        self.register_buffer("across", bumps(WIDTH // CELL), persistent=False)
        self.register_buffer("down", bumps(HEIGHT // CELL), persistent=False)

    def forward(self, crops: Tensor) -> tuple[Tensor, Tensor]:
        heat, score = self.net(F.avg_pool2d(crops, POOL))
        share = heat.flatten(2).softmax(-1).unflatten(2, (HEIGHT // CELL, WIDTH // CELL))
        axes = share.sum(2) @ self.across, share.sum(3) @ self.down
        score = score.sigmoid()[..., None]
        pad = (0, 0, 0, WHOLE_BODY - POINTS)
        x, y = (F.pad(score * axis / axis.amax(-1, keepdim=True), pad) for axis in axes)
        return x, y


def draw(clips: Clips, rng: np.random.Generator) -> dict[str, np.ndarray] | None:
    """A pooled crop uint8 [3,96,72] BGR around the jittered box of a random person, and its points float32 [17,3]
    in the crop's pixels; None where that person shows too little."""
    index = rng.integers(len(clips.frames)), rng.integers(clips.frames.shape[1])
    side = clips.frames.shape[2]
    # Puppets seldom reach past the picture's edge by themselves: some pictures are cut down.
    w, h = (int(side * rng.uniform(0.45, 1)) for _ in range(2)) if rng.random() < 0.4 else (side, side)
    left, top = rng.integers(side - w + 1), rng.integers(side - h + 1)
    window = (*index, slice(top, top + h), slice(left, left + w))
    labels = clips.labels[window]
    people = [p for p in np.unique(labels) if p]
    if not people:
        return None
    person = rng.choice(people)
    points = clips.keypoints[index][person - 1][list(COCO)] - (left, top, 0)
    points[:, 2] *= ((points[:, :2] >= 0) & (points[:, :2] < (w, h))).all(-1)
    ys, xs = np.nonzero(labels == person)
    box = np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1], np.float64)
    size = box[2:] - box[:2]
    if size[0] < 10 or size[1] < 20 or not points[:, 2].any():
        return None
    # Someone hidden almost wholly has a pose only for who knows the frames around.
    x, y = points[points[:, 2] > 0, :2].astype(int).T
    if (labels[y, x] == person).mean() < 0.3:
        return None
    box += rng.normal(0, 0.05, 4) * np.tile(size, 2)
    crop, scale, offset = crop_around(np.ascontiguousarray(clips.frames[window][..., ::-1]), box)
    points[:, :2] = points[:, :2] * scale + offset
    points[:, 2] *= ((points[:, :2] >= 0) & (points[:, :2] < (WIDTH, HEIGHT))).all(-1)
    if rng.random() < 0.5:
        crop = crop[:, ::-1]
        points = points[list(MIRROR)] * (-1, 1, 1) + (WIDTH, 0, 0)
    pooled = cv2.resize(crop, (WIDTH // POOL, HEIGHT // POOL), interpolation=cv2.INTER_AREA)
    return {"crops": repaint(pooled, rng).transpose(2, 0, 1), "points": points.astype(np.float32)}


def crop_around(frame: np.ndarray, box: np.ndarray) -> tuple[np.ndarray, float, np.ndarray]:
    """The crop [384,288,3] of a box as DWPose cuts it, with the factor and offset of frame to crop pixels."""
    centre, (w, h) = (box[:2] + box[2:]) / 2, (box[2:] - box[:2]) * PADDING
    scale = WIDTH / max(w, h * WIDTH / HEIGHT)
    offset = np.array([WIDTH, HEIGHT]) / 2 - centre * scale
    matrix = np.array([[scale, 0, offset[0]], [0, scale, offset[1]]])
    return cv2.warpAffine(frame, matrix, (WIDTH, HEIGHT), flags=cv2.INTER_LINEAR), scale, offset


def loss(net: PoseNet, batch: Batch) -> dict[str, Tensor]:
    """Cross-entropy of the heat with a blurred point, and of the score with whether the point is in the crop."""
    mean, std = (torch.tensor(v)[:, None, None] for v in (MEAN, STD))
    heat, score = net((batch["crops"].float() - mean) / std)
    points = batch["points"]
    seen = points[..., 2]
    cells = [torch.arange(n) + 0.5 for n in (WIDTH // CELL, HEIGHT // CELL)]
    x, y = (torch.exp(-0.5 * ((cells[i] - points[..., i : i + 1] / CELL) / BLUR) ** 2) for i in (0, 1))
    label = (y[..., :, None] * x[..., None, :]).flatten(2)
    label = label / label.sum(-1, keepdim=True).clamp(min=1e-6)
    place = -(label * heat.flatten(2).log_softmax(-1)).sum(-1)
    place = (place * seen).sum() / seen.sum().clamp(min=1)
    known = F.binary_cross_entropy_with_logits(score, seen)
    return {"loss": place + known, "place": place, "known": known}


def make(course: Course, out: Path) -> None:
    """Trains the pose net and writes it."""
    torch.manual_seed(SEED)
    net = PoseNet()
    samples = course.train(net, loss, draw, PHASE, SEED)
    mean, std = (torch.tensor(v)[:, None, None] for v in (MEAN, STD))
    settle(net, ((batch["crops"].float() - mean) / std for batch in samples.batches(40, PHASE.batch)))
    write_onnx(Released(net), torch.zeros(1, 3, HEIGHT, WIDTH), out, "input", ["simcc_x", "simcc_y"], batch=True)


def main(argv: Sequence[str] | None = None) -> int:
    return command("pose", __doc__, make, argv)


if __name__ == "__main__":
    sys.exit(main())
