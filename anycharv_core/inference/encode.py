"""What a video becomes before it is sampled."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from ..media.canvas import Canvas, CanvasPath
from ..media.depth import DepthRange, along_skeleton, place_depth
from ..media.frames import FrameStore, Source, batched, together, uneven
from ..media.imaging import Size
from ..systems.recipes import Recipe

CHUNK_PIXELS = 2**19  # pixels that go through the VAE at a time
HELD_PIXELS = 2**24  # of whole frames that wait for it: of a small canvas it takes many at a time
COVERED = 0.9  # of a person's mask that objects may not reach

Encode = Callable[[np.ndarray], Tensor]
"""Pictures uint8 [N, H, W, 3] -> scaled latents float32 [N, c, h, w]."""
Watch = Callable[[np.ndarray, Sequence[np.ndarray]], None]
Row = tuple[np.ndarray, ...]
"""Of every stream a frame."""


@dataclass(frozen=True)
class EncodedVideo:
    """What one video has become for the sampler.

    path: what of every frame it shows; scene: scaled latents float32 [c, h, w] by frame; mask: float32 [1, h, w]
    in 0..1; both None where the network takes none; poses: uint8 skeletons of the canvas's padded size; present:
    whether the frame's mask has a pixel; holds: whether the frame has an object; objects: of those that have, in
    their order, its scaled latents on black; depth: structured depth uint8 of the padded size, or None;
    background: the picture of a place uint8 [H, W, 3] of the padded size, or None.
    """

    path: CanvasPath
    scene: FrameStore | None
    mask: FrameStore | None
    poses: FrameStore
    present: tuple[bool, ...]
    objects: FrameStore | None = None
    holds: tuple[bool, ...] = ()
    depth: FrameStore | None = None
    background: np.ndarray | None = None


@dataclass(frozen=True)
class Person:
    """Somebody to replace: masks uint8 [H, W] of the whole scene, and skeletons uint8 [H, W, 3] of what `path`
    shows of it, of any size.

    objects: masks uint8 [H, W] of what they hold or touch; depth: pictures [H, W] as depth.py takes them; both of
    the whole scene, or None.
    """

    mask: Source
    pose: Source
    path: CanvasPath
    objects: Source | None = None
    depth: Source | None = None

    @property
    def streams(self) -> list[Source]:
        """What is read of them for every frame."""
        return [each for each in (self.mask, self.pose, self.objects, self.depth) if each is not None]


class _Encoding:
    """What one of the people becomes while the frames come."""

    def __init__(self, person: Person, folder: Path | None):
        self.person = person
        self.masks, self.poses, self.objects, self.depth = (FrameStore(folder) for _ in range(4))
        self.present: list[bool] = []
        self.holds: list[bool] = []
        self._range = DepthRange()

    def add(
        self, encode: Encode, recipe: Recipe, multiple: int, start: int, scene: list[np.ndarray], rows: list[Row]
    ) -> None:
        """The next frames, from number `start`: of the scene, and what `Person.streams` gives of each."""
        path = self.person.path
        canvases = [path.at(start + place) for place in range(len(rows))]
        masks = [row[0] for row in rows]
        width, height = (side // multiple for side in path.canvas.padded)
        _keep(self.masks, recipe.mask(np.stack(masks), canvases, torch.Size((height, width))))
        self.present += [bool((mask >= 128).any()) for mask in masks]
        for row in rows:
            self.poses.append(path.canvas.place(row[1]))
        if self.person.objects is not None:
            self._add_objects(encode, start, scene, masks, [row[2] for row in rows], canvases)
        if self.person.depth is not None:
            for place, (row, canvas) in enumerate(zip(rows, canvases, strict=True)):
                self._add_depth(start + place, row[-1], canvas)

    def _add_objects(
        self,
        encode: Encode,
        start: int,
        scene: list[np.ndarray],
        masks: list[np.ndarray],
        objects: list[np.ndarray],
        canvases: list[Canvas],
    ) -> None:
        for place, (mask, held) in enumerate(zip(masks, objects, strict=True)):
            if (mask >= 128).any() and (held[mask >= 128] >= 128).mean() >= COVERED:
                raise UserError(
                    f"The objects cover the person to replace in frame {start + place}; mark only what they hold "
                    "or touch."
                )
        holds = [bool(canvas.place_mask(held).any()) for held, canvas in zip(objects, canvases, strict=True)]
        self.holds += holds
        shown = [
            canvas.place(frame * (held >= 128)[..., None])
            for frame, held, canvas, seen in zip(scene, objects, canvases, holds, strict=True)
            if seen
        ]
        if shown:
            _keep(self.objects, encode(np.stack(shown)))

    def _add_depth(self, frame: int, depth: np.ndarray, canvas: Canvas) -> None:
        skeleton = self.poses[frame]
        if self.present[frame] and not skeleton.any():
            raise UserError(
                f"Frame {frame} has depth but no skeleton to read it along; give poses with the person in every "
                "frame of the mask, or leave the depth out."
            )
        along = along_skeleton(place_depth(depth, canvas), skeleton)
        self._range.add(along)
        self.depth.append(along)

    def finished(self, scene: FrameStore | None) -> EncodedVideo:
        depth = None
        if self.person.depth is not None:
            depth = self.depth.empty()
            for frame in range(len(self.depth)):
                depth.append(self._range.structured(self.depth[frame]))
        return EncodedVideo(
            self.person.path,
            scene,
            self.masks,
            self.poses,
            tuple(self.present),
            self.objects if any(self.holds) else None,
            tuple(self.holds),
            depth,
        )


def encode_people(
    encode: Encode,
    multiple: int,
    recipe: Recipe,
    scene: Source,
    people: Sequence[Person],
    watch: Watch | None = None,
    folder: Path | None = None,
    cut: bool = False,
) -> list[EncodedVideo]:
    """A scene, for each of the people to replace in it; every stream is read once.

    The scene itself is encoded as the first of them sees it, and shared by those who see the same; for the others
    it is None, until those before them are in it and `encode_scene` is called.

    multiple: pixels a latent pixel is wide; watch: called with every frame and its skeletons, one for each of the
    people; folder: of temporary files, see `FrameStore`; cut: the scene is black inside the masks, and so nobody's
    but the first one's. Raises UserError where the streams do not fit together.
    """
    first = people[0]
    latents = FrameStore(folder)
    encodings = [_Encoding(person, folder) for person in people]
    rows = enumerate(together(scene, *(stream for person in people for stream in person.streams)))
    most = [frames_at_a_time(person.path.canvas.padded) for person in people]
    for batch in batched(rows, min(*most, frames_at_a_time(scene.size, HELD_PIXELS))):
        start = batch[0][0]
        frames = [row[0] for _, row in batch]
        shown = [cut_scene(row[0], row[1]) for _, row in batch] if cut else frames
        _keep(latents, encode(np.stack([first.path.at(start + at).place(each) for at, each in enumerate(shown)])))
        taken = 1
        for each in encodings:
            own = slice(taken, taken + len(each.person.streams))
            each.add(encode, recipe, multiple, start, frames, [row[own] for _, row in batch])
            taken = own.stop
        if watch is not None:
            for index, row in batch:
                watch(row[0], _skeletons(encodings, index, row))
    return [
        each.finished(latents if each.person is first or _share(each.person, first, cut) else None)
        for each in encodings
    ]


def _share(person: Person, first: Person, cut: bool) -> bool:
    return not cut and person.path.shows_same(first.path)


def cut_scene(frame: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """A frame uint8 [H, W, 3] with nothing but black in the mask uint8 [H, W]."""
    return frame * (mask < 128)[..., None]


def _skeletons(encodings: Sequence[_Encoding], index: int, row: Row) -> list[np.ndarray]:
    """Each one's skeleton of a frame as it is shown to people: of a window, where it is in the frame."""
    shown, taken = [], 1
    for each in encodings:
        skeleton, path = row[taken + 1], each.person.path
        if path.windows is not None:
            skeleton = _on_frame(path.at(index), each.poses[index], row[0].shape)
        shown.append(skeleton)
        taken += len(each.person.streams)
    return shown


def _on_frame(canvas: Canvas, skeleton: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A skeleton of the padded size in an otherwise black frame of this shape."""
    return canvas.paste(skeleton, np.zeros(shape, np.uint8), np.ones(shape[:2], np.float32))


def _keep(store: FrameStore, rows: Tensor) -> None:
    for row in rows.float().cpu().numpy():
        store.append(row)


def encode_scene(
    encode: Encode, path: CanvasPath, scene: Iterable[np.ndarray], folder: Path | None = None
) -> FrameStore:
    """Scaled latents float32 [c, h, w] of what `path` shows of each of the frames uint8 [H, W, 3], which are read
    once. folder: as in `encode_people`."""
    latents = FrameStore(folder)
    placed = (path.at(index).place(frame) for index, frame in enumerate(scene))
    for batch in batched(placed, frames_at_a_time(path.canvas.padded)):
        _keep(latents, encode(np.stack(batch)))
    return latents


def place_poses(
    path: CanvasPath, pose: Source, beside: Sequence[Source], folder: Path | None = None
) -> EncodedVideo:
    """The poses alone, for a network that takes neither scene nor mask.

    beside: scene and mask, which only need as many frames as `pose`; those that don't say how many they have are
    read. folder: as in `encode_people`. Raises UserError where the numbers differ.
    """
    poses = FrameStore(folder)
    unknown = [source for source in beside if source.count is None]
    for skeleton, *_ in together(pose, *unknown):
        poses.append(path.canvas.place(skeleton))
    for source in beside:
        if source.count not in (None, len(poses)):
            first, second = (source, pose) if source.count < len(poses) else (pose, source)
            raise uneven(first.name, min(source.count, len(poses)), second.name)
    return EncodedVideo(path, None, None, poses, (True,) * len(poses))


def frames_at_a_time(size: Size, pixels: int | None = None) -> int:
    """How many frames of this (width, height) have so many pixels, by default as go through the VAE together."""
    return max(1, (pixels or CHUNK_PIXELS) // (size[0] * size[1]))
