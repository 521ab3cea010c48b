"""Starts ComfyUI with the pack before any test file imports a part of it."""

from __future__ import annotations

from collections.abc import Iterator

import comfy_pack
import pytest
import torch

needs_parity = pytest.mark.skipif(
    not comfy_pack.PARITY.is_dir(), reason=f"needs recorded data (ANYCHARV_PARITY): no {comfy_pack.PARITY}"
)


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    """As ComfyUI runs nodes."""
    with torch.no_grad():
        yield
