"""The official recipe against outputs recorded from the official release."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from anycharv_core import Pipeline

PARITY = Path(__file__).parents[2] / "shared" / "parity" / "public"
pytestmark = pytest.mark.skipif(not PARITY.is_dir(), reason="no recorded outputs beside this checkout")
CASES = sorted(path.name for path in (PARITY / "cases").glob("*")) if PARITY.is_dir() else []


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    return Pipeline.from_pretrained(PARITY / "models" / "m0")


@pytest.mark.parametrize("name", CASES)
def test_latents_equal_the_release(pipe: Pipeline, name: str) -> None:
    case = json.loads((PARITY / "cases" / name / "case.json").read_text())
    golden = load_file(PARITY / "cases" / name / "golden.safetensors")
    inputs = np.load(PARITY / case["inputs"])
    out = pipe(
        inputs["ref"],
        inputs["tgt"],
        inputs["mask"],
        inputs["pose"],
        steps=case["num_inference_steps"],
        guidance_scale=case["guidance_scale"],
        noise=golden["noise"][0].movedim(0, 1),
        recipe="official",
    )
    expected = golden["final_latents"][0].movedim(0, 1)
    assert (out.latents - expected).abs().max() <= 5e-4
    pixels = golden["video_uint8_thwc_every4"].numpy().astype(int)
    # Truncation turns a rounding error at a whole level into one level.
    assert np.abs(out.frames[::4].astype(int) - pixels).max() <= 1
    assert torch.isfinite(out.latents).all()
