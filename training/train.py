"""Trains a model by the phases of its config (paper A.2).

    python -m training.train training/configs/tiny.yaml --out runs/tiny
    accelerate launch --config_file training/configs/accelerate/fsdp2.yaml -m training.train CONFIG --out OUT

Stopped at any moment, by Ctrl-C or harder, the same command goes on as if nothing had happened. A finished
phase writes OUT/PHASE/model (or model.safetensors), which `anycharv generate --model` reads.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import cv2
import torch
import yaml
from accelerate import Accelerator, DistributedType, PartialState
from accelerate.utils import broadcast_object_list
from torch import nn

from anycharv_core.checkpoints.checkpoint import LIBRARY_PARTS
from anycharv_core.errors import UserError
from anycharv_core.files import atomic_path
from training import commands, networks, plan
from training.codec import DecoderTrainee, check_codec, fit_codec
from training.config import CACHE, Config, Phase, data_facts
from training.config_file import read_config
from training.data.cache import EncodedClips, ResidentClips, cache_name, fill, identity
from training.data.samples import Samples, batches
from training.data.shards import read_lines
from training.data.sources import open_dataset
from training.frozen import narrow_frozen
from training.loop import Validation, fit, new_accelerator
from training.prepare.pairs import make_pairs, new_job
from training.sections import plain
from training.speed import channels_last, keep_freed_memory
from training.stop import Stop, Unfinished
from training.trainee import Trainee
from training.trainees import new_trainee
from training.validate import held_out, validate


@dataclass(frozen=True)
class Run:
    """A training: its config, its folder, when to stop, and whether to leave a graphics card alone."""

    config: Config
    out: Path
    stop: Stop
    cpu: bool

    def folder(self, phase: str) -> Path:
        return self.out / phase

    def before(self, phase: str) -> list[Path]:
        """Folders of the phases that trained something before `phase`."""
        names = list(self.config.phases)
        earlier = names[: names.index(phase)]
        return [self.folder(name) for name in earlier if self.config.phases[name].task != "pairs"]


def train_phase(run: Run, name: str) -> None:
    """Trains one phase to its end and writes its model. All processes call it."""
    config, phase, folder = run.config, run.config.phases[name], run.folder(name)
    accelerator = new_accelerator(config.engine, phase, folder, run.cpu)
    nets, configs = networks.build(config, run.before(name), accelerator.print)
    if phase.task in ("codec", "decoder"):
        check_codec(nets.vae, name)
    networks.check_export(nets, phase, name)
    data: Samples = open_dataset(plan.placed(phase.data, run.out), phase.frames)
    if accelerator.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        write_config(config, folder)
    validation = None
    if phase.task == "codec":
        fit_codec(nets.vae, data, phase.batch, config.seed, config.engine.workers)
        linear = ("analysis", "synthesis")
        weights = {f"vae.{k}": v for k, v in nets.vae.state_dict().items() if k.startswith(linear)}
    else:
        if phase.task == "decoder":
            module: nn.Module = DecoderTrainee(nets.vae, config.seed, name)
        else:
            module = trainee = new_trainee(config, name, nets)
            validation = _validation(run, phase, folder)
            module.to(accelerator.device)
            if accelerator.device.type == "cuda" or trainee.trains_convolutions:
                # The layout that convolutions are fastest in. On a processor GroupNorm's way back crashes in it
                # where its input carries no gradient (torch 2.13).
                channels_last(module)
            data = _cached(run, accelerator, trainee, data, phase)
            _spare_memory(accelerator, trainee, bool(phase.cache.variants))
        weights = fit(
            accelerator, module, data, phase, folder, config.seed, config.engine.workers, run.stop, validation
        )
        accelerator.free_memory()
    if accelerator.is_main_process:
        # Built again, because sharding takes the networks' parameters apart.
        nets, configs = networks.build(config, run.before(name), lambda line: None)
        if phase.lora is not None:
            weights = networks.export_lora(nets, weights, phase.lora, phase.motion, folder)
        networks.export_weights(nets, configs, weights, config, phase, folder)
    accelerator.wait_for_everyone()


def _validation(run: Run, phase: Phase, folder: Path) -> Validation | None:
    if not phase.validate.every:
        return None
    data = held_out(phase, plan.placed(phase.validate.data, run.out))

    def check(accelerator: Accelerator, model: nn.Module, step: int) -> dict[str, float]:
        return validate(accelerator, model, data, phase.validate, folder / "sheets" / f"{step:06d}.png")

    return check


def _spare_memory(accelerator: Accelerator, trainee: Trainee, cached: bool) -> None:
    """What training/memory.py reckons with, where processes do not divide the weights among them."""
    if accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED):
        return
    for name, net in trainee.named_children():
        if name not in LIBRARY_PARTS:
            narrow_frozen(net, accelerator.mixed_precision)
    if cached:
        trainee.set_aside()


def _cached(run: Run, accelerator: Accelerator, trainee: Trainee, data: Samples, phase: Phase) -> Samples:
    variants, config = phase.cache.variants, run.config
    if not variants:
        return data
    content = identity(plan.placed(phase.data, run.out))
    facts = data_facts(phase.data), content, phase.frames, config.engine.precision, *trainee.encoding
    name = cache_name(trainee.encoders, *facts)
    clips = EncodedClips(data, run.out / CACHE / name, variants)
    buckets = getattr(data, "buckets", [0] * len(clips))
    micro = phase.batch // phase.accumulate
    stream = batches(config.seed, buckets, micro, 0, phase.steps * phase.accumulate)
    wanted = {(index, epoch % variants) for batch in stream for index, epoch in batch}
    fill(accelerator, trainee.encode, clips, wanted, config.engine.workers, run.stop)
    return ResidentClips(clips, wanted, accelerator.device) if phase.cache.resident else clips


def make_phase_pairs(run: Run, name: str) -> None:
    """Makes the pairs of a phase of that task, by the model of the phase that its settings name, or else of the
    one before it. All processes call it, each for its share."""
    config, phase, state = run.config, run.config.phases[name], PartialState()
    model = phase.pairs.model
    maker = run.folder(model) if model is not None else (run.before(name) or [run.out])[-1]
    if not (maker / networks.WEIGHTS).exists():
        raise UserError(f"The phase {name} needs the model that {maker.name} trains: train that one first.")
    job = new_job(config, name, str(networks.model_path(maker)), run.folder(name))
    share = (state.process_index, state.num_processes)
    workers = 0 if torch.cuda.is_available() else config.engine.workers
    with run.stop.on_signals():
        done = make_pairs(job, workers, share=share, stop=run.stop.now)
    state.wait_for_everyone()
    if run.stop.now() and not done:
        raise Unfinished(f"{name}: not all pairs are made yet; run again to go on.")


def run_phases(run: Run, only: str | None) -> None:
    """All phases in order, or `only` one; those that are finished are passed over.

    Raises UserError where another training is at work in the same folder, or accelerate cannot do what it was
    launched for.
    """
    state = _processes(run.cpu)
    with _alone(run.out, state):
        for name, phase in run.config.phases.items():
            if only not in (None, name):
                continue
            if phase.task == "pairs":
                make_phase_pairs(run, name)
            elif (weights := run.folder(name) / networks.WEIGHTS).exists():
                state.print(f"{name}: finished before; to go on with more steps, remove {weights}.")
            else:
                state.wait_for_everyone()
                train_phase(run, name)
            if state.is_main_process:
                write_record(run)


def _processes(cpu: bool) -> PartialState:
    """What accelerate launched, joined."""
    try:
        state = PartialState(cpu=cpu)
    except ImportError as error:
        raise UserError(f"accelerate was launched for what is not there: {error}") from error
    launched = int(os.environ.get("WORLD_SIZE", 1))
    if state.num_processes != launched:
        # Each would train the whole batch for itself.
        raise UserError(
            f"{launched} processes were launched, but accelerate finds no graphics cards for them: give --cpu to "
            "train on processors, or see that the driver and torch find the cards."
        )
    return state


@contextmanager
def _alone(folder: Path, state: PartialState) -> Iterator[None]:
    """`commands.alone`, held by the main process for all of this training; they all hear of a refusal."""
    with ExitStack() as stack:
        refusal: list[str | None] = [None]
        if state.is_main_process:
            try:
                stack.enter_context(commands.alone(folder))
            except UserError as error:
                refusal = [str(error)]
        broadcast_object_list(refusal)
        if refusal[0] is not None:
            raise UserError(refusal[0])
        yield


def write_config(config: Config, folder: Path) -> None:
    """folder/config.yaml: the config that runs, every default spelled out."""
    with atomic_path(folder / "config.yaml") as tmp:
        tmp.write_text(yaml.safe_dump(plain(config), sort_keys=False, allow_unicode=True), encoding="utf-8")


def write_record(run: Run) -> None:
    """OUT/training.json: the config that ran and what was logged, to lie beside the weights."""
    logs = {}
    for name in run.config.phases:
        path = run.folder(name) / "log.jsonl"
        if path.exists():
            logs[name] = read_lines(path)
    with atomic_path(run.out / "training.json") as tmp:
        tmp.write_text(json.dumps({"config": plain(run.config), "log": logs}, indent=1) + "\n", encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0 done or stopped in time, 2 something the user can put right, 130 broken off."""
    for name in ("TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY"):
        os.environ.setdefault(name, "error")
    # A forked loader process that finds OpenCV's threads gone waits for them for ever.
    cv2.setNumThreads(1)
    keep_freed_memory()
    parser = commands.new_parser("train", __doc__)
    add = parser.add_argument
    add("config", type=Path, help="recipe, such as training/configs/tiny.yaml")
    add("--out", type=Path, required=True, help="folder of the run; one that was stopped goes on")
    add("--phase", help="train only this phase, after those before it")
    add(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change a value of the config, such as phases.compose.lr=1e-6",
    )
    add("--minutes", type=float, default=math.inf, help="stop after so many minutes, with the state saved")
    add("--cpu", action="store_true", help="run on the CPU, even where there is a graphics card")
    add("--dry-run", action="store_true", help="say what would be trained, and train nothing")
    args = parser.parse_args(argv)

    def work() -> None:
        config = read_config(args.config, args.set)
        if args.phase not in (None, *config.phases):
            raise UserError(f"{args.config} has no phase '{args.phase}', only {', '.join(config.phases)}.")
        for name, phase in config.phases.items():
            if phase.task == "pairs" and not phase.pairs.pairs:
                raise UserError(f"'phases.{name}.pairs.pairs' is 0: say how many pairs the phase makes.")
        if args.dry_run:
            plan.describe(config, args.out, args.phase)
            return
        try:
            run_phases(Run(config, args.out, Stop(time.monotonic() + 60 * args.minutes), args.cpu), args.phase)
        except Unfinished as stopped:
            print(stopped)
            return
        PartialState().destroy_process_group()

    return commands.run("training", work, "stopped; the last checkpoint is where the same command goes on.")


if __name__ == "__main__":
    sys.exit(main())
