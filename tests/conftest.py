"""What several test files share: a model small enough to run in milliseconds."""

from __future__ import annotations

import os
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

# These run in ComfyUI's Python, by test_comfyui_nodes.py.
collect_ignore = ["in_comfyui"]

# Before anything imports torch, and for the processes that tests start: sums in one order, whatever the number of
# cores, how busy they are, and where in memory a matrix happens to lie.
os.environ |= {"OMP_NUM_THREADS": "1", "MKL_CBWR": "AUTO,STRICT"}

UNET: dict[str, Any] = {
    "in_channels": 9,
    "out_channels": 4,
    "block_out_channels": [32, 64],
    "down_block_types": ["CrossAttnDownBlock3D", "DownBlock3D"],
    "up_block_types": ["UpBlock3D", "CrossAttnUpBlock3D"],
    "layers_per_block": 1,
    "attention_head_dim": 4,
    "cross_attention_dim": 16,
    "norm_num_groups": 16,
    "norm_eps": 1e-5,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "use_inflated_groupnorm": True,
    "use_motion_module": True,
    "motion_module_resolutions": [1, 2],
    "motion_module_mid_block": True,
    "motion_module_decoder_only": False,
    "motion_module_kwargs": {
        "attention_block_types": ["Temporal_Self", "Temporal_Self"],
        "num_attention_heads": 4,
        "num_transformer_block": 1,
        "temporal_position_encoding": True,
        "temporal_position_encoding_max_len": 32,
    },
}
CONFIGS: dict[str, dict[str, Any]] = {
    "denoising_unet": UNET,
    "reference_unet": UNET | {"in_channels": 4, "use_motion_module": False},
    "pose_guider": {
        "conditioning_channels": 3,
        "conditioning_embedding_channels": 32,
        "block_out_channels": [8, 16],
    },
    "vae": {
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": 4,
        "block_out_channels": [8, 16],
        "down_block_types": ["DownEncoderBlock2D"] * 2,
        "up_block_types": ["UpDecoderBlock2D"] * 2,
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "scaling_factor": 0.5,
    },
    "image_encoder": {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 8,
        "projection_dim": 16,
    },
}


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> None:
    """Lets Ctrl-C stop the processes that tests start, whatever started the tests.

    A shell starts what it runs in the background with SIGINT ignored, and children inherit that.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keeps what tests remember out of the cache of whoever runs them."""
    os.environ["ANYCHARV_CACHE"] = str(tmp_path_factory.mktemp("cache"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Sums up the skips in one line; the reason of each is "needs ...", and what follows a colon is detail."""
    skipped = terminalreporter.stats.get("skipped", [])
    reasons = Counter(_reason(report) for report in skipped)
    if reasons:
        counts = "; ".join(f"{count} {reason}" for reason, count in reasons.most_common())
        terminalreporter.write_line(f"{len(skipped)} skipped: {counts}")


def _reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    text = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return text.removeprefix("Skipped: ").partition(": ")[0]


@pytest.fixture(autouse=True)
def seeded() -> None:
    """What a test draws from torch's global generator is the same whichever tests ran before."""
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in the official layout with random weights for every part, its VAE halving pictures."""
    import torch

    from anycharv_core.checkpoints.checkpoint import Checkpoint
    from anycharv_core.checkpoints.networks import untrained
    from anycharv_core.systems import write_folder

    torch.manual_seed(0)
    networks = untrained(CONFIGS)
    folder = tmp_path_factory.mktemp("model") / "tiny"
    weights = {part: module.state_dict() for part, module in vars(networks).items() if module}
    write_folder(Checkpoint(CONFIGS, weights), folder)
    return folder
