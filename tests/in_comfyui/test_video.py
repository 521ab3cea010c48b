"""Videos as the nodes read them: in memory, in a file, trimmed, with their times and sound."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from comfy_api.latest import InputImpl, Types
from comfy_pack import core


def in_memory(rate: Any, images: torch.Tensor, audio: Any = None) -> Any:
    return InputImpl.VideoFromComponents(
        Types.VideoComponents(images=images, audio=audio, frame_rate=Fraction(rate))
    )


@pytest.mark.parametrize(
    ("rate", "exact"),
    [(29.97, "2997/100"), (23.976, "2997/125"), (59.94, "2997/50"), ("30000/1001", "30000/1001"), (25, "25")],
)
def test_rates_of_create_video_can_be_written(rate: Any, exact: str, tmp_path: Path) -> None:
    written = core("anycharv_core.media.video_write")
    with core("nodes.video").opened(in_memory(rate, torch.zeros(3, 16, 16, 3))) as source:
        info = source.info
        times = info.timestamps, info.time_base, info.rate
        with written.VideoWriter(tmp_path / "a.mp4", 16, 16, *times) as writer:
            for frame in source.frames:
                writer.write(np.asarray(frame))
    made = core("anycharv_core.media.video_read").probe(tmp_path / "a.mp4")
    assert [time * made.time_base for time in made.timestamps] == [i / Fraction(exact) for i in range(3)]
