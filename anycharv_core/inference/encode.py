"""What a clip becomes before it is sampled."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from ..media.canvas import Canvas
from ..media.frames import Frames, FrameStore, checked, together
from ..media.imaging import Size
from ..systems.recipes import Recipe

CHUNK_PIXELS = 2**19  # pixels that go through the VAE at a time


@dataclass(frozen=True)
class EncodedVideo:
    """What one clip has become for the sampler.

    scene: scaled latents [F, c, h, w]; mask: [F, 1, h, w] in 0..1; both None where the network takes none; poses:
    uint8 skeletons of the canvas's padded size; present: whether the frame's mask has a pixel.
    """

    canvas: Canvas
    scene: Tensor | None
    mask: Tensor | None
    poses: FrameStore
    present: tuple[bool, ...]


def encode_clip(
    encode: Callable[[np.ndarray], Tensor],
    multiple: int,
    recipe: Recipe,
    scene: Frames,
    mask: Frames,
    pose: Frames,
    size: Size | None,
) -> EncodedVideo:
    """Encodes scene, mask and pose, given and sized as in `Pipeline.__call__`; scene and mask are read once.

    encode: pictures uint8 [N, H, W, 3] -> latents [N, c, h, w]; multiple: pixels a latent pixel is wide.

    Raises UserError where they do not fit together.
    """
    rows = together(
        scene=checked("scene", scene, 3), mask=checked("mask", mask, None), pose=checked("pose", pose, 3)
    )
    latents, masks, poses, present, canvas = [], [], FrameStore(), [], None
    pending: list[tuple[np.ndarray, np.ndarray]] = []

    def flush() -> None:
        latents.append(encode(np.stack([frame for frame, _ in pending])))
        stacked = np.stack([m for _, m in pending])
        masks.append(recipe.mask(stacked, canvas, latents[-1].shape[-2:]))
        pending.clear()

    for frame, region, skeleton in rows:
        if canvas is None:
            canvas = recipe.canvas(_size(frame), _size(skeleton), size, multiple)
            if recipe.paste_back and _size(region) != _size(frame):
                raise UserError(
                    f"The mask is {_size(region)} but the scene is {_size(frame)} (width, height); give "
                    "masks of the scene's size."
                )
            batch = frames_at_a_time(canvas.padded)
        pending.append((canvas.place(frame), region))
        poses.append(canvas.place(skeleton))
        present.append(bool((region >= 128).any()))
        if len(pending) == batch:
            flush()
    if canvas is None:
        raise UserError("The scene has no frames; give at least one.")
    if pending:
        flush()
    if recipe.paste_back and not any(present):
        raise UserError("The mask is empty in every frame; mark the person to replace with 255.")
    return EncodedVideo(canvas, torch.cat(latents), torch.cat(masks).to(latents[0].device), poses, tuple(present))


def place_poses(
    multiple: int,
    recipe: Recipe,
    scene: Frames | None,
    mask: Frames | None,
    pose: Frames,
    size: Size | None,
) -> EncodedVideo:
    """As `encode_clip`, for a network that takes neither scene nor mask: they are only checked."""
    streams = {"pose": checked("pose", pose, 3)}
    if scene is not None:
        streams["scene"] = checked("scene", scene, 3)
    if mask is not None:
        streams["mask"] = checked("mask", mask, None)
    poses, canvas = FrameStore(), None
    for row in together(**streams):
        if canvas is None:
            sizes = [_size(frame) for frame in row]
            if len(set(sizes[1:])) > 1:
                raise UserError(
                    f"The mask is {sizes[2]} but the scene is {sizes[1]} (width, height); give masks of the "
                    "scene's size."
                )
            canvas = recipe.canvas(sizes[1] if len(sizes) > 1 else None, sizes[0], size, multiple)
        poses.append(canvas.place(row[0]))
    if canvas is None:
        raise UserError("The pose has no frames; give at least one.")
    return EncodedVideo(canvas, None, None, poses, (True,) * len(poses))


def split_reference(reference: np.ndarray, mask: np.ndarray | None) -> tuple[np.ndarray, np.ndarray | None]:
    """A reference uint8 [H, W, 3 or 4] and its mask [H, W] or None -> picture [H, W, 3] and alpha or None.

    Raises UserError for other shapes or types.
    """
    reference = np.asarray(reference)
    if reference.dtype != np.uint8 or reference.ndim != 3 or reference.shape[2] not in (3, 4):
        raise UserError(
            f"The reference must be uint8 [H, W, 3] or [H, W, 4]; it is {reference.dtype} {list(reference.shape)}."
        )
    if mask is None and reference.shape[2] == 4:
        mask = reference[..., 3]
    if mask is not None and (mask.dtype != np.uint8 or mask.shape != reference.shape[:2]):
        raise UserError(
            f"The reference mask must be uint8 {list(reference.shape[:2])}, the reference's size; it is "
            f"{mask.dtype} {list(mask.shape)}."
        )
    return reference[..., :3], mask


def frames_at_a_time(size: Size) -> int:
    """How many frames of this (width, height) go through the VAE together."""
    return max(1, CHUNK_PIXELS // (size[0] * size[1]))


def _size(picture: np.ndarray) -> Size:
    return picture.shape[1], picture.shape[0]
