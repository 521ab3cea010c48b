"""Nets to ONNX files with the names, shapes and opset of the released DWPose files."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from anycharv_core.files import atomic_path

OPSET = 13
LARGE = 512


def settle(net: nn.Module, inputs: Iterable[Tensor]) -> None:
    """Measures the statistics of every BatchNorm again: the averaged weights never ran in training."""
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    net.train()
    with torch.no_grad():
        for example in inputs:
            net(example)


def write_onnx(net: nn.Module, example: Tensor, path: Path, inputs: str, outputs: list[str], batch: bool) -> None:
    """Writes `net` as it maps `example`; with `batch` the first dimension of all tensors is free.

    Large weights are stored in half precision, and runtimes widen them when they load the file. Needs the `onnx`
    package.
    """
    import onnx

    free = {name: {0: "batch"} for name in (inputs, *outputs)} if batch else None
    with atomic_path(path) as tmp:
        torch.onnx.export(
            net.eval(),
            (example,),
            tmp,
            input_names=[inputs],
            output_names=outputs,
            dynamic_axes=free,
            opset_version=OPSET,
            dynamo=False,
        )
        model = onnx.load(tmp)
        # The exporter loses sight of sizes that padding makes.
        made = net(example)
        for value, array in zip(model.graph.output, made if len(outputs) > 1 else [made], strict=True):
            dims = value.type.tensor_type.shape.dim
            for dim, side in list(zip(dims, array.shape, strict=True))[batch:]:
                dim.dim_value = side
        _halve(model.graph)
        onnx.checker.check_model(model)
        onnx.save(model, tmp)


def _halve(graph: Any) -> None:
    from onnx import TensorProto, helper, numpy_helper

    casts = []
    for weights in graph.initializer:
        values = numpy_helper.to_array(weights)
        if weights.data_type == TensorProto.FLOAT and values.size >= LARGE:
            wide, narrow = weights.name, f"{weights.name}_half"
            weights.CopyFrom(numpy_helper.from_array(values.astype(np.float16), narrow))
            casts.append(helper.make_node("Cast", [narrow], [wide], to=TensorProto.FLOAT))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
