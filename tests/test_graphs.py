"""Steps as CUDA graphs: they train what steps of single kernels do."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_training import recipe, write
from training_runs import own_precision as own_precision

from training.train import main


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a graphics card")
@pytest.mark.parametrize("motion", (False, True))
def test_graphs_train_what_single_kernels_do(tmp_path: Path, motion: bool) -> None:
    weights = []
    for graphs in (False, True):
        config = recipe(steps=5, graphs=graphs, motion=motion, cache={"variants": 1, "resident": True})
        out = tmp_path / str(graphs)
        assert main([str(write(tmp_path, config)), "--out", str(out)]) == 0
        weights.append(load_file(out / "compose" / "weights.safetensors"))
    assert weights[0].keys() == weights[1].keys()
    for name, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][name], atol=1e-3, rtol=1e-3, msg=name)


def test_a_processor_passes_graphs_over(tmp_path: Path) -> None:
    weights = []
    for graphs in (False, True):
        out = tmp_path / str(graphs)
        assert main([str(write(tmp_path, recipe(steps=2, graphs=graphs))), "--out", str(out), "--cpu"]) == 0
        weights.append(load_file(out / "compose" / "weights.safetensors"))
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
