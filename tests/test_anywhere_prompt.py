"""The text that every clip of AnimateAnywhere has, from a T5 in small."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from training.prepare.prompt import empty_text, main


@pytest.fixture(scope="module")
def text_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import T5Config, T5EncoderModel

    folder = tmp_path_factory.mktemp("t5")
    torch.manual_seed(0)
    T5EncoderModel(T5Config(vocab_size=8, d_model=12, d_kv=4, d_ff=16, num_layers=2, num_heads=2)).save_pretrained(
        folder
    )
    return folder


def test_it_is_the_encoders_own_embedding_of_nothing(text_encoder: Path, tmp_path: Path) -> None:
    from transformers import T5EncoderModel

    assert main([str(text_encoder), "--out", str(tmp_path / "prompt.safetensors")]) == 0
    made = load_file(tmp_path / "prompt.safetensors")["embeds"]
    assert made.shape == (226, 12)
    model = T5EncoderModel.from_pretrained(text_encoder)
    with torch.no_grad():
        wanted = model(torch.tensor([[1] + [0] * 225])).last_hidden_state[0]
    assert torch.allclose(made, wanted, atol=1e-6)
    assert empty_text(text_encoder, 3).shape == (3, 12)


def test_a_folder_without_one_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path), "--out", str(tmp_path / "prompt.safetensors")]) == 2
    assert "can't be read as a T5" in capsys.readouterr().err
