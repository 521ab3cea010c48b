"""A character and a clip, or poses alone, in; the finished clip out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..checkpoints.checkpoint import HUB_PARTS, LIBRARY_PARTS
from ..checkpoints.folders import read_library_part
from ..checkpoints.networks import Networks, build_networks
from ..errors import UserError
from ..media.chroma_key import key_colour, key_onto, on_colour
from ..media.frames import Frames, Replay
from ..media.imaging import Size, clip_input, to_unit
from ..media.masks import composite, feather
from ..models.schedule import schedule_of
from ..models.windows import Windows
from ..systems import read_checkpoint, system_of
from ..systems.recipes import Recipe
from .encode import EncodedVideo, encode_clip, frames_at_a_time, place_poses, split_reference
from .sampling import sample

FEATHER = 0.015  # of the shorter side: what the mask is padded by, and the width of the soft edge


@dataclass
class Output:
    """frames: uint8 [F, H, W, 3], or an iterator of [H, W, 3] where the scene, or without one the pose, was one.

    latents: float32 [F, c, h, w] before decoding. seconds: time spent by phase, "decode" growing as an
    iterator is consumed.
    """

    frames: np.ndarray | Iterator[np.ndarray]
    latents: Tensor
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Prepared:
    """What `Pipeline.prepare` makes of a character and a clip.

    picture: the reference as the networks see it, uint8 [H, W, 3]; embeds: its image embedding [1, D]; shape: of
    the latents, (F, c, h, w); key: the colour behind the character that is to be taken out again, or None.
    """

    clip: EncodedVideo
    picture: np.ndarray
    embeds: Tensor
    shape: tuple[int, ...]
    key: tuple[int, int, int] | None


class Pipeline:
    """The networks of one model and the way to run them. `settings` are the model's recommended ones.

    Everything around the networks goes through `encode`, `decode`, `embed` and `sample_clip`, which a host
    that keeps the weights elsewhere overrides; `multiple` is the pixels a latent pixel is wide, which has
    `latent_channels`; `system` is the one the model is of.
    """

    def __init__(self, networks: Networks, settings: dict[str, Any] | None = None):
        self.networks = networks
        self.settings = settings or {}
        self.multiple = 2 ** (len(networks.vae.config.block_out_channels) - 1)
        self.latent_channels = networks.denoising_unet.cfg.out_channels
        self.system = system_of(networks.denoising_unet.cfg)
        self.schedule = schedule_of(self.settings)
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
    ) -> Pipeline:
        """Loads "embedded" or "embedded-animate", a .safetensors file, or a folder in either system's layout.

        vae, image_encoder: a folder or a module that takes the place of the checkpoint's own; needed
        where the checkpoint has none. Raises UserError when a file is missing or not what it should be.
        """
        checkpoint = read_checkpoint(path)
        modules: dict[str, nn.Module] = {}
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

    def __call__(
        self,
        reference: np.ndarray,
        scene: Frames | None = None,
        mask: Frames | None = None,
        pose: Frames | None = None,
        steps: int | None = None,
        guidance_scale: float | None = None,
        seed: int = 42,
        noise: Tensor | None = None,
        size: Size | None = None,
        recipe: str = "default",
        progress: Callable[[int, int], None] | None = None,
        reference_mask: np.ndarray | None = None,
    ) -> Output:
        """Puts the character of `reference` in the place of the masked person of `scene`, or animates it.

        reference: uint8 [H, W, 3], or [H, W, 4] whose alpha cuts the character out; reference_mask: uint8
        [H, W] that does the same. scene: uint8 [F, H, W, 3]; mask: uint8 [F, H, W], 255 = replace; pose:
        uint8 [F, H, W, 3] skeletons; each may be an iterable of frames instead, which is then read as a
        stream. steps, guidance_scale: None = the release's. noise: float32 [F, c, h, w] to start from,
        instead of what `seed` draws. size: (width, height) the networks work at; None = the scene's own
        (recipe "official": the pose frames'). The default recipe returns frames of the scene's size
        whatever `size` is. progress(done, total) is called after every denoising call; what it raises stops it.

        A model of Animate Anyone needs only reference and pose, gives frames of the poses' size or `size`
        (divisible by `multiple`) and takes the background from the reference. Where a scene is given all the same,
        the finished character is put in front of it: by the masks where there are any, and else by its colours,
        for which the reference must have a matte, alpha or reference_mask (see matte.py).

        Raises UserError for input that does not fit together, or not to the model.
        """
        # What a model's own settings recommend is for the caller to ask for, as the command line does.
        steps, guidance_scale = self.system.sampling({}, steps, guidance_scale)
        if steps < 1 or steps > 1000:
            raise UserError(f"steps is {steps}; use 1 to 1000.")
        chosen = self.system.recipe(recipe)
        streamed = not isinstance(pose if scene is None else scene, np.ndarray)
        scene, mask = (None if frames is None else Replay(frames) for frames in (scene, mask))
        seconds: dict[str, float] = {}
        with _timed(seconds, "encode"):
            made = self.prepare(reference, scene, mask, pose, size, recipe, reference_mask)
        clip = made.clip
        if noise is None:
            noise = chosen.noise(made.shape, torch.Generator("cpu").manual_seed(seed))
        elif tuple(noise.shape) != made.shape:
            raise UserError(f"noise has shape {tuple(noise.shape)}, but this clip's latents are {made.shape}.")
        windows = chosen.windows(len(noise), guidance_scale)
        if chosen.paste_back:
            windows = _windows_with_person(windows, clip.present)
        with _timed(seconds, "sample"):
            latents = self.sample_clip(
                chosen, clip, made.picture, made.embeds, noise.float(), steps, guidance_scale, windows, progress
            )
        if chosen.paste_back:
            unseen = sorted(set(range(len(noise))).difference(*windows.indices))
            latents[unseen] = clip.scene[unseen]
        put = _putting(scene, mask, made.key) if chosen.composites else _as_it_is
        frames = self._decode(chosen, latents, clip, put, seconds)
        return Output(frames if streamed else np.stack(list(frames)), latents.cpu(), seconds)

    def prepare(
        self,
        reference: np.ndarray,
        scene: Frames | None,
        mask: Frames | None,
        pose: Frames | None,
        size: Size | None = None,
        recipe: str = "default",
        reference_mask: np.ndarray | None = None,
    ) -> Prepared:
        """All that comes before sampling, of what `__call__` is given; scene and mask are read once.

        Raises UserError as `__call__` does.
        """
        chosen = self.system.recipe(recipe)
        self.system.check_inputs(scene, mask, pose, chosen)
        picture, alpha = split_reference(reference, reference_mask)
        key = None
        if scene is not None and mask is None:
            key = scene_key(picture, alpha)
            picture = on_colour(picture, alpha, key)
        else:
            picture = chosen.cut_out(picture, alpha)
        clip = self.read_clip(chosen, scene, mask, pose, size)
        width, height = (side // self.multiple for side in clip.canvas.padded)
        shape = (len(clip.poses), self.latent_channels, height, width)
        return Prepared(clip, picture, self.embed(chosen.clip_view(picture)), shape, key)

    @torch.inference_mode()
    def encode(self, pictures: np.ndarray) -> Tensor:
        """Pictures uint8 [N, H, W, 3] -> scaled mean latents float32 [N, c, h, w]."""
        vae = self.networks.vae
        pixels = (2.0 * to_unit(pictures) - 1.0).to(self.device, self.dtype)
        return vae.encode(pixels).latent_dist.mean.float() * vae.config.scaling_factor

    @torch.inference_mode()
    def decode(self, latents: Tensor, rounded: bool = True) -> np.ndarray:
        """Scaled latents [N, c, h, w] -> uint8 [N, H, W, 3], rounded or (as the release does) truncated."""
        vae = self.networks.vae
        decoded = vae.decode((latents / vae.config.scaling_factor).to(self.dtype)).sample.float()
        levels = (decoded / 2 + 0.5).clamp(0, 1).movedim(1, -1) * 255
        return (levels.round() if rounded else levels).byte().cpu().numpy()

    def read_clip(
        self, recipe: Recipe, scene: Frames | None, mask: Frames | None, pose: Frames, size: Size | None
    ) -> EncodedVideo:
        """What this network takes of scene, mask and pose, given and sized as in `__call__`.

        Raises UserError where they do not fit together.
        """
        if self.system.reads_scene:
            return encode_clip(self.encode, self.multiple, recipe, scene, mask, pose, size)
        return place_poses(self.multiple, recipe, scene, mask, pose, size)

    @torch.inference_mode()
    def embed(self, picture: np.ndarray) -> Tensor:
        """A reference uint8 [H, W, 3], squashed to CLIP's square -> image embedding [1, D]."""
        encoder = self.networks.image_encoder
        pixels = clip_input(picture, encoder.config.image_size)
        return encoder(pixels.to(self.device, self.dtype)).image_embeds

    def sample_clip(
        self,
        recipe: Recipe,
        clip: EncodedVideo,
        picture: np.ndarray,
        embeds: Tensor,
        noise: Tensor,
        steps: int,
        guidance: float,
        windows: Windows,
        progress: Callable[[int, int], None] | None,
    ) -> Tensor:
        """Latents float32 [F, c, h, w] of the clip with the character of `picture` uint8 [H, W, 3] in it."""
        nets = self.networks
        with torch.inference_mode():
            placed = self.encode(recipe.reference(picture, clip.canvas)[None])
            tokens = nets.reference_unet(placed.to(self.dtype), embeds)
            if recipe.bank_dtype is not None:
                tokens = [x.to(recipe.bank_dtype).to(self.dtype) for x in tokens]
            denoise = self._denoiser(clip, nets.denoising_unet.project_bank(tokens), embeds, guidance)
            latents = sample(denoise, noise.to(self.device), steps, windows, self.schedule, progress)
        # The clone is an ordinary tensor, which the caller may change, as inference tensors may not be.
        return latents.clone()

    def _denoiser(
        self, clip: EncodedVideo, bank: list[tuple[Tensor, Tensor]], embeds: Tensor, guidance: float
    ) -> Callable[[Tensor, int, Sequence[int]], Tensor]:
        nets = self.networks
        guided = guidance > 1

        def denoise(x: Tensor, t: int, index: Sequence[int]) -> Tensor:
            rows, frames = list(index), len(index)
            pose = nets.pose_guider(to_unit(clip.poses.take(rows)).to(self.device, self.dtype))
            around = (None, None) if clip.scene is None else (clip.scene[rows], clip.mask[rows])
            x = self.system.unet_input(x, *around).to(self.dtype)
            at = torch.full((1,), t, device=self.device)
            if not guided:
                return nets.denoising_unet(x, at, embeds, pose, bank, frames)
            image = torch.cat([torch.zeros_like(embeds), embeds]).repeat_interleave(frames, dim=0)
            x, pose = x.repeat(2, 1, 1, 1), pose.repeat(2, 1, 1, 1)
            v = nets.denoising_unet(x, at, image, pose, bank, frames, plain_rows=frames).float()
            unconditional, conditional = v.chunk(2)
            return unconditional + guidance * (conditional - unconditional)

        return denoise

    def _decode(
        self,
        recipe: Recipe,
        latents: Tensor,
        clip: EncodedVideo,
        put: Callable[[np.ndarray], np.ndarray],
        seconds: dict[str, float],
    ) -> Iterator[np.ndarray]:
        batch = frames_at_a_time(clip.canvas.padded)
        for start in range(0, len(latents), batch):
            with _timed(seconds, "decode"):
                decoded = self.decode(latents[start : start + batch], recipe.round)
                made = [put(clip.canvas.restore(picture)) for picture in decoded]
            yield from made


def paste_weights(mask: np.ndarray) -> np.ndarray:
    """The network's share of each pixel, float32 [H, W], for a mask uint8 [H, W]; 0 is the clip alone."""
    width = max(1, round(FEATHER * min(mask.shape)))
    return feather(mask, width, width)


def scene_key(picture: np.ndarray, alpha: np.ndarray | None) -> tuple[int, int, int]:
    """The colour behind a reference whose character goes in front of a scene, see matte.py.

    Raises UserError where it has no matte.
    """
    if alpha is None:
        raise UserError(
            "To put the character in front of a scene, its reference needs a matte: give a picture with "
            "transparency, or a reference mask, or a mask for every frame."
        )
    return key_colour(picture, alpha)


def _putting(
    scene: Iterable[np.ndarray] | None, mask: Iterable[np.ndarray] | None, key: tuple[int, int, int] | None
) -> Callable[[np.ndarray], np.ndarray]:
    """What to do with each finished frame in turn, where they go in front of a scene."""
    if scene is None:
        return _as_it_is
    if key is not None:
        frames = iter(scene)
        return lambda made: key_onto(made, next(frames), key)
    pairs = zip(scene, mask, strict=True)

    def paste(made: np.ndarray) -> np.ndarray:
        original, region = next(pairs)
        return composite(made, original, paste_weights(region))

    return paste


def _as_it_is(made: np.ndarray) -> np.ndarray:
    return made


def _windows_with_person(windows: Windows, present: Sequence[bool]) -> Windows:
    """Leaves out windows in which there is nobody to replace."""
    pairs = zip(windows.indices, windows.weights, strict=True)
    kept = [(index, weight) for index, weight in pairs if any(present[frame] for frame in index)]
    indices, weights = zip(*kept, strict=True)
    return replace(windows, indices=indices, weights=weights)


@contextmanager
def _timed(seconds: dict[str, float], phase: str) -> Iterator[None]:
    started = time.perf_counter()
    try:
        yield
    finally:
        seconds[phase] = seconds.get(phase, 0.0) + time.perf_counter() - started
