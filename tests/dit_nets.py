"""AnimateAnywhere's networks in small, with random weights that are nowhere zero."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from anycharv_core.models.config import DiTConfig
from anycharv_core.models.dit import DiT

TINY: dict[str, Any] = {
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "in_channels": 8,
    "out_channels": 4,
    "time_embed_dim": 24,
    "ofs_embed_dim": 24,
    "text_embed_dim": 12,
    "num_layers": 4,
    "sample_height": 32,
    "sample_width": 32,
    "sample_frames": 81,
    "patch_size": 2,
    "patch_size_t": 2,
    "patch_bias": False,
    "max_text_seq_length": 3,
    "use_rotary_positional_embeddings": True,
}
# What CogVideoX1.5-5B-I2V's transformer/config.json says.
REAL = TINY | {
    "num_attention_heads": 48,
    "attention_head_dim": 64,
    "in_channels": 32,
    "out_channels": 16,
    "time_embed_dim": 512,
    "ofs_embed_dim": 512,
    "text_embed_dim": 4096,
    "num_layers": 42,
    "sample_height": 300,
    "sample_width": 300,
    "max_text_seq_length": 226,
}


def randomised(module: Any, seed: int) -> Any:
    """The module, all its weights random; those that start at 0 too."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
        for part in module.modules():
            if isinstance(part, nn.LayerNorm):
                part.weight.add_(1)
    return module.requires_grad_(False).eval()


def tiny_dit(seed: int = 0) -> DiT:
    """The base in small."""
    return randomised(DiT(DiTConfig.from_dict(TINY)), seed)
