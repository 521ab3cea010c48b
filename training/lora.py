"""LoRA (Hu et al., 2021) of the denoising UNet by peft, in files that ComfyUI's LoRA loaders read.

    python -m training.lora MODEL LORA --out MERGED [--strength 1.0]

writes a model with the LoRA in its weights: a folder in the official layout, or one .safetensors file.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from anycharv_core.checkpoints.single_file import write_single
from anycharv_core.checkpoints.state_dicts import read_weights
from anycharv_core.errors import UserError
from anycharv_core.files import atomic_path, write_error
from anycharv_core.models import DenoisingUNet
from anycharv_core.systems import read_unet_checkpoint, write_folder
from training import commands
from training.config import Lora

FILE = "pytorch_lora_weights.safetensors"
PREFIX = "diffusion_model."  # the name under which ComfyUI knows every model's layers
DOWN, UP, ALPHA = ".lora_A.weight", ".lora_B.weight", ".alpha"
ADAPTER = "default"
# With one image token these have no effect (models/layers.py), so nothing could be learned there.
IDLE = (".attn2.to_q", ".attn2.to_k")


def add_lora(unet: DenoisingUNet, lora: Lora, motion: bool) -> list[nn.Parameter]:
    """Puts a LoRA, which changes nothing yet, on the layers that `lora.targets` names.

    Only its weights, float32 and returned, require a gradient afterwards. Layers of motion modules are in only
    with `motion`. The first factor is drawn from torch's global generator, which the caller seeds.

    Raises UserError where no layer has such a name, where peft is not installed, and where
    the file to start from is of other layers or another rank.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise UserError("LoRA training needs peft: pip install '.[train]'.") from None
    layers = _targets(unet, lora.targets, motion)
    alpha: Any = lora.rank if lora.alpha is None else lora.alpha  # peft takes fractions too
    unet.requires_grad_(False)
    inject_adapter_in_model(LoraConfig(r=lora.rank, lora_alpha=alpha, target_modules=layers), unet, ADAPTER)
    trained = [p for p in unet.parameters() if p.requires_grad]
    for p in trained:
        p.data = p.data.float()  # peft makes them as narrow as the frozen weights
    if lora.start is not None:
        _load(unet, Path(lora.start))
    return trained


@contextmanager
def without_lora(unet: DenoisingUNet) -> Iterator[None]:
    """The network computes meanwhile as it did before `add_lora`; nothing changes for one without a LoRA."""
    if not hasattr(unet, "peft_config"):
        yield
        return
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [module for module in unet.modules() if isinstance(module, BaseTunerLayer)]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def _targets(unet: DenoisingUNet, ends: tuple[str, ...], motion: bool) -> list[str]:
    linear = [name for name, module in unet.named_modules() if isinstance(module, nn.Linear)]
    layers = [name for name in linear if name.endswith(tuple(f".{end}" for end in ends))]
    for end in ends:
        if not any(name.endswith(f".{end}") for name in linear):
            raise UserError(f"lora.targets has '{end}', with which no linear layer's name ends; use e.g. 'to_q'.")
    return [name for name in layers if not name.endswith(IDLE) and (motion or "motion_modules." not in name)]


def lora_state_dict(unet: DenoisingUNet) -> dict[str, Tensor]:
    """The LoRA of `unet` as its file holds it: per layer two factors, float32 and on the CPU, and alpha."""
    from peft import get_peft_model_state_dict

    settings: Any = unet.peft_config
    alpha = torch.tensor(float(settings[ADAPTER].lora_alpha))
    factors = get_peft_model_state_dict(unet, adapter_name=ADAPTER)
    state = {PREFIX + key: value.detach().float().cpu().contiguous() for key, value in factors.items()}
    alphas = {key.removesuffix(UP) + ALPHA: alpha.clone() for key in state if key.endswith(UP)}
    return state | alphas


def base_state_dict(unet: DenoisingUNet) -> dict[str, Tensor]:
    """The frozen weights under the names they had before `add_lora`."""
    return {
        key.replace(".base_layer.", "."): value
        for key, value in unet.state_dict().items()
        if ".lora_A." not in key and ".lora_B." not in key
    }


def merge_lora(
    weights: Mapping[str, Tensor], lora: Mapping[str, Tensor], strength: float = 1.0
) -> dict[str, Tensor]:
    """The denoising UNet's `weights` with a LoRA's file added to them, each in its own dtype.

    Raises UserError naming the layer where the two do not fit.
    """
    merged = dict(weights)
    for layer, (down, up, scale) in _layers(lora).items():
        key = f"{layer}.weight"
        if key not in merged or merged[key].shape != (up.shape[0], down.shape[1]):
            raise UserError(
                f"The LoRA is for '{key}' of shape {(up.shape[0], down.shape[1])}: give the model that it was "
                "trained on."
            )
        delta = strength * scale * (up.float() @ down.float())
        merged[key] = (merged[key].float() + delta.to(merged[key].device)).to(merged[key].dtype)
    return merged


def _layers(lora: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor, float]]:
    """Layer name -> first factor [rank, in], second [out, rank], alpha / rank."""
    layers = {}
    for key in lora:
        if not key.startswith(PREFIX) or not key.endswith((DOWN, UP, ALPHA)):
            raise UserError(f"The LoRA file has the unknown key '{key}': give a LoRA made by this trainer.")
        if key.endswith(UP):
            name = key.removesuffix(UP)
            if name + DOWN not in lora:
                raise UserError(f"The LoRA file lacks '{name + DOWN}': it is torn; give a complete copy.")
            down, up = lora[name + DOWN], lora[key]
            rank = len(down)
            scale = float(lora.get(name + ALPHA, torch.tensor(rank))) / rank
            layers[name.removeprefix(PREFIX)] = down, up, scale
    return layers


def write_lora(lora: Mapping[str, Tensor], path: Path) -> None:
    """Writes what `lora_state_dict` gave; atomic. Raises UserError where the disk refuses."""
    with atomic_path(path) as tmp:
        try:
            save_file(dict(lora), tmp, {"format": "pt"})
        except SafetensorError as error:
            raise write_error(path, OSError(0, str(error))) from None


def _load(unet: DenoisingUNet, path: Path) -> None:
    """Goes on from a file: its factors must be of the layers and the rank that `unet` has."""
    from peft import set_peft_model_state_dict

    own, given = lora_state_dict(unet), read_weights(path)
    for key, value in own.items():
        if key not in given or given[key].shape != value.shape or (key.endswith(ALPHA) and given[key] != value):
            raise UserError(
                f"{path} does not fit the recipe's lora settings at '{key}': use the rank, alpha and "
                "targets it was trained with."
            )
    for key in given:
        if key not in own:
            raise UserError(f"{path} has '{key}', which is not among the recipe's lora targets: add it to them.")
    factors = {key.removeprefix(PREFIX): value for key, value in given.items() if not key.endswith(ALPHA)}
    set_peft_model_state_dict(unet, factors, adapter_name=ADAPTER)


def main(argv: Sequence[str] | None = None) -> int:
    parser = commands.new_parser("lora", __doc__)
    add = parser.add_argument
    add("model", help="the model it was trained on: a folder, a .safetensors file, or 'embedded'")
    add("lora", type=Path, help=f"the {FILE} that a phase with a LoRA wrote")
    add("--out", type=Path, required=True, help="folder, or name ending in .safetensors, to write the model to")
    add("--strength", type=float, default=1.0, help="factor on the LoRA, default %(default)s")
    args = parser.parse_args(argv)

    def work() -> None:
        if not args.lora.is_file():
            raise UserError(f"There is no LoRA at {args.lora}: give the {FILE} of a finished phase.")
        checkpoint = read_unet_checkpoint(args.model)
        unet = checkpoint.weights["denoising_unet"]
        checkpoint.weights["denoising_unet"] = merge_lora(unet, read_weights(args.lora), args.strength)
        write = write_single if args.out.suffix == ".safetensors" else write_folder
        write(checkpoint, args.out)

    return commands.run("lora", work, "stopped; the model is not written.")


if __name__ == "__main__":
    sys.exit(main())
