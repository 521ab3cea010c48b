"""Skeletons on their way to a canvas: points are drawn for it, pictures are cut to what it shows."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import numpy as np

from ..media.canvas import CanvasPath
from ..media.frames import Reopened, Source
from ..media.imaging import Size
from ..media.pose import Poses
from ..media.pose_drawing import draw_poses


class Skeletons(Protocol):
    """Skeletons that are drawn, or come as pictures. size: the (width, height) in pixels they were made for."""

    @property
    def size(self) -> Size: ...

    def drawn(self, size: Size, path: CanvasPath) -> Reopened:
        """Pictures uint8 [H, W, 3] of what `path` shows of every frame, of this size where they are drawn. They
        can be read as often as what they are made of."""
        ...


class PointSkeletons:
    """`Skeletons` of the points of one or more frames. count: how many."""

    def __init__(self, poses: Poses):
        self.poses = poses
        self.size = poses.size
        self.count = len(poses)

    def drawn(self, size: Size, path: CanvasPath) -> Reopened:
        return Reopened(lambda: draw_poses(path.poses(self.poses, size)))


class PictureSkeletons:
    """`Skeletons` that are drawn already, in pictures of whole frames of whatever size."""

    def __init__(self, pictures: Source):
        self._pictures = pictures

    @property
    def size(self) -> Size:
        return self._pictures.size

    def drawn(self, size: Size, path: CanvasPath) -> Reopened:
        return cut_to(path, self._pictures, self._pictures.count)


def cut_to(path: CanvasPath, pictures: Iterable[np.ndarray], count: int | None = None) -> Reopened:
    """What `path` shows of pictures uint8 [H, W, 3] of whole frames. count: how many, where known."""
    if path.windows is None:
        return Reopened(lambda: iter(pictures), count)
    return Reopened(lambda: (path.at(frame).place(picture) for frame, picture in enumerate(pictures)), count)
