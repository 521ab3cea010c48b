"""Animate Anyone 2 (arXiv 2502.06145): replaces the person of a scene, who keeps hold of what they touch.

Neither code nor weights were ever published. What the paper leaves open is decided here and in docs/animate2.md.
"""

from __future__ import annotations

from dataclasses import replace

from ..models.config import MID_UP, UNetConfig
from ..models.windows import chained_windows, linear_windows
from . import anycharv
from .recipes import letterbox
from .system import System

# Frames of a clip in the paper's training, and those of the clip before that it begins with.
WINDOW, CARRIED = 16, 1
BLOCKS = (10, 10)  # section 3.2: k_h = h / 10, k_w = w / 10

# Any picture is a reference, its background and all: training shows it on random ones. The character may leave the
# mask, which scaling in training teaches, so that pasting reaches further than the mask.
_DEFAULT = replace(
    anycharv.RECIPES["default"],
    cut_out=lambda picture, alpha: picture,
    reference=lambda picture, canvas: letterbox(picture, canvas.padded, "edge"),
    clip_view=lambda picture: letterbox(picture, (max(picture.shape[:2]),) * 2, "edge"),
    windows=lambda frames, guidance: chained_windows(frames, WINDOW, CARRIED),
    paste_growth=0.15,
    keeps_scene=False,  # not measured on what holds and touches things
)

RECIPES = {
    # The paper's: all of a frame is the network's.
    "official": replace(_DEFAULT, composites=False, paste_back=False),
    "default": _DEFAULT,
    # Long videos as the other systems make them, of windows that overlap and are averaged.
    "overlapping": replace(_DEFAULT, windows=lambda frames, guidance: linear_windows(frames, WINDOW, WINDOW // 4)),
}

ANIMATE_ANYONE_2 = System(
    name="animate_anyone_2",
    title="Animate Anyone 2",
    command="generate",
    purpose="replaces a person of a video and leaves them what they hold",
    reads_scene=True,
    steps=30,
    guidance_scale=3.5,
    recipes=RECIPES,
    layout=anycharv.LAYOUT,
    blocks=BLOCKS,
)


def has_its_blocks(cfg: UNetConfig) -> bool:
    """Whether a denoising UNet is Animate Anyone 2's by its blocks: the reference reaches only those of the middle
    and the way up (section 3.1), or objects are blended in (section 3.3). The embedded model, made of one of
    AnyCharV, reads the reference in all of them."""
    return cfg.reference_blocks == MID_UP or cfg.object_blending is not None
