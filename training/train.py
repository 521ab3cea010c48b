"""Trains the embedded model on the puppet world by the paper's stages (section 3.4 and A.2).

    python -m training.train training/configs/embedded.yaml --state DIR [--device cuda] [--minutes 9]

Phases, in order, each resumed or skipped by what DIR holds: `codec` (the latents, in closed form),
`decoder` (pictures from latents), `compose` (stage 1 on frames: all networks, fine mask), `pairs` and `boost`
(stage 2 on frames: UNet only, box mask, generated driving frames), `clip_pairs`, `motion` (motion modules only)
and `boost_clips` (whole UNet) on clips.
DIR/model_<phase>.safetensors is written after every phase, ready for Pipeline.from_pretrained, and
DIR/training.json holds the settings and the log.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import nn

from anycharv_core.checkpoint import Checkpoint, Networks, untrained, write_single
from anycharv_core.files import atomic_path
from anycharv_core.imaging import to_unit
from training import decoder
from training.data import PuppetClips, loader
from training.loop import Batch, Schedule, Unfinished, fit
from training.objective import Objective, loss, prepare
from training.pairs import PairSettings, make_pairs, pair_batches

CODEC_CLIPS = 400
TRAINED = {
    "decoder": ("vae",),
    "compose": ("denoising_unet", "reference_unet", "pose_guider", "image_encoder"),
    "boost": ("denoising_unet",),
    "motion": ("denoising_unet",),
    "boost_clips": ("denoising_unet",),
}


@dataclass(frozen=True)
class Phase:
    """`clips` of `frames` per batch; `pairs` names the phase whose generated clips are the scene;
    frames are independent of each other without `motion`."""

    schedule: Schedule
    frames: int
    clips: int
    pairs: str | None = None
    motion: bool = False


@dataclass(frozen=True)
class Config:
    """The YAML file: network configs, picture size, seed, and settings of each phase."""

    size: int
    seed: int
    networks: dict[str, dict[str, Any]]
    phases: dict[str, Phase]
    pairs: dict[str, PairSettings]
    objective: Objective
    settings: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Config:
        raw = yaml.safe_load(path.read_text())
        phases = {
            name: Phase(Schedule(batch=p["clips"], **p.pop("schedule")), **p)
            for name, p in raw.pop("phases").items()
        }
        return cls(
            phases=phases,
            pairs={name: PairSettings(**p) for name, p in raw.pop("pairs").items()},
            objective=Objective(**raw.pop("objective")),
            **raw,
        )


@dataclass(frozen=True)
class Run:
    """Where the state lives, on what, and until when (time.monotonic() seconds)."""

    state: Path
    device: str
    workers: int
    deadline: float


def new_networks(cfg: Config, device: str) -> Networks:
    """Untrained networks; motion modules, pose guider and output start at zero."""
    torch.manual_seed(cfg.seed)
    nets = untrained(cfg.networks)
    unet = nets.denoising_unet
    temporal = [m.proj_out for n, m in unet.named_modules() if n.endswith("temporal_transformer")]
    for module in (*temporal, nets.pose_guider.conv_out, unet.conv_out):
        nn.init.zeros_(module.weight)
        nn.init.zeros_(module.bias)
    for module in vars(nets).values():
        module.to(device).requires_grad_(False)
    return nets


def fit_codec(cfg: Config, nets: Networks, run: Run) -> None:
    """Fits the latents to CODEC_CLIPS clips, patches of characters counting ten times those of scenes."""
    data = PuppetClips(cfg.size, 2, cfg.seed, "fine")
    batch = next(iter(loader(data, CODEC_CLIPS, 0, 1, run.workers)))
    pixels = to_unit(batch["frames"].flatten(0, 1)) * 2 - 1
    character = batch["character"].flatten(0, 1)[:, None].float() / 255
    side = 2 ** (len(nets.vae.config.block_out_channels) - 1)
    nets.vae.fit(pixels, 0.1 + 0.9 * torch.nn.functional.max_pool2d(character, side))


def choose_trained(nets: Networks, phase: str) -> dict[str, nn.Module]:
    """Turns gradients on for what `phase` trains and off for the rest."""
    for name, net in vars(nets).items():
        net.requires_grad_(name in TRAINED[phase])
    # The latents stay what the encoder was fitted to, and the decoder's linear part its inverse.
    for p in (*nets.vae.analysis.parameters(), *nets.vae.synthesis.parameters()):
        p.requires_grad_(False)
    if phase == "decoder":
        return {"vae": nets.vae}
    for name, p in nets.denoising_unet.named_parameters():
        p.requires_grad_(phase == "boost_clips" or ("motion_modules" in name) == (phase == "motion"))
    return {name: getattr(nets, name) for name in TRAINED[phase]}


def train_phase(cfg: Config, nets: Networks, name: str, run: Run) -> None:
    phase = cfg.phases[name]
    trained = choose_trained(nets, name)
    data = PuppetClips(cfg.size, phase.frames, cfg.seed, mask="box" if phase.pairs else "fine")

    def batches(first: int, last: int) -> Iterable[Batch]:
        if phase.pairs is None:
            return loader(data, phase.clips, first, last, run.workers)
        return pair_batches(data, run.state / phase.pairs, phase.clips, first, last, run.workers)

    def encoded(batch: Batch) -> Any:
        if name == "decoder":
            return decoder.prepare(nets.vae, batch)
        return prepare(nets, batch, batch.get("scene"))

    def error(example: Any, generator: torch.Generator) -> dict[str, torch.Tensor]:
        if name == "decoder":
            return decoder.loss(nets.vae, example, generator)
        return loss(nets, example, cfg.objective, phase.motion, generator)

    fit(
        trained, encoded, error, batches, phase.schedule, run.state / name, cfg.seed, run.deadline,
    )


def store(nets: Networks, path: Path) -> None:
    """All weights, float32, for the next phase to start from."""
    weights = {f"{part}.{key}": value.contiguous() for part, net in vars(nets).items()
               for key, value in net.state_dict().items()}
    with atomic_path(path) as tmp:
        save_file(weights, tmp)


def restore(nets: Networks, path: Path) -> None:
    weights = load_file(path)
    for part, net in vars(nets).items():
        own = {key.partition(".")[2]: value for key, value in weights.items() if key.startswith(f"{part}.")}
        net.load_state_dict(own)


def export(cfg: Config, nets: Networks, path: Path) -> None:
    """The trained model as `Pipeline.from_pretrained` reads it, in half precision."""
    checkpoint = Checkpoint(
        configs=cfg.networks,
        weights={part: net.state_dict() for part, net in vars(nets).items()},
        settings=cfg.settings,
    )
    write_single(checkpoint, path, torch.float16)


def write_record(config: Path, state: Path) -> None:
    """state/training.json: the settings that ran and what was logged, to lie beside the weights."""
    logs = {
        log.parent.name: [json.loads(line) for line in log.read_text().splitlines()]
        for log in sorted(state.glob("*/log.jsonl"), key=lambda path: path.stat().st_mtime)
    }
    with atomic_path(state / "training.json") as tmp:
        tmp.write_text(json.dumps({"settings": yaml.safe_load(config.read_text()), "log": logs}, indent=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--state", type=Path, required=True, help="folder of checkpoints, logs and pairs")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--workers", type=int, default=max(0, (os.cpu_count() or 1) - 2))
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop, state saved, after this long")
    parser.add_argument("--until", help="stop after this phase")
    args = parser.parse_args()
    run = Run(args.state, args.device, args.workers, time.monotonic() + 60 * args.minutes)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True

    cfg = Config.read(args.config)
    nets = new_networks(cfg, args.device)
    args.state.mkdir(parents=True, exist_ok=True)
    try:
        for name in ("codec", "decoder", "compose", "pairs", "boost", "clip_pairs", "motion", "boost_clips"):
            done = args.state / f"{name}.safetensors"
            if name in cfg.pairs:
                first_stage = copy.deepcopy(nets)
                restore(first_stage, args.state / "compose.safetensors")
                folder = args.state / name
                settings = cfg.pairs[name]
                make_pairs(first_stage, cfg.size, cfg.seed, settings, folder, run.workers, run.deadline)
            elif done.exists():
                restore(nets, done)
            else:
                fit_codec(cfg, nets, run) if name == "codec" else train_phase(cfg, nets, name, run)
                store(nets, done)
                export(cfg, nets, args.state / f"model_{name}.safetensors")
            if name == args.until:
                break
    except Unfinished as stopped:
        print(stopped)
    write_record(args.config, args.state)


if __name__ == "__main__":
    main()
