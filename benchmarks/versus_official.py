"""The public AnyCharV release and this project in turn, on the same random weights of SD1.5's size.

    python -m benchmarks.versus_official --official DIR [--size 256x256] [--frames 8] [--steps 2] [--rounds 3]

DIR is a copy of the release, the folder with its `src`. Both get the same pictures, seed and weights, which they
share in memory, and run from pictures to pictures: ours by the recipe "official". Rounds alternate which of the
two is first, so that a machine that grows slower or faster favours neither; the ratio is of medians. Seconds of
the processors tell more than those of the clock where others use them too. xformers is not needed: its spatial
attention is replaced by PyTorch's, which computes the same, and the temporal attention is the plain one that the
release falls back to beside it.

Below 128x128 pixels the deepest level is one pixel. Where its groups are of two channels, as in tiny networks,
their norm is a sign, and the results part by rounding alone: 8e-2 at 64x64, 3e-6 at 128x128.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import statistics
import sys
import time
import types
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0
from PIL import Image
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from anycharv_core.checkpoints.networks import Networks
from anycharv_core.device import device_name
from anycharv_core.inference.backend import TorchBackend
from anycharv_core.inference.pipeline import Pipeline
from anycharv_core.jobs.precision import DTYPES
from anycharv_core.models import DenoisingUNet, PoseGuider, PoseGuiderConfig, ReferenceNet, UNetConfig
from anycharv_core.options import to_count, to_number, to_path, to_size

GUIDANCE, SEED = 3.0, 42
WINDOW, OVERLAP = 24, 6
MOTION = {
    "num_attention_heads": 8,
    "num_transformer_block": 1,
    "attention_block_types": ["Temporal_Self", "Temporal_Self"],
    "temporal_position_encoding": True,
    "temporal_position_encoding_max_len": 32,
}
# Channels of the UNets, of the VAE, of the image embedding, and the image encoder's settings.
SIZES: dict[str, tuple[tuple[int, ...], tuple[int, ...], int, dict[str, Any]]] = {
    "sd15": (
        (320, 640, 1280, 1280),
        (128, 256, 512, 512),
        768,
        {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16},
    ),
    "tiny": (
        (32, 64, 64, 64),
        (32, 32, 64, 64),
        16,
        {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4},
    ),
}
GUIDER = (16, 32, 96, 256)

Result = tuple[Tensor, np.ndarray]
"""Latents float32 [F, 4, h, w] before decoding, and pictures uint8 [F, H, W, 3]."""


class Release:
    """The release's pipeline, with random weights."""

    def __init__(self, folder: Path, size: str, device: str, dtype: torch.dtype):
        _stand_in_for_torchvision()
        sys.path.insert(0, str(folder))
        models, pipelines = "src.models.", "src.pipelines.pipeline_pose2vid_long_anycharv"
        self.size = size
        widths, vae_widths, embedding, clip = SIZES[size]
        shape: dict[str, Any] = {
            "sample_size": 64,
            "block_out_channels": widths,
            "cross_attention_dim": embedding,
            "attention_head_dim": 8,
        }
        with _uninitialised(), torch.device(device):
            self.reference = importlib.import_module(models + "unet_2d_condition").UNet2DConditionModel(**shape)
            self.unet = importlib.import_module(models + "unet_3d").UNet3DConditionModel(
                **shape,
                in_channels=9,
                use_inflated_groupnorm=True,
                unet_use_cross_frame_attention=False,
                unet_use_temporal_attention=False,
                use_motion_module=True,
                motion_module_resolutions=(1, 2, 4, 8),
                motion_module_mid_block=True,
                motion_module_decoder_only=False,
                motion_module_type="Vanilla",
                motion_module_kwargs=MOTION | {"temporal_attention_dim_div": 1},
            )
            self.guider = importlib.import_module(models + "pose_guider").PoseGuider(widths[0], 3, GUIDER)
            self.vae = AutoencoderKL(
                down_block_types=("DownEncoderBlock2D",) * 4,
                up_block_types=("UpDecoderBlock2D",) * 4,
                block_out_channels=vae_widths,
                layers_per_block=2,
                sample_size=256,
            )
            patch = 14 if size == "sd15" else 32
            settings = CLIPVisionConfig(image_size=224, patch_size=patch, projection_dim=embedding, **clip)
            self.image_encoder = CLIPVisionModelWithProjection(settings)
        self.modules: list[Any] = [self.vae, self.image_encoder, self.reference, self.unet, self.guider]
        _fill(self.modules)
        for module in self.modules:
            module.to(device, dtype).requires_grad_(False).eval()
        temporal = importlib.import_module(models + "motion_module").VersatileAttention
        for module in (*self.reference.modules(), *self.unet.modules()):
            if isinstance(module, Attention):
                processor: Any = AttnProcessor() if isinstance(module, temporal) else AttnProcessor2_0()
                module.set_processor(processor)
        scheduler = DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="linear",
            clip_sample=False,
            steps_offset=1,
            prediction_type="v_prediction",
            rescale_betas_zero_snr=True,
            timestep_spacing="trailing",
        )
        vae, image_encoder, reference, unet, guider = self.modules
        self.pipe = importlib.import_module(pipelines).Pose2VideoPipeline(
            vae=vae,
            image_encoder=image_encoder,
            reference_unet=reference,
            denoising_unet=unet,
            pose_guider=guider,
            scheduler=scheduler,
        )

    def __call__(self, pictures: dict[str, Any], steps: int, guidance: float = GUIDANCE) -> Result:
        lists = [[Image.fromarray(frame) for frame in pictures[name]] for name in ("scene", "mask", "pose")]
        height, width = pictures["reference"].shape[:2]
        kept, decode, draw = [], self.pipe.decode_latents, self.pipe.prepare_latents

        def keep(latents: Tensor) -> Any:
            kept.append(latents)
            return decode(latents)

        def float32_noise(*shape: Any) -> Tensor:
            # In half precision other numbers come from the same seed.
            *sides, dtype, device, generator = shape
            return draw(*sides, torch.float32, device, generator).to(dtype)

        self.pipe.decode_latents, self.pipe.prepare_latents = keep, float32_noise
        try:
            video = self.pipe(
                *(Image.fromarray(pictures["reference"]), *lists, width, height, len(lists[0]), steps, guidance),
                generator=torch.manual_seed(SEED),
                context_frames=WINDOW,
                context_stride=1,
                context_overlap=OVERLAP,
                context_batch_size=1,
                interpolation_factor=1,
            ).videos
        finally:
            del self.pipe.decode_latents, self.pipe.prepare_latents
            for module in (*self.reference.modules(), *self.unet.modules()):
                # Its hooks, which it would put around themselves at the next call.
                if vars(module).pop("_original_inner_forward", None) is not None:
                    vars(module).pop("forward", None)
        frames = torch.as_tensor(video)[0].movedim(0, -1)
        return kept[0][0].transpose(0, 1).float().cpu(), (frames * 255).byte().cpu().numpy()


def ours_with(
    release: Release, layout: torch.memory_format | None = None, compile: bool = False, **settings: Any
) -> Callable[[dict[str, Any], int], Result]:
    """This project's pipeline with the release's weights, which stay where they are, but for another `layout` of
    the networks in memory. compile: as for `Pipeline.from_pretrained`; settings: of its call, in place of the
    recipe "official"."""
    widths, _, embedding, _ = SIZES[release.size]
    shape: dict[str, Any] = {
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": list(widths),
        "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
        "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
        "layers_per_block": 2,
        "attention_head_dim": 8,
        "cross_attention_dim": embedding,
        "norm_num_groups": 32,
        "norm_eps": 1e-5,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
    }
    moving = shape | {
        "in_channels": 9,
        "down_block_types": ["CrossAttnDownBlock3D"] * 3 + ["DownBlock3D"],
        "up_block_types": ["UpBlock3D"] + ["CrossAttnUpBlock3D"] * 3,
        "use_inflated_groupnorm": True,
        "use_motion_module": True,
        "motion_module_resolutions": [1, 2, 4, 8],
        "motion_module_mid_block": True,
        "motion_module_decoder_only": False,
        "motion_module_kwargs": MOTION,
    }
    guider = {
        "conditioning_channels": 3,
        "conditioning_embedding_channels": widths[0],
        "block_out_channels": list(GUIDER),
    }
    with torch.device("meta"):
        networks = Networks(
            DenoisingUNet(UNetConfig.from_dict(moving)),
            ReferenceNet(UNetConfig.from_dict(shape)),
            PoseGuider(PoseGuiderConfig.from_dict(guider)),
            copy.deepcopy(release.vae),  # whose layout the backend may change
            release.image_encoder,
        )
    pairs = (
        (networks.denoising_unet, release.unet),
        (networks.reference_unet, release.reference),
        (networks.pose_guider, release.guider),
    )
    for own, other in pairs:
        own.load_state_dict(other.state_dict(), assign=True)
        own.requires_grad_(False).eval()
    backend = TorchBackend(networks)
    if compile:
        backend.compile()
    pipe = Pipeline(backend)
    if layout is not None:
        for module in (*(own for own, _ in pairs), networks.vae):
            module.to(memory_format=layout)

    def run(pictures: dict[str, Any], steps: int, guidance: float = GUIDANCE) -> Result:
        chosen = settings or {"recipe": "official"}
        made = pipe(**pictures, steps=steps, guidance_scale=guidance, seed=SEED, **chosen)
        return made.latents, np.asarray(made.frames)

    return run


def _stand_in_for_torchvision() -> None:
    """The release wants only its ToTensor."""
    with suppress(ImportError):
        importlib.import_module("torchvision")
        return

    class ToTensor:
        def __call__(self, picture: Image.Image) -> Tensor:
            levels = torch.from_numpy(np.array(picture))
            return torch.atleast_3d(levels).movedim(-1, 0).float() / 255

    vision, transforms = types.ModuleType("torchvision"), types.ModuleType("torchvision.transforms")
    vars(transforms)["ToTensor"] = ToTensor
    vars(vision)["transforms"] = transforms
    sys.modules |= {"torchvision": vision, "torchvision.transforms": transforms}


@contextmanager
def _uninitialised() -> Iterator[None]:
    """Networks are built without the minute that their first weights take, which are replaced anyway."""
    kinds: tuple[Any, ...] = (nn.Linear, nn.modules.conv._ConvNd)
    saved = [kind.reset_parameters for kind in kinds]
    for kind in kinds:
        kind.reset_parameters = lambda self: None
    try:
        yield
    finally:
        for kind, reset in zip(kinds, saved, strict=True):
            kind.reset_parameters = reset


@torch.no_grad()
def _fill(modules: Iterable[nn.Module]) -> None:
    """Weights that keep the size of what goes through them."""
    torch.manual_seed(SEED)
    for module in modules:
        for name, weight in module.named_parameters():
            if weight.ndim >= 2:
                weight.uniform_(-1, 1).mul_(weight[0].numel() ** -0.5)
            elif name.endswith("bias"):
                weight.uniform_(-0.02, 0.02)


def pictures_of(size: tuple[int, int], frames: int) -> dict[str, Any]:
    """Noise, and a box as the mask, as `Pipeline` takes them."""
    width, height = size
    rng = np.random.default_rng(SEED)
    mask = np.zeros((frames, height, width), np.uint8)
    mask[:, height // 5 : -height // 10, width // 4 : -width // 4] = 255
    noise = rng.integers(0, 256, (2 * frames + 1, height, width, 3), dtype=np.uint8)
    return {"reference": noise[0], "scene": noise[1 : frames + 1], "mask": mask, "pose": noise[frames + 1 :]}


def apart(official: Result, ours: Result) -> str:
    """How far two results are from each other at most."""
    (latents, frames), (own_latents, own_frames) = official, ours
    share = (latents - own_latents).abs().max().item() / latents.abs().max().item()
    levels = np.abs(frames.astype(int) - own_frames).max()
    return f"latents {share:.1e} of the largest value, pictures {levels} of 255 levels"


def forget_peak(device: str) -> None:
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak(device: str) -> float:
    """The most GB that were held since `forget_peak`, the weights among them: on the card, or by this process."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 1e9
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024 / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--official", type=to_path, required=True, metavar="DIR", help="a copy of the release")
    add("--size", type=to_size, default=(256, 256), metavar="WxH")
    add("--frames", type=to_number, default=8)
    add("--steps", type=to_count, default=2)
    add("--rounds", type=to_count, default=3)
    add("--dtype", choices=tuple(DTYPES), default="fp32")
    add("--device", default="cpu")
    add("--threads", type=to_count, default=torch.get_num_threads())
    add("--networks", choices=tuple(SIZES), default="sd15", help="tiny: to try it, at 128x128 or more")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    warnings.simplefilter("ignore", FutureWarning)  # diffusers', on how the release calls it
    release = Release(args.official, args.networks, args.device, DTYPES[args.dtype])
    systems: dict[str, Callable[[dict[str, Any], int], Result]] = {"official": release, "ours": ours_with(release)}
    pictures = pictures_of(args.size, args.frames)
    seconds: dict[str, list[float]] = {name: [] for name in systems}
    busy: dict[str, list[float]] = {name: [] for name in systems}
    most: dict[str, float] = {}
    results: dict[str, Result] = {}
    warm_up = args.device == "cuda"
    for number in range(args.rounds + warm_up):
        for name in sorted(systems, reverse=number % 2 == 1):
            forget_peak(args.device)
            began, idle = time.perf_counter(), time.process_time()
            results[name] = systems[name](pictures, args.steps)
            spent, worked = time.perf_counter() - began, time.process_time() - idle
            most[name] = max(most.get(name, 0.0), peak(args.device))
            if number >= warm_up:
                seconds[name].append(spent)
                busy[name].append(worked)
                print(f"round {len(seconds[name])}, {name}: {spent:.1f} s, of the CPU {worked:.1f} s", flush=True)
    width, height = args.size
    print(
        f"{device_name(args.device)}, {args.threads} thread(s), torch {torch.__version__}, {args.dtype}, "
        f"{width}x{height}, {args.frames} frames, {args.steps} steps, guidance {GUIDANCE:g}, {args.networks}"
    )
    medians, worked_for = ({name: statistics.median(of[name]) for name in systems} for of in (seconds, busy))
    for name, median in medians.items():
        spread = f"{min(seconds[name]):.1f} to {max(seconds[name]):.1f}"
        print(f"{name:>9}: {median:.1f} s ({spread}), CPU {worked_for[name]:.1f} s, peak {most[name]:.2f} GB")
    ratio, cpu_ratio = (of["official"] / of["ours"] for of in (medians, worked_for))
    print(f"ratio {ratio:.2f}, of CPU seconds {cpu_ratio:.2f}")
    print(f"largest difference: {apart(results['official'], results['ours'])}")


if __name__ == "__main__":
    main()
