"""How long a training step takes with the trainer's settings of today and with those of before, in one run.

    python -m benchmarks.training_step [CONFIG] [--phase compose] [--rounds 5] [--threads 1]
    python -m benchmarks.training_step CONFIG --phase compose_on --device cuda [--set phases.compose_on.batch=64]

Both train the same networks on the same batch, in turn, each in a process of its own so that neither works in the
other's memory. "before" is float32, PyTorch's attention, contiguous layout, an optimizer that goes through the
parameters one by one, and memory given back to the system; "now" is what `training.train` does. The ratio is of
medians. Pictures, poses and masks are random: what takes the time is their shape.

With --device the second alone runs there, on encodings: milliseconds a step, and how many of them Python needs to
call the kernels of both passes one by one.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import time
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from anycharv_core.device import device_name, has_bf16, peak_memory
from training import networks
from training.config import Config, Phase
from training.config_file import read_config
from training.loop import new_optimizer
from training.speed import channels_last, keep_freed_memory
from training.trainees import new_trainee

WARM_UP = 2  # steps that are not counted
ENCODED = 32  # clips at a time


def random_batch(phase: Phase, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """A batch as `training.data` describes it."""
    width, height = phase.data.size or (64, 64)
    many = (phase.batch // phase.accumulate, phase.frames, height, width)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)

    pictures = {name: noise(*many, 3) for name in ("frames", "pose")}
    masks = {name: noise(*many) for name in ("character", "mask")}
    return pictures | masks | {"reference": noise(many[0], *many[2:], 3), "position": torch.arange(many[0])}


def steps(config: Config, name: str, now: bool, threads: int, calls: Connection) -> None:
    """Takes one step for every message of `calls`, and answers with its seconds of processor time."""
    torch.set_num_threads(threads)
    if now:
        keep_freed_memory()
    phase = config.phases[name]
    nets, _ = networks.build(config, [], lambda line: None)
    module = new_trainee(config, name, nets)
    if now:
        module.to(memory_format=torch.channels_last)
    parameters = [p for p in module.parameters() if p.requires_grad]
    optimizer = new_optimizer(phase, parameters) if now else torch.optim.AdamW(parameters, foreach=False)
    batch = random_batch(phase, torch.Generator().manual_seed(0))
    while calls.recv():
        began = time.process_time()
        backward(module, batch, "cpu", now and has_bf16("cpu"))
        update(optimizer, parameters, phase)
        calls.send(time.process_time() - began)


def backward(module: torch.nn.Module, batch: dict[str, torch.Tensor], device: str, bf16: bool) -> torch.Tensor:
    """Both passes; the loss."""
    with torch.autocast(device, torch.bfloat16, enabled=bf16):
        loss: torch.Tensor = module(batch)["loss"]
    loss.backward()
    return loss.detach()


def update(optimizer: torch.optim.Optimizer, parameters: list[torch.nn.Parameter], phase: Phase) -> None:
    torch.nn.utils.clip_grad_norm_(parameters, phase.grad_clip)
    optimizer.step()
    optimizer.zero_grad()


def on_device(config: Config, name: str, device: str, rounds: int) -> None:
    phase = config.phases[name]
    nets, _ = networks.build(config, [], lambda line: None)
    module = new_trainee(config, name, nets).to(device)
    if device == "cuda":
        channels_last(module)
    parameters = [p for p in module.parameters() if p.requires_grad]
    optimizer = new_optimizer(phase, parameters)
    batch = random_batch(phase, torch.Generator().manual_seed(0))
    encoded: list[dict[str, torch.Tensor]] = []
    for first in range(0, len(batch["position"]), ENCODED):
        part = {key: value[first : first + ENCODED].to(device) for key, value in batch.items()}
        encoded.append(module.encode(part))
    batch = {key: torch.cat([each[key] for each in encoded]) for key in encoded[0]} | {
        "position": batch["position"]
    }
    called, taken = [], []
    for _ in range(WARM_UP + rounds):
        began = time.perf_counter()
        loss = backward(module, batch, device, has_bf16(device))
        called.append(time.perf_counter() - began)
        update(optimizer, parameters, phase)
        float(loss)  # waits for the device
        if device == "cuda":
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - began)
    step, calls = (statistics.median(seconds[WARM_UP:]) for seconds in (taken, called))
    images = len(batch["position"]) * phase.frames
    peak = peak_memory(device).get("cuda", 0) / 2**30
    print(f"{device_name(device)}, {images} images a step, median of {rounds}")
    speed = f"{1000 * step:.0f} ms a step, {1000 * calls:.0f} until called; {images / step:,.0f} images/s"
    print(f"{speed}; {peak:.1f} GiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", nargs="?", type=Path, default=Path("training/configs/embedded.yaml"))
    parser.add_argument("--phase", default="compose")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="as training.train takes it"
    )
    parser.add_argument("--device", help="cuda, say: one process there, as training.train does it now")
    args = parser.parse_args()
    config = read_config(args.config, args.set)
    if args.device is not None:
        on_device(config, args.phase, args.device, args.rounds)
        return
    phase = config.phases[args.phase]
    images = phase.batch // phase.accumulate * phase.frames
    spawn = multiprocessing.get_context("spawn")
    ends: dict[str, Connection] = {}
    for kind in ("before", "now"):
        ends[kind], other = spawn.Pipe()
        worker = (config, args.phase, kind == "now", args.threads, other)
        spawn.Process(target=steps, args=worker, daemon=True).start()
    taken: dict[str, list[float]] = {kind: [] for kind in ends}
    for number in range(WARM_UP + args.rounds):
        for kind, end in ends.items():
            end.send(True)
            seconds = end.recv()
            if number >= WARM_UP:
                taken[kind].append(seconds)
    for end in ends.values():
        end.send(False)
    medians = {kind: statistics.median(seconds) for kind, seconds in taken.items()}
    print(f"{device_name('cpu')}, {args.threads} thread(s), {images} images a step, median of {args.rounds}")
    for kind, seconds in medians.items():
        spread = f"{min(taken[kind]):.2f} to {max(taken[kind]):.2f} s"
        print(f"{kind:>6}: {seconds:.2f} s a step ({spread}), {images / seconds:.1f} images per processor second")
    print(f" ratio: {medians['before'] / medians['now']:.2f}")


if __name__ == "__main__":
    main()
