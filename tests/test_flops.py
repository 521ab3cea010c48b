"""What one denoising call costs at the size of the released weights."""

from __future__ import annotations

import torch
from torch.utils.flop_counter import FlopCounterMode

from anycharv_core.models import DenoisingUNet, ReferenceNet, UNetConfig
from anycharv_core.systems.animate_anyone import SD15, motion_additions

WIDTH, HEIGHT, FRAMES = 1024 // 8, 576 // 8, 24
MOST = 148.5e12  # measured: 147.85e12


def test_a_guided_window_costs_no_more_than_it_did() -> None:
    additions = motion_additions(mid=True, positions=32) | {"use_inflated_groupnorm": True, "in_channels": 9}
    with torch.device("meta"):
        unet = DenoisingUNet(UNetConfig.from_dict(SD15 | additions))
        tokens = ReferenceNet(UNetConfig.from_dict(SD15))(torch.empty(1, 4, HEIGHT, WIDTH), torch.empty(1, 768))
        image, bank = unet.project_image(torch.empty(2, 768)), unet.project_bank(tokens)
        rows = 2 * FRAMES
        x, pose = torch.empty(rows, 9, HEIGHT, WIDTH), torch.empty(rows, 320, HEIGHT, WIDTH)
        with FlopCounterMode(display=False) as counter:
            made = unet(x, torch.empty(1), image, pose, bank, FRAMES, plain_rows=FRAMES)
    assert made.shape == (rows, 4, HEIGHT, WIDTH)
    assert 0.9 * MOST < counter.get_total_flops() <= MOST
