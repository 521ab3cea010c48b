"""A character and a clip in, the finished clip out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .checkpoint import LIBRARY_PARTS, Networks, build_networks, read_checkpoint, read_library_part
from .errors import UserError
from .frames import Frames, FrameStore, Replay, checked, together
from .imaging import clip_input, to_unit
from .masks import composite, feather
from .recipes import Canvas, Recipe, Size, get_recipe
from .sampling import Windows, sample

CHUNK_PIXELS = 2**19  # pixels that go through the VAE at a time
FEATHER = 0.015  # of the shorter side: what the mask is padded by, and the width of the soft edge

HUB_PARTS = {
    "vae": "stabilityai/sd-vae-ft-mse",
    "image_encoder": "lambdalabs/sd-image-variations-diffusers, subfolder image_encoder",
}


@dataclass
class Output:
    """frames: uint8 [F, H, W, 3], or an iterator of [H, W, 3] where the scene was one.

    latents: float32 [F, c, h, w] before decoding. seconds: time spent by phase, "decode" growing as an
    iterator is consumed.
    """

    frames: np.ndarray | Iterator[np.ndarray]
    latents: Tensor
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Clip:
    """What one clip has become for the sampler.

    scene: scaled latents [F, c, h, w]; mask: [F, 1, h, w] in 0..1; poses: uint8 skeletons of the canvas's
    padded size; present: whether the frame's mask has a pixel.
    """

    canvas: Canvas
    scene: Tensor
    mask: Tensor
    poses: FrameStore
    present: tuple[bool, ...]


class Pipeline:
    """The networks of one model and the way to run them. `settings` are the model's recommended ones.

    Everything around the networks goes through `encode`, `decode`, `embed` and `sample_clip`, which a host
    that keeps the weights elsewhere overrides; `multiple` is the pixels a latent pixel is wide.
    """

    def __init__(self, networks: Networks, settings: dict[str, Any] | None = None):
        self.networks = networks
        self.settings = settings or {}
        self.multiple = 2 ** (len(networks.vae.config.block_out_channels) - 1)
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
        """Loads "embedded", a single .safetensors file, or a folder in the official layout.

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
        scene: Frames,
        mask: Frames,
        pose: Frames,
        steps: int = 30,
        guidance_scale: float = 3.0,
        seed: int = 42,
        noise: Tensor | None = None,
        size: Size | None = None,
        recipe: str = "default",
        progress: Callable[[int, int], None] | None = None,
        reference_mask: np.ndarray | None = None,
    ) -> Output:
        """Puts the character of `reference` in the place of the masked person of `scene`.

        reference: uint8 [H, W, 3], or [H, W, 4] whose alpha cuts the character out; reference_mask: uint8
        [H, W] that does the same. scene: uint8 [F, H, W, 3]; mask: uint8 [F, H, W], 255 = replace; pose:
        uint8 [F, H, W, 3] skeletons; each may be an iterable of frames instead, which is then read as a
        stream. noise: float32 [F, c, h, w] to start from, instead of what `seed` draws. size: (width,
        height) the networks work at; None = the scene's own (recipe "official": the pose frames'). The
        default recipe returns frames of the scene's size whatever `size` is. progress(done, total) is
        called after every denoising call; what it raises stops the run.

        Raises UserError for input that does not fit together.
        """
        chosen = get_recipe(recipe)
        if steps < 1 or steps > 1000:
            raise UserError(f"steps is {steps}; use 1 to 1000.")
        picture = chosen.cut_out(*split_reference(reference, reference_mask))
        streamed = not isinstance(scene, np.ndarray)
        scene, mask = Replay(scene), Replay(mask)
        seconds: dict[str, float] = {}
        with _timed(seconds, "encode"):
            clip = self.read_clip(chosen, scene, mask, pose, size)
            embeds = self.embed(chosen.clip_view(picture))
        if noise is None:
            noise = chosen.noise(clip.scene.shape, torch.Generator("cpu").manual_seed(seed))
        elif noise.shape != clip.scene.shape:
            raise UserError(
                f"noise has shape {tuple(noise.shape)}, but this clip's latents are "
                f"{tuple(clip.scene.shape)}."
            )
        windows = chosen.windows(len(noise), guidance_scale)
        if chosen.paste_back:
            windows = _windows_with_person(windows, clip.present)
        with _timed(seconds, "sample"):
            latents = self.sample_clip(
                chosen, clip, picture, embeds, noise.float(), steps, guidance_scale, windows, progress
            )
        if chosen.paste_back:
            unseen = sorted(set(range(len(noise))).difference(*windows.indices))
            latents[unseen] = clip.scene[unseen]
        frames = self._decode(chosen, latents, clip, scene, mask, seconds)
        return Output(frames if streamed else np.stack(list(frames)), latents.cpu(), seconds)

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
        self, recipe: Recipe, scene: Frames, mask: Frames, pose: Frames, size: Size | None
    ) -> Clip:
        """Encodes scene, mask and pose, given and sized as in `__call__`; scene and mask are read once.

        Raises UserError where they do not fit together.
        """
        rows = together(
            scene=checked("scene", scene, 3), mask=checked("mask", mask, None), pose=checked("pose", pose, 3)
        )
        latents, masks, poses, present, canvas = [], [], FrameStore(), [], None
        pending: list[tuple[np.ndarray, np.ndarray]] = []

        def flush() -> None:
            latents.append(self.encode(np.stack([frame for frame, _ in pending])))
            stacked = np.stack([m for _, m in pending])
            masks.append(recipe.mask(stacked, canvas, latents[-1].shape[-2:]))
            pending.clear()

        for frame, region, skeleton in rows:
            if canvas is None:
                canvas = recipe.canvas(_size(frame), _size(skeleton), size, self.multiple)
                if recipe.paste_back and _size(region) != _size(frame):
                    raise UserError(
                        f"The mask is {_size(region)} but the scene is {_size(frame)} (width, height); give "
                        "masks of the scene's size."
                    )
                batch = _frames_at_a_time(canvas)
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
        return Clip(canvas, torch.cat(latents), torch.cat(masks).to(self.device), poses, tuple(present))

    @torch.inference_mode()
    def embed(self, picture: np.ndarray) -> Tensor:
        """A reference uint8 [H, W, 3], squashed to CLIP's square -> image embedding [1, D]."""
        encoder = self.networks.image_encoder
        pixels = clip_input(picture, encoder.config.image_size)
        return encoder(pixels.to(self.device, self.dtype)).image_embeds

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
        """Latents float32 [F, c, h, w] of the clip with the character of `picture` uint8 [H, W, 3] in it."""
        nets = self.networks
        with torch.inference_mode():
            placed = self.encode(recipe.reference(picture, clip.canvas)[None])
            tokens = nets.reference_unet(placed.to(self.dtype), embeds)
            if recipe.bank_dtype is not None:
                tokens = [x.to(recipe.bank_dtype).to(self.dtype) for x in tokens]
            denoise = self._denoiser(clip, nets.denoising_unet.project_bank(tokens), embeds, guidance)
            latents = sample(denoise, noise.to(self.device), steps, windows, progress)
        # The clone is an ordinary tensor, which the caller may change, as inference tensors may not be.
        return latents.clone()

    def _denoiser(
        self, clip: Clip, bank: list[tuple[Tensor, Tensor]], embeds: Tensor, guidance: float
    ) -> Callable[[Tensor, int, Sequence[int]], Tensor]:
        nets = self.networks
        guided = guidance > 1

        def denoise(x: Tensor, t: int, index: Sequence[int]) -> Tensor:
            rows, frames = list(index), len(index)
            pose = nets.pose_guider(to_unit(clip.poses.take(rows)).to(self.device, self.dtype))
            x = torch.cat([x, clip.scene[rows], clip.mask[rows]], dim=1).to(self.dtype)
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
        clip: Clip,
        scene: Replay,
        mask: Replay,
        seconds: dict[str, float],
    ) -> Iterator[np.ndarray]:
        batch = _frames_at_a_time(clip.canvas)
        pairs = zip(scene, mask, strict=True)
        for start in range(0, len(latents), batch):
            with _timed(seconds, "decode"):
                made = self.decode(latents[start : start + batch], recipe.round)
                if recipe.paste_back:
                    made = [_paste(clip.canvas.restore(p), *next(pairs)) for p in made]
            yield from made


def paste_weights(mask: np.ndarray) -> np.ndarray:
    """The network's share of each pixel, float32 [H, W], for a mask uint8 [H, W]; 0 is the clip alone."""
    width = max(1, round(FEATHER * min(mask.shape)))
    return feather(mask, width, width)


def _paste(made: np.ndarray, original: np.ndarray, mask: np.ndarray) -> np.ndarray:
    return composite(made, original, paste_weights(mask))


def split_reference(reference: np.ndarray, mask: np.ndarray | None) -> tuple[np.ndarray, np.ndarray | None]:
    """A reference uint8 [H, W, 3 or 4] and its mask [H, W] or None -> picture [H, W, 3] and alpha or None.

    Raises UserError for other shapes or types.
    """
    reference = np.asarray(reference)
    if reference.dtype != np.uint8 or reference.ndim != 3 or reference.shape[2] not in (3, 4):
        raise UserError(
            f"The reference must be uint8 [H, W, 3] or [H, W, 4]; it is {reference.dtype} "
            f"{list(reference.shape)}."
        )
    if mask is None and reference.shape[2] == 4:
        mask = reference[..., 3]
    if mask is not None and (mask.dtype != np.uint8 or mask.shape != reference.shape[:2]):
        raise UserError(
            f"The reference mask must be uint8 {list(reference.shape[:2])}, the reference's size; it is "
            f"{mask.dtype} {list(mask.shape)}."
        )
    return reference[..., :3], mask


def _windows_with_person(windows: Windows, present: Sequence[bool]) -> Windows:
    """Leaves out windows in which there is nobody to replace."""
    pairs = zip(windows.indices, windows.weights, strict=True)
    kept = [(index, weight) for index, weight in pairs if any(present[frame] for frame in index)]
    indices, weights = zip(*kept, strict=True)
    return replace(windows, indices=indices, weights=weights)


def _frames_at_a_time(canvas: Canvas) -> int:
    return max(1, CHUNK_PIXELS // (canvas.padded[0] * canvas.padded[1]))


def _size(picture: np.ndarray) -> Size:
    return picture.shape[1], picture.shape[0]


@contextmanager
def _timed(seconds: dict[str, float], phase: str) -> Iterator[None]:
    started = time.perf_counter()
    try:
        yield
    finally:
        seconds[phase] = seconds.get(phase, 0.0) + time.perf_counter() - started
