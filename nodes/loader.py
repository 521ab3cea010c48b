"""AnyCharVLoader: a model folder, a single file or an embedded model -> MODEL and its companions."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import comfy.clip_vision
import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.sd
import comfy.utils
import folder_paths
import torch
from comfy.patcher_extension import WrappersMP
from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker
from torch import Tensor, nn

from ..anycharv_core.checkpoints.check import check_dit_ends
from ..anycharv_core.checkpoints.checkpoint import Checkpoint
from ..anycharv_core.checkpoints.networks import check_keys, check_pairing, library_part, new_library_part
from ..anycharv_core.checkpoints.places import EMBEDDED
from ..anycharv_core.errors import UserError
from ..anycharv_core.jobs.precision import DTYPES
from ..anycharv_core.models import ObjectGuiderConfig, PoseGuiderConfig, UNetConfig
from ..anycharv_core.models.config import DiTConfig
from ..anycharv_core.models.dit_branches import Prompt
from ..anycharv_core.models.schedule import schedule_of
from ..anycharv_core.preprocess.cache import weights_key
from ..anycharv_core.systems import read_checkpoint
from ..anycharv_core.systems.anywhere import ANYWHERE
from .anywhere import AnywhereConfig, AnywhereModel, NativeDiT, NativeReferenceDiT
from .model import RUN, AnyCharVConfig, AnyCharVModel, NativeReferenceNet, NativeUNet, sample_as_run
from .saved import INSIDE, MAIN, origin_of, read_saved
from .types import CATEGORY, ReferenceNetType, fetching
from .vae import ClipVAE, ModuleVAE

MODELS, BASES = "anycharv", "diffusers"
NO_BASE = "none"
SD15_SCALING = 0.18215
# What the releases are used with, by the names under which the workflows offer the download.
VAE_FILE = "vae-ft-mse-840000-ema-pruned.safetensors"
ENCODER_FILE = "sd-image-variations-image-encoder.safetensors"
SD15_VAE = {"block_out_channels": [128, 256, 512, 512], "latent_channels": 4, "norm_num_groups": 32}
COGVIDEOX_VAE = SimpleNamespace(scaling_factor=0.7, block_out_channels=(128, 256, 256, 512))


def checkpoint_names() -> list[str]:
    """The embedded models, then the folders and single files under models/anycharv, by name."""
    found = set()
    for root in map(Path, folder_paths.get_folder_paths(MODELS)):
        if root.is_dir():
            # AnyCharV's denoising_unet is a folder, Animate Anyone's a file.
            folders = {path.parent for path in root.glob("*/**/denoising_unet*") if path.stem == "denoising_unet"}
            clips = {path.parent for path in root.glob("*/**/control")}
            folders |= {folder for folder in clips if ANYWHERE.layout.recognises(folder)}
            files = {p for p in root.glob("**/*.safetensors") if not folders & {*p.parents}}
            found |= {path.relative_to(root).as_posix() for path in folders | files}
    return [*EMBEDDED, *sorted(found)]


def _bases() -> dict[str, Path]:
    """The folders under models/diffusers that have a transformer, by name."""
    found: dict[str, Path] = {}
    for root in map(Path, folder_paths.get_folder_paths(BASES)):
        for config in sorted(root.glob("*/transformer/config.json")):
            found.setdefault(config.parents[1].name, config.parents[1])
    return found


def checkpoint_path(name: str) -> str:
    """Where checkpoint `name` lies; an embedded one's name is its own path.

    Only what `checkpoint_names` lists is joined to a folder: prompts sent to the server may hold any text.
    Raises UserError for other names.
    """
    if name in EMBEDDED:
        return name
    if name in checkpoint_names():
        for root in map(Path, folder_paths.get_folder_paths(MODELS)):
            if (root / name).exists():
                return str(root / name)
    raise UserError(missing_checkpoint(name))


def missing_checkpoint(name: str) -> str:
    """What to do where no checkpoint is called `name`."""
    return (
        f"models/{MODELS} holds no checkpoint '{name}': {fetching('anycharv')} for the official one, or put yours "
        "there, press R and choose it."
    )


class AnyCharVLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AnyCharVLoader",
            display_name="AnyCharV Loader",
            category=CATEGORY,
            description="Loads a checkpoint of AnyCharV, Animate Anyone, Animate Anyone 2 or AnimateAnywhere as a "
            "native MODEL with its ReferenceNet, and its VAE and image encoder where the checkpoint has them.",
            search_aliases=[
                "load anycharv",
                "character replacement",
                "animate anyone",
                "moore",
                "anychar",
                "checkpoint",
                "加载模型",
                "角色替换",
            ],
            inputs=[
                io.Combo.Input(
                    "checkpoint",
                    options=checkpoint_names(),
                    default="embedded",
                    tooltip="A folder in a system's layout or a single .safetensors file under models/anycharv; "
                    "'embedded', 'embedded-animate', 'embedded-animate2' and 'embedded-anywhere' are small models "
                    "of AnyCharV, Animate Anyone, Animate Anyone 2 and AnimateAnywhere, which know only the "
                    "puppets of AnyCharV Puppet Clip.",
                ),
                io.Combo.Input(
                    "dtype",
                    options=["auto", *DTYPES],
                    default="auto",
                    advanced=True,
                    tooltip="Precision of the weights. 'auto' lets ComfyUI choose for your device.",
                ),
                io.Combo.Input(
                    "base",
                    options=[NO_BASE, *_bases()],
                    default=NO_BASE,
                    optional=True,
                    advanced=True,
                    tooltip="For a checkpoint of AnimateAnywhere that holds only what was trained: the folder "
                    "under models/diffusers of the model it was trained on, CogVideoX1.5-5B-I2V.",
                ),
            ],
            outputs=[
                io.Model.Output(
                    tooltip="The denoising UNet with motion modules and pose guider, or AnimateAnywhere's "
                    "transformer with its ControlNet and motion learner."
                ),
                ReferenceNetType.Output(
                    display_name="REFERENCE_NET", tooltip="Reads the reference; for AnyCharV Reference Encode."
                ),
                io.Vae.Output(tooltip=f"The checkpoint's own VAE, or else {VAE_FILE} from models/vae."),
                io.ClipVision.Output(
                    tooltip=f"The checkpoint's own image encoder, or else {ENCODER_FILE} from models/clip_vision."
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, checkpoint: str) -> bool | str:
        return checkpoint in checkpoint_names() or missing_checkpoint(checkpoint)

    @classmethod
    def fingerprint_inputs(cls, checkpoint: str | None, dtype: str | None, base: str | None = NO_BASE) -> str:
        """None stands for what is wired in. Were this to raise, ComfyUI would load again in every run."""
        return files_key(checkpoint, base)

    @classmethod
    def execute(cls, checkpoint: str, dtype: str, base: str = NO_BASE) -> io.NodeOutput:
        model, reference_net, vae, clip_vision = load_checkpoint(checkpoint, dtype, base)
        if model.model.system.clips:
            title = model.model.system.title
            return io.NodeOutput(
                model,
                reference_net,
                vae
                or ExecutionBlocker(
                    f"Neither the checkpoint '{checkpoint}' nor its base has a VAE: choose as base the whole "
                    "folder of a copy of CogVideoX1.5-5B-I2V, with vae in it."
                ),
                ExecutionBlocker(
                    f"{title} has no image encoder: leave clip_vision of AnyCharV Reference Encode unwired. "
                    "AnyCharV Replace Character and AnyCharV Animate Character take no such MODEL."
                ),
            )
        return io.NodeOutput(
            model,
            reference_net,
            vae
            or _vae_of_models()
            or ExecutionBlocker(
                f"The checkpoint '{checkpoint}' has no VAE: add Load VAE with sd-vae-ft-mse and wire it instead, "
                f"or put {VAE_FILE} into models/vae."
            ),
            clip_vision
            or _encoder_of_models()
            or ExecutionBlocker(
                f"The checkpoint '{checkpoint}' has no image encoder: add Load CLIP Vision with the ViT-L "
                "encoder it was trained with (lambdalabs/sd-image-variations-diffusers) and wire it instead, or "
                f"put it into models/clip_vision as {ENCODER_FILE}."
            ),
        )


def _stand_ins() -> tuple[str | None, str | None]:
    """The VAE and the image encoder for checkpoints without their own, where they are there."""
    return folder_paths.get_full_path("vae", VAE_FILE), folder_paths.get_full_path("clip_vision", ENCODER_FILE)


def _vae_of_models() -> Any:
    path, _ = _stand_ins()
    return path and comfy.sd.VAE(sd=comfy.utils.load_torch_file(path))


def _encoder_of_models() -> Any:
    _, path = _stand_ins()
    return path and comfy.clip_vision.load(path)


def files_key(name: Any, base: Any) -> str:
    """Places, names, sizes and times of the files that AnyCharVLoader may take weights from.

    name, base: the Loader's `checkpoint` and `base`; "" where the name is wired in, so that it is not known before
    the run. What is wrong with them is left to loading: this raises nothing.
    """
    keys = []
    for path in files_of(name, base) if isinstance(name, str) else []:
        with suppress(OSError):  # it has gone meanwhile
            keys.append((str(path), weights_key(path)))
    return str(keys) if keys else ""


def files_of(name: str, base: Any) -> list[Path]:
    """The files and folders that weights of the checkpoint `name` may come from: its own, those of the checkpoint
    that Save Model had it from, its base, and what stands in for a VAE and an image encoder."""
    found = []
    with suppress(UserError, OSError):
        found.append(Path(checkpoint_path(name)))
        origin = origin_of(found[0])
        if origin is not None:
            found.append(Path(checkpoint_path(origin)))
    found = [EMBEDDED.get(str(path), path) for path in found]
    found += [path for key, path in _bases().items() if key == base]
    return found + [Path(path) for path in _stand_ins() if path]


def load_checkpoint(name: str, dtype: str, base: str = NO_BASE) -> tuple[Any, Any, Any, Any]:
    """MODEL, reference net, and VAE and CLIP_VISION or None, for the checkpoint `name`.

    dtype: "auto" or a key of DTYPES; base: the name of a folder under models/diffusers, or NO_BASE. Raises
    UserError where it is not a sound checkpoint, or has another base.
    """
    path = checkpoint_path(name)
    saved = read_saved(Path(path))
    if saved is not None and saved.origin not in checkpoint_names():
        raise UserError(
            f"{path} holds the MODEL of the checkpoint '{saved.origin}' alone: put that checkpoint back under "
            f"models/{MODELS}, too, and press R."
        )
    bases = _bases()
    if base != NO_BASE and base not in bases:
        raise UserError(f"There is no base '{base}' under models/{BASES}: put it there and press R.")
    checkpoint = read_checkpoint(path if saved is None else checkpoint_path(saved.origin), bases.get(base))
    main = "transformer" if checkpoint.is_dit else MAIN
    if saved is not None:
        checkpoint.weights |= {main if part == MAIN else part: own for part, own in saved.weights.items()}
    device = comfy.model_management.get_torch_device()
    parameters = sum(weight.numel() for weight in checkpoint.weights[main].values())
    precision = _precision(dtype, device, parameters, checkpoint.is_dit)
    if checkpoint.is_dit:
        vae = _clip_vae(checkpoint)
        model = _clip_model(checkpoint, vae, device, *precision)
        parts = model, _reference_dit(checkpoint, device, *precision), vae, None
    else:
        model, reference_net = (make(checkpoint, device, *precision) for make in (_model, _reference_net))
        network = model.model.diffusion_model
        check_pairing(network, reference_net.model, network.pose_guider)
        parts = model, reference_net, _vae(checkpoint), _clip_vision(checkpoint)
    model.model.origin = name if saved is None else saved.origin
    return parts


def _precision(
    name: str, device: torch.device, parameters: int, transformer: bool
) -> tuple[torch.dtype, torch.dtype | None]:
    # CogVideoX was trained in bfloat16, whose range float16 does not have.
    formats = [torch.bfloat16, torch.float32] if transformer else [torch.float16, torch.bfloat16, torch.float32]
    management = comfy.model_management
    chosen = DTYPES.get(name) or management.unet_dtype(device, parameters, supported_dtypes=formats)
    return chosen, management.unet_manual_cast(chosen, device, formats)


def _model(
    checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype, manual_cast: torch.dtype | None
) -> Any:
    configs = checkpoint.configs
    guider = PoseGuiderConfig.from_dict(configs["pose_guider"])
    objects = configs.get("object_guider")
    scaling = configs.get("vae", {}).get("scaling_factor", SD15_SCALING)
    config = AnyCharVConfig(
        UNetConfig.from_dict(configs["denoising_unet"]),
        guider,
        schedule_of(checkpoint.settings),
        scaling,
        2 ** (len(guider.block_out_channels) - 1),
        None if objects is None else ObjectGuiderConfig.from_dict(objects),
    )
    config.set_inference_dtype(dtype, manual_cast)
    plain = partial(NativeUNet, **config.unet_config)
    model = AnyCharVModel(config, checkpoint.settings, comfy.model_management.unet_offload_device())
    return _patcher(model, checkpoint, MAIN, plain, device, dtype)


def _clip_model(
    checkpoint: Checkpoint, vae: Any, device: torch.device, dtype: torch.dtype, manual_cast: torch.dtype | None
) -> Any:
    check_dit_ends(checkpoint.configs)
    configs, codec = checkpoint.configs, COGVIDEOX_VAE if vae is None else vae.first_stage_model.module.config
    config = AnywhereConfig(
        DiTConfig.from_dict(configs["transformer"]),
        configs["control"]["blocks"],
        configs["bml"]["rank"] if "bml" in checkpoint.weights else None,
        schedule_of(checkpoint.settings),
        codec.scaling_factor,
        2 ** (len(codec.block_out_channels) - 1),
    )
    config.set_inference_dtype(dtype, manual_cast)
    plain = partial(NativeDiT, **config.unet_config)
    offload = comfy.model_management.unet_offload_device()
    model = AnywhereModel(config, checkpoint.settings, offload, _prompt(checkpoint))
    return _patcher(model, checkpoint, "transformer", plain, device, dtype)


def _prompt(checkpoint: Checkpoint) -> Tensor:
    cfg = DiTConfig.from_dict(checkpoint.configs["transformer"])
    prompt = Prompt(cfg)
    check_keys("prompt", prompt, checkpoint.weights["prompt"])
    prompt.load_state_dict(checkpoint.weights["prompt"])
    return prompt()


def _patcher(
    model: Any,
    checkpoint: Checkpoint,
    main: str,
    plain: Callable[..., nn.Module],
    device: torch.device,
    dtype: torch.dtype,
) -> Any:
    """MODEL, with the weights of the part `main` and of those inside it; plain: as `_fill` takes it."""
    _show_latents(model.latent_format, checkpoint)
    offload = comfy.model_management.unet_offload_device()
    patcher = comfy.model_patcher.CoreModelPatcher(model, load_device=device, offload_device=offload)
    patcher.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, RUN, sample_as_run)
    weights = checkpoint.weights[main] | {
        f"{part}.{key}": value for part in INSIDE for key, value in checkpoint.weights.get(part, {}).items()
    }
    _fill(main, plain, model.diffusion_model, weights, dtype, patcher)
    return patcher


def _show_latents(latents: Any, checkpoint: Checkpoint) -> None:
    """Lets ComfyUI's previews show a codec's latents, in which a latent pixel's mean colour is linear."""
    own = checkpoint.weights.get("vae", {})
    if "synthesis.weight" in own:
        colours = own["synthesis.weight"].float().flatten(2).mean(dim=2)
        latents.latent_rgb_factors = (colours / latents.scale_factor).tolist()
        latents.latent_rgb_factors_bias = own["synthesis.bias"].tolist()


def _reference_net(
    checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype, manual_cast: torch.dtype | None
) -> Any:
    config = UNetConfig.from_dict(checkpoint.configs["reference_unet"])
    build = partial(NativeReferenceNet, config)
    return _reference(checkpoint, "reference_unet", build, device, dtype, manual_cast)


def _reference_dit(
    checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype, manual_cast: torch.dtype | None
) -> Any:
    cfg, blocks = DiTConfig.from_dict(checkpoint.configs["transformer"]), checkpoint.configs["reference"]["blocks"]
    build = partial(NativeReferenceDiT, cfg, blocks, _prompt(checkpoint))
    return _reference(checkpoint, "reference", build, device, dtype, manual_cast)


def _reference(
    checkpoint: Checkpoint,
    part: str,
    network: Callable[..., nn.Module],
    device: torch.device,
    dtype: torch.dtype,
    manual_cast: torch.dtype | None,
) -> Any:
    """The patcher of the part that reads the reference."""
    offload = comfy.model_management.unet_offload_device()
    operations = comfy.ops.pick_operations(dtype, manual_cast, device)
    build = partial(network, dtype=dtype, compute_dtype=manual_cast or dtype)
    module = build(device=offload, operations=operations)
    patcher = comfy.model_patcher.CoreModelPatcher(module, load_device=device, offload_device=offload)
    _fill(part, build, module, checkpoint.weights[part], dtype, patcher)
    return patcher


def _fill(
    part: str,
    build: Callable[..., nn.Module],
    module: nn.Module,
    weights: dict[str, Tensor],
    dtype: torch.dtype,
    patcher: Any,
) -> None:
    """build(device=, operations=) makes what `module` is."""
    # With dynamic VRAM ComfyUI's layers make no weights before some are loaded: torch's own say which there are.
    with torch.device("meta"):
        check_keys(part, build(device=torch.device("meta"), operations=nn), weights)
    # Positional encodings stay float32, as in the files.
    stored = {k: v if k.endswith(".pe") else v.to(dtype) for k, v in weights.items()}
    module.load_state_dict(stored, assign=patcher.is_dynamic())
    module.requires_grad_(False).train(False)


def _vae(checkpoint: Checkpoint) -> Any:
    if "vae" not in checkpoint.weights:
        return None
    config, weights = checkpoint.configs["vae"], checkpoint.weights["vae"]
    if all(config.get(key) == value for key, value in SD15_VAE.items()):
        return comfy.sd.VAE(sd=dict(weights))
    module = library_part("vae", config, weights)
    module.load_state_dict({key: value.float() for key, value in weights.items()})
    return ModuleVAE(module.requires_grad_(False).train(False))


def _clip_vae(checkpoint: Checkpoint) -> Any:
    if "vae" not in checkpoint.weights:
        return None
    module = library_part("vae", checkpoint.configs["vae"], checkpoint.weights["vae"])
    module.load_state_dict(checkpoint.weights["vae"])
    return ClipVAE(module.requires_grad_(False).train(False))


def _clip_vision(checkpoint: Checkpoint) -> Any:
    if "image_encoder" not in checkpoint.weights:
        return None
    config, weights = checkpoint.configs["image_encoder"], checkpoint.weights["image_encoder"]
    with torch.device("meta"):  # as in `_fill`
        check_keys("image_encoder", new_library_part("image_encoder", config), weights)
    # ComfyUI reads every size from the configuration, and leaves out what CLIP's has as a default.
    encoder = comfy.clip_vision.ClipVisionModel(
        {
            "num_channels": 3,
            "hidden_act": "quick_gelu",
            "patch_size": 32,
            "image_size": 224,
            **config,
            "model_type": "clip_vision_model",
        }
    )
    if encoder.load_device.type == "cpu":
        encoder.model.float()  # ComfyUI stores encoders in half precision even where nothing runs in it
    encoder.load_sd(dict(weights))
    return encoder
