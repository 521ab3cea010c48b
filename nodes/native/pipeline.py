"""anycharv_core's pipeline with its networks in ComfyUI's hands."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import numpy as np
import torch
from torch import Tensor

from ...anycharv_core.errors import UserError
from ...anycharv_core.generate import working_size
from ...anycharv_core.imaging import clip_square
from ...anycharv_core.pipeline import Clip, Pipeline, split_reference
from ...anycharv_core.recipes import Canvas, Recipe, Size, get_recipe
from ...anycharv_core.sampling import Windows
from .model import CLIP, ClipConditions, check_model
from .pictures import (
    image_tensor,
    image_uint8,
    masks_uint8,
    reference_mask_uint8,
    rgb_frames,
    same_length,
)
from .sampler import run_sampler
from .windows import HANDLER


@dataclass(frozen=True)
class Reference:
    """ANYCHARV_REFERENCE: the picture uint8 [H, W, 3] as the networks see it, its CLIP embedding [1, D],
    and the ReferenceNet's patcher and the VAE, which run when the size of the video is known."""

    picture: np.ndarray
    embeds: Tensor
    net: Any
    vae: Any


class ComfyPipeline(Pipeline):
    """Pipeline over MODEL, reference net, VAE and CLIP_VISION, which ComfyUI loads and moves.

    Raises UserError where MODEL is not AnyCharV's or the VAE is not the model's.
    """

    def __init__(self, model: Any, net: Any, vae: Any, clip_vision: Any = None):
        check_model(model)
        latents = model.model.latent_format
        ratio = vae.spacial_compression_encode()
        if (vae.latent_channels, ratio) != (latents.latent_channels, latents.spacial_downscale_ratio):
            raise UserError(
                f"The VAE makes {vae.latent_channels} channels at 1/{ratio} of the size but the model takes "
                f"{latents.latent_channels} at 1/{latents.spacial_downscale_ratio}: wire in the model's own VAE "
                "(SD1.5's for official weights)."
            )
        self.model, self.net, self.vae, self.clip_vision = model, net, vae, clip_vision
        self.settings = model.model.settings
        self.multiple = ratio
        self.device = comfy.model_management.intermediate_device()

    def encode(self, pictures: np.ndarray) -> Tensor:
        comfy.model_management.throw_exception_if_processing_interrupted()
        latents = self.vae.encode(image_tensor(pictures))
        return self.model.model.process_latent_in(latents.float())

    def decode(self, latents: Tensor, rounded: bool = True) -> np.ndarray:
        comfy.model_management.throw_exception_if_processing_interrupted()
        levels = self.vae.decode(self.model.model.process_latent_out(latents)) * 255
        return (levels.round() if rounded else levels).byte().cpu().numpy()

    def embed(self, picture: np.ndarray) -> Tensor:
        return embed(self.clip_vision, picture)

    def tokens(self, recipe: Recipe, picture: np.ndarray, embeds: Tensor, canvas: Canvas) -> list[Tensor]:
        """The ReferenceNet's tokens [1, T, C] per spatial block, for a video of this canvas."""
        placed = self.encode(recipe.reference(picture, canvas)[None])
        comfy.model_management.load_models_gpu([self.net])
        network, device = self.net.model, self.net.load_device
        tokens = network(
            placed.to(device, network.compute_dtype), embeds.to(device, network.compute_dtype)
        )
        kept = comfy.model_management.intermediate_device()
        if recipe.bank_dtype is not None:
            tokens = [x.to(recipe.bank_dtype).to(x.dtype) for x in tokens]
        return [x.to(kept) for x in tokens]

    def sample_clip(
        self,
        recipe: Recipe,
        clip: Clip,
        picture: np.ndarray,
        embeds: Tensor,
        noise: Tensor,
        steps: int,
        guidance: float,
        windows: Windows,
        progress: Callable[[int, int], None] | None,
    ) -> Tensor:
        positive, negative = conditionings(clip, self.tokens(recipe, picture, embeds, clip.canvas), embeds)
        own = None if HANDLER in self.model.model_options else windows
        latents = run_sampler(self.model, positive, negative, noise, steps, guidance, own)
        return self.model.model.process_latent_in(latents)


def conditionings(clip: Clip, tokens: list[Tensor], embeds: Tensor) -> tuple[list[Any], list[Any]]:
    """positive and negative CONDITIONING of the clip, for the ReferenceNet's tokens and embedding [1, D]."""
    options = {CLIP: ClipConditions(clip.scene, clip.mask, clip.poses, tokens)}
    token = embeds[:, None].float()
    return [[token, options]], [[torch.zeros_like(token), options]]


def embed(clip_vision: Any, picture: np.ndarray) -> Tensor:
    """CLIP embedding [1, D] of a reference uint8 [H, W, 3], squashed to the encoder's square."""
    square = image_tensor(clip_square(picture, clip_vision.image_size))
    # Already of the encoder's size, so that it only normalises.
    return clip_vision.encode_image(square, crop="disabled")["image_embeds"].float()


def encode_reference(
    net: Any, vae: Any, clip_vision: Any, image: Tensor, mask: Tensor | None, recipe: str
) -> Reference:
    """ANYCHARV_REFERENCE of the first picture of IMAGE, its background removed where the recipe does.

    Raises UserError where picture and mask do not fit together.
    """
    chosen = get_recipe(recipe)
    picture = image_uint8(image[:1], "image")[0]
    alpha = reference_mask_uint8(mask, picture, "mask")
    picture = chosen.cut_out(*split_reference(picture, alpha))
    return Reference(picture, embed(clip_vision, chosen.clip_view(picture)), net, vae)


def condition(
    model: Any, reference: Reference, vae: Any, scene: Tensor, mask: Tensor, pose: Tensor, width: int,
    height: int, recipe: str,
) -> tuple[list[Any], list[Any], dict[str, Tensor]]:  # fmt: skip
    """positive, negative and an empty LATENT [F, c, h, w] of the clip.

    Raises UserError where lengths or sizes do not fit together.
    """
    chosen = get_recipe(recipe)
    pipe = ComfyPipeline(model, reference.net, vae)
    frames, poses = rgb_frames(scene, "scene"), rgb_frames(pose, "pose")
    (masks,) = same_length(len(scene), mask=masks_uint8(mask, "mask"))
    if len(pose) != len(scene):
        raise UserError(f"The scene has {len(scene)} frames but pose has {len(pose)}; give as many of both.")
    size = node_size(pipe, chosen, (scene.shape[2], scene.shape[1]), (width, height))
    clip = pipe.read_clip(chosen, frames, masks, poses, size)
    reader = ComfyPipeline(model, reference.net, reference.vae)
    tokens = reader.tokens(chosen, reference.picture, reference.embeds, clip.canvas)
    positive, negative = conditionings(clip, tokens, reference.embeds)
    return positive, negative, {"samples": torch.zeros_like(clip.scene)}


def node_size(pipe: ComfyPipeline, recipe: Recipe, scene: Size, asked: Size) -> Size | None:
    """The size to work at, from a node's width and height.

    In the default recipe one side fills the canvas exactly, so that Composite can tell how it was scaled.
    """
    if all(asked):
        return asked
    if any(asked):
        raise UserError(f"width is {asked[0]} and height {asked[1]}: give both, or 0 for both.")
    if not recipe.paste_back:
        return None
    size = working_size(pipe.settings.get("size"), scene, pipe.multiple)
    if size is None:
        return None
    across = max(pipe.multiple, round(size[0] / pipe.multiple) * pipe.multiple)
    return across, across * scene[1]
