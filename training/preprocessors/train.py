"""The three small nets go through the trainer's loop (training/loop.py), on one processor."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, default_collate

from anycharv_core.errors import UserError
from training import commands
from training.config import Engine, Phase
from training.data.samples import Sample
from training.loop import fit, new_accelerator
from training.preprocessors.data import Clips, load
from training.stop import Stop, Unfinished

Batch = dict[str, Tensor]
Draw = Callable[[Clips, np.random.Generator], dict[str, np.ndarray] | None]
"""A sample from the clips, or None where chance met nothing to learn from."""

TRIES = 10_000  # draws until one is fit, which most are
COMMON = partial(Phase, warmup=100, schedule="cosine", betas=(0.9, 0.99), save_every=100)


class Drawn(Dataset):
    """`count` samples; (index, epoch) is drawn by a generator of its own. clips: of them or their folder, which
    every process that reads them opens for itself."""

    def __init__(self, clips: Clips | Path, draw: Draw, seed: Sequence[int], count: int):
        self._source, self._draw, self._seed, self._count = clips, draw, tuple(seed), count

    @cached_property
    def _clips(self) -> Clips:
        return self._source if isinstance(self._source, Clips) else load(self._source)

    def __getstate__(self) -> dict[str, Any]:
        # Memory-mapped arrays would be copied in full to a worker.
        return {name: value for name, value in vars(self).items() if name != "_clips"}

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, sample: Sample) -> Batch:
        index, epoch = sample
        rng = np.random.default_rng([*self._seed, epoch, index])
        for _ in range(TRIES):
            drawn = self._draw(self._clips, rng)
            if drawn is not None:
                return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in drawn.items()}
        raise UserError("The clips show nobody to learn from; make them again with training.preprocessors.data.")

    def batches(self, count: int, batch: int) -> Iterator[Batch]:
        """Batches of an epoch that training does not reach."""
        for first in range(0, count * batch, batch):
            yield default_collate([self[index, 1] for index in range(first, first + batch)])


class WithLoss(nn.Module):
    """A net and its loss, {"loss": what to minimise, ...what else to log}, as the loop trains them."""

    def __init__(self, net: nn.Module, loss: Callable[[Any, Batch], dict[str, Tensor]]):
        super().__init__()
        self.net, self.loss = net, loss

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        return self.loss(self.net, batch)


@dataclass(frozen=True)
class Course:
    """Where a training takes its clips from and keeps its state, and when it stops."""

    clips: Clips | Path
    state: Path
    workers: int = 0
    stop: Stop = field(default_factory=Stop)

    def train(
        self, net: nn.Module, loss: Callable[[Any, Batch], dict[str, Tensor]], draw: Draw, phase: Phase, *seed: int
    ) -> Drawn:
        """Trains what requires gradients in `net`, which holds the moving average in the end, on samples that come
        once each; they are returned. Goes on from the newest checkpoint of `state`.

        Raises Unfinished when it is to stop, and UserError where the loss is no number.
        """
        samples = Drawn(self.clips, draw, seed, phase.steps * phase.batch)
        self.state.mkdir(parents=True, exist_ok=True)
        accelerator = new_accelerator(Engine(tracker="none"), phase, self.state, cpu=True)
        module = WithLoss(net, loss)
        weights = fit(accelerator, module, samples, phase, self.state, seed[0], self.workers, self.stop)
        module.load_state_dict(weights, strict=False)
        accelerator.free_memory()
        return samples


def command(
    name: str, description: str | None, make: Callable[[Course, Path], None], argv: Sequence[str] | None
) -> int:
    """`python -m training.preprocessors.<name>`: calls `make` with the course and the file to write."""
    parser = commands.new_parser(f"preprocessors.{name}", description)
    add = parser.add_argument
    add("--data", type=Path, required=True, help="folder that training.preprocessors.data wrote")
    add(
        "--state",
        type=Path,
        required=True,
        help="folder of checkpoints and log; one that was stopped goes on",
    )
    add("--out", type=Path, required=True, help="what to write")
    add("--workers", type=int, default=1, help="processes that draw samples, default %(default)s")
    args = parser.parse_args(argv)

    def work() -> None:
        load(args.data)  # what is wrong with them is said at once
        with commands.alone(args.state):
            try:
                make(Course(args.data, args.state, args.workers), args.out)
            except Unfinished as stopped:
                print(stopped)

    return commands.run(name, work, "stopped; the last checkpoint is where the same command goes on.")
