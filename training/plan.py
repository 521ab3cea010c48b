"""What a training would do: `--dry-run`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from anycharv_core.checkpoint import untrained
from training import networks
from training.config import Config, Phase
from training.data import Data, open_dataset
from training.memory import phase_memory
from training.trainee import choose_trained, trained_parameters

ASSUMED = (576, 1024)  # pixels, where the shards' own sizes are taken


def placed(data: Data, out: Path) -> Data:
    """The data, their path in the run's folder where a phase makes them."""
    return data if data.made_by is None else replace(data, path=str(out / data.made_by))


def describe(config: Config, out: Path) -> None:
    """Prints phases, steps, trained parameters, memory and data counts; writes nothing."""
    configs = networks.build(config, [], print)[1]
    for name, phase in config.phases.items():
        if phase.task == "pairs":
            print(f"{name}: makes pairs: {phase.pairs}")
            continue
        print(f"{name}: {phase.task}, {phase.steps} steps of {phase.batch} clips of {phase.frames} frames")
        if phase.task == "diffusion":
            with torch.device("meta"):
                nets = untrained(configs)
                choose_trained(nets, phase)
            count = sum(p.numel() for _, p in trained_parameters(nets))
            print(f"  trains {count:,} parameters: {'a LoRA' if phase.lora else ', '.join(phase.train)}")
            print(f"  memory, one card: {_memory(config, phase, configs)}")
        print(f"  data: {_data(phase, out)}")


def _memory(config: Config, phase: Phase, configs: networks.Configs) -> str:
    size, clips = phase.data.size or ASSUMED, phase.batch // phase.accumulate
    memory = phase_memory(
        configs, size, phase.frames, clips, lambda nets: choose_trained(nets, phase), phase.optimizer,
        bool(phase.ema), "fp32" if config.engine.precision == "fp32" else "bf16", phase.motion,
    )
    return f"{memory} with {clips} clips at a time of {size[0]} x {size[1]} pixels"


def _data(phase: Phase, out: Path) -> str:
    data = placed(phase.data, out)
    if data.made_by is not None and not Path(data.path or "").exists():
        return f"pairs, made by the phase {data.made_by}"
    clips = len(open_dataset(data, phase.frames))  # type: ignore[arg-type]
    return f"{clips:,} clips from {data.source}, {phase.steps * phase.batch / max(1, clips):.2f} epochs"
