"""ComfyUI's pictures (float tensors) and ours (uint8 arrays)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sized
from hashlib import sha256
from typing import Any

import comfy.model_management
import comfy.utils
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..anycharv_core.errors import UserError
from ..anycharv_core.media.frames import Reopened
from ..anycharv_core.media.imaging import Size, resize, same_proportions
from ..anycharv_core.media.masks import boxes_to_masks


def image_uint8(image: Tensor, name: str) -> np.ndarray:
    """IMAGE float [F, H, W, 3 or 4] in 0..1 -> uint8 of the same shape.

    Raises UserError, naming the input, where it is not that or has no frames.
    """
    if not isinstance(image, Tensor) or image.ndim != 4 or image.shape[-1] not in (3, 4):
        shape = list(image.shape) if isinstance(image, Tensor) else type(image).__name__
        raise UserError(f"{name} must be IMAGE, [frames, height, width, 3 or 4]; it is {shape}.")
    if not len(image):
        raise UserError(f"{name} has no frames; give at least one.")
    return (image.clamp(0, 1) * 255).round().byte().cpu().numpy()


def rgb_frames(image: Tensor, name: str) -> Iterable[np.ndarray]:
    """IMAGE [F, H, W, 3 or 4] -> uint8 [H, W, 3] frame by frame, any number of times; alpha is dropped.

    Raises UserError as `image_uint8` does, at once.
    """
    image_uint8(image[:1] if isinstance(image, Tensor) else image, name)
    return interruptible(
        Reopened(lambda: (image_uint8(image[i : i + 1], name)[0, ..., :3] for i in range(len(image))))
    )


def masks_uint8(mask: Tensor, name: str) -> np.ndarray:
    """MASK float [F, H, W] or [H, W] in 0..1 -> uint8 [F, H, W].

    Raises UserError, naming the input, where it is not that or has no frames.
    """
    if isinstance(mask, Tensor) and mask.ndim == 2:
        mask = mask[None]
    if not isinstance(mask, Tensor) or mask.ndim != 3:
        shape = list(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
        raise UserError(
            f"{name} must be MASK, [frames, height, width]; it is {shape}. Turn an image into a mask with "
            "Convert Image to Mask."
        )
    if not len(mask):
        raise UserError(f"{name} has no frames; give at least one.")
    return (mask.clamp(0, 1) * 255).round().byte().cpu().numpy()


def mask_fitter(shown: Size, size: Size, name: str) -> Callable[[np.ndarray], np.ndarray]:
    """What scales masks uint8 [H, W] of `shown` (width, height) to `size`; the log says so.

    Masks of other proportions are left as they are.
    """
    if shown == size or not same_proportions(shown, size):
        return lambda mask: mask
    logging.info("AnyCharV: %s is scaled from %dx%d to %dx%d, the size of its pictures.", name, *shown, *size)
    return lambda mask: resize(mask, size, Image.Resampling.BILINEAR)


def fitted_masks(mask: Tensor, size: Size, name: str) -> np.ndarray:
    """MASK -> uint8 [F, H, W], scaled as `mask_fitter` does. Raises UserError as `masks_uint8` does."""
    masks = masks_uint8(mask, name)
    fit = mask_fitter((masks.shape[2], masks.shape[1]), size, name)
    return np.stack([fit(each) for each in masks])


def mask_frames(mask: Tensor, frames: int, size: Size, name: str) -> Iterable[np.ndarray]:
    """MASK, one per frame or one for all -> uint8 [H, W] for each of so many frames, which can be read again,
    scaled as `mask_fitter` does. Raises UserError as `masks_uint8` does, and for another number."""
    mask = mask[None] if mask.ndim == 2 else mask
    first = masks_uint8(mask[:1], name)[0]
    if len(mask) not in (1, frames):
        raise UserError(f"The video has {frames} frames but {name} has {len(mask)}; give as many, or one for all.")
    fit = mask_fitter((first.shape[1], first.shape[0]), size, name)
    if len(mask) == 1:
        return [fit(first)] * frames
    return Reopened(lambda: (fit(masks_uint8(mask[at : at + 1], name)[0]) for at in range(frames)), frames)


def reference_mask_uint8(mask: Tensor | None, picture: np.ndarray, name: str) -> np.ndarray | None:
    """The mask of a reference uint8 [H, W, 3 or 4] -> uint8 [H, W], or None for none.

    Load Image gives opaque pictures a small empty mask, which is white once inverted: it stands for none.
    Raises UserError where a mask has other proportions than its picture.
    """
    if mask is None:
        return None
    first = masks_uint8(mask, name)[0]
    if first.shape == (64, 64) != picture.shape[:2] and first.min() == first.max():
        return None
    size = picture.shape[1], picture.shape[0]
    first = mask_fitter((first.shape[1], first.shape[0]), size, name)(first)
    if first.shape == picture.shape[:2]:
        return first
    raise UserError(
        f"{name} is {first.shape[1]}x{first.shape[0]} but the picture is {picture.shape[1]}x{picture.shape[0]}; "
        "give a mask of the picture's size."
    )


def region_masks(region: Any, image: Tensor | None) -> np.ndarray:
    """A MASK, or boxes on the frames of `image` -> masks uint8 [F, H, W]. Raises UserError for others."""
    if isinstance(region, Tensor):
        return masks_uint8(region, "region")
    if image is None:
        raise UserError("Boxes don't say how large the picture is: wire the frames they belong to into image.")
    _, height, width, _ = image_uint8(image[:1], "image").shape
    return boxes_to_masks(frame_boxes(region, len(image)), width, height)


def frame_boxes(boxes: Any, frames: int) -> list[tuple[float, float, float, float] | None]:
    """BOUNDING_BOX(ES) -> one (x0, y0, x1, y1), or None, for each of `frames` frames.

    One box stands for all frames; of several in a frame the first is taken. Raises UserError for
    anything else, or where there is another number of boxes than frames.
    """
    if isinstance(boxes, dict):
        boxes = [boxes]
    if not isinstance(boxes, list):
        raise UserError(f"The boxes are {type(boxes).__name__}: give a box, a list of boxes or a list of lists.")
    first = [entry[0] if isinstance(entry, list) and entry else entry or None for entry in boxes]
    if len(first) == 1:
        first *= frames
    if len(first) != frames:
        raise UserError(
            f"There are boxes for {len(first)} frames but the video has {frames}; give one for each, or one for "
            "all."
        )
    return [None if box is None else _corners(box) for box in first]


def _corners(box: Any) -> tuple[float, float, float, float]:
    if not isinstance(box, dict) or not {"x", "y", "width", "height"} <= box.keys():
        raise UserError(f"A box must have x, y, width and height in pixels; this one is {box!r}; give such boxes.")
    return box["x"], box["y"], box["x"] + box["width"], box["y"] + box["height"]


def mask_tensor(masks: Iterable[np.ndarray]) -> Tensor:
    """Masks uint8 [H, W] -> MASK float32 [F, H, W] in 0..1."""
    return torch.from_numpy(np.stack(list(masks))).float() / 255


def image_tensor(picture: np.ndarray) -> Tensor:
    """Pictures uint8 [(F,) H, W, C] -> IMAGE float32 [F, H, W, C] in 0..1."""
    return torch.from_numpy(picture if picture.ndim == 4 else picture[None]).float() / 255


def same_length(count: int, **others: np.ndarray) -> list[np.ndarray]:
    """Each of `others` [F or 1, ...] with `count` frames. Raises UserError naming one of another length."""
    for name, frames in others.items():
        if len(frames) not in (1, count):
            raise UserError(
                f"The scene has {count} frames but {name} has {len(frames)}; give as many, or one for all."
            )
    return [np.broadcast_to(f, (count, *f.shape[1:])) for f in others.values()]


def first_of(given: Any, count: int) -> Any:
    """What is given for the first `count` frames, 0 = all; what is given once is for all."""
    # The first side of a mask without frames, [H, W], is its height.
    several = isinstance(given, list) or (isinstance(given, Tensor) and given.ndim > 2)
    return given[:count] if several and len(given) > 1 and count else given


def interruptible(frames: Iterable[np.ndarray]) -> Reopened:
    """The same frames, of which none is read or passed on after the user has interrupted."""
    check = comfy.model_management.throw_exception_if_processing_interrupted

    def read() -> Iterator[np.ndarray]:
        for frame in frames:
            check()
            yield frame
            check()

    return Reopened(read, len(frames) if isinstance(frames, Sized) else getattr(frames, "count", None))


def digest(frames: Iterable[np.ndarray]) -> bytes:
    """Tells frames from others."""
    made = sha256()
    for frame in interruptible(frames):
        made.update(frame.tobytes())
    return made.digest()


def frame_progress(total: int) -> Callable[[int], None]:
    """Shows how many frames are done; raises where the user has interrupted."""
    bar = comfy.utils.ProgressBar(total)

    def report(done: int) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        bar.update_absolute(done, total)

    return report
