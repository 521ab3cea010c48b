"""Trains the puppet detector: one ONNX file behind the contract of DWPose's yolox_l.onnx.

    python -m training.preprocessors.detector --data DIR --state DIR --out puppet_detector.onnx

DIR of --data is what `training.preprocessors.data` wrote. Contract: `images` [1,3,640,640] float32 BGR 0..255,
letterboxed at the top left on grey 114 -> `output` [1,8400,85]: x, y in cells from the cell's corner, log of width
and height in strides, object score and 80 class scores 0..1; rows are the cells of strides 8, 16 and 32. Only
stride 16 and class 0 ever score: puppets fill a good part of the frame.
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

from training.preprocessors.data import PEOPLE, Clips, repaint
from training.preprocessors.export import settle, write_onnx
from training.preprocessors.train import COMMON, Batch, Course, command

SIDE, POOL, STRIDE = 640, 4, 16
GREY = 114
SEED = 1
PHASE = COMMON(steps=1500, batch=16, lr=3e-3, ema=0.99, grad_clip=10.0)


def conv(before: int, after: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    layer = nn.Conv2d(before, after, 3, stride, 1, groups=groups, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(after), nn.SiLU())


class Detector(nn.Module):
    """Pictures [B,3,160,160] BGR 0..255 (the input averaged over 4 x 4 pixels) -> [B,5,40,40].

    Channels: logit of the object score, then centre x, y and log width, height as the contract has them.
    """

    def __init__(self) -> None:
        super().__init__()
        a, b, c = 16, 32, 36
        self.fine = nn.Sequential(conv(3, a, 2), conv(a, b, 2), conv(b, b))
        self.middle = nn.Sequential(conv(b, c, 2), conv(c, c))
        self.coarse = nn.Sequential(conv(c, c, 2), conv(c, c), conv(c, c))
        self.mix = conv(c, c)
        self.lateral = nn.Conv2d(b, c, 1)
        before, last = (conv(c, c, groups=c), nn.Conv2d(c, b, 1), nn.SiLU()), nn.Conv2d(b, 5, 1)
        self.head = nn.Sequential(*before, last)
        assert last.bias is not None
        with torch.no_grad():
            last.bias.copy_(torch.tensor([-4.0, 0.5, 0.5, 2.0, 2.5]))

    def forward(self, pooled: Tensor) -> Tensor:
        fine = self.fine(pooled / 128 - 1)
        middle = self.middle(fine)
        middle = self.mix(middle + F.interpolate(self.coarse(middle), scale_factor=2.0))
        return self.head(self.lateral(fine) + F.interpolate(middle, scale_factor=2.0))


class Released(nn.Module):
    """The detector as the released file is called."""

    def __init__(self, net: Detector):
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> Tensor:
        score, place = self.net(F.avg_pool2d(images, POOL)).flatten(2).split((1, 4), dim=1)
        person = torch.cat([place, score.sigmoid(), torch.ones_like(score)], dim=1).transpose(1, 2)
        rows = F.pad(person, (0, 79))
        return F.pad(rows, (0, 0, (SIDE // 8) ** 2, (SIDE // 32) ** 2))


def draw(clips: Clips, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """A random window of a random frame, letterboxed and pooled, uint8 [3,160,160] BGR, with the boxes of what it
    shows, float32 [PEOPLE,4] in the input's pixels, NaN without."""
    clip, t = rng.integers(len(clips.frames)), rng.integers(clips.frames.shape[1])
    size = clips.frames.shape[2]
    w, h = (int(size * (1 if rng.random() < 0.3 else rng.uniform(0.5, 1))) for _ in range(2))
    x, y = rng.integers(size - w + 1), rng.integers(size - h + 1)
    frame = clips.frames[clip, t, y : y + h, x : x + w]
    labels = clips.labels[clip, t, y : y + h, x : x + w]
    if rng.random() < 0.5:
        frame, labels = frame[:, ::-1], labels[:, ::-1]
    side = SIDE // POOL
    scale = side / max(w, h)
    picture = np.full((side, side, 3), GREY, np.uint8)
    inner = int(w * scale), int(h * scale)
    small = cv2.resize(np.ascontiguousarray(frame[..., ::-1]), inner, interpolation=cv2.INTER_AREA)
    picture[: inner[1], : inner[0]] = repaint(small, rng)
    boxes = np.full((PEOPLE, 4), np.nan, np.float32)
    for p in range(PEOPLE):
        ys, xs = np.nonzero(labels == p + 1)
        if len(xs) > 40:
            boxes[p] = np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]) * (scale * POOL)
    return {"pictures": picture.transpose(2, 0, 1), "boxes": boxes}


def targets(boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Heat [B,40,40] with a peak of 1 per person, and each cell's box [B,40,40,4] (zeros without people)."""
    cells = (torch.arange(SIDE // STRIDE) + 0.5) * STRIDE
    gone = boxes.isnan().any(-1)
    boxes = boxes.nan_to_num()
    size = (boxes[..., 2:] - boxes[..., :2]).clamp(min=1)
    centre = (boxes[..., 2:] + boxes[..., :2]) / 2
    # Peaks are wider on larger people, yet never narrower than a cell; the nearest cell is always a full one.
    spread = (0.12 * size).clamp(min=0.75 * STRIDE)
    nearest = (torch.div(centre, STRIDE, rounding_mode="floor") + 0.5) * STRIDE
    bell = [torch.exp(-0.5 * ((cells - nearest[..., i : i + 1]) / spread[..., i : i + 1]) ** 2) for i in (0, 1)]
    heat = bell[1][..., :, None] * bell[0][..., None, :] * ~gone[..., None, None]
    best, owner = heat.max(dim=1)
    chosen = torch.gather(boxes, 1, owner.flatten(1)[..., None].expand(-1, -1, 4))
    return best, chosen.reshape(*best.shape, 4)


def loss(net: Detector, batch: Batch) -> dict[str, Tensor]:
    """Penalty-reduced focal loss (CornerNet, eq. 1) on the score; IoU loss and log size around the peaks."""
    out = net(batch["pictures"].float())
    heat, boxes = targets(batch["boxes"])
    score = out[:, 0].sigmoid().clamp(1e-4, 1 - 1e-4)
    peak = heat == 1
    hit = -((1 - score) ** 2 * score.log())[peak].sum()
    miss = -((1 - heat) ** 4 * score**2 * (1 - score).log())[~peak].sum()
    focal = (hit + miss) / peak.sum().clamp(min=1)

    weight = heat * (heat > 0.3)
    cells = torch.arange(SIDE // STRIDE, dtype=torch.float32)
    x = (out[:, 1] + cells) * STRIDE
    y = (out[:, 2] + cells[:, None]) * STRIDE
    w, h = (out[:, 3:].clamp(-4, 5).exp() * STRIDE).unbind(1)
    made = torch.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], dim=-1)
    overlap = (torch.minimum(made, boxes)[..., 2:] - torch.maximum(made, boxes)[..., :2]).clamp(min=0).prod(-1)
    area = (boxes[..., 2:] - boxes[..., :2]).clamp(min=1)
    union = w * h + area.prod(-1) - overlap
    edges = ((made - boxes).abs() / area.repeat(1, 1, 1, 2)).sum(-1)
    misfit = (weight * (1 - overlap / union + edges)).sum() / weight.sum().clamp(min=1)
    return {"loss": focal + 2 * misfit, "focal": focal, "misfit": misfit}


def make(course: Course, out: Path) -> None:
    """Trains the detector and writes it."""
    torch.manual_seed(SEED)
    net = Detector()
    samples = course.train(net, loss, draw, PHASE, SEED)
    settle(net, (batch["pictures"].float() for batch in samples.batches(40, PHASE.batch)))
    write_onnx(Released(net), torch.zeros(1, 3, SIDE, SIDE), out, "images", ["output"], batch=False)


def main(argv: Sequence[str] | None = None) -> int:
    return command("detector", __doc__, make, argv)


if __name__ == "__main__":
    sys.exit(main())
