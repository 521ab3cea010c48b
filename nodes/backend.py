"""anycharv_core's networks in ComfyUI's hands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import comfy.model_management
import numpy as np
import torch
from comfy.ldm.modules.attention import optimized_attention
from torch import Tensor

from ..anycharv_core.errors import UserError
from ..anycharv_core.inference.backend import DEPTH, OBJECTS
from ..anycharv_core.inference.encode import EncodedVideo
from ..anycharv_core.inference.latents import Latents
from ..anycharv_core.inference.pipeline import Pipeline
from ..anycharv_core.inference.plan import Prepared
from ..anycharv_core.inference.sampling import Sampled, Sampling
from ..anycharv_core.inference.shortcuts import NONE
from ..anycharv_core.media.canvas import nearest_multiple
from ..anycharv_core.media.imaging import Size, clip_square, to_levels
from ..anycharv_core.systems import System
from ..anycharv_core.systems.recipes import Recipe
from .model import VIDEO, VideoConditions, check_model
from .pictures import image_tensor
from .sampling import run_sampler, sample_windows, scene_rows
from .windows import HANDLER, OwnWindows


class ComfyBackend:
    """The `Backend` of MODEL, reference net, VAE and CLIP_VISION, which ComfyUI loads and moves.

    Raises UserError where MODEL is not AnyCharV's or the VAE is not the model's.
    """

    def __init__(self, model: Any, net: Any, vae: Any, clip_vision: Any = None):
        check_model(model)
        self.model, self.net, self.vae, self.clip_vision = model, net, vae, clip_vision
        self.settings, self.schedule = model.model.settings, model.model.schedule
        self.system = model.model.system
        self.multiple, self.latent_channels = check_vae(model, vae)
        network = model.model.diffusion_model
        reads = {OBJECTS: network.object_guider, DEPTH: network.pose_guider.depth_modulation}
        self.extras = frozenset(name for name, part in reads.items() if part is not None)
        self.device = comfy.model_management.intermediate_device()

    def encode(self, pictures: np.ndarray) -> Tensor:
        comfy.model_management.throw_exception_if_processing_interrupted()
        latents = self.vae.encode(image_tensor(pictures))
        return self.model.model.process_latent_in(latents.float())

    def decode(self, latents: Tensor, rounded: bool = True, deep: bool = False) -> np.ndarray:
        comfy.model_management.throw_exception_if_processing_interrupted()
        return to_levels(self.vae.decode(self.model.model.process_latent_out(latents)), rounded, deep)

    def embed(self, picture: np.ndarray) -> Tensor:
        if self.clip_vision is None:
            raise UserError(
                f"{self.system.title} reads the reference through an image encoder, too: wire AnyCharV Loader's "
                "CLIP_VISION into AnyCharV Reference Encode."
            )
        square = image_tensor(clip_square(picture, self.clip_vision.image_size))
        # Already of the encoder's size, so that it only normalises.
        return self.clip_vision.encode_image(square, crop="disabled")["image_embeds"].float()

    def reference_tokens(self, latents: Tensor, image_embed: Tensor) -> list[Tensor]:
        comfy.model_management.load_models_gpu([self.net])
        network, device = self.net.model, self.net.load_device
        inputs = (x.to(device, network.compute_dtype) for x in (latents, image_embed))
        tokens = network(*inputs, attention=optimized_attention)
        return [x.to(comfy.model_management.intermediate_device()) for x in tokens]

    def conditioned(
        self, made: Prepared, tokens: Sequence[Tensor]
    ) -> tuple[list[Any], list[Any], tuple[int, ...]]:
        """Positive and negative CONDITIONING, and the shape of the latents."""
        frames = range(made.shape[0])
        given = self.system, made.video, frames, made.shape, tokens, made.image_embed
        return *conditionings(*given), made.shape

    def denoise(
        self,
        video: EncodedVideo,
        tokens: Sequence[Tensor],
        image_embed: Tensor,
        latents: Latents,
        how: Sampling,
    ) -> Sampled:
        handler = self.model.model_options.get(HANDLER)
        if isinstance(handler, OwnWindows):
            how = replace(how, windows=handler.make(len(latents)))
        elif handler is not None:
            if how.shortcuts != NONE:
                raise UserError("Fast modes don't go with another node's context windows: leave one of both out.")
            noise = latents.whole()
            rest = latents.shape, tokens, image_embed
            conditions = conditionings(self.system, video, range(len(noise)), *rest)
            sampled = run_sampler(self.model, *conditions, noise, how.steps, how.guidance_scale, None)
            latents.fill([self.model.model.process_latent_in(sampled)])
            return iter(())
        first, *_ = how.windows.indices
        conditions = conditionings(self.system, video, first, latents.shape, tokens, image_embed)
        sample_windows(self.model, *conditions, partial(scene_rows, video), latents, how)
        return iter(())  # ComfyUI's sampling is one call


def check_vae(model: Any, vae: Any) -> tuple[int, int]:
    """Pixels that a latent pixel is wide, and channels. Raises UserError where the VAE is not the model's."""
    latents = model.model.latent_format
    ratio: int = vae.spacial_compression_encode()
    if (vae.latent_channels, ratio) != (latents.latent_channels, latents.spacial_downscale_ratio):
        raise UserError(
            f"The VAE makes {vae.latent_channels} channels at 1/{ratio} of the size but the model takes "
            f"{latents.latent_channels} at 1/{latents.spacial_downscale_ratio}: wire in the model's own VAE "
            "(SD1.5's for official weights)."
        )
    if vae.latent_dim != latents.latent_dimensions:
        raise UserError(
            "The VAE is one of pictures and the model takes clips, or the other way round: wire in the VAE of the "
            "AnyCharV Loader that MODEL comes from."
        )
    return ratio, vae.latent_channels


def conditionings(
    system: System,
    video: EncodedVideo,
    frames: Sequence[int],
    shape: tuple[int, ...],
    tokens: Sequence[Tensor],
    image_embed: Tensor,
) -> tuple[list[Any], list[Any]]:
    """Positive and negative CONDITIONING for a model of the system, of these frames of the video, whose latents
    have this shape, with the ReferenceNet's tokens and the image_embed [1, D]."""
    conditions = VideoConditions(
        system,
        (len(frames), *shape[1:]),
        scene_rows(video, frames),
        video.poses,
        tokens,
        video.objects,
        video.holds,
        video.depth,
    )
    token = image_embed[:, None].float()
    return [[token, {VIDEO: conditions}]], [[torch.zeros_like(token), {VIDEO: conditions}]]


def node_size(pipe: Pipeline, recipe: Recipe, shown: Size, asked: Size) -> Size | None:
    """The (width, height) to work at, from those of a node and of the scene, or else of the poses.

    In the default recipe one side fills the canvas exactly, so that Composite can tell how it was scaled even
    where no canvas is wired into it.
    """
    if all(asked):
        return asked
    if any(asked):
        raise UserError(f"width is {asked[0]} and height {asked[1]}: give both, or 0 for both.")
    if pipe.system.reads_scene and not recipe.keeps_aspect:
        return None
    fitted = pipe.working_size(recipe, shown, None)
    return nearest_multiple(fitted, pipe.backend.multiple) if fitted and recipe.keeps_aspect else fitted
