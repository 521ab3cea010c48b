"""How a system runs its networks: recipe "official" as its release does, "default" with the defects fixed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from ..media.canvas import Canvas
from ..media.imaging import Size, resize, same_proportions
from ..models.windows import Windows

NOISE_BLOCK = 16  # frames


@dataclass(frozen=True)
class Recipe:
    """The choices around the sampler.

    canvas(scene size or None where there is no scene, pose size, asked size or None, multiple of the VAE);
    working_size(area [w, h] the model is made for, size of the scene or else the poses, multiple) -> the size to
    ask for where nobody asks for one;
    cut_out(picture, alpha or None) -> the reference as it is shown to the networks, uint8 [H, W, 3], of
    which reference(picture, canvas) is the VAE's view and clip_view(picture) what is squashed for CLIP;
    mask(masks [F, H, W], a canvas for each, latent size) -> float32 [F, 1, h, w]; windows(frames, guidance scale);
    noise(latents' shape (F, c, h, w), CPU generator) -> float32 of that shape, in blocks of frames in order;
    bank_dtype: what the ReferenceNet's tokens are rounded to, None = not at all; composites: whether a scene, if
    given, shows around the character in the output; paste_back: whether the output is the scene outside the mask,
    which then must be of the scene's size; keeps_aspect: whether pictures keep their proportions or, as in the
    releases, are squashed; round: whether pixels are rounded or, as in the releases, truncated; recorded: whether
    outputs are to be the recorded ones, which are float32's; paste_growth: how far past the mask is pasted, in
    heights of its box; match_colour: whether what is pasted gets the colours of what is around it; keeps_scene:
    whether the scene stays where what is pasted hardly differs from it.
    """

    canvas: Callable[[Size | None, Size, Size | None, int], Canvas]
    working_size: Callable[[Sequence[int], Size, int], Size]
    cut_out: Callable[[np.ndarray, np.ndarray | None], np.ndarray]
    reference: Callable[[np.ndarray, Canvas], np.ndarray]
    clip_view: Callable[[np.ndarray], np.ndarray]
    mask: Callable[[np.ndarray, Sequence[Canvas], torch.Size], Tensor]
    windows: Callable[[int, float], Windows]
    noise: Callable[[Sequence[int], torch.Generator], Iterator[Tensor]]
    bank_dtype: torch.dtype | None
    composites: bool
    paste_back: bool
    keeps_aspect: bool
    round: bool
    recorded: bool
    paste_growth: float = 0.0
    match_colour: bool = False
    keeps_scene: bool = False

    def matching_colour(self) -> Recipe:
        """The same with `match_colour`. Raises UserError where nothing is pasted."""
        if not self.paste_back:
            raise UserError(
                "Colours can only be matched where a person is pasted into a scene: that takes a model that "
                "replaces one, and its recipe 'default'; leave --match-colour out, or in ComfyUI match_colour off."
            )
        return replace(self, match_colour=True)


def canvas_of_pose(scene: Size | None, pose: Size, size: Size | None, multiple: int) -> Canvas:
    """The releases' canvas: the size asked for or the poses', rounded down; all pictures are squashed to it."""
    width, height = (side // multiple * multiple for side in size or pose)
    if not (width and height):
        raise UserError(f"The size {size or pose} is smaller than one latent pixel; use at least {multiple}.")
    return Canvas((width, height), (width, height), (width, height))


def channel_noise(shape: Sequence[int], generator: torch.Generator) -> Iterator[Tensor]:
    """The releases' noise (F, c, h, w): all frames of a channel are drawn before the next channel."""
    frames, channels, height, width = shape
    yield torch.randn((channels, frames, height, width), generator=generator).movedim(0, 1)


def frame_noise(shape: Sequence[int], generator: torch.Generator) -> Iterator[Tensor]:
    """Noise (F, c, h, w), drawn frame by frame."""
    frames, *rest = shape
    # torch draws 16 numbers together: blocks of 16 frames are what one draw of all would be. The rest goes with
    # the last of them, as fewer numbers are drawn in another way.
    blocks = max(1, frames // NOISE_BLOCK)
    for block in range(blocks):
        count = NOISE_BLOCK if block < blocks - 1 else frames - block * NOISE_BLOCK
        yield torch.randn((count, *rest), generator=generator)


def canvas_of_scene(scene: Size | None, pose: Size, size: Size | None, multiple: int) -> Canvas:
    """The scene, or else the poses, fitted into the size asked for in its own proportions, then padded.

    Raises UserError where poses and scene have different proportions.
    """
    source = scene or pose
    # A skeleton drawn for another picture format would put the character elsewhere.
    if not same_proportions(pose, source):
        raise UserError(
            f"The pose frames are {pose[0]}x{pose[1]} but the scene is {source[0]}x{source[1]}; give poses of "
            "the scene's proportions."
        )
    scale = min(size[0] / source[0], size[1] / source[1]) if size else 1.0
    width, height = (max(1, round(side * scale)) for side in source)
    padded = -(-width // multiple) * multiple, -(-height // multiple) * multiple
    return Canvas(scene or (width, height), (width, height), padded)


def on_black(picture: np.ndarray, alpha: np.ndarray | None) -> np.ndarray:
    """The character alone, as in training (paper 3.2, "Reference Identity Preservation")."""
    if alpha is None:
        return picture
    return np.rint(picture * (alpha[..., None] / 255.0)).astype(np.uint8)


def letterbox(picture: np.ndarray, size: Size, mode: Literal["constant", "edge"] = "constant") -> np.ndarray:
    """The whole picture, its proportions kept, in the middle of one of `size`: black, or its edges repeated."""
    scale = min(size[0] / picture.shape[1], size[1] / picture.shape[0])
    width, height = (max(1, round(side * scale)) for side in (picture.shape[1], picture.shape[0]))
    x, y = (size[0] - width) // 2, (size[1] - height) // 2
    bands = [(y, size[1] - height - y), (x, size[0] - width - x), (0, 0)]
    return np.pad(resize(picture, (width, height)), bands, mode)
