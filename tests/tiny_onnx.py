"""Tiny networks behind the contract of DWPose's two ONNX files, that find red things."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

RED = 2  # the networks are fed BGR
BOX = 24.0  # side of every box found, in pixels of the detector's input
POINTS = 133
# Of the whole-body points' scores: all different, and neighbours far apart.
GAINS = np.linspace(0.5, 1.0, POINTS, dtype=np.float32)[np.arange(POINTS) * 50 % POINTS]


def write_detector(path: Path, side: int = 64, columns: int = 85, side_name: str | None = None) -> Path:
    """images [1, 3, side, side] -> output [1, cells, columns].

    A cell of 8 x 8 input pixels has a person around its middle, in a box of BOX pixels, if it is red on
    average; the redder, the more certain: sigmoid((red - 128) / 16). It has an object of the second class if
    green. Cells of the other strides are empty. `side_name` makes the side free.
    """
    weights, nodes = {}, []
    for stride in (8, 16, 32):
        kernel, bias = np.zeros((columns, 3, 1, 1), np.float32), np.full(columns, -50, np.float32)
        bias[:4] = 0.5, 0.5, np.log(BOX / stride), np.log(BOX / stride)
        if stride == 8:
            bias[4] = 50
            for channel, column in ((RED, 5), (1, 6)):
                if column < columns:
                    kernel[column, channel], bias[column] = 1 / 16, -8
        weights |= {f"w{stride}": kernel, f"b{stride}": bias}
        nodes += [
            _node("AveragePool", "images", f"p{stride}", kernel_shape=[stride] * 2, strides=[stride] * 2),
            _node("Conv", (f"p{stride}", f"w{stride}", f"b{stride}"), f"c{stride}"),
            _node("Reshape", (f"c{stride}", "flat"), f"r{stride}"),
            _node("Transpose", f"r{stride}", f"t{stride}", perm=[0, 2, 1]),
        ]
    weights |= {"flat": np.array([1, columns, -1]), "parts": np.array([4, columns - 4])}
    nodes += [
        _node("Concat", ("t8", "t16", "t32"), "raw", axis=1),
        _node("Split", ("raw", "parts"), ("boxes", "logits"), axis=2),
        _node("Sigmoid", "logits", "scores"),
        _node("Concat", ("boxes", "scores"), "output", axis=2),
    ]
    cells = None if side_name else sum((side // stride) ** 2 for stride in (8, 16, 32))
    size = side_name or side
    return _write(path, nodes, weights, {"images": [1, 3, size, size]}, {"output": [1, cells, columns]})


def write_pose(path: Path, width: int = 48, height: int = 64, batch: int | str = "batch") -> Path:
    """input [batch, 3, height, width] -> simcc_x [batch, 133, 2 width], simcc_y [batch, 133, 2 height].

    All points are where the crop is reddest; point k's score is GAINS[k] times that normalised red.
    """
    weights = {"channel": np.array(RED), "gains": GAINS[None, :, None]}
    nodes = [_node("Gather", ("input", "channel"), "red", axis=1)]
    for name, size, across in (("x", width, 1), ("y", height, 2)):
        # Pixel j of the crop is bin 2 j.
        weights |= {f"bins_{name}": np.kron(np.eye(size), [1, 0]).astype(np.float32)}
        nodes += [
            _node("ReduceMax", "red", f"line_{name}", axes=[across], keepdims=0),
            _node("MatMul", (f"line_{name}", f"bins_{name}"), f"spread_{name}"),
            _node("Unsqueeze", (f"spread_{name}", "one"), f"row_{name}"),
            _node("Mul", (f"row_{name}", "gains"), f"simcc_{name}"),
        ]
    weights["one"] = np.array([1])
    outputs = {"simcc_x": [batch, POINTS, 2 * width], "simcc_y": [batch, POINTS, 2 * height]}
    return _write(path, nodes, weights, {"input": [batch, 3, height, width]}, outputs)


def _node(kind: str, inputs: str | tuple[str, ...], outputs: str | tuple[str, ...], **settings) -> onnx.NodeProto:
    sides = [[names] if isinstance(names, str) else list(names) for names in (inputs, outputs)]
    return helper.make_node(kind, *sides, **settings)


def _write(path: Path, nodes: list[onnx.NodeProto], weights: dict, inputs: dict, outputs: dict) -> Path:
    ends = [
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in side.items()]
        for side in (inputs, outputs)
    ]
    tensors = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, path.stem, *ends, initializer=tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())
    return path
