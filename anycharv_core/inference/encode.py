"""What a video becomes before it is sampled."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..media.canvas import Canvas
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

    scene: scaled latents [F, c, h, w]; mask: [F, 1, h, w] in 0..1; both None where the network takes none; poses:
    uint8 skeletons of the canvas's padded size; present: whether the frame's mask has a pixel.
    """

    canvas: Canvas
    scene: Tensor | None
    mask: Tensor | None
    poses: FrameStore
    present: tuple[bool, ...]


def encode_people(
    encode: Encode,
    recipe: Recipe,
    canvas: Canvas,
    scene: Source,
    people: Sequence[tuple[Source, Source]],
    watch: Watch | None = None,
) -> list[EncodedVideo]:
    """A scene, once for each of the people to replace in it, given as (mask, pose); every stream is read once.

    watch: called with every frame and its skeletons, one for each of the people. Raises UserError where the
    streams do not fit together.
    """
    latents: list[Tensor] = []
    masks: list[list[Tensor]] = [[] for _ in people]
    poses = [FrameStore() for _ in people]
    present: list[list[bool]] = [[] for _ in people]
    rows = together(scene, *(stream for person in people for stream in person))
    for batch in batched(rows, frames_at_a_time(canvas.padded)):
        latents.append(encode(np.stack([canvas.place(frame) for frame, *_ in batch])))
        for number in range(len(people)):
            regions = [row[1 + 2 * number] for row in batch]
            masks[number].append(recipe.mask(np.stack(regions), canvas, latents[-1].shape[-2:]))
            present[number] += [bool((region >= 128).any()) for region in regions]
        for frame, *streams in batch:
            for store, skeleton in zip(poses, streams[1::2], strict=True):
                store.append(canvas.place(skeleton))
            if watch is not None:
                watch(frame, streams[1::2])
    shared = torch.cat(latents)
    return [
        EncodedVideo(canvas, shared, torch.cat(regions).to(shared.device), store, tuple(seen))
        for regions, store, seen in zip(masks, poses, present, strict=True)
    ]


def encode_scene(encode: Encode, canvas: Canvas, scene: Iterable[np.ndarray]) -> Tensor:
    """Scaled latents [F, c, h, w] of frames uint8 [H, W, 3], which are read once."""
    batches = batched((canvas.place(frame) for frame in scene), frames_at_a_time(canvas.padded))
    return torch.cat([encode(np.stack(batch)) for batch in batches])


def place_poses(canvas: Canvas, pose: Source, beside: Sequence[Source]) -> EncodedVideo:
    """For a network that takes neither scene nor mask: those are `beside`, and only have to be as long.

    They are read where they don't say how long they are. Raises UserError where they are not.
    """
    poses = FrameStore()
    unknown = [source for source in beside if source.count is None]
    for skeleton, *_ in together(pose, *unknown):
        poses.append(canvas.place(skeleton))
    for source in beside:
        if source.count not in (None, len(poses)):
            first, second = (source, pose) if source.count < len(poses) else (pose, source)
            raise uneven(first.name, min(source.count, len(poses)), second.name)
    return EncodedVideo(canvas, None, None, poses, (True,) * len(poses))


def frames_at_a_time(size: Size) -> int:
    """How many frames of this (width, height) go through the VAE together."""
    return max(1, CHUNK_PIXELS // (size[0] * size[1]))
