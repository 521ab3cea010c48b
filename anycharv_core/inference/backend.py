"""Where the networks live: what a pipeline asks of them, and the answer in plain torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from ..checkpoints.checkpoint import HUB_PARTS, Checkpoint
from ..checkpoints.folders import read_library_part
from ..checkpoints.networks import Networks, build_networks
from ..device import free_memory
from ..errors import UserError
from ..media.frames import FrameStore
from ..media.imaging import clip_input, to_levels, to_unit
from ..models.guidance import guide, is_guided
from ..models.layers import KeyValue
from ..models.schedule import NoiseSchedule, schedule_of
from ..models.solvers import timesteps_of
from ..models.winograd import shorten
from ..systems import System, read_unet_checkpoint, system_of
from .compiling import compiled
from .encode import EncodedVideo, frames_at_a_time
from .features import FrameFeatures, Held, held_on, object_features, repeated
from .latents import Latents
from .memory import Ladder, Rung
from .sampling import Sampled, Sampling, sample_as
from .shortcuts import SHALLOW, DeepCache

# Values a denoising UNet of SD1.5's shape has alive at once, of one row, by latent pixel and channel of its first
# block: counted on its layers at 8 and 24 frames.
ALIVE = 26


OBJECTS, DEPTH = EXTRAS = ("objects", "depth")
"""Conditions that a network may read or do without."""


class Backend(Protocol):
    """The networks of one model, wherever they run.

    system: the one they belong to; settings: the model's recommended ones; multiple: the pixels a latent pixel is
    wide; latent_channels: c below; extras: which of `EXTRAS` the networks read.
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
    @property
    def extras(self) -> frozenset[str]: ...

    def encode(self, pictures: np.ndarray) -> Tensor:
        """Pictures uint8 [N, H, W, 3], each on its own -> scaled mean latents float32 [N, c, h, w]."""
        ...

    def decode(self, latents: Tensor, rounded: bool = True, deep: bool = False) -> np.ndarray:
        """Scaled latents [N, c, h, w] -> uint8 [N, H, W, 3], rounded or (as the releases do) truncated. Where
        latents are of clips: those of a whole clip -> its frames.

        deep: uint16 instead, 65535 being white.
        """
        ...

    def embed(self, picture: np.ndarray) -> Tensor:
        """A reference uint8 [H, W, 3], squashed to CLIP's square -> image_embed [1, D]; D is 0 where the networks
        read none."""
        ...

    def reference_tokens(self, latents: Tensor, image_embed: Tensor) -> list[Tensor]:
        """The reference's latents [1, c, h, w] and image_embed [1, D] -> tokens [1, T, C] per spatial block, or
        what else `denoise` takes as such."""
        ...

    def denoise(
        self,
        video: EncodedVideo,
        tokens: Sequence[Tensor],
        image_embed: Tensor,
        latents: Latents,
        how: Sampling,
    ) -> Sampled:
        """Takes latents, noise before the first round, from the round they are at to those of the video with the
        reference in it.

        tokens, image_embed: of the reference, as `reference_tokens` and `embed` give them.
        """
        ...


class TorchBackend:
    """A `Backend` whose networks lie in memory, on the device and in the number format of the denoising UNet.

    Where memory is short it does with less, see `memory.Ladder`, and raises UserError where that is not enough.
    """

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
        reads = {OBJECTS: networks.object_guider, DEPTH: networks.pose_guider.depth_modulation}
        self.extras = frozenset(name for name, network in reads.items() if network is not None)
        self.device, self.dtype = weight.device, weight.dtype
        self._unet: Callable[..., Tensor] = networks.denoising_unet
        self._unet_in_parts: Callable[..., tuple[Tensor, Tensor | None]] = networks.denoising_unet.denoise
        self.ladder = Ladder.of(self.device, self._vae)
        if self.device.type == "cpu":
            self._vae.to(memory_format=torch.channels_last)  # a tenth faster there, in bfloat16 a fifth
            if self.dtype == torch.float32:
                shorten(networks.denoising_unet, networks.reference_unet, self._vae)

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        vae: str | Path | nn.Module | None = None,
        image_encoder: str | Path | nn.Module | None = None,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        compile: bool = False,
    ) -> TorchBackend:
        """The networks of a model of UNets, see `Pipeline.from_pretrained`."""
        return cls.of_checkpoint(read_unet_checkpoint(path), path, vae, image_encoder, device, dtype, compile)

    @classmethod
    def of_checkpoint(
        cls,
        checkpoint: Checkpoint,
        path: str | Path,
        vae: str | Path | nn.Module | None,
        image_encoder: str | Path | nn.Module | None,
        device: str | torch.device,
        dtype: torch.dtype,
        compile: bool,
    ) -> TorchBackend:
        """The networks of a checkpoint, which was read from `path`."""
        given = {"vae": vae, "image_encoder": image_encoder}
        modules = library_modules(checkpoint, path, given, HUB_PARTS, device, dtype)
        networks = build_networks(checkpoint, device, dtype)
        backend = cls(replace(networks, **modules), checkpoint.settings)
        if compile:
            backend.compile()
        return backend

    def compile(self) -> None:
        """From here on the denoising UNet runs as torch.compile makes it: at its first call, and again for another
        size, for the next number of frames, from when on it takes any, and for each of its ways with and without
        guidance or deep features."""
        self._unet = compiled(self._unet)
        self._unet_in_parts = compiled(self._unet_in_parts)

    def encode(self, pictures: np.ndarray) -> Tensor:
        def encode(some: np.ndarray) -> Tensor:
            pixels = (2.0 * to_unit(some) - 1.0).to(self.device, self.dtype)
            encoded = self._vae.encode(pixels)
            # An AutoencoderTiny gives no distribution.
            mean: Tensor = encoded.latent_dist.mean if hasattr(encoded, "latent_dist") else encoded.latents
            return mean.float() * self._vae.config.scaling_factor

        return self._through_vae(encode, pictures)

    def decode(self, latents: Tensor, rounded: bool = True, deep: bool = False) -> np.ndarray:
        def decode(some: Tensor) -> Tensor:
            scaled = (some / self._vae.config.scaling_factor).to(self.device, self.dtype)
            decoded: Tensor = self._vae.decode(scaled).sample.float()
            return (decoded / 2 + 0.5).clamp(0, 1).movedim(1, -1)

        return to_levels(self._through_vae(decode, latents), rounded, deep)

    def _through_vae(self, work: Callable[[Any], Tensor], frames: Any) -> Tensor:
        """`work` of [N, ...] frames, as many at a time as are best for the device or as its memory can take."""

        def run() -> Tensor:
            self.ladder.tile(self._vae)
            self._take_turns(self._vae)
            size = 1 if Rung.ONE_FRAME in self.ladder.taken else len(frames)
            with torch.inference_mode():
                return torch.cat([work(frames[at : at + size]) for at in range(0, len(frames), size)])

        return self.ladder.run(run, Rung.ONE_FRAME, Rung.TILES, Rung.TURNS)

    def embed(self, picture: np.ndarray) -> Tensor:
        encoder = self._image_encoder

        def run() -> Tensor:
            self._take_turns(encoder)
            with torch.inference_mode():
                pixels = clip_input(picture, encoder.config.image_size)
                image_embed: Tensor = encoder(pixels.to(self.device, self.dtype)).image_embeds
                return image_embed

        return self.ladder.run(run, Rung.TURNS)

    def reference_tokens(self, latents: Tensor, image_embed: Tensor) -> list[Tensor]:
        def run() -> list[Tensor]:
            self._take_turns(self.networks.reference_unet)
            with torch.inference_mode():
                return self.networks.reference_unet(latents.to(self.dtype), image_embed)

        return self.ladder.run(run, Rung.TURNS)

    def _take_turns(self, *running: nn.Module) -> None:
        self.ladder.take_turns(filter(None, vars(self.networks).values()), running, self.device)

    @torch.inference_mode()
    def denoise(
        self,
        video: EncodedVideo,
        tokens: Sequence[Tensor],
        image_embed: Tensor,
        latents: Latents,
        how: Sampling,
    ) -> Sampled:
        unet = self.networks.denoising_unet
        windows, shortcuts = how.windows, how.shortcuts
        guided = is_guided(how.guidance_scale)
        if guided and self._alive(2 * max(map(len, windows.indices)), latents.shape) > free_memory(self.device):
            self.ladder.take(Rung.ROWS_APART)
        running = filter(None, (unet, self.networks.pose_guider, self.networks.object_guider))
        turn = partial(self._take_turns, *running)
        turn()
        bank = unet.project_bank(tokens)
        poses = self._pose_features(video)
        objects = self._object_features(video)
        given = torch.cat([torch.zeros_like(image_embed), image_embed]) if guided else image_embed
        image = unet.project_image(given)
        without, of = [row[:1] for row in image], [row[-1:] for row in image]
        times = timesteps_of(shortcuts.solver, how.steps, self.schedule)
        whole = {
            t
            for (t, _), is_whole in zip(times, shortcuts.whole(how.steps, self.schedule), strict=True)
            if is_whole
        }
        shallow = SHALLOW if len(whole) < how.steps else 0
        cache = DeepCache(video.poses.empty())

        def predict(x: Tensor, t: int, index: Sequence[int], known: Tensor | None = None) -> Tensor:
            rows, frames = list(index), len(index)
            scene, mask = (self._rows(store, rows) for store in (video.scene, video.mask))
            if known is not None and scene is not None and mask is not None:
                # What is finished is part of the environment, of which nothing is to be changed.
                scene[: len(known)], mask[: len(known)] = known.to(scene), 0
            x = self.system.unet_input(x, scene, mask).to(self.dtype)
            at = torch.full((1,), t, device=self.device)
            guides = guided and shortcuts.guides(t)
            kept = None if t in whole else cache.take(tuple(rows))

            def call(
                x: Tensor,
                image: Sequence[Tensor],
                pose: Tensor,
                bank: Sequence[KeyValue] | None,
                plain_rows: int,
                deep: Tensor | None,
                held: Held,
            ) -> tuple[Tensor, Tensor | None]:
                given = x, at, image, pose, bank, frames, plain_rows
                if not shallow:
                    return self._unet(*given, **held), None
                return self._unet_in_parts(*given, **held, shallow=shallow, deep=deep)

            def run() -> tuple[Tensor, Tensor | None]:
                turn()
                pose = self.networks.pose_guider.of_videos(poses.take(rows), frames)
                held = objects(rows)
                if not guides:
                    return call(x, of, pose, bank, 0, kept, held)
                if Rung.ROWS_APART in self.ladder.taken:
                    halves = (None, None) if kept is None else kept.chunk(2)
                    apart = [
                        call(x, without, pose, None, 0, halves[0], held),
                        call(x, of, pose, bank, 0, halves[1], held),
                    ]
                    deep = [each for _, each in apart if each is not None]
                    return torch.cat([made for made, _ in apart]), torch.cat(deep) if deep else None
                twice = x.repeat(2, 1, 1, 1), image, pose.repeat(2, 1, 1, 1)
                return call(*twice, bank, frames, kept, repeated(held, 2))

            rungs = (Rung.ROWS_APART, Rung.TURNS) if guides else (Rung.TURNS,)
            made, deep = self.ladder.run(run, *rungs)
            if deep is not None and t in whole:
                cache.keep(tuple(rows), deep)
            return guide(made.float(), how.guidance_scale) if guides else made

        yield from sample_as(how, predict, latents, self.schedule, self.device)

    def _rows(self, store: FrameStore | None, frames: list[int]) -> Tensor | None:
        return None if store is None else torch.from_numpy(store.take(frames)).to(self.device)

    def _alive(self, rows: int, shape: Sequence[int]) -> int:
        """Bytes that a denoising call on this many rows needs beside the weights, for latents of this shape."""
        channels = self.networks.denoising_unet.cfg.block_out_channels[0]
        return ALIVE * rows * channels * shape[-2] * shape[-1] * self.dtype.itemsize

    def _pose_features(self, video: EncodedVideo) -> FrameFeatures:
        """What the pose guider makes of each frame's skeletons and depth: it depends on no step and no window."""

        def compute(frames: list[int]) -> Tensor:
            pose = to_unit(video.poses.take(frames)).to(self.device, self.dtype)
            depth = None if video.depth is None else self._rows(video.depth, frames)
            depth = None if depth is None else depth[:, None].to(self.dtype) / 255
            return self.networks.pose_guider(pose, depth, frames=None)

        batch = frames_at_a_time(video.path.canvas.padded)
        return FrameFeatures(compute, batch, len(video.poses), video.poses.empty(), held_on(self.device))

    def _object_features(self, video: EncodedVideo) -> Callable[[list[int]], Held]:
        """What the object guider makes of the objects in frames, nothing where none has one."""
        guider = self.networks.object_guider
        if guider is None or video.objects is None or not any(video.holds):
            return lambda frames: {}

        def guide(latents: Tensor) -> list[Tensor]:
            return guider(latents.to(self.device, self.dtype))

        return object_features(guide, video.objects, video.holds, frames_at_a_time(video.path.canvas.padded))


def library_modules(
    checkpoint: Checkpoint,
    path: str | Path,
    given: Mapping[str, str | Path | nn.Module | None],
    hub: Mapping[str, str],
    device: str | torch.device,
    dtype: torch.dtype,
) -> dict[str, Any]:
    """The library parts that were given as modules; those given as folders are read into `checkpoint`.

    hub: of what to take a copy for a part that neither the caller nor the checkpoint, read from `path`, has: then
    UserError is raised.
    """
    modules: dict[str, Any] = {}
    for part, own in given.items():
        if isinstance(own, nn.Module):
            modules[part] = own.to(device, dtype).requires_grad_(False).train(False)
        elif own is not None:
            checkpoint.configs[part], checkpoint.weights[part] = read_library_part(part, Path(own))
        elif part not in checkpoint.weights:
            raise UserError(
                f"{path} has no {part}: pass {part}= (--{part.replace('_', '-')} on the command line), "
                f"the folder of a copy of {hub[part]}."
            )
    return modules
