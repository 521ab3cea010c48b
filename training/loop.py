"""The training loop every phase shares: AdamW, EMA, checkpoints that resume exactly, a time limit."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from anycharv_core.files import atomic_path

Batch = dict[str, Tensor]
Prepare = Callable[[Batch], Any]
"""What a batch of pictures becomes, once, before it is trained on several times."""
Loss = Callable[[Any, torch.Generator], dict[str, Tensor]]
"""(prepared batch, generator of the step's random draws) -> {"loss": scalar to minimise, ...more to log}."""


@dataclass(frozen=True)
class Schedule:
    """`steps` of `batch` samples at peak rate `lr`: linear warm-up, then cosine to a tenth of it.

    `pool` batches at a time are trained on `passes` times, with fresh noise: where rendering and encoding
    cost as much as training, that is the better use of a step.
    """

    steps: int
    batch: int
    lr: float
    warmup: int = 100
    ema: float = 0.999
    clip: float = 1.0
    pool: int = 1
    passes: int = 1

    def rate(self, step: int) -> float:
        rising = min(1.0, (step + 1) / self.warmup)
        falling = 0.55 + 0.45 * math.cos(math.pi * step / self.steps)
        return self.lr * rising * falling


class Unfinished(Exception):
    """The time limit came before the last step; the same command goes on from the checkpoint."""


def fit(
    trained: dict[str, nn.Module],
    prepare: Prepare,
    loss: Loss,
    batches: Callable[[int, int], Iterable[Batch]],
    schedule: Schedule,
    folder: Path,
    seed: int,
    deadline: float,
    save_every: float = 120.0,
) -> None:
    """Trains the parameters that require gradients; at the end the modules hold their moving averages.

    State goes to `folder`/state.pt, a line of JSON per 50 steps to `folder`/log.jsonl. Raises Unfinished,
    state saved, when time.monotonic() passes `deadline`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names, parameters = zip(
        *((f"{part}.{key}", p) for part, net in trained.items() for key, p in net.named_parameters()
          if p.requires_grad),
        strict=True,
    )
    device = parameters[0].device
    optimizer = torch.optim.AdamW(parameters, lr=schedule.lr, betas=(0.9, 0.99), weight_decay=0.01)
    average = [p.detach().clone() for p in parameters]
    step, state_file = 0, folder / "state.pt"
    if state_file.exists():
        state = torch.load(state_file, map_location=device, weights_only=True)
        step = state["step"]
        optimizer.load_state_dict(state["optimizer"])
        average = state["average"]
        with torch.no_grad():
            for name, p in zip(names, parameters, strict=True):
                p.copy_(state["weights"][name])

    def save() -> None:
        weights = dict(zip(names, (p.detach() for p in parameters), strict=True))
        state = {"step": step, "weights": weights, "average": average, "optimizer": optimizer.state_dict()}
        with atomic_path(state_file) as tmp:
            torch.save(state, tmp)

    # bf16 halves the memory traffic that bounds these small networks on a GPU; on a CPU it gains little.
    precision = torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else nullcontext()
    sums: dict[str, Tensor] = {}
    started = saved = time.monotonic()
    first = step
    for example in _pooled(prepare, batches, schedule, step, device, precision):
        for group in optimizer.param_groups:
            group["lr"] = schedule.rate(step)
        generator = torch.Generator(device).manual_seed(seed * 1_000_003 + step)
        with precision:
            values = loss(example, generator)
        optimizer.zero_grad(set_to_none=True)
        values["loss"].backward()
        values["norm"] = nn.utils.clip_grad_norm_(parameters, schedule.clip)
        optimizer.step()
        # A short memory at first, so that the average does not carry the random start along.
        pace = 1 - min(schedule.ema, step / (step + 10))
        torch._foreach_lerp_(average, [p.detach() for p in parameters], pace)
        step += 1
        for key, value in values.items():
            sums[key] = sums.get(key, 0) + value.detach().float()
        now = time.monotonic()
        if step % 50 == 0 or step == schedule.steps:
            span = min(50, step - first)
            means = {key: round(float(value) / span, 5) for key, value in sums.items()}
            row = {"step": step, "seconds": round(now - started, 1), "lr": schedule.rate(step), **means}
            sums = {}
            with (folder / "log.jsonl").open("a") as log:
                log.write(json.dumps(row) + "\n")
            print(f"{folder.name}: {row}", flush=True)
            if not math.isfinite(row["loss"]):
                raise SystemExit(f"{folder.name}: the loss is {row['loss']} near step {step}; lower `lr`.")
        if now - saved > save_every or now > deadline:
            save()
            saved = now
        if now > deadline and step < schedule.steps:
            raise Unfinished(f"{folder.name}: stopped at step {step} of {schedule.steps}; run again.")
    save()
    with torch.no_grad():
        for p, mean in zip(parameters, average, strict=True):
            p.copy_(mean)


def _pooled(
    prepare: Prepare,
    batches: Callable[[int, int], Iterable[Batch]],
    schedule: Schedule,
    step: int,
    device: torch.device,
    precision: AbstractContextManager[Any],
) -> Iterator[Any]:
    """The prepared batch of every step from `step` on; a pure function of the step, whatever came before."""
    per_pool = schedule.pool * schedule.passes
    pools = -(-schedule.steps // per_pool)
    stream = iter(batches(step // per_pool * schedule.pool, pools * schedule.pool))
    while step < schedule.steps:
        pool = []
        for batch in islice(stream, schedule.pool):
            with torch.no_grad(), precision:
                pool.append(prepare({key: value.to(device) for key, value in batch.items()}))
        for index in range(step % per_pool, per_pool):
            if step < schedule.steps:
                yield pool[index % schedule.pool]
                step += 1
