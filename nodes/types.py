"""What our nodes share: socket types and the wording of inputs that several of them have."""

from __future__ import annotations

from comfy_api.latest import io

CATEGORY = "AnyCharV"
RECIPE_NAMES = ["default", "official"]

ReferenceNetType = io.Custom("ANYCHARV_REFERENCE_NET")
ReferenceType = io.Custom("ANYCHARV_REFERENCE")
PoseKeypoint = io.Custom("POSE_KEYPOINT")


def recipe_input(tooltip: str) -> io.Combo.Input:
    return io.Combo.Input(
        "recipe", options=RECIPE_NAMES, default="default", tooltip=tooltip, advanced=True
    )


def steps_input() -> io.Int.Input:
    return io.Int.Input(
        "steps", default=30, min=1, max=1000,
        tooltip="Denoising steps of trailing DDIM. The paper uses 30; the embedded model was made for few.",
    )


def cfg_input() -> io.Float.Input:
    return io.Float.Input(
        "cfg", default=3.0, min=0.0, max=30.0, step=0.1, round=0.01,
        tooltip="How strongly the reference is followed. The paper uses 3; up to 1 is unguided and twice as fast.",
    )


def seed_input() -> io.Int.Input:
    return io.Int.Input(
        "seed", default=42, min=0, max=0xFFFFFFFFFFFFFFFF, control_after_generate=True,
        tooltip="Seed of the noise the video starts from.",
    )


def size_inputs() -> list[io.Int.Input]:
    where = (
        "in pixels, at which the networks work: the clip is fitted into width x height with its proportions "
        "kept. 0 for both takes the size the model was made for, or else the clip's own."
    )
    return [
        io.Int.Input(name, default=0, min=0, max=16384, step=8, tooltip=f"{name.capitalize()} {where}")
        for name in ("width", "height")
    ]
