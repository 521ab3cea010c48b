"""Published weight files of other projects, renamed to this project's names.

Every function takes the tensors of one file and gives those this project has a place for; names of the sources are
those of Stable Diffusion 1.5 (CompVis), diffusers and ControlNet. AnimateDiff's are ours (see state_dicts.py).
"""

from __future__ import annotations

import re
from pathlib import Path

from anycharv_core.checkpoints.checkpoint import Weights
from anycharv_core.checkpoints.folders import weights_file
from anycharv_core.errors import UserError

LDM_PREFIX = "model.diffusion_model."
HINT = "input_hint_block."
EMBEDDING = "controlnet_cond_embedding."
_LDM_ENDS = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
_LDM_RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}


def find_weights(path: Path, part: str | None = None) -> Path:
    """The weights that `path` means: itself, the only weights of a folder, or those of its subfolder `part`.

    Raises UserError where there are none.
    """
    if path.is_file():
        return path
    for folder in (path / part, path) if part else (path,):
        found = weights_file(folder)
        if found is not None:
            return found
    raise UserError(f"{path} has no weights: give a .safetensors, .ckpt, .pth or .bin file, or a folder.")


def unet_weights(weights: Weights, layers: int, path: Path) -> Weights:
    """A Stable Diffusion UNet in diffusers' names, out of diffusers' own or a CompVis checkpoint's.

    layers: the UNet's `layers_per_block`. Raises UserError naming `path` for anything else.
    """
    if "conv_in.weight" in weights:
        return weights
    renamed = {
        ldm_name(key.removeprefix(LDM_PREFIX), layers): value
        for key, value in weights.items()
        if key.startswith(LDM_PREFIX)
    }
    if "conv_in.weight" not in renamed:
        raise UserError(
            f"{path} is no Stable Diffusion UNet (it has neither 'conv_in.weight' nor "
            f"'{LDM_PREFIX}input_blocks.0.0.weight')."
        )
    return renamed


def ldm_name(key: str, layers: int) -> str:
    """A UNet key of a CompVis checkpoint, without its prefix -> the name that diffusers gives it.

    There the blocks are numbered through: `layers` resnets and a downsampler per level going down, layers + 1
    resnets going up, the last of a level followed by the upsampler. An unknown key comes back as it is.
    """
    for old, new in _LDM_ENDS.items():
        if key.startswith(f"{old}."):
            return new + key.removeprefix(old)
    kind, _, rest = key.partition(".")
    if kind == "middle_block":
        number, _, rest = rest.partition(".")
        return f"mid_block.{('resnets.0', 'attentions.0', 'resnets.1')[int(number)]}.{_inner(rest)}"
    if kind not in ("input_blocks", "output_blocks"):
        return key
    block, place, rest = rest.split(".", 2)
    down = kind == "input_blocks"
    level, layer = divmod(int(block) - down, layers + 1)
    side = "down_blocks" if down else "up_blocks"
    if rest.startswith(("op.", "conv.")):
        sampler = "downsamplers" if down else "upsamplers"
        return f"{side}.{level}.{sampler}.0.conv.{rest.partition('.')[2]}"
    return f"{side}.{level}.{'resnets' if place == '0' else 'attentions'}.{layer}.{_inner(rest)}"


def _inner(key: str) -> str:
    module, _, end = key.rpartition(".")
    return f"{_LDM_RESNET[module]}.{end}" if module in _LDM_RESNET else key


def guider_weights(weights: Weights, path: Path) -> Weights:
    """The part of a ControlNet that takes the picture in, as a pose guider's weights.

    Raises UserError naming `path` when there is none.
    """
    renamed: Weights = {}
    # ControlNet's own file numbers the convolutions 0, 2, ... with the activations between them.
    hints = [int(m[1]) for key in weights if (m := re.search(rf"{re.escape(HINT)}(\d+)\.weight$", key))]
    for key, value in weights.items():
        if key.startswith(EMBEDDING):
            renamed[key.removeprefix(EMBEDDING)] = value
        elif HINT in key:
            number, _, end = key.partition(HINT)[2].partition(".")
            place = int(number)
            names = {0: "conv_in", max(hints): "conv_out"}
            renamed[f"{names.get(place, f'blocks.{place // 2 - 1}')}.{end}"] = value
    if not renamed:
        raise UserError(f"{path} is no ControlNet: it has neither '{EMBEDDING}*' nor '{HINT}*'.")
    return renamed
