"""How a frame maps to the network's canvas and back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from PIL import Image

from ..errors import UserError
from .camera import CONTEXT, Box, camera_path, seen_background
from .imaging import Size, resample, resize
from .masks import composite
from .pose import Poses

FRAME, PERSON, AUTO = CHOICES = ("frame", "person", "auto")
WORTH_FOLLOWING = 0.5  # of the background that the network would see of whole frames
_ROUNDING = 1e-6  # pixels: what coordinates are off by


@dataclass(frozen=True)
class Canvas:
    """Where a picture lies on the network's canvas: scaled to `inner`, then padded right and below.

    window: the part of the source that is seen, x0, y0, x1, y1 in its pixels, of which pixel i covers i to i + 1;
    None = all of it. A window may reach past the source, whose edges are repeated there.
    """

    source: Size
    inner: Size
    padded: Size
    window: tuple[float, float, float, float] | None = None

    def place(self, picture: np.ndarray) -> np.ndarray:
        """uint8 or uint16 [H, W, 3] of any size -> [padded height, padded width, 3], antialiased, edges repeated.

        A picture that is not of the source's size is taken as the source scaled to its size.
        """
        window = self._window((picture.shape[1], picture.shape[0]))
        return self.pad(resample(picture, window, self.inner), "edge")

    def place_mask(self, mask: np.ndarray) -> np.ndarray:
        """uint8 [H, W] -> [padded height, padded width] of 0 and 255; every pixel the mask touches is in."""
        if self.window is None:
            touched = resize(np.where(mask >= 128, np.uint8(255), np.uint8(0)), self.inner, Image.Resampling.BOX)
        else:
            x0, y0, x1, y1 = self._window((mask.shape[1], mask.shape[0]))
            rows = _touched(mask >= 128, (y0, y1), self.inner[1])
            touched = _touched(rows.T, (x0, x1), self.inner[0]).T
        return self.pad(np.where(touched > 0, np.uint8(255), np.uint8(0)), "constant")

    def to_canvas(self, points: np.ndarray) -> np.ndarray:
        """Points float [..., 2] of the source -> the same of the canvas."""
        x0, y0, x1, y1 = self._window(self.source)
        return (points - np.array((x0, y0))) * np.divide(self.inner, (x1 - x0, y1 - y0))

    def to_source(self, points: np.ndarray) -> np.ndarray:
        """Points float [..., 2] of the canvas -> the same of the source."""
        x0, y0, x1, y1 = self._window(self.source)
        return points * np.divide((x1 - x0, y1 - y0), self.inner) + np.array((x0, y0))

    @property
    def region(self) -> tuple[int, int, int, int]:
        """The pixels of the source that are wholly seen: x0, y0, x1, y1, the ends exclusive."""
        x0, y0, x1, y1 = self._window(self.source)
        left, top = (max(0, math.ceil(side - _ROUNDING)) for side in (x0, y0))
        width, height = self.source
        return left, top, min(width, math.floor(x1 + _ROUNDING)), min(height, math.floor(y1 + _ROUNDING))

    def restore(self, picture: np.ndarray) -> np.ndarray:
        """uint8 or uint16 [padded height, padded width, 3] -> the source's pixels of `region`, antialiased."""
        x0, y0, x1, y1 = self.region
        width, height = self.inner
        part = np.clip(self.to_canvas(np.array([(x0, y0), (x1, y1)])), 0, self.inner)
        return resample(picture[:height, :width], tuple(part.ravel().tolist()), (x1 - x0, y1 - y0))

    def paste(self, picture: np.ndarray, frame: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """A frame uint8 or uint16 [H, W, 3] of the source's size with a picture of the padded size in front of it.

        picture: uint8, or uint16 if the frame is; weights: float32 [H, W] in 0..1, the picture's; where they are
        0, and outside `region`, the frame's own pixels stay.
        """
        x0, y0, x1, y1 = self.region
        pasted = frame.copy()
        inside = pasted[y0:y1, x0:x1]
        inside[:] = composite(self.restore(picture), inside, weights[y0:y1, x0:x1])
        return pasted

    def pad(self, picture: np.ndarray, mode: Literal["constant", "edge"]) -> np.ndarray:
        """A picture of the inner size -> of the padded size, in one of np.pad's ways."""
        extra = (self.padded[1] - self.inner[1], self.padded[0] - self.inner[0])
        return np.pad(picture, [(0, extra[0]), (0, extra[1])] + [(0, 0)] * (picture.ndim - 2), mode)

    def cover(self, picture: np.ndarray) -> np.ndarray:
        """The middle of a picture uint8 [H, W, 3] of any size, as much as there is in the canvas's proportions ->
        [padded height, padded width, 3]."""
        height, width = picture.shape[:2]
        scale = min(width / self.inner[0], height / self.inner[1])
        across, down = self.inner[0] * scale, self.inner[1] * scale
        x, y = (width - across) / 2, (height - down) / 2
        return self.pad(resample(picture, (x, y, x + across, y + down), self.inner), "edge")

    def _window(self, size: Size) -> tuple[float, float, float, float]:
        """The window in pixels of the source scaled to `size`."""
        if self.window is None:
            return 0.0, 0.0, float(size[0]), float(size[1])
        x, y = (side / own for side, own in zip(size, self.source, strict=True))
        x0, y0, x1, y1 = self.window
        return x0 * x, y0 * y, x1 * x, y1 * y


def _touched(mask: np.ndarray, span: tuple[float, float], count: int) -> np.ndarray:
    """bool [H, W] -> bool [count, W]: whether a column of the mask has a pixel in each of `count` equal parts of
    its rows from span[0] to span[1]."""
    height = len(mask)
    ends = np.linspace(*span, count + 1)
    first = np.clip(np.floor(ends[:-1] + _ROUNDING), 0, height).astype(int)
    last = np.clip(np.ceil(ends[1:] - _ROUNDING), 0, height).astype(int)
    counts = np.zeros((height + 1, mask.shape[1]), np.int32)
    np.cumsum(mask, axis=0, out=counts[1:])
    return counts[last] > counts[np.minimum(first, last)]


@dataclass(frozen=True, eq=False)
class CanvasPath:
    """What the network sees of every frame of a video: all of it, or a window that follows a person.

    canvas: without a window, the same for every frame; windows: float64 [F, 4], None = whole frames.
    """

    canvas: Canvas
    windows: np.ndarray | None = None

    @property
    def shows(self) -> str:
        """FRAME or PERSON."""
        return FRAME if self.windows is None else PERSON

    def shows_same(self, other: CanvasPath) -> bool:
        """Whether both show the same of every frame, as whole frames do; of windows only if they are the same."""
        return self is other or (self.windows is None is other.windows and self.canvas == other.canvas)

    def at(self, frame: int) -> Canvas:
        """The canvas of that frame; after the last one that of the last, as streams show too late that they are of
        different lengths."""
        if self.windows is None:
            return self.canvas
        x0, y0, x1, y1 = self.windows[min(frame, len(self.windows) - 1)].tolist()
        return replace(self.canvas, window=(x0, y0, x1, y1))

    def poses(self, poses: Poses, size: Size) -> Poses:
        """The poses where the canvas shows them, for pictures of this size that show what the canvas shows."""
        if self.windows is None:
            return poses.scaled(*size)
        stretch = np.divide(size, self.canvas.padded)

        def placed(frame: int, people: np.ndarray) -> np.ndarray:
            points = people.copy()
            points[..., :2] = self.at(frame).to_canvas(people[..., :2]) * stretch
            return points

        return poses.scaled(*self.canvas.source).changed(placed, size)


def choose_path(
    choice: str,
    canvas: Canvas,
    size: Size,
    boxes: Sequence[Box | None],
    cuts: Sequence[int] = (),
    context: float = CONTEXT,
    keep: int = 0,
) -> CanvasPath:
    """Whether the network sees whole frames or follows the person, and where it then looks.

    Args:
        choice: FRAME gives `canvas`, which shows whole frames; PERSON canvases of `size` (width, height) that
            follow the person as `camera_path` does; AUTO those where that at least halves the pixels of the frame
            that the network sees around the person.
        boxes, cuts, context, keep: as `camera_path` takes them.

    Raises:
        UserError: another choice, or a context that is no number from 0 on.
    """
    if choice not in CHOICES:
        raise UserError(f"There is no canvas '{choice}'; use one of {', '.join(map(repr, CHOICES))}.")
    if not 0 <= context < math.inf:
        raise UserError(f"The context is {context}; give a number from 0 on, {CONTEXT} is usual.")
    if choice != FRAME:
        windows = camera_path(boxes, canvas.source, size, cuts, context, keep)
        if choice == PERSON or seen_background(windows, boxes, canvas.source) <= WORTH_FOLLOWING:
            return CanvasPath(Canvas(canvas.source, size, size), windows)
    return CanvasPath(canvas)


def nearest_multiple(size: Size, multiple: int) -> Size:
    """The size next to `size` whose sides are divisible by `multiple`, none of them 0."""
    width, height = (max(1, round(side / multiple)) * multiple for side in size)
    return width, height


def working_size(area: Sequence[int], picture: Size, multiple: int) -> Size:
    """The (width, height) in pixels at which a model made for pictures of `area` = [w, h] sees one of `picture`.

    It keeps its proportions and is scaled, up or down, until it covers about w * h pixels, so that
    the networks see as much as they were trained on: for 64 x 64, a video of 540 x 960 is worked on at
    48 x 85. Neither side becomes smaller than `multiple`, one latent pixel of the VAE.
    """
    scale = max((area[0] * area[1] / (picture[0] * picture[1])) ** 0.5, multiple / min(picture))
    return round(picture[0] * scale), round(picture[1] * scale)


def pose_canvas(working: Size, scale: float) -> Size:
    """The size in pixels at which skeletons given as points are drawn for a video worked on at `working`.

    `scale` is the model's "pose_scale": the released weights know skeletons drawn at the working size (1),
    smaller models draw them larger and bring them down, so that joints keep fractions of a pixel.
    """
    return round(scale * working[0]), round(scale * working[1])
