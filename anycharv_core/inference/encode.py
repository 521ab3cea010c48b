"""What a video becomes before it is sampled."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..media.canvas import Canvas, CanvasPath
from ..media.frames import FrameStore, Source, batched, together, uneven
from ..media.imaging import Size
from ..systems.recipes import Recipe

CHUNK_PIXELS = 2**19  # pixels that go through the VAE at a time

Encode = Callable[[np.ndarray], Tensor]
"""Pictures uint8 [N, H, W, 3] -> scaled latents float32 [N, c, h, w]."""
Watch = Callable[[np.ndarray, Sequence[np.ndarray]], None]


@dataclass(frozen=True)
class EncodedVideo:
    """What one video has become for the sampler.

    path: what of every frame it shows; scene: scaled latents float32 [c, h, w] by frame; mask: float32 [1, h, w]
    in 0..1; both None where the network takes none; poses: uint8 skeletons of the canvas's padded size; present:
    whether the frame's mask has a pixel.
    """

    path: CanvasPath
    scene: FrameStore | None
    mask: FrameStore | None
    poses: FrameStore
    present: tuple[bool, ...]


@dataclass(frozen=True)
class Person:
    """Somebody to replace: masks uint8 [H, W] of the whole scene, and skeletons uint8 [H, W, 3] of what `path`
    shows of it, of any size."""

    mask: Source
    pose: Source
    path: CanvasPath


def encode_people(
    encode: Encode,
    multiple: int,
    recipe: Recipe,
    scene: Source,
    people: Sequence[Person],
    watch: Watch | None = None,
    folder: Path | None = None,
) -> list[EncodedVideo]:
    """A scene, for each of the people to replace in it; every stream is read once.

    The scene itself is encoded as the first of them sees it, and shared by those who see the same; for the others
    it is None, until those before them are in it and `encode_scene` is called.

    multiple: pixels a latent pixel is wide; watch: called with every frame and its skeletons, one for each of the
    people; folder: of temporary files, see `FrameStore`. Raises UserError where the streams do not fit together.
    """
    first = people[0].path
    latents = FrameStore(folder)
    masks = [FrameStore(folder) for _ in people]
    poses = [FrameStore(folder) for _ in people]
    present: list[list[bool]] = [[] for _ in people]
    rows = enumerate(together(scene, *(stream for person in people for stream in (person.mask, person.pose))))
    for batch in batched(rows, min(frames_at_a_time(person.path.canvas.padded) for person in people)):
        _keep(latents, encode(np.stack([first.at(index).place(frame) for index, (frame, *_) in batch])))
        for number, person in enumerate(people):
            width, height = (side // multiple for side in person.path.canvas.padded)
            regions = [row[1 + 2 * number] for _, row in batch]
            canvases = [person.path.at(index) for index, _ in batch]
            _keep(masks[number], recipe.mask(np.stack(regions), canvases, torch.Size((height, width))))
            present[number] += [bool((region >= 128).any()) for region in regions]
        for index, (frame, *streams) in batch:
            skeletons = streams[1::2]
            for number, person in enumerate(people):
                poses[number].append(person.path.canvas.place(skeletons[number]))
                if watch is not None and person.path.windows is not None:
                    skeletons[number] = _on_frame(person.path.at(index), poses[number][index], frame.shape)
            if watch is not None:
                watch(frame, skeletons)
    return [
        EncodedVideo(person.path, latents if person.path.shows_same(first) else None, regions, store, tuple(seen))
        for person, regions, store, seen in zip(people, masks, poses, present, strict=True)
    ]


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


def frames_at_a_time(size: Size) -> int:
    """How many frames of this (width, height) go through the VAE together."""
    return max(1, CHUNK_PIXELS // (size[0] * size[1]))
