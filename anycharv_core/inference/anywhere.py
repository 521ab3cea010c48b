"""AnimateAnywhere in plain torch: a clip at once, whose latents are of four frames each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..checkpoints.checkpoint import Checkpoint
from ..checkpoints.dit_networks import DiTNetworks, build_dit_networks
from ..checkpoints.download import COGVIDEOX
from ..device import free_memory
from ..errors import UserError
from ..media.imaging import to_levels, to_unit
from ..models.dit import grid_of
from ..models.dit_layers import Grid, rope_of
from ..models.guidance import guide, is_guided
from ..models.layers import KeyValue
from ..models.schedule import schedule_of
from ..systems import System
from ..systems.anywhere import ANYWHERE
from .backend import library_modules
from .encode import EncodedVideo
from .latents import Latents
from .memory import Ladder, Rung
from .sampling import Sampled, Sampling, sample_as
from .shortcuts import check_cache

ROOM = 1.15  # of what the weights take, beside them for what is computed
# Values per token and channel that a step has alive at least: 13.1 in float32 and 16.5 in bfloat16 at full size.
ALIVE = 13
REMEDY = "give a smaller --size or fewer --frames, or --dtype bf16."
_RUNGS = Rung.TURNS, Rung.LAYERS


class AnywhereBackend:
    """A `Backend` of AnimateAnywhere's networks.

    They lie in memory, on the device and in one number format. Where that has too little of it, they wait in main
    memory for their turn, see `memory.Ladder`.
    """

    def __init__(
        self,
        networks: DiTNetworks,
        settings: Mapping[str, Any] | None = None,
        device: str | torch.device = "cpu",
    ):
        self.networks = networks
        self.settings: Mapping[str, Any] = settings or {}
        self.system: System = ANYWHERE
        self.schedule = schedule_of(self.settings)
        self.extras: frozenset[str] = frozenset()
        self.device, self.dtype = torch.device(device), networks.transformer.proj_out.weight.dtype
        self._vae = networks.vae
        self.multiple = 2 ** (len(self._vae.config.block_out_channels) - 1)
        self.latent_channels: int = networks.transformer.cfg.out_channels
        self.ladder = Ladder.of(self.device, self._vae, f"The memory is not enough for this clip: {REMEDY}")
        self._streamed: tuple[nn.Module, ...] = ()  # those whose layers are on the device in turn
        self._cached = False
        if networks.transformer.proj_out.weight.device.type != self.device.type:
            self.ladder.take(Rung.TURNS)

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
    ) -> AnywhereBackend:
        """The networks of a checkpoint, which was read from `path`."""
        if compile:
            raise UserError(
                f"{path} is a model of {ANYWHERE.title}, which has no UNet to compile: leave --compile out."
            )
        if image_encoder is not None:
            raise UserError(f"{path} is a model of {ANYWHERE.title}, which has no image encoder: leave it out.")
        hub = {"vae": f"{COGVIDEOX}, subfolder vae"}
        modules = library_modules(checkpoint, path, {"vae": vae}, hub, device, dtype)
        place = torch.device(device)
        weights = [value for part in checkpoint.weights.values() for value in part.values()]
        if place.type == "cpu":
            weights = [value for value in weights if value.dtype != dtype]  # the others are there already
        needed, free = ROOM * dtype.itemsize * sum(value.numel() for value in weights), free_memory(place)
        if needed > free and place.type == "cpu":
            raise UserError(
                f"{path} takes {needed / 1e9:.1f} GB in {str(dtype).removeprefix('torch.')}, and "
                f"{free / 1e9:.1f} GB of memory are free: use --dtype bf16, as it is published, or a machine that "
                "has more."
            )
        networks = build_dit_networks(checkpoint, device if needed <= free else "cpu", dtype)
        return cls(replace(networks, **modules), checkpoint.settings, device)

    def encode(self, pictures: np.ndarray) -> Tensor:
        return torch.cat([self.encode_clip(picture[None]) for picture in pictures])

    def decode(self, latents: Tensor, rounded: bool = True, deep: bool = False) -> np.ndarray:
        def run() -> Tensor:
            scaled = (latents / self._vae.config.scaling_factor).to(self.device, self.dtype)
            decoded: Tensor = self._vae.decode(scaled.movedim(0, 1)[None]).sample[0].float()
            return (decoded / 2 + 0.5).clamp(0, 1).movedim(0, -1)

        return to_levels(self._through_vae(run), rounded, deep)

    def embed(self, picture: np.ndarray) -> Tensor:
        return torch.zeros(1, 0)

    def reference_tokens(self, latents: Tensor, image_embed: Tensor) -> list[Tensor]:
        def run() -> list[Tensor]:
            self._take_turns(self.networks.reference, self.networks.prompt)
            with torch.inference_mode():
                given = (each.to(self.device, self.dtype) for each in (latents, latents * self._scale))
                return self.networks.reference(*given, self.networks.prompt())

        return self.ladder.run(run, *_RUNGS)

    def attach_cache(self, apply: Callable[[nn.Module, Any], None], config: Any) -> None:
        """Gives the transformer one of diffusers' caches: `apply` is `apply_taylorseer_cache`, config its own.

        Each clip begins with an empty one, and predictions with and without conditions keep theirs apart.
        """
        apply(self.networks.transformer, config)
        self._cached = True

    def _empty_cache(self) -> None:
        if self._cached:
            from diffusers.hooks import HookRegistry

            HookRegistry.check_if_exists_or_initialize(self.networks.transformer).reset_stateful_hooks()

    def _cache_context(self, name: str) -> AbstractContextManager[None]:
        """Where the transformer is called for predictions of that name."""
        if not self._cached:
            return nullcontext()
        from diffusers import CacheMixin

        # It asks nothing of a network but to be a module.
        context: AbstractContextManager[None] = CacheMixin.cache_context(self.networks.transformer, name)
        return context

    @torch.inference_mode()
    def denoise(
        self,
        video: EncodedVideo,
        tokens: Sequence[Tensor],
        image_embed: Tensor,
        latents: Latents,
        how: Sampling,
    ) -> Sampled:
        """See `Backend.denoise`. Without tokens there is no reference.

        The unconditional prediction is without reference, pose and background, which training drops together; the
        two are made in turn: the first one needs no ControlNet, and half the memory does for it.
        """
        check_cache(self.system.title, how.shortcuts)
        nets = self.networks
        guided = is_guided(how.guidance_scale)
        self._make_room(latents.shape, tokens)
        pose, place = (
            each[None].to(self.device, self.dtype)
            for each in clip_conditions(self.encode_clip, video, len(latents), self._scale)
        )
        self._empty_cache()
        turn = partial(self._take_turns, *self._denoising)

        def project() -> tuple[Tensor, list[KeyValue] | None]:
            turn()
            return nets.prompt(), nets.transformer.project_bank(tokens, nets.bml) if tokens else None

        text, bank = self.ladder.run(project, *_RUNGS)
        rope = rope_of(nets.transformer.cfg, self._grid(latents.shape), self.device)

        def predict(x: Tensor, t: int, index: Sequence[int]) -> Tensor:
            noisy, at = x[None].to(self.dtype), torch.full((1,), t, device=self.device)

            def run(conditional: bool) -> Tensor:
                turn()
                control: Iterator[Tensor] = iter(())
                if conditional:
                    control = nets.control.features(torch.cat([noisy, pose], 2), at, text, rope)
                with self._cache_context("conditional" if conditional else "unconditional"):
                    return nets.transformer(
                        torch.cat([noisy, place if conditional else torch.zeros_like(place)], 2),
                        at,
                        text,
                        control=control,
                        bank=bank if conditional else None,
                        learner=nets.bml,
                        rope=rope,
                    )

            made = self.ladder.run(partial(run, True), *_RUNGS)
            if guided and how.shortcuts.guides(t):
                without = self.ladder.run(partial(run, False), *_RUNGS)
                made = guide(torch.cat([without, made]).float(), how.guidance_scale)
            return made[0]

        yield from sample_as(how, predict, latents, self.schedule, self.device)

    def attention(
        self, video: EncodedVideo, tokens: Sequence[Tensor], noisy: Tensor, t: int, queries: Tensor
    ) -> Iterator[Tensor]:
        """How much some video tokens attend to all of them, in one block after another: float32 [heads, q, L]
        each.

        noisy: latents [T, c, h, w] at timestep t; queries: int64 [q], places among the L tokens; video and tokens
        as `denoise` takes them, without guidance.
        """
        nets = self.networks
        self._take_turns(*self._denoising)
        with torch.inference_mode():
            pose, place = clip_conditions(self.encode_clip, video, len(noisy), self._scale)
            x, drawn = (
                torch.cat([noisy.to(self.device), each.to(self.device)], 1)[None].to(self.dtype)
                for each in (place, pose)
            )
            at, text = torch.full((1,), t, device=self.device), nets.prompt()
            bank = nets.transformer.project_bank(tokens, nets.bml)
            _, hidden = nets.transformer.trace(
                x,
                at,
                text,
                control=nets.control.features(drawn, at, text),
                bank=bank,
                learner=nets.bml,
                blocks=range(len(nets.transformer.blocks())),
            )
            for index, own in hidden.items():
                asked = queries[None].to(self.device)
                yield nets.transformer.attention_map(
                    index, own, at, asked, grid_of(x), bank=bank, learner=nets.bml
                )[0]

    @property
    def _denoising(self) -> tuple[nn.Module, ...]:
        """The networks that a step needs."""
        nets = self.networks
        return tuple(filter(None, (nets.transformer, nets.control, nets.prompt, nets.bml)))

    @property
    def _scale(self) -> float:
        return picture_scale(self.settings, self._vae.config.scaling_factor)

    def encode_clip(self, frames: np.ndarray) -> Tensor:
        """Frames uint8 [F, H, W, 3] -> scaled mean latents float32 [T, c, h, w]."""

        def run() -> Tensor:
            pixels = (2.0 * to_unit(frames) - 1.0).movedim(0, 1)[None].to(self.device, self.dtype)
            mean: Tensor = self._vae.encode(pixels).latent_dist.mode()
            return mean[0].movedim(0, 1).float() * self._vae.config.scaling_factor

        return self._through_vae(run)

    def _through_vae(self, work: Callable[[], Tensor]) -> Tensor:
        def run() -> Tensor:
            self.ladder.tile(self._vae)
            self._take_turns(self._vae)
            with torch.inference_mode():
                return work()

        return self.ladder.run(run, Rung.TILES, Rung.TURNS)

    def _grid(self, shape: Sequence[int]) -> Grid:
        """Of the tokens of latents [T, c, h, w]."""
        count, _, height, width = (side // self.system.patch for side in shape)
        return count, height, width

    def _make_room(self, shape: Sequence[int], tokens: Sequence[Tensor]) -> None:
        """Takes the steps down without which a call on latents of a shape would surely not fit.

        Raises UserError where even that is not enough: for what it computes, wherever the networks are.
        """
        nets, (slots, rows, columns) = self.networks, self._grid(shape)
        seen = len(nets.prompt.embeds) + slots * rows * columns
        values = (ALIVE * seen + 2 * len(tokens) * rows * columns) * nets.transformer.cfg.dim
        computed, room = values * self.dtype.itemsize, free_memory(self.device)
        if self.device.type != "cpu":
            if computed > room:
                self.ladder.take(Rung.TURNS)
            room += sum(_bytes(net, self.device) for net in nets.modules.values())
            if computed + sum(map(_bytes, self._denoising)) > room:
                self.ladder.take(Rung.LAYERS)
        if computed > room:
            raise UserError(
                f"A step of this clip computes {computed / 1e9:.1f} GB at once, and {room / 1e9:.1f} GB of memory "
                f"are free for it: {REMEDY}"
            )

    def _take_turns(self, *running: nn.Module) -> None:
        if Rung.LAYERS in self.ladder.taken and self.device.type != "cpu" and not self._streamed:
            self._stream()
        placed = [net for net in self.networks.modules.values() if net not in self._streamed]
        self.ladder.take_turns(placed, [net for net in running if net in placed], self.device)

    def _stream(self) -> None:
        """Has the layers of the large networks come to the device each for its own call."""
        if find_spec("accelerate") is None:
            raise UserError(
                f"The networks that a step needs do not fit into the memory of {self.device}: install accelerate "
                "(pip install accelerate), with which their layers take turns, or use a device that has more."
            )
        from diffusers.hooks import apply_group_offloading

        nets = self.networks
        self._streamed = nets.transformer, nets.control, nets.reference
        with torch.inference_mode(False):
            for net in self._streamed:
                # Block by block it would miss what is asked of parts of a block, such as keys for the bank.
                apply_group_offloading(net, self.device, torch.device("cpu"), offload_type="leaf_level")


def _bytes(net: nn.Module, device: torch.device | None = None) -> int:
    """Of its weights, None = wherever they are."""
    return sum(p.nbytes for p in net.parameters() if device is None or p.device.type == device.type)


def picture_scale(settings: Mapping[str, Any], scaling_factor: float) -> float:
    """The factor on scaled latents of pictures as the networks are given them beside the noisy ones: the release's
    sampler leaves the VAE's mean as it is, diffusers' divides it by the scaling factor."""
    factor: float = settings.get("image_scale", 1.0) / scaling_factor
    return factor


def clip_conditions(
    encode_clip: Callable[[np.ndarray], Tensor], video: EncodedVideo, count: int, scale: float
) -> tuple[Tensor, Tensor]:
    """What ControlNet and transformer see of poses and background, [count, c, h, w].

    encode_clip: frames uint8 [F, H, W, 3] -> scaled latents [T, c, h, w]; scale: as `picture_scale` has it.
    """
    poses = scale * encode_clip(video.poses.take(range(len(video.poses))))
    # The latent in front of a clip of 8k + 1 frames shares a slot with that of its first frame.
    poses = torch.cat([poses[:1].expand(count - len(poses), -1, -1, -1), poses])
    assert video.background is not None  # `check_inputs` saw to it
    first = scale * encode_clip(video.background[None])
    return poses, torch.cat([first, torch.zeros_like(poses[1:])])
