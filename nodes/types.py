"""What our nodes share: socket types and the wording of inputs that several of them have."""

from __future__ import annotations

import sys
from pathlib import Path

from comfy_api.latest import io

from ..anycharv_core.media.camera import CONTEXT
from ..anycharv_core.media.canvas import CHOICES
from ..anycharv_core.media.video_write import CRF, WORST_CRF

CATEGORY = "AnyCharV"
RECIPE_NAMES = ["default", "official"]

ReferenceNetType = io.Custom("ANYCHARV_REFERENCE_NET")
ReferenceType = io.Custom("ANYCHARV_REFERENCE")
PoseKeypoint = io.Custom("POSE_KEYPOINT")
CanvasType = io.Custom("ANYCHARV_CANVAS")
PreparedType = io.Custom("ANYCHARV_PREPARED")  # a list of `PreparedPerson`

NETWORKS = ("model", "reference_net", "vae", "clip_vision")


def fetching(name: str) -> str:
    """How `anycharv download NAME` is run where ComfyUI has the pack without the command."""
    return f"run '{sys.executable} -m anycharv_core download {name}' in {Path(__file__).parents[1]}"


def network_inputs(model: str) -> list[io.Input]:
    """Of a node that does the whole job: what `NETWORKS` names. model: the tooltip of the first."""
    return [
        io.Model.Input("model", tooltip=model),
        ReferenceNetType.Input("reference_net", tooltip="From AnyCharV Loader."),
        io.Vae.Input("vae", tooltip="The VAE the model works with."),
        io.ClipVision.Input("clip_vision", tooltip="The image encoder the model was trained with."),
    ]


def recipe_input(tooltip: str) -> io.Combo.Input:
    return io.Combo.Input("recipe", options=RECIPE_NAMES, default="default", tooltip=tooltip, advanced=True)


def steps_input() -> io.Int.Input:
    return io.Int.Input(
        "steps",
        default=30,
        min=1,
        max=1000,
        tooltip="Denoising steps of DDIM. AnyCharV's paper uses 30, Animate Anyone's 20; the embedded models "
        "were made for few.",
    )


def cfg_input() -> io.Float.Input:
    return io.Float.Input(
        "cfg",
        default=3.0,
        min=0.0,
        max=30.0,
        step=0.1,
        round=0.01,
        tooltip="How strongly the reference is followed. AnyCharV's paper uses 3, Animate Anyone's release "
        "3.5; up to 1 is unguided and twice as fast.",
    )


def seed_input() -> io.Int.Input:
    return io.Int.Input(
        "seed",
        default=42,
        min=0,
        max=0xFFFFFFFFFFFFFFFF,
        control_after_generate=True,
        tooltip="Seed of the noise the video starts from.",
    )


def size_inputs() -> list[io.Int.Input]:
    where = (
        "in pixels, at which the networks work: the video is fitted into width x height with its proportions "
        "kept. 0 for both takes the size the model was made for, or else the video's own. Without a scene the "
        "pose frames are the video."
    )
    return [
        io.Int.Input(name, default=0, min=0, max=16384, step=8, tooltip=f"{name.capitalize()} {where}")
        for name in ("width", "height")
    ]


def canvas_input(default: str, more: str = "") -> io.Combo.Input:
    return io.Combo.Input(
        "canvas",
        options=list(CHOICES),
        default=default,
        optional=True,
        tooltip="What the networks see: 'frame' whole frames, 'person' a window that follows the person smoothly, "
        "so that somebody small gets all of their pixels, 'auto' the window where it at least halves the "
        f"background they see.{more}",
    )


def context_input() -> io.Float.Input:
    return io.Float.Input(
        "context",
        default=CONTEXT,
        min=0.0,
        max=4.0,
        step=0.01,
        round=0.001,
        optional=True,
        advanced=True,
        tooltip="What a canvas that follows the person sees around the mask, as a fraction of the longer side of "
        "its box.",
    )


def crf_input() -> io.Int.Input:
    return io.Int.Input(
        "crf",
        default=CRF,
        min=0,
        max=WORST_CRF,
        optional=True,
        tooltip="Quality of the H.264 video: 0 is best, 17 shows no difference, 51 is worst.",
    )


def resume_input() -> io.Boolean.Input:
    return io.Boolean.Input(
        "resume",
        default=True,
        optional=True,
        advanced=True,
        tooltip="Go on where a run of the same inputs was interrupted; off starts over and keeps nothing.",
    )
