"""AnyCharVLongVideo, and temporal windows of anycharv_core as ComfyUI's context windows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.context_windows
from comfy_api.latest import io

from ..anycharv_core.errors import UserError
from ..anycharv_core.models.windows import Windows, closed_loop_windows, linear_windows, window_ramp
from .model import check_model
from .types import CATEGORY

FUSES = ["ramp", "flat"]
LAYOUTS = ["linear", "looped"]
HANDLER = "context_handler"


class AnyCharVLongVideo(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AnyCharVLongVideo",
            display_name="AnyCharV Long Video",
            category=CATEGORY,
            description="Lets the model sample videos of any length in overlapping windows, whose predictions "
            "are fused at every step; memory is that of one window. Works with every sampler node.",
            search_aliases=[
                "context windows",
                "sliding window",
                "temporal aggregation",
                "long video",
                "长视频",
                "滑动窗口",
            ],
            inputs=[
                io.Model.Input("model", tooltip="From AnyCharV Loader."),
                io.Int.Input(
                    "length",
                    default=24,
                    min=2,
                    max=1024,
                    tooltip="Frames per window; at most what the motion modules know (24 for AnyCharV's official "
                    "weights).",
                ),
                io.Int.Input(
                    "overlap",
                    default=6,
                    min=0,
                    max=1023,
                    tooltip="Frames neighbouring windows share, less than length. More is smoother and slower.",
                ),
                io.Combo.Input(
                    "fuse",
                    options=FUSES,
                    default="ramp",
                    advanced=True,
                    tooltip="'ramp' hands over gradually inside an overlap; 'flat' weighs both the same.",
                ),
                io.Combo.Input(
                    "layout",
                    options=LAYOUTS,
                    default="linear",
                    advanced=True,
                    tooltip="'linear' runs from the first frame to the last; 'looped' wraps around, for videos "
                    "that are played in a loop.",
                ),
            ],
            outputs=[io.Model.Output()],
        )

    @classmethod
    def execute(cls, model: Any, length: int, overlap: int, fuse: str, layout: str) -> io.NodeOutput:
        check_model(model)
        motion = model.model.diffusion_model.cfg.motion
        if motion is not None and length > motion.max_len:
            raise UserError(
                f"length is {length} but this model's motion modules know {motion.max_len} frames; lower it."
            )
        if overlap >= length:
            raise UserError(f"overlap is {overlap} but must be less than length, {length}; lower it.")

        def make(frames: int) -> Windows:
            if layout == "looped":
                windows = closed_loop_windows(frames, True, length, overlap)
            else:
                windows = linear_windows(frames, length, overlap)
            ramp = window_ramp(length, overlap) if fuse == "ramp" and frames > length else None
            weights = tuple(ramp or (1.0,) * len(index) for index in windows.indices)
            return Windows(windows.indices, weights)

        return io.NodeOutput(with_windows(model, make, length))


class OwnWindows(comfy.context_windows.IndexListContextHandler):
    """ComfyUI's context windows with those that `make` gives for so many frames."""

    def __init__(self, make: Callable[[int], Windows], length: int):
        def schedule(frames: int, *_: Any) -> list[list[int]]:
            return [list(index) for index in make(frames).indices]

        def weights(_: int, *, full_length: int, idxs: list[int], **__: Any) -> list[float]:
            windows = make(full_length)
            return list(windows.weights[windows.indices.index(tuple(idxs))])

        super().__init__(
            comfy.context_windows.ContextSchedule("anycharv", schedule),
            comfy.context_windows.ContextFuseMethod("anycharv", weights),
            context_length=length,
            # The extra leading frame that causal models need would overrun the positional encoding.
            causal_window_fix=False,
        )
        self.make = make


def with_windows(model: Any, make: Callable[[int], Windows], length: int) -> Any:
    """A clone of MODEL that samples videos longer than `length` frames in the windows of make(frames)."""
    model = model.clone()
    model.model_options[HANDLER] = OwnWindows(make, length)
    comfy.context_windows.create_prepare_sampling_wrapper(model)
    return model
