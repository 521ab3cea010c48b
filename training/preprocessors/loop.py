"""The loop of the three small nets: one process, one core, resumed by the same command."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn

from anycharv_core.files import atomic_path
from training.ema import Ema

Batch = dict[str, Tensor]
Batches = Callable[[int, int], Iterator[Batch]]
"""(first, last) -> the batches of these numbers, each a function of its number alone."""

WARMUP, LOG_EVERY, SAVE_SECONDS = 100, 50, 120.0


@dataclass(frozen=True)
class Schedule:
    """`steps` of `batch` samples: linear warm-up to `lr`, then cosine to a tenth of it.

    ema: decay of the weights' average, which is the result. clip: largest norm of the gradient. `pool` batches
    at a time are trained on `passes` times, where drawing them costs as much as training on them.
    """

    steps: int
    batch: int
    lr: float
    ema: float
    clip: float
    pool: int = 1
    passes: int = 1

    def rate(self, step: int) -> float:
        rising = min(1.0, (step + 1) / WARMUP)
        return self.lr * rising * (0.55 + 0.45 * math.cos(math.pi * step / self.steps))


def fit(
    net: nn.Module, loss: Callable[[Batch], dict[str, Tensor]], batches: Batches, schedule: Schedule, folder: Path
) -> None:
    """Trains what requires gradients in `net`, which holds the moving average in the end.

    loss: {"loss": what to minimise, ...what else to log}. The state goes to `folder`/state.pt every two minutes,
    means of 50 steps to `folder`/log.jsonl. Raises FloatingPointError where the loss is no number.
    """
    folder.mkdir(parents=True, exist_ok=True)
    parameters = [p for p in net.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=schedule.lr, betas=(0.9, 0.99), weight_decay=0.01)
    ema = Ema(parameters, schedule.ema)
    start, state_file = 0, folder / "state.pt"
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        start = state["step"]
        optimizer.load_state_dict(state["optimizer"])
        with torch.no_grad():
            for parameter, average, name in zip(parameters, ema.average, _names(net), strict=True):
                parameter.copy_(state["weights"][name])
                average.copy_(state["average"][name])

    def save(step: int) -> None:
        weights = dict(zip(_names(net), (p.detach() for p in parameters), strict=True))
        average = dict(zip(_names(net), ema.average, strict=True))
        state = {"step": step, "weights": weights, "average": average, "optimizer": optimizer.state_dict()}
        with atomic_path(state_file) as tmp:
            torch.save(state, tmp)

    rows: list[dict[str, float]] = []
    began = saved = time.monotonic()
    for step, batch in enumerate(_repeated(batches, schedule, start), start):
        for group in optimizer.param_groups:
            group["lr"] = schedule.rate(step)
        values = loss(batch)
        optimizer.zero_grad(set_to_none=True)
        values["loss"].backward()
        nn.utils.clip_grad_norm_(parameters, schedule.clip)
        optimizer.step()
        ema.update(step)
        rows.append({key: float(value.detach()) for key, value in values.items()})
        if not math.isfinite(rows[-1]["loss"]):
            raise FloatingPointError(f"{folder.name}: the loss is {rows[-1]['loss']} at step {step}.")
        done, now = step + 1, time.monotonic()
        if done % LOG_EVERY == 0 or done == schedule.steps:
            means = {key: round(sum(row[key] for row in rows) / len(rows), 5) for key in rows[0]}
            row = {"step": done, "seconds": round(now - began, 1), **means}
            with (folder / "log.jsonl").open("a", encoding="utf-8") as log:
                log.write(json.dumps(row) + "\n")
            print(f"{folder.name}: {row}", flush=True)
            rows.clear()
        if now - saved > SAVE_SECONDS or done == schedule.steps:
            save(done)
            saved = now
    with torch.no_grad():
        for parameter, average in zip(parameters, ema.average, strict=True):
            parameter.copy_(average)


def _names(net: nn.Module) -> list[str]:
    return [name for name, parameter in net.named_parameters() if parameter.requires_grad]


def _repeated(batches: Batches, schedule: Schedule, start: int) -> Iterator[Batch]:
    """The batch of every step from `start` on, whatever came before."""
    per_pool = schedule.pool * schedule.passes
    pools = -(-schedule.steps // per_pool)
    first = start // per_pool
    stream = batches(first * schedule.pool, pools * schedule.pool)
    step = first * per_pool
    while pool := list(islice(stream, schedule.pool)):
        for index in range(per_pool):
            if start <= step < schedule.steps:
                yield pool[index % schedule.pool]
            step += 1
