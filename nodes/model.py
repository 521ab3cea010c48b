"""The denoising UNet as a ComfyUI MODEL, built from ComfyUI's operations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import comfy.conds
import comfy.context_windows
import comfy.latent_formats
import comfy.model_base
import comfy.supported_models_base
import torch
from torch import Tensor

from ..anycharv_core.errors import UserError
from ..anycharv_core.media.frames import FrameStore
from ..anycharv_core.models import DenoisingUNet, PoseGuider, PoseGuiderConfig, UNetConfig
from ..anycharv_core.models.schedule import NoiseSchedule
from ..anycharv_core.systems import system_of

CLIP = "anycharv_clip"  # where a conditioning's options hold its ClipConditions
UNCONDITIONAL = 1  # ComfyUI's index of the negative conditioning


@dataclass(frozen=True)
class ClipConditions:
    """What AnyCharV Conditioning hands to the model, beside the image embedding.

    shape: of the latents, (F, c, h, w); scene: scaled latents of that shape and mask [F, 1, h, w] in 0..1 behind
    each other, or None where the model takes neither; pose: uint8 [H, W, 3] per frame; tokens: the ReferenceNet's,
    [1, T, C] per spatial block.
    """

    shape: tuple[int, ...]
    scene: Tensor | None
    pose: FrameStore
    tokens: list[Tensor]


class StoredFrames(comfy.conds.CONDRegular):
    """The frames `index` of a store, read when a window needs them: skeletons of a long clip are large."""

    def __init__(self, store: FrameStore, index: Tensor):
        super().__init__(index)
        self.store = store

    def process_cond(self, batch_size: int, **_: Any) -> comfy.conds.CONDRegular:
        frames = torch.from_numpy(self.store.take(self.cond.tolist())).movedim(-1, 1)
        return comfy.conds.CONDRegular(frames)


class NativeUNet(DenoisingUNet):
    """DenoisingUNet with the pose guider inside, called the way ComfyUI calls diffusion models.

    Its module names are the official ones, so LoRAs of SD1.5 in diffusers' naming find their layers.
    """

    def __init__(
        self,
        unet: UNetConfig,
        pose_guider: PoseGuiderConfig,
        dtype: torch.dtype,
        device: torch.device,
        operations: Any,
    ):
        super().__init__(unet, operations, dtype=dtype, device=device)
        self.pose_guider = PoseGuider(pose_guider, operations, dtype=dtype, device=device)
        self.dtype = dtype

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor,
        context: Tensor,
        control: Any = None,
        transformer_options: dict[str, Any] | None = None,
        *,
        pose: Tensor,
        bank: list[Tensor],
        **_: Any,
    ) -> Tensor:
        """x [n F, 2 c + 1 or c, h, w]: n conditionings of the same F frames; context [n F, 1, D]; pose
        [n F, 3, H, W] in 0..255; bank: ReferenceNet tokens. Returns the prediction [n F, c, h, w]."""
        kinds = (transformer_options or {})["cond_or_uncond"]
        count, frames = len(kinds), len(x) // len(kinds)
        # The unconditional rows, which ignore the bank, come first.
        order = sorted(range(count), key=lambda i: kinds[i] != UNCONDITIONAL)

        def arranged(rows: Tensor, places: list[int]) -> Tensor:
            chunks = rows.chunk(count)
            return torch.cat([chunks[place] for place in places])

        features = self.pose_guider(pose[:frames] / 255).repeat(count, 1, 1, 1)
        made = super().forward(
            arranged(x, order),
            arranged(timesteps, order),
            arranged(context, order)[:, 0],
            features,
            self.project_bank(bank),
            frames,
            plain_rows=frames * kinds.count(UNCONDITIONAL),
        )
        return arranged(made, [order.index(i) for i in range(count)])


class AnyCharVModel(comfy.model_base.BaseModel):
    """A model of AnyCharV or of Animate Anyone, which takes no scene. `settings` are the checkpoint's own."""

    def __init__(self, config: AnyCharVConfig, settings: dict[str, Any], device: torch.device):
        kinds = comfy.model_base.ModelType
        kind = kinds.EPS if config.schedule.epsilon else kinds.V_PREDICTION
        super().__init__(config, kind, device=device, unet_model=NativeUNet)
        self.settings, self.schedule = settings, config.schedule
        self.system = system_of(self.diffusion_model.cfg)

    def extra_conds(self, **kwargs: Any) -> dict[str, Any]:
        clip: ClipConditions | None = kwargs.get(CLIP)
        if clip is None:
            raise UserError(
                "An AnyCharV model samples only with the positive and negative of AnyCharV Conditioning: wire "
                "those into the sampler."
            )
        noise = kwargs["noise"]
        if tuple(noise.shape) != clip.shape:
            raise UserError(
                f"The latent is {list(noise.shape)} but the conditioning is for {list(clip.shape)}: wire the "
                "LATENT of the same AnyCharV Conditioning into the sampler."
            )
        if (clip.scene is not None) != self.system.reads_scene:
            raise UserError(
                "The conditioning was made for a model of another kind: wire the same MODEL into AnyCharV "
                "Conditioning and into the sampler."
            )
        scene = {} if clip.scene is None else {"c_concat": comfy.conds.CONDNoiseShape(clip.scene)}
        return scene | {
            "c_crossattn": comfy.conds.CONDCrossAttn(kwargs["cross_attn"]),
            "pose": StoredFrames(clip.pose, torch.arange(len(clip.pose))),
            "bank": comfy.conds.CONDConstant(clip.tokens),
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
        if isinstance(cond_value, StoredFrames):
            return StoredFrames(cond_value.store, window.get_tensor(cond_value.cond))
        if cond_key == "c_concat":
            return comfy.context_windows.slice_cond(
                cond_value, window, x_in, device, temporal_dim=0, retain_index_list=list(retain_index_list)
            )
        # ComfyUI would otherwise cut any tensor of which a side happens to be as long as the clip.
        return cond_value


def check_model(model: Any) -> None:
    """Raises UserError where MODEL is another kind of model's."""
    if not isinstance(model.model, AnyCharVModel):
        raise UserError(
            f"MODEL is {type(model.model).__name__}, not an AnyCharV model: wire in AnyCharV Loader's."
        )


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
    ):
        super().__init__({"unet": unet, "pose_guider": pose_guider})
        self.schedule = schedule
        # ComfyUI's "linear" is linear in the betas' square roots; the paper's betas are linear themselves.
        self.sampling_settings = {"beta_schedule": "sqrt_linear", "zsnr": schedule.zero_snr}
        if unet.out_channels == 4 and ratio == 8:
            self.latent_format = comfy.latent_formats.SD15(scaling_factor)
        else:
            self.latent_format = comfy.latent_formats.LatentFormat()
            self.latent_format.scale_factor = scaling_factor
            self.latent_format.latent_channels = unet.out_channels
            self.latent_format.spacial_downscale_ratio = ratio
