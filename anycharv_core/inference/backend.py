"""Where the networks live: what a pipeline asks of them, and the answer in plain torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from ..checkpoints.checkpoint import HUB_PARTS, LIBRARY_PARTS
from ..checkpoints.folders import read_library_part
from ..checkpoints.networks import Networks, build_networks
from ..errors import UserError
from ..media.imaging import clip_input, to_levels, to_unit
from ..models.guidance import guide, is_guided
from ..models.schedule import NoiseSchedule, schedule_of
from ..models.windows import Windows
from ..systems import System, read_checkpoint, system_of
from .encode import EncodedVideo, frames_at_a_time
from .features import FrameFeatures
from .sampling import sample

Progress = Callable[[int, int], None]
"""(denoising calls done, in all); what it raises stops the sampling."""


class Backend(Protocol):
    """The networks of one model, wherever they are kept.

    system: the method they are of; settings: the model's recommended ones; multiple: the pixels a latent pixel is
    wide; latent_channels: c below.
    """

    @property
    def system(self) -> System: ...
    @property
    def settings(self) -> Mapping[str, Any]: ...
    @property
    def schedule(self) -> NoiseSchedule: ...
    @property
    def multiple(self) -> int: ...
    @property
    def latent_channels(self) -> int: ...

    def encode(self, pictures: np.ndarray) -> Tensor:
        """Pictures uint8 [N, H, W, 3] -> scaled mean latents float32 [N, c, h, w]."""
        ...

    def decode(self, latents: Tensor, rounded: bool = True, deep: bool = False) -> np.ndarray:
        """Scaled latents [N, c, h, w] -> uint8 [N, H, W, 3], rounded or (as the releases do) truncated.

        deep: uint16 instead, 65535 being white.
        """
        ...

    def embed(self, picture: np.ndarray) -> Tensor:
        """A reference uint8 [H, W, 3], squashed to CLIP's square -> image_embed [1, D]."""
        ...

    def reference_tokens(self, latents: Tensor, image_embed: Tensor) -> list[Tensor]:
        """The reference's latents [1, c, h, w] and image_embed [1, D] -> tokens [1, T, C] per spatial block."""
        ...

    def denoise(
        self,
        video: EncodedVideo,
        tokens: Sequence[Tensor],
        image_embed: Tensor,
        noise: Tensor,
        steps: int,
        guidance_scale: float,
        windows: Windows,
        progress: Progress | None = None,
    ) -> Tensor:
        """Noise float32 [F, c, h, w] -> the video's latents float32 [F, c, h, w] with the reference in it.

        tokens, image_embed: of the reference, as `reference_tokens` and `embed` give them.
        """
        ...


class TorchBackend:
    """A `Backend` whose networks lie in memory, on the device and in the number format of the denoising UNet."""

    def __init__(self, networks: Networks, settings: Mapping[str, Any] | None = None):
        cfg = networks.denoising_unet.cfg
        self.networks = networks
        self._vae, self._image_encoder = networks.vae, networks.image_encoder
        self.settings: Mapping[str, Any] = settings or {}
        self.system = system_of(cfg)
        self.schedule = schedule_of(self.settings)
        self.multiple = 2 ** (len(self._vae.config.block_out_channels) - 1)
        self.latent_channels: int = cfg.out_channels
        weight = networks.denoising_unet.conv_in.weight
        self.device, self.dtype = weight.device, weight.dtype

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        vae: str | Path | nn.Module | None = None,
        image_encoder: str | Path | nn.Module | None = None,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> TorchBackend:
        """The networks of a model, see `Pipeline.from_pretrained`."""
        checkpoint = read_checkpoint(path)
        modules: dict[str, Any] = {}
        for part, given in zip(LIBRARY_PARTS, (vae, image_encoder), strict=True):
            if isinstance(given, nn.Module):
                modules[part] = given.to(device, dtype).requires_grad_(False).train(False)
            elif given is not None:
                checkpoint.configs[part], checkpoint.weights[part] = read_library_part(part, Path(given))
            elif part not in checkpoint.weights:
                raise UserError(
                    f"{path} has no {part}: pass {part}= (--{part.replace('_', '-')} on the command line), "
                    f"the folder of a copy of {HUB_PARTS[part]}."
                )
        networks = build_networks(checkpoint, device, dtype)
        return cls(replace(networks, **modules), checkpoint.settings)

    @torch.inference_mode()
    def encode(self, pictures: np.ndarray) -> Tensor:
        vae = self._vae
        pixels = (2.0 * to_unit(pictures) - 1.0).to(self.device, self.dtype)
        latents: Tensor = vae.encode(pixels).latent_dist.mean.float() * vae.config.scaling_factor
        return latents

    @torch.inference_mode()
    def decode(self, latents: Tensor, rounded: bool = True, deep: bool = False) -> np.ndarray:
        vae = self._vae
        decoded: Tensor = vae.decode((latents / vae.config.scaling_factor).to(self.dtype)).sample.float()
        return to_levels((decoded / 2 + 0.5).clamp(0, 1).movedim(1, -1), rounded, deep)

    @torch.inference_mode()
    def embed(self, picture: np.ndarray) -> Tensor:
        encoder = self._image_encoder
        pixels = clip_input(picture, encoder.config.image_size)
        image_embed: Tensor = encoder(pixels.to(self.device, self.dtype)).image_embeds
        return image_embed

    @torch.inference_mode()
    def reference_tokens(self, latents: Tensor, image_embed: Tensor) -> list[Tensor]:
        return self.networks.reference_unet(latents.to(self.dtype), image_embed)

    def denoise(
        self,
        video: EncodedVideo,
        tokens: Sequence[Tensor],
        image_embed: Tensor,
        noise: Tensor,
        steps: int,
        guidance_scale: float,
        windows: Windows,
        progress: Progress | None = None,
    ) -> Tensor:
        unet = self.networks.denoising_unet
        guided = is_guided(guidance_scale)
        with torch.inference_mode():
            bank = unet.project_bank(tokens)
            poses = self._pose_features(video)
            given = torch.cat([torch.zeros_like(image_embed), image_embed]) if guided else image_embed
            image = unet.project_image(given)

            def predict(x: Tensor, t: int, index: Sequence[int]) -> Tensor:
                rows, frames = list(index), len(index)
                scene = None if video.scene is None else video.scene[rows]
                mask = None if video.mask is None else video.mask[rows]
                x = self.system.unet_input(x, scene, mask).to(self.dtype)
                pose, at = poses.take(rows), torch.full((1,), t, device=self.device)
                if not guided:
                    return unet(x, at, image, pose, bank, frames)
                x, pose = x.repeat(2, 1, 1, 1), pose.repeat(2, 1, 1, 1)
                v = unet(x, at, image, pose, bank, frames, plain_rows=frames).float()
                return guide(v, guidance_scale)

            latents = sample(predict, noise.to(self.device), steps, windows, self.schedule, progress)
        # The clone is an ordinary tensor, which the caller may change, as inference tensors may not be.
        return latents.clone()

    def _pose_features(self, video: EncodedVideo) -> FrameFeatures:
        """What the pose guider makes of each frame's skeletons: it depends on no step and no window."""

        def compute(frames: list[int]) -> Tensor:
            return self.networks.pose_guider(to_unit(video.poses.take(frames)).to(self.device, self.dtype))

        return FrameFeatures(compute, frames_at_a_time(video.path.canvas.padded))
