"""Forward and backward pass of a step as CUDA graphs: a card runs small networks faster than Python calls them.

A graph repeats kernels at the addresses they were recorded with. So a step's tensors are copied to where the first
step's lay, gradients are added up in buffers that stay, and every number of clips without reference, which decides
the kernels' shapes, has a graph of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor, nn

WARM_UP = 3  # steps before recording, in which libraries choose their kernels


@dataclass(frozen=True)
class Recorded:
    graph: torch.cuda.CUDAGraph
    problem: dict[str, Tensor]
    losses: dict[str, Tensor]


class GraphedStep:
    """Forward and backward pass of `model`, a `Trainee`, on a card that has it for itself.

    Called with a batch, it gives the losses that the model's task "loss" would and adds the gradients to those of
    `parameters`, which must be set to zero in place.
    """

    def __init__(self, accelerator: Accelerator, model: nn.Module, parameters: Sequence[nn.Parameter]):
        self._accelerator, self._model = accelerator, model
        self._recorded: dict[int, Recorded] = {}
        self._pool = torch.cuda.graph_pool_handle()
        self._gradients = [torch.zeros_like(parameter) for parameter in parameters]
        for parameter, gradient in zip(parameters, self._gradients, strict=True):
            parameter.grad = gradient

    def __call__(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        with torch.no_grad():
            problem, plain = self._model(batch, task="pose")
        if plain not in self._recorded:
            self._recorded[plain] = self._record(problem, plain)
        recorded = self._recorded[plain]
        for name, value in recorded.problem.items():
            value.copy_(problem[name])
        recorded.graph.replay()
        return recorded.losses

    def _record(self, problem: dict[str, Tensor], plain: int) -> Recorded:
        # All graphs read the same tensors: one runs at a time.
        held = next((each.problem for each in self._recorded.values()), None)
        problem = held or {name: value.clone() for name, value in problem.items()}
        before = [gradient.clone() for gradient in self._gradients]
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(WARM_UP if held is None else 1):
                self._run(problem, plain)
        torch.cuda.current_stream().wait_stream(aside)
        for gradient, value in zip(self._gradients, before, strict=True):
            gradient.copy_(value)
        graph = torch.cuda.CUDAGraph()
        # Only this thread's calls are part of it: another may be pinning the next batch.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            losses = self._run(problem, plain)
        return Recorded(graph, problem, losses)

    def _run(self, problem: dict[str, Tensor], plain: int) -> dict[str, Tensor]:
        losses: dict[str, Tensor] = self._model(problem, task="solve", plain=plain)
        self._accelerator.backward(losses["loss"])
        return {name: value.detach() for name, value in losses.items()}
