"""Temporal windows of anycharv_core as ComfyUI's context windows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.context_windows

from ...anycharv_core.errors import UserError
from ...anycharv_core.inference.windows import Windows, closed_loop_windows, linear_windows, window_ramp
from .model import check_model

HANDLER = "context_handler"


def with_windows(model: Any, make: Callable[[int], Windows], length: int) -> Any:
    """A clone of MODEL that samples clips longer than `length` frames in the windows of make(frames)."""

    def schedule(frames: int, *_: Any) -> list[list[int]]:
        return [list(index) for index in make(frames).indices]

    def weights(_: int, *, full_length: int, idxs: list[int], **__: Any) -> list[float]:
        windows = make(full_length)
        return list(windows.weights[windows.indices.index(tuple(idxs))])

    model = model.clone()
    model.model_options[HANDLER] = comfy.context_windows.IndexListContextHandler(
        comfy.context_windows.ContextSchedule("anycharv", schedule),
        comfy.context_windows.ContextFuseMethod("anycharv", weights),
        context_length=length,
        # The extra leading frame that causal models need would overrun the positional encoding.
        causal_window_fix=False,
    )
    comfy.context_windows.create_prepare_sampling_wrapper(model)
    return model


def with_long_video(model: Any, length: int, overlap: int, ramp: bool, looped: bool) -> Any:
    """MODEL -> MODEL with windows of `length` frames that overlap by `overlap`.

    Raises UserError where the model is not AnyCharV's or can't take such windows.
    """
    check_model(model)
    motion = model.model.diffusion_model.cfg.motion
    if motion is not None and length > motion.max_len:
        raise UserError(f"length is {length} but this model's motion modules know {motion.max_len} frames.")
    if overlap >= length:
        raise UserError(f"overlap is {overlap} but must be less than length, {length}.")

    def make(frames: int) -> Windows:
        if looped:
            windows = closed_loop_windows(frames, True, length, overlap)
        else:
            windows = linear_windows(frames, length, overlap)
        shape = window_ramp(length, overlap) if ramp and frames > length else None
        weights = tuple(shape or (1.0,) * len(index) for index in windows.indices)
        return Windows(windows.indices, weights)

    return with_windows(model, make, length)
