"""Where a training starts: networks with weights from published files (paper 4.1, "initialized from").

A recipe's `init` names the files; what none of them gives starts fresh, and how much came from where is said.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anycharv_core.checkpoints.checkpoint import HUB_PARTS, LIBRARY_PARTS, Checkpoint, Weights
from anycharv_core.checkpoints.folders import read_library_part
from anycharv_core.checkpoints.networks import Networks, check_keys, check_pairing, untrained
from anycharv_core.checkpoints.recognise import motion_weights
from anycharv_core.checkpoints.state_dicts import read_training_weights
from anycharv_core.errors import UserError
from anycharv_core.foreign import read_json
from anycharv_core.models import UNetConfig
from anycharv_core.models.schedule import SCHEDULER, NoiseSchedule, schedule_of
from anycharv_core.models.unet import UNet
from anycharv_core.systems import read_unet_checkpoint, system_of
from anycharv_core.systems.animate_anyone import SD15, motion_additions
from anycharv_core.systems.anycharv import ANYCHARV
from training.config import Init
from training.start.layouts import find_weights, guider_weights, unet_weights

GUIDER = {"conditioning_channels": 3, "block_out_channels": [16, 32, 96, 256]}  # ControlNet's
MOTION_LENGTH = 32
ADDED = re.compile(r"(^|\.)(blendings|depth_modulation)\.")  # Animate Anyone 2's own weights
HEADS_OUT = ("conv_norm_out.", "conv_out.")  # what a ReferenceNet has no use for


@dataclass(frozen=True)
class Start:
    """What one network starts with: weights, and for each kind of origin how many tensors."""

    weights: Weights
    origins: dict[str, int]


def initialise(
    files: Init,
    networks: Mapping[str, Mapping[str, Any]] | None,
    say: Callable[[str], None] = print,
    schedule: NoiseSchedule = NoiseSchedule(),
) -> tuple[Networks, dict[str, dict[str, Any]]]:
    """The networks of a recipe, float32, frozen, and the config of every part, as a checkpoint stores it.

    schedule: what the recipe trains with, which must be that of `files.model`.
    networks: config per part; parts that it lacks get theirs from the files. Where no file gives a weight, it is
    torch's own initialisation by the global generator, which the caller seeds, but for what must begin as nothing:
    the scene and mask channels of `conv_in`, the output of every motion module and of the pose guider, and
    `conv_out` of a denoising UNet without a file. `say` gets a line per network: how many weights from where.

    Raises UserError naming the file and the key where a file is not what it should be or does not fit the configs.
    """
    configs = {part: dict(config) for part, config in (networks or {}).items()}
    given = _files_of_model(files, configs, schedule)
    add_settings(files, configs)
    _library_parts(files, configs, given)
    motion = _motion(files, configs)
    unets = _unets(files, configs, motion)
    guider = _guider(files, configs)
    add_settings(files, configs)

    nets = untrained(configs)
    _start_at_zero(nets, fresh_output=files.unet is None)
    check_pairing(nets.denoising_unet, nets.reference_unet, nets.pose_guider)
    parts = {name: module for name, module in vars(nets).items() if module is not None}
    starts: dict[str, list[Start]] = {}
    for part, (source, weights) in given.items():
        check_keys(part, parts[part], weights, _added(parts[part], files))
        learned = sum(not key.endswith(".pe") for key in weights)
        starts[part] = [Start(weights, {source: learned})]
    for part, (path, weights) in unets.items():
        starts.setdefault(part, []).append(_unet_start(parts[part], part, weights, path))
    if motion is not None:
        starts.setdefault("denoising_unet", []).append(_motion_start(parts["denoising_unet"], *motion))
    if guider is not None:
        starts.setdefault("pose_guider", []).append(_guider_start(parts["pose_guider"], *guider))
    for part, module in parts.items():
        say(_load(part, module, starts.get(part, [])))
        module.requires_grad_(False).train(False)
    return nets, configs


def add_settings(init: Init, configs: dict[str, dict[str, Any]]) -> None:
    """Lays `init.additions` over the configs that are there; the object guider's is an addition as a whole."""
    for part, added in (init.additions or {}).items():
        if part in configs or part == "object_guider":
            configs[part] = configs.get(part, {}) | added


def _added(module: nn.Module, init: Init) -> set[str]:
    """Keys that files of other systems lack, where settings were added."""
    names = module.state_dict() if init.additions else ()
    return {key for key in names if ADDED.search(key)}


def check_schedule(path: str, checkpoint: Checkpoint, schedule: NoiseSchedule) -> None:
    """Raises UserError where the model at `path` was made with another noise schedule than a recipe's."""
    own = schedule_of(checkpoint.settings)
    if own != schedule:
        raise UserError(
            f"{path} was made with another noise schedule than the recipe's: write {SCHEDULER}: "
            f"{own.to_dict()} under the recipe's settings."
        )


def _files_of_model(
    init: Init, configs: dict[str, dict[str, Any]], schedule: NoiseSchedule
) -> dict[str, tuple[str, Weights]]:
    """The parts of `init.model`; its configs win where the recipe has none, and must agree where it has."""
    if init.model is None:
        return {}
    checkpoint = read_unet_checkpoint(init.model)
    check_schedule(init.model, checkpoint, schedule)
    config, weights = checkpoint.configs["denoising_unet"], checkpoint.weights["denoising_unet"]
    if init.scene not in (None, system_of(config).reads_scene):
        latent = config["out_channels"]
        new = ANYCHARV.in_channels(latent) - latent if init.scene else 0
        checkpoint.configs["denoising_unet"] = {**config, "in_channels": latent + new}
        weights["conv_in.weight"] = F.pad(weights["conv_in.weight"][:, :latent], (0, 0, 0, 0, 0, new))
    for part, config in checkpoint.configs.items():
        configs.setdefault(part, dict(config))
    return {part: (str(init.model), weights) for part, weights in checkpoint.weights.items()}


def _library_parts(init: Init, configs: dict[str, dict[str, Any]], given: dict[str, tuple[str, Weights]]) -> None:
    for part in LIBRARY_PARTS:
        folder = getattr(init, part)
        if folder is not None:
            configs[part], weights = read_library_part(part, Path(folder))
            given[part] = (str(folder), weights)
        elif part not in configs:
            raise UserError(
                f"Neither the recipe's networks nor its init has a {part}: set init.{part} to the folder of a "
                f"copy of {HUB_PARTS[part]}."
            )


def _motion(init: Init, configs: dict[str, dict[str, Any]]) -> tuple[Path, Weights] | None:
    if init.motion is None:
        return None
    path = find_weights(Path(init.motion))
    return path, motion_weights(read_training_weights(path), path)


def _unets(
    init: Init, configs: dict[str, dict[str, Any]], motion: tuple[Path, Weights] | None
) -> dict[str, tuple[Path, Weights]]:
    """Weights of both UNets in our names, and their configs where the recipe has none."""
    found: dict[str, tuple[Path, Weights]] = {}
    for part, source in (("denoising_unet", init.unet), ("reference_unet", init.reference_unet or init.unet)):
        if source is None:
            if part not in configs:
                raise UserError(
                    f"Neither the recipe's networks nor its init has a {part}: set init.unet to Stable Diffusion "
                    "1.5 or init.model to an AnyCharV model."
                )
            continue
        path = find_weights(Path(source), "unet")
        base = _base_config(path, configs.get(part))
        found[part] = path, unet_weights(read_training_weights(path), base["layers_per_block"], path)
        if part == "denoising_unet":
            scene = init.scene is not False
            configs.setdefault(part, denoising_config(base, motion and motion[1], scene))
        else:
            configs.setdefault(part, reference_config(base))
    return found


def _base_config(path: Path, config: Mapping[str, Any] | None) -> Mapping[str, Any]:
    beside = path.with_name("config.json")
    if config is not None:
        return config
    if not beside.is_file():
        return SD15
    base = read_json(beside)
    UNetConfig.from_dict(base, str(beside))  # what is read of it below is there, and of its type
    return base


def reference_config(base: Mapping[str, Any]) -> dict[str, Any]:
    """A ReferenceNet's config.json for the UNet config of Stable Diffusion 1.5."""
    return {**_plain(base), "_class_name": "UNet2DConditionModel"}


def denoising_config(base: Mapping[str, Any], motion: Weights | None, scene: bool = True) -> dict[str, Any]:
    """The denoising UNet's config.json for the UNet config of Stable Diffusion 1.5 and a motion file's weights.

    scene: whether it takes scene and mask beside the noisy latents.
    Motion modules have as many positions and a middle one where the file has them; 32 and one without a file.
    """
    codes = [value for key, value in (motion or {}).items() if key.endswith(".pe")]
    mid = not motion or any(key.startswith("mid_block.") for key in motion)
    return {
        **{key: _in_3d(value) for key, value in _plain(base).items()},
        "_class_name": "UNet3DConditionModel",
        "in_channels": 2 * base["out_channels"] + 1 if scene else base["out_channels"],
        "mid_block_type": "UNetMidBlock3DCrossAttn",
        **motion_additions(mid, codes[0].shape[1] if codes else MOTION_LENGTH),
        "use_inflated_groupnorm": True,
        "motion_module_resolutions": [2**i for i in range(len(base["block_out_channels"]))],
    }


def _plain(base: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in base.items() if key in SD15}


def _in_3d(value: Any) -> Any:
    if isinstance(value, list) and isinstance(value[0], str):
        return [kind.replace("2D", "3D") for kind in value]
    return value


def _guider(init: Init, configs: dict[str, dict[str, Any]]) -> tuple[Path, Weights] | None:
    width = UNetConfig.from_dict(configs["denoising_unet"], "networks.denoising_unet").block_out_channels[0]
    configs.setdefault("pose_guider", {**GUIDER, "conditioning_embedding_channels": width})
    if init.pose_guider is None:
        return None
    path = find_weights(Path(init.pose_guider))
    return path, guider_weights(read_training_weights(path), path)


def _start_at_zero(nets: Networks, fresh_output: bool) -> None:
    """New motion modules and a new pose guider change nothing at first (AnimateDiff, ControlNet)."""
    unet = nets.denoising_unet
    modules = [m.proj_out for name, m in unet.named_modules() if name.endswith("temporal_transformer")]
    for module in (*modules, nets.pose_guider.conv_out, *([unet.conv_out] if fresh_output else ())):
        nn.init.zeros_(module.weight)
        nn.init.zeros_(module.bias)


def _unet_start(module: UNet, part: str, weights: Weights, path: Path) -> Start:
    """Stable Diffusion's weights for either UNet; the first convolution is widened by zeros."""
    weights, unused = dict(weights), 0
    if part == "reference_unet":
        unused = sum(key.startswith(HEADS_OUT) for key in weights)
        weights = {key: value for key, value in weights.items() if not key.startswith(HEADS_OUT)}
    expected = {
        key: value
        for key, value in module.state_dict().items()
        if "motion_modules." not in key and not ADDED.search(key)
    }
    first = weights["conv_in.weight"]
    latent = module.cfg.out_channels
    if first.shape[1] != latent:
        raise UserError(
            f"{path} takes {first.shape[1]} channels, but the start must be a plain text-to-image UNet of "
            f"{latent}: neither an inpainting nor an edit model."
        )
    origins = {f"{path}": len(weights)}
    wanted = expected["conv_in.weight"].shape[1]
    if wanted > latent:
        # Noisy latents come first; the scene and the mask behind them begin as nothing.
        weights["conv_in.weight"] = torch.cat([first, first.new_zeros(len(first), wanted - latent, 3, 3)], dim=1)
        origins[f"conv_in has {wanted - latent} new input channels, zero"] = 0
    if unused:
        origins[f"{unused} of its output layers left out"] = 0
    _check(part, path, weights, expected)
    return Start(weights, origins)


def _motion_start(unet: UNet, path: Path, weights: Weights) -> Start:
    """AnimateDiff's weights; position codes, which are a table and not learned, are this network's own."""
    expected = {key: value for key, value in unet.state_dict().items() if "motion_modules." in key}
    codes = [key for key in weights if key.endswith(".pe")]
    for key in codes:
        _check_code(path, key, weights[key], expected.get(key))
    learned = {key: value for key, value in weights.items() if key not in codes}
    has_middle = any(key.startswith("mid_block.") for key in learned)
    wanted = {
        key: value
        for key, value in expected.items()
        if not key.endswith(".pe") and (has_middle or not key.startswith("mid_block."))
    }
    _check("denoising_unet's motion", path, learned, wanted)
    origins = {f"{path}": len(learned)}
    positions, motion = min((weights[key].shape[1] for key in codes), default=0), unet.cfg.motion
    if motion is not None and 0 < positions < motion.max_len:
        origins[f"positions {positions} to {motion.max_len - 1} were never trained there"] = 0
    return Start(learned, origins)


def _check_code(path: Path, key: str, code: Tensor, own: Tensor | None) -> None:
    """Raises UserError where a file's table of positions is not the sinusoids that the network adds."""
    if own is None:
        return  # its module is missing too, which is said of its weights
    length = min(code.shape[1], own.shape[1])
    if code.shape[2:] != own.shape[2:] or (code[:, :length].float() - own[:, :length]).abs().max() > 0.02:
        raise UserError(
            f"{path} has other position codes in '{key}' than AnimateDiff's sinusoids: its motion modules cannot "
            "be used here."
        )


def _guider_start(guider: nn.Module, path: Path, weights: Weights) -> Start:
    """A ControlNet's first layers; the last one begins as nothing, since what reads it is another network."""
    kept = {key: value for key, value in weights.items() if not key.startswith("conv_out.")}
    wanted = {
        key: value
        for key, value in guider.state_dict().items()
        if not key.startswith("conv_out.") and not ADDED.search(key)
    }
    _check("pose_guider", path, kept, wanted)
    return Start(kept, {f"{path}": len(kept), "conv_out begins at zero": 0})


def _check(what: str, path: Path, weights: Weights, expected: Mapping[str, Tensor]) -> None:
    """Raises UserError naming the file and the first key that is missing, left over or of another shape."""
    for key in expected:
        if key not in weights:
            raise UserError(f"{path} lacks '{key}', which the {what} needs: it is another model's file.")
    for key, value in weights.items():
        if key not in expected:
            raise UserError(f"{path} has '{key}', for which the {what} of the recipe has no place.")
        if value.shape != expected[key].shape:
            raise UserError(
                f"{path}: '{key}' has shape {tuple(value.shape)}, but the {what} of the recipe asks for "
                f"{tuple(expected[key].shape)}."
            )


def _load(part: str, module: nn.Module, starts: list[Start]) -> str:
    """Puts the weights in, later starts over earlier ones; the line that says where they are from."""
    weights = {key: value for start in starts for key, value in start.weights.items()}
    module.load_state_dict(weights, strict=False)
    learned = [key for key in module.state_dict() if not key.endswith(".pe")]
    fresh = sum(key not in weights for key in learned)
    parts = [f"{count} from {name}" if count else name for s in starts for name, count in s.origins.items()]
    parts += [f"{fresh} new"] if fresh else []
    return f"{part}: {len(learned)} weights: {'; '.join(parts)}"
