"""What a training would do: `--dry-run`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from anycharv_core.checkpoints.checkpoint import DIT_PARTS, LIBRARY_PARTS, UNET_PARTS
from anycharv_core.checkpoints.dit_networks import untrained_dit
from anycharv_core.checkpoints.networks import Networks, untrained
from anycharv_core.checkpoints.places import EMBEDDED
from anycharv_core.errors import UserError
from anycharv_core.foreign import read_json
from anycharv_core.systems.animate_anyone import SD15
from training import networks
from training.config import DIFFUSION, Config, Data, Init, Phase
from training.data.sources import open_dataset
from training.memory import dit_memory, phase_memory
from training.start.dit import dit_configs
from training.start.initialise import GUIDER, add_settings, denoising_config, reference_config
from training.trainee import choose_trained, copied, trained_parameters

ASSUMED = (576, 1024)  # pixels, where the shards' own sizes are taken
# What the config.json of the published VAE and image encoder say about their sizes.
PUBLISHED: dict[str, dict[str, Any]] = {
    "vae": {
        "block_out_channels": [128, 256, 512, 512],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "latent_channels": 4,
        "layers_per_block": 2,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
    },
    "image_encoder": {
        "hidden_size": 1024,
        "image_size": 224,
        "intermediate_size": 4096,
        "num_attention_heads": 16,
        "num_hidden_layers": 24,
        "patch_size": 14,
        "projection_dim": 768,
    },
}


# What CogVideoX1.5-5B-I2V's configs say, as far as it is read.
COGVIDEOX: dict[str, Any] = {
    "num_attention_heads": 48,
    "attention_head_dim": 64,
    "in_channels": 32,
    "out_channels": 16,
    "num_layers": 42,
    "time_embed_dim": 512,
    "ofs_embed_dim": 512,
    "text_embed_dim": 4096,
    "max_text_seq_length": 226,
    "patch_size": 2,
    "patch_size_t": 2,
    "patch_bias": False,
    "sample_height": 300,
    "sample_width": 300,
    "sample_frames": 81,
    "use_rotary_positional_embeddings": True,
}
COGVIDEOX_VAE: dict[str, Any] = {
    "_class_name": "AutoencoderKLCogVideoX",
    "block_out_channels": [128, 256, 256, 512],
    "latent_channels": 16,
    "scaling_factor": 0.7,
    "invert_scale_latents": True,
}


def placed(data: Data, out: Path) -> Data:
    """The data, their path in the run's folder where a phase makes them."""
    return data if data.made_by is None else replace(data, path=str(out / data.made_by))


def describe(config: Config, out: Path, only: str | None = None) -> None:
    """Prints steps, trained parameters, memory and data counts of all phases, or of `only` one; writes nothing.

    Where files of `init` are missing it says what it goes by instead. Raises UserError where those that are there
    do not fit, and for what is wrong with the config.
    """
    configs = _configs(config)
    for name, phase in config.phases.items():
        if only not in (None, name):
            continue
        if phase.task == "pairs":
            print(f"{name}: makes {phase.pairs.pairs:,} pairs of {phase.frames} frames")
            print(f"  data: {_data(phase, out, phase.pairs.pairs)}")
            continue
        print(f"{name}: {phase.task}, {phase.steps} steps of {phase.batch} clips of {phase.frames} frames")
        if phase.task in DIFFUSION and configs is not None:
            with torch.device("meta"):
                nets = untrained_dit(configs) if config.is_dit else untrained(configs)
                choose_trained(nets, phase)
            count = sum(p.numel() for _, p in trained_parameters(nets))
            print(f"  trains {count:,} parameters: {'a LoRA' if phase.lora else ', '.join(phase.train)}")
            print(f"  memory, one card: {_memory(config, phase, configs)}")
        print(f"  data: {_data(phase, out, phase.steps * phase.batch)}")


def _configs(config: Config) -> networks.Configs | None:
    """The config of every part; None, which is said, where it can't be known."""
    missing = missing_files(config.init)
    if not missing:
        return networks.build(config, [], print)[1]
    named = ", ".join(f"init.{key} ({path})" for key, path in missing.items())
    configs = known_configs(config)
    wanted = DIT_PARTS if config.is_dit else UNET_PARTS
    lacking = [part for part in (*wanted.networks, *wanted.library) if part not in configs]
    if lacking:
        print(
            f"Parameters and memory are not computed, because the size of {', '.join(lacking)} is known only from "
            f"files that are not there: {named}."
        )
        return None
    print(f"Not there yet: {named}; parameters and memory are computed from the recipe and the published sizes.")
    return configs


def missing_files(init: Init) -> dict[str, str]:
    """The paths of `init` that do not exist, by key."""
    return {key: path for key, path in init.files().items() if path not in EMBEDDED and not Path(path).exists()}


def known_configs(config: Config) -> networks.Configs:
    """The config of every part of which it is known without the files: as `networks` has it, or that of the
    published model where `init` names its file. A model to fine-tune, which may be of any size, is taken for one
    of the published size where the published VAE and image encoder are named beside it."""
    if config.is_dit:
        return {"transformer": COGVIDEOX, "vae": COGVIDEOX_VAE} | dit_configs(config.init, config.networks)
    init, configs = config.init, dict(config.networks or {})
    tuned = init.model is not None and None not in (init.vae, init.image_encoder)
    if tuned or init.unet is not None:
        configs.setdefault("denoising_unet", denoising_config(SD15, None, init.scene is not False))
    if tuned or init.unet is not None or init.reference_unet is not None:
        configs.setdefault("reference_unet", reference_config(SD15))
    for part in LIBRARY_PARTS:
        folder = getattr(init, part)
        if folder is not None:
            own = Path(folder) / "config.json"
            configs[part] = read_json(own) if own.is_file() else PUBLISHED[part]
    if (tuned or init.model is None) and "denoising_unet" in configs:
        width = configs["denoising_unet"]["block_out_channels"][0]
        configs.setdefault("pose_guider", {**GUIDER, "conditioning_embedding_channels": width})
    add_settings(init, configs)
    return configs


def _memory(config: Config, phase: Phase, configs: networks.Configs) -> str:
    size, clips = phase.data.size or ASSUMED, phase.batch // phase.accumulate
    precision = "fp32" if config.engine.precision == "fp32" else "bf16"
    if config.is_dit:
        memory = dit_memory(configs, size, clips, phase, lambda nets: choose_trained(nets, phase), precision)
        return f"{memory} with {clips} clips at a time of {size[0]} x {size[1]} pixels"
    distilled = phase.task == "distil"

    def choose(nets: Networks) -> dict[str, Any]:
        copies = copied(nets, phase) if distilled else {}
        choose_trained(nets, phase)
        return copies

    memory = phase_memory(
        configs,
        size,
        phase.frames,
        clips,
        choose,
        phase.optimizer,
        bool(phase.ema),
        precision,
        phase.motion,
        bool(phase.cache.variants),
        phase.distil.guidance if distilled else None,
    )
    return f"{memory} with {clips} clips at a time of {size[0]} x {size[1]} pixels"


def _data(phase: Phase, out: Path, used: int) -> str:
    """How many clips there are and how often `used` of them go through them; or why that is not known."""
    data = placed(phase.data, out)
    if data.made_by is not None and not Path(data.path or "").exists():
        return f"pairs, made by the phase {data.made_by}"
    try:
        clips = len(open_dataset(data, phase.frames))
    except UserError as error:
        return f"not counted: {error}"
    return f"{clips:,} clips from {data.source}, {used / max(1, clips):.2f} epochs"
