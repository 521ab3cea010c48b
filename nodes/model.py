"""The denoising UNet as a ComfyUI MODEL, built from ComfyUI's operations."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import comfy.conds
import comfy.context_windows
import comfy.latent_formats
import comfy.model_base
import comfy.model_patcher
import comfy.model_sampling
import comfy.patcher_extension
import comfy.supported_models_base
import torch
from comfy.ldm.modules.attention import optimized_attention
from torch import Tensor

from ..anycharv_core.errors import UserError
from ..anycharv_core.inference.encode import frames_at_a_time
from ..anycharv_core.inference.features import FrameFeatures, Held, object_features, repeated
from ..anycharv_core.inference.shortcuts import SHALLOW, DeepCache
from ..anycharv_core.media.frames import FrameStore
from ..anycharv_core.models import (
    DenoisingUNet,
    ObjectGuider,
    ObjectGuiderConfig,
    PoseGuider,
    PoseGuiderConfig,
    ReferenceNet,
    UNetConfig,
)
from ..anycharv_core.models.layers import KeyValue
from ..anycharv_core.models.schedule import SAMPLE, NoiseSchedule, V
from ..anycharv_core.systems import System, system_of
from .patches import Patches
from .saved import named

VIDEO = "anycharv_video"  # where a conditioning's options hold its VideoConditions
RUN = "anycharv_run"  # where the options that reach the network hold the `Run`
CONDITIONAL = 0  # ComfyUI's index of the first conditioning

DEEP = "anycharv_deep"  # where they hold the `DeepStep`, if there is one

Prepared = tuple[list[KeyValue], FrameFeatures, Callable[[Sequence[int]], Held]]
"""The bank, and by frame the pose features and the objects."""


@dataclass(frozen=True, eq=False)
class VideoConditions:
    """What AnyCharV Conditioning hands to the model, beside the image embedding.

    system: of the model; shape: of the latents, (F, c, h, w); scene: scaled latents of that shape and mask
    [F, 1, h, w] in 0..1 behind each other, or None where the model takes neither; pose: uint8 [H, W, 3] per frame;
    tokens: the ReferenceNet's, [1, T, C] per spatial block; objects, holds, depth: as `EncodedVideo` has them.
    """

    system: System
    shape: tuple[int, ...]
    scene: Tensor | None
    pose: FrameStore
    tokens: Sequence[Tensor]
    objects: FrameStore | None = None
    holds: tuple[bool, ...] = ()
    depth: FrameStore | None = None


class FrameNumbers(comfy.conds.CONDRegular):
    """Which frames of the video a window has, int64 [F]."""

    def process_cond(self, batch_size: int, **_: Any) -> FrameNumbers:
        return self


class Unconditional(comfy.conds.CONDConstant):
    """For each conditioning of a batch, whether its rows ignore the bank; a tuple of bools.

    ComfyUI's `cond_or_uncond` does not say so: guidance that evaluates the negative alone numbers it 0.
    """

    def can_concat(self, other: Unconditional) -> bool:
        return True

    def concat(self, others: Sequence[Unconditional]) -> tuple[bool, ...]:
        return sum((other.cond for other in others), self.cond)


class DeepStep:
    """The deep features of one sampling run, and whether the present step renews them.

    There is a cache for each arrangement of rows: ComfyUI may evaluate both conditionings together or in turn.
    """

    def __init__(self, new: Callable[[], DeepCache]):
        self._caches: defaultdict[tuple[bool, ...], DeepCache] = defaultdict(new)
        self.whole = True

    def take(self, plain: tuple[bool, ...], window: tuple[int, ...]) -> Tensor | None:
        """What this step starts from, or None; plain: for each conditioning whether its rows ignore the bank."""
        return None if self.whole else self._caches[plain].take(window)

    def keep(self, plain: tuple[bool, ...], window: tuple[int, ...], features: Tensor) -> None:
        """For the steps to come, if this is one that does that."""
        if self.whole:
            self._caches[plain].keep(window, features)


class CalledByComfy:
    """A network that is called the way ComfyUI calls diffusion models, inside whatever it wraps around them."""

    _predict: Callable[..., Tensor]

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor,
        context: Tensor,
        control: Any = None,
        transformer_options: dict[str, Any] | None = None,
        **conditions: Any,
    ) -> Tensor:
        """As the network's `_predict`."""
        options = transformer_options or {}
        kind = comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL
        wrappers = comfy.patcher_extension.get_all_wrappers(kind, options)
        executor = comfy.patcher_extension.WrapperExecutor.new_class_executor(self._predict, self, wrappers)
        made: Tensor = executor.execute(x, timesteps, context, control, options, **conditions)
        return made


class NativeUNet(CalledByComfy, DenoisingUNet):
    """DenoisingUNet with the pose and object guiders inside.

    Its module names are the official ones, so LoRAs of SD1.5 in diffusers' naming find their layers.
    """

    def __init__(
        self,
        unet: UNetConfig,
        pose_guider: PoseGuiderConfig,
        dtype: torch.dtype,
        device: torch.device,
        operations: Any,
        object_guider: ObjectGuiderConfig | None = None,
    ):
        super().__init__(unet, operations, dtype=dtype, device=device)
        self.pose_guider = PoseGuider(pose_guider, operations, dtype=dtype, device=device)
        self.object_guider: ObjectGuider | None = None
        if object_guider is not None:
            sizes = object_guider.latent_channels, object_guider.block_out_channels
            self.object_guider = ObjectGuider(*sizes, operations, dtype=dtype, device=device)
        self.dtype = dtype
        self.in_channels = unet.in_channels  # as patches know it of SD1.5

    def _predict(
        self,
        x: Tensor,
        timesteps: Tensor,
        context: Tensor,
        control: Any,
        options: dict[str, Any],
        *,
        frame_numbers: Tensor,
        video: VideoConditions,
        unconditional: tuple[bool, ...] = (False,),
        **_: Any,
    ) -> Tensor:
        """x [n F, 2 c + 1 or c, h, w]: n conditionings of the same F frames; context [n F, 1, D]; frame_numbers
        [n F]: those frames' places in the video; unconditional: of which conditionings the rows ignore the bank.
        Returns the prediction [n F, c, h, w]."""
        count, frames = len(unconditional), len(x) // len(unconditional)
        # The unconditional rows come first.
        order = sorted(range(count), key=lambda i: not unconditional[i])
        kinds = options.get("cond_or_uncond", [CONDITIONAL] * count)
        options = options | {"cond_or_uncond": [kinds[place] for place in order]}

        def arranged(rows: Tensor, places: list[int]) -> Tensor:
            chunks = rows.chunk(count)
            return torch.cat([chunks[place] for place in places])

        window, bank, guided, held = self._prepared(video, x, options.get(RUN), frame_numbers[:frames])
        x, timesteps, context = (arranged(rows, order) for rows in (x, timesteps, context))
        plain = tuple(unconditional[place] for place in order)
        hooks = Patches.of(options, plain, x, timesteps, context)
        deep: DeepStep | None = None if hooks else options.get(DEEP)
        made, features = self.denoise(
            x,
            timesteps,
            context[::frames, 0],
            self.pose_guider.of_videos(guided, frames).repeat(count, 1, 1, 1),
            bank,
            frames,
            plain_rows=frames * sum(unconditional),
            attention=partial(optimized_attention, transformer_options=hooks.options if hooks else options),
            hooks=hooks,
            **repeated(held, count),
            shallow=SHALLOW if deep else 0,
            deep=deep.take(plain, window) if deep else None,
        )
        if deep and features is not None:
            deep.keep(plain, window, features)
        return arranged(made, [order.index(i) for i in range(count)])

    # Files are read here, which TorchCompileModel could not trace.
    @torch.compiler.disable  # type: ignore[untyped-decorator]  # torch has no types for it
    def _prepared(
        self, video: VideoConditions, like: Tensor, run: Run | None, numbers: Tensor
    ) -> tuple[tuple[int, ...], list[KeyValue], Tensor, Held]:
        """The frames that a window has, the bank, and these frames' pose features and objects."""
        window = tuple(numbers.tolist())
        bank, guided, held = self.prepare(video, like) if run is None else run.prepared(self, video, like)
        return window, bank, guided.take(window), held(window)

    def prepare(self, video: VideoConditions, like: Tensor) -> Prepared:
        """What there is of the video for all steps, on the device and in the number format of `like`."""

        def levels(store: FrameStore, frames: list[int]) -> Tensor:
            return torch.from_numpy(store.take(frames)).to(like.device, like.dtype) / 255

        def guide(frames: list[int]) -> Tensor:
            pose = levels(video.pose, frames).movedim(-1, 1)
            depth = None if video.depth is None else levels(video.depth, frames)[:, None]
            return self.pose_guider(pose, depth, None, optimized_attention)

        bank = self.project_bank([tokens.to(like.device, like.dtype) for tokens in video.tokens])
        height, width, _ = video.pose[0].shape
        batch = frames_at_a_time((width, height))
        features = FrameFeatures(guide, batch, len(video.pose), video.pose.empty())
        guider = self.object_guider
        if guider is None or video.objects is None:
            return bank, features, lambda frames: {}

        def look(latents: Tensor) -> list[Tensor]:
            return guider(latents.to(like.device, like.dtype))

        return bank, features, object_features(look, video.objects, video.holds, batch)


class NativeReferenceNet(ReferenceNet):
    """ReferenceNet that knows the number format it computes in, which may not be that of its weights."""

    def __init__(
        self,
        cfg: UNetConfig,
        dtype: torch.dtype,
        device: torch.device,
        operations: Any,
        compute_dtype: torch.dtype,
    ):
        super().__init__(cfg, operations, dtype=dtype, device=device)
        self.compute_dtype = compute_dtype


class Run:
    """What one sampling run computes once, as it depends on neither step nor window: banks and features of frames.

    It depends on the weights, which LoRAs patch, and so is never kept for another run.
    """

    def __init__(self, patcher: Any):
        self._patcher = patcher
        self._prepared: dict[Any, Any] = {}

    def prepared(self, network: Any, video: Any, like: Tensor) -> Any:
        """As the network's own `prepare`."""
        if self._patcher.current_hooks is not None:
            # Hooks patch weights in the middle of a run.
            return network.prepare(video, like)
        key = (video, like.device)
        if key not in self._prepared:
            self._prepared[key] = network.prepare(video, like)
        return self._prepared[key]


def sample_as_run(executor: Any, *args: Any, **kwargs: Any) -> Any:
    """ComfyUI's OUTER_SAMPLE with a `Run` among the options that reach the network."""
    guider = executor.class_obj
    options = guider.model_options
    guider.model_options = comfy.model_patcher.create_model_options_clone(options)
    guider.model_options["transformer_options"][RUN] = Run(guider.model_patcher)
    try:
        return executor(*args, **kwargs)
    finally:
        guider.model_options = options


class _SampleSampling(comfy.model_sampling.ModelSamplingDiscrete, comfy.model_sampling.X0):
    """Of networks that predict the clean latents."""


class NativeModel(comfy.model_base.BaseModel):
    """A model of any system. `settings` are the checkpoint's own."""

    system: System

    def __init__(self, config: Any, settings: dict[str, Any], device: torch.device, network: type):
        kinds = comfy.model_base.ModelType
        kind = kinds.V_PREDICTION if config.schedule.prediction == V else kinds.EPS
        super().__init__(config, kind, device=device, unet_model=network)
        if config.schedule.prediction == SAMPLE:
            # ComfyUI has no kind for it, and sets it by its node ModelSamplingDiscrete alone.
            self.model_sampling = _SampleSampling(config)
        self.settings, self.schedule = settings, config.schedule
        self.origin = ""  # the checkpoint's name, by which a saved MODEL finds its other networks

    def state_dict_for_saving(self, *state_dicts: Any, **more: Any) -> dict[str, Any]:
        """What ComfyUI's Save Model writes, which AnyCharV Loader reads again."""
        saved: dict[str, Any] = super().state_dict_for_saving(*state_dicts, **more)
        return saved | named(self.origin)

    def checked(self, options: Mapping[str, Any], shape: Sequence[int]) -> Any:
        """What the options of a conditioning hold for this model and latents of this shape.

        Raises UserError where they hold nothing, or what was made for others.
        """
        video = options.get(VIDEO)
        if video is None:
            raise UserError(
                "An AnyCharV model samples only with the positive and negative of AnyCharV Conditioning: wire "
                "those into the sampler."
            )
        if tuple(shape) != video.shape:
            raise UserError(
                f"The latent is {list(shape)} but the conditioning is for {list(video.shape)}: wire the "
                "LATENT of the same AnyCharV Conditioning into the sampler."
            )
        if video.system is not self.system:
            raise UserError(
                "The conditioning was made for a model of another kind: wire the same MODEL into AnyCharV "
                "Conditioning and into the sampler."
            )
        return video


class AnyCharVModel(NativeModel):
    """A model of AnyCharV, of Animate Anyone, which takes no scene, or of Animate Anyone 2."""

    def __init__(self, config: AnyCharVConfig, settings: dict[str, Any], device: torch.device):
        super().__init__(config, settings, device, NativeUNet)
        # What FreeU knows levels by. More of SD1.5's own keys would give LoRAs its names of layers, not ours.
        config.unet_config["model_channels"] = self.diffusion_model.cfg.block_out_channels[0]
        self.system = system_of(self.diffusion_model.cfg)

    def extra_conds(self, **kwargs: Any) -> dict[str, Any]:
        video: VideoConditions = self.checked(kwargs, kwargs["noise"].shape)
        scene = {} if video.scene is None else {"c_concat": comfy.conds.CONDNoiseShape(video.scene)}
        return scene | {
            "c_crossattn": comfy.conds.CONDCrossAttn(kwargs["cross_attn"]),
            "frame_numbers": FrameNumbers(torch.arange(len(video.pose))),
            "video": comfy.conds.CONDConstant(video),
            "unconditional": Unconditional((kwargs.get("prompt_type") == "negative",)),
        }

    def resize_cond_for_context_window(
        self,
        cond_key: str,
        cond_value: Any,
        window: Any,
        x_in: Tensor,
        device: Any,
        retain_index_list: list[int] | tuple[int, ...] = (),
    ) -> Any:
        if isinstance(cond_value, FrameNumbers):
            return FrameNumbers(window.get_tensor(cond_value.cond))
        if cond_key == "c_concat":
            return comfy.context_windows.slice_cond(
                cond_value, window, x_in, device, temporal_dim=0, retain_index_list=list(retain_index_list)
            )
        # ComfyUI would otherwise cut any tensor of which a side happens to be as long as the video.
        return cond_value


def check_model(model: Any, clips: bool = False) -> None:
    """Raises UserError where MODEL is another kind of model's, or one that makes a clip at once where `clips` does
    not say that such a one will do."""
    if not isinstance(model.model, NativeModel):
        raise UserError(
            f"MODEL is {type(model.model).__name__}, not an AnyCharV model: wire in AnyCharV Loader's."
        )
    if model.model.system.clips and not clips:
        raise UserError(
            f"MODEL is one of {model.model.system.title}, which makes a whole clip at once: use AnyCharV "
            "Conditioning and AnyCharV Sampler or KSampler with it, or load a model of another system."
        )


def sampling_settings(schedule: NoiseSchedule) -> dict[str, Any]:
    """What ComfyUI knows a schedule by."""
    # ComfyUI's "linear" is linear in the betas' square roots, "sqrt_linear" in the betas themselves.
    return {"beta_schedule": "linear" if schedule.scaled else "sqrt_linear", "zsnr": schedule.zero_snr}


class AnyCharVConfig(comfy.supported_models_base.BASE):
    """What ComfyUI asks of a model's configuration; sizes come from the checkpoint."""

    unet_extra_config: dict[str, Any] = {}  # noqa: RUF012 (the base class's own style)
    memory_usage_factor = 2.0

    def __init__(
        self,
        unet: UNetConfig,
        pose_guider: PoseGuiderConfig,
        schedule: NoiseSchedule,
        scaling_factor: float,
        ratio: int,
        object_guider: ObjectGuiderConfig | None = None,
    ):
        super().__init__({"unet": unet, "pose_guider": pose_guider, "object_guider": object_guider})
        self.schedule = schedule
        self.sampling_settings = sampling_settings(schedule)
        if unet.out_channels == 4 and ratio == 8:
            self.latent_format = comfy.latent_formats.SD15(scaling_factor)
        else:
            self.latent_format = comfy.latent_formats.LatentFormat()
            self.latent_format.scale_factor = scaling_factor
            self.latent_format.latent_channels = unet.out_channels
            self.latent_format.spacial_downscale_ratio = ratio
