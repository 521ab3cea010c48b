"""The loop every phase shares. accelerate does distribution, precision and accumulation; the rest is here."""

from __future__ import annotations

import importlib.util
import json
import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedType, PartialState
from accelerate.utils import (
    DistributedDataParallelKwargs,
    GradientAccumulationPlugin,
    ProjectConfiguration,
)
from torch import Tensor, nn
from tqdm import tqdm

from anycharv_core.device import has_bf16
from anycharv_core.errors import UserError
from anycharv_core.files import atomic_path
from training import checkpoints
from training.config import Engine, Phase
from training.data.samples import Samples, loader
from training.ema import Ema
from training.graphs import GraphedStep
from training.offload import OffloadedAdamW
from training.speed import Meter
from training.stop import Stop, Unfinished

Validation = Callable[[Accelerator, nn.Module, int], dict[str, float]]
"""(accelerator, wrapped module, step) -> held-out losses by name; all processes call it."""


def new_accelerator(engine: Engine, phase: Phase, folder: Path, cpu: bool) -> Accelerator:
    """accelerate's own settings, as `accelerate launch` gives them, with what the config says.

    Raises UserError for a precision that this machine does not have, and for a tracker or an optimizer that is not
    installed: before hours of encoding, not after them.
    """
    if engine.tracker != "none" and importlib.util.find_spec(engine.tracker) is None:
        raise UserError(
            f"engine.tracker is {engine.tracker}, which is not installed: install it, or set it to none."
        )
    if phase.optimizer == "adamw8bit" and importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(
            "optimizer adamw8bit needs bitsandbytes, which is not installed: install it, or set optimizer: adamw."
        )
    precision = engine.precision
    if precision == "auto":
        precision = "bf16" if has_bf16(PartialState(cpu=cpu).device.type) else "fp32"
    if precision == "fp16" and PartialState(cpu=cpu).device.type == "cpu":
        # accelerate would calculate in float32 and say nothing.
        raise UserError("engine.precision fp16 is for graphics cards: use fp32 or bf16 on a processor.")
    try:
        return Accelerator(
            cpu=cpu,
            mixed_precision={"fp32": "no"}.get(precision, precision),
            gradient_accumulation_plugin=GradientAccumulationPlugin(
                num_steps=phase.accumulate, sync_with_dataloader=False
            ),
            log_with=None if engine.tracker == "none" else engine.tracker,
            project_config=ProjectConfiguration(str(folder), logging_dir=str(folder)),
            # Such as motion modules that are trained in a phase without `motion`.
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
        )
    except ValueError as error:
        raise UserError(f"engine.precision {engine.precision} can't be used here: {error}") from error
    except ImportError as error:
        raise UserError(f"accelerate was launched for what is not there: {error}") from error


def new_optimizer(phase: Phase, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """AdamW, the one whose state lies in main memory, or that of bitsandbytes, in a quarter of the memory."""
    options: dict[str, Any] = {"lr": phase.lr, "betas": phase.betas, "weight_decay": phase.weight_decay}
    if phase.optimizer == "adamw_offload":
        return OffloadedAdamW(parameters, **options)
    if phase.optimizer == "adamw":
        return torch.optim.AdamW(parameters, **options, fused=True)
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise UserError(
            f"optimizer adamw8bit needs bitsandbytes ({error}): install it, or set optimizer to adamw."
        ) from error
    return AdamW8bit(parameters, **options)


def rate(phase: Phase, step: int) -> float:
    """The learning rate of a step, counted from 0: linear warm-up, then constant or cosine to a tenth."""
    rising = min(1.0, (step + 1) / max(1, phase.warmup))
    if phase.schedule == "constant":
        return phase.lr * rising
    return phase.lr * rising * (0.55 + 0.45 * math.cos(math.pi * step / phase.steps))


def fit(
    accelerator: Accelerator,
    module: nn.Module,
    data: Samples,
    phase: Phase,
    folder: Path,
    seed: int,
    workers: int,
    stop: Stop,
    validation: Validation | None = None,
) -> dict[str, Tensor]:
    """Trains what requires gradients in `module`, whose forward(batch) gives {"loss", more to log}.

    Goes on from the newest whole checkpoint in `folder`. Returns the trained weights, or their moving average,
    by name, on the CPU. Raises Unfinished when `stop` says so, and UserError where the loss is no number.
    """
    name = folder.name
    trained = {key: p for key, p in module.named_parameters() if p.requires_grad}
    optimizer = new_optimizer(phase, list(trained.values()))
    checkpoints.keep_changing_only(accelerator, trained.keys() | _running(module))
    model, optimizer = accelerator.prepare(module, optimizer)
    parameters = [p for p in model.parameters() if p.requires_grad]
    ema = _moving_average(accelerator, phase, parameters)
    states = folder / "checkpoints"
    if accelerator.is_main_process:
        checkpoints.tidy(states)
    accelerator.wait_for_everyone()
    found = checkpoints.newest(states, accelerator.print)
    start = 0
    if found is not None:
        start = found[0]
        accelerator.load_state(str(found[1]))
        accelerator.print(f"{name}: goes on from step {start}.")
    log = Log(accelerator, folder, start)

    micro = phase.batch // phase.accumulate
    stream = loader(
        data,
        seed,
        start * phase.batch,
        phase.steps * phase.batch,
        micro,
        accelerator.process_index,
        accelerator.num_processes,
        workers,
    )
    graphed = None
    if phase.graphs and _fits_graphs(accelerator, module):
        graphed = GraphedStep(accelerator, model, parameters)

    def backward(batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The losses of a batch, whose gradients are added to those there are."""
        if graphed is not None:
            return graphed(batch)
        losses: dict[str, Tensor] = model(batch)
        accelerator.backward(losses["loss"])
        return losses

    bar = tqdm(total=phase.steps, initial=start, desc=name, unit="step", disable=not accelerator.is_main_process)
    with stop.on_signals(), bar:
        for step in range(start, phase.steps):
            for group in optimizer.param_groups:
                group["lr"] = rate(phase, step)
            values: dict[str, Tensor] = {}
            for _ in range(phase.accumulate):
                with log.meter.waiting():
                    batch = _to_device(next(stream), accelerator.device)
                log.meter.count(batch)
                with accelerator.accumulate(model):
                    losses = backward(batch)
                for key, value in losses.items():
                    values[key] = values.get(key, 0) + value.detach().float() / phase.accumulate
            norm = accelerator.clip_grad_norm_(parameters, phase.grad_clip or math.inf)
            means, stopping = _agreed(accelerator, values, stop)
            _check(name, step, means["loss"], float(norm), accelerator.scaler is not None, states)
            optimizer.step()
            optimizer.zero_grad(set_to_none=graphed is None)
            if ema is not None:
                ema.update(step)
            done = step + 1
            bar.update()
            bar.set_postfix(loss=f"{means['loss']:.4f}", refresh=False)
            log.add(done, means | {"norm": float(norm)}, rate(phase, step), phase)
            if validation is not None and phase.validate.every and done % phase.validate.every == 0:
                with ema.swapped() if ema is not None else nullcontext():
                    log.write(done, validation(accelerator, model, done))
            stopping = stopping and done < phase.steps
            if done % phase.save_every == 0 or done == phase.steps or stopping:
                checkpoints.save(accelerator, states, done, phase.keep)
            if stopping:
                raise Unfinished(f"{name}: stopped after step {done} of {phase.steps}; run again to go on.")
    with ema.swapped() if ema is not None else nullcontext():
        state = accelerator.get_state_dict(model)
        weights = {key: state[key].detach().float().cpu().clone() for key in trained} if state else {}
    # Not accelerator.end_training(), which also ends the processes' connection that later phases need.
    for tracker in accelerator.trackers:
        tracker.finish()
    return weights


class Log:
    """log.jsonl and the tracker's curves. `start`: steps already done; later rows, of a killed run, go."""

    def __init__(self, accelerator: Accelerator, folder: Path, start: int):
        self.accelerator, self.path, self.started = accelerator, folder / "log.jsonl", time.monotonic()
        self.sums: dict[str, float] = {}
        self.count = 0
        self.meter = Meter(accelerator.device)
        if accelerator.is_main_process and self.path.exists():
            kept = [
                line for line in self.path.read_text(encoding="utf-8").splitlines(True) if _step(line) <= start
            ]
            with atomic_path(self.path) as tmp:
                tmp.write_text("".join(kept), encoding="utf-8")
        accelerator.init_trackers("tensorboard")

    def add(self, step: int, values: dict[str, float], lr: float, phase: Phase) -> None:
        """One step's values; their means are written every `log_every` steps and at the end."""
        self.count += 1
        for key, value in values.items():
            self.sums[key] = self.sums.get(key, 0.0) + value
        if step % phase.log_every == 0 or step == phase.steps:
            means = {key: total / self.count for key, total in self.sums.items()}
            self.sums, self.count = {}, 0
            self.write(step, means | {"lr": lr} | self.meter.read())

    def write(self, step: int, values: dict[str, float]) -> None:
        self.accelerator.log(values, step=step)
        if self.accelerator.is_main_process:
            row = {"step": step, "seconds": round(time.monotonic() - self.started, 1)}
            row |= {key: float(f"{value:.6g}") for key, value in values.items()}
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")


def _step(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, TypeError, KeyError):
        return math.inf  # the last line of a killed run may be half


def _running(module: nn.Module) -> set[str]:
    """Names of the buffers that training changes, such as BatchNorm's statistics: those of modules in its mode."""
    return {
        f"{prefix}.{name}" if prefix else name
        for prefix, each in module.named_modules()
        if each.training
        for name, _ in each.named_buffers(recurse=False)
    }


def _fits_graphs(accelerator: Accelerator, module: nn.Module) -> bool:
    """Whether this is one card, and every step of the training has the same kernels."""
    alone = accelerator.device.type == "cuda" and accelerator.distributed_type == DistributedType.NO
    return alone and accelerator.scaler is None and getattr(module, "same_kernels", False)


def _moving_average(accelerator: Accelerator, phase: Phase, parameters: list[nn.Parameter]) -> Ema | None:
    if not phase.ema:
        return None
    if accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED):
        raise UserError("A moving average needs whole parameters on every card: set ema to 0, or train with DDP.")
    ema = Ema(parameters, phase.ema)
    accelerator.register_for_checkpointing(ema)
    return ema


def _to_device(batch: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    # Counters seed generators on the CPU.
    counters = ("position", "index", "epoch")
    return {k: v if k in counters else v.to(device, non_blocking=True) for k, v in batch.items()}


def _agreed(accelerator: Accelerator, values: dict[str, Tensor], stop: Stop) -> tuple[dict[str, float], bool]:
    """The values' means over the processes, and whether any of them is to stop."""
    flag = torch.tensor(float(stop.now()), device=accelerator.device)
    means = accelerator.reduce(torch.stack([*values.values(), flag]), "mean").tolist()
    return dict(zip(values, means, strict=False)), means[-1] > 0


def _check(name: str, step: int, loss: float, norm: float, scaled: bool, states: Path) -> None:
    """Raises UserError, before it spoils the weights, for a loss or gradient that is no number."""
    # Loss scaling of fp16 tries sizes that overflow, and skips those steps by itself.
    if math.isfinite(loss) and (scaled or math.isfinite(norm)):
        return
    kept = checkpoints.newest(states)
    after = f"the checkpoint after step {kept[0]} is kept" if kept else "no checkpoint was made before it"
    what = "loss" if not math.isfinite(loss) else "gradient"
    raise UserError(
        f"{name}: the {what} of step {step + 1} is {norm if what == 'gradient' else loss}; {after}; lower its lr, "
        "or look at the samples of that step."
    )
