"""An AutoencoderTiny, TAESD's kind, in place of a model's VAE: a quick look."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny

from anycharv_core import Pipeline, UserError


@pytest.fixture
def taesd(tmp_path: Path) -> Path:
    """A folder as the published ones are, which don't name the widths of levels a second time."""
    blocks = {f"{way}_block_out_channels": (8, 8) for way in ("encoder", "decoder")}
    counts = {f"num_{way}_blocks": (1, 1) for way in ("encoder", "decoder")}
    AutoencoderTiny(**blocks, **counts).save_pretrained(tmp_path / "taesd")
    edit(tmp_path / "taesd", block_out_channels=None)
    return tmp_path / "taesd"


def edit(folder: Path, **settings: object) -> None:
    config = json.loads((folder / "config.json").read_text()) | settings
    kept = {name: value for name, value in config.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(kept))


def test_it_takes_the_place_of_the_models_own(tiny_model: Path, taesd: Path) -> None:
    pipe = Pipeline.from_pretrained(tiny_model, vae=taesd)
    pictures = np.random.default_rng(0).integers(256, size=(5, 32, 32, 3), dtype=np.uint8)
    latents = pipe.backend.encode(pictures[:2])
    vae = AutoencoderTiny.from_pretrained(taesd, local_files_only=True)
    with torch.inference_mode():
        expected = vae.encode(torch.from_numpy(pictures[:2]).movedim(-1, 1) / 127.5 - 1).latents
        shown = (vae.decode(expected).sample / 2 + 0.5).clamp(0, 1).movedim(1, -1) * 255
    assert torch.allclose(latents, expected, atol=1e-5)
    assert np.abs(pipe.backend.decode(latents).astype(float) - shown.numpy()).max() <= 0.51
    mask = np.full((2, 32, 32), 255, np.uint8)
    made = pipe(pictures[0], pictures[1:3], mask, pictures[3:], steps=1, canvas="frame")
    assert made.frames.shape == (2, 32, 32, 3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_decoder_blocks": [1, 100000]}, "100001 layers or more"),
        ({"decoder_block_out_channels": [8, 4096]}, "a size of 4096"),
        ({"decoder_block_out_channels": [8]}, "No vae can be built"),
        ({"latent_channels": 16}, "vae weight|a size of 16|vae has 16 channels"),
    ],
)
def test_a_config_of_other_weights_is_refused(
    tiny_model: Path, taesd: Path, settings: dict[str, object], message: str
) -> None:
    edit(taesd, **settings)
    with pytest.raises(UserError, match=message):
        Pipeline.from_pretrained(tiny_model, vae=taesd)
