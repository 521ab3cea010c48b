"""The puppet world: seeded 2D characters, motions and scenes with exact ground truth for character swaps."""

from .character import Character, Proportions, sample_character
from .motion import Motion, sample_motion
from .render import Clip, render, render_reference
from .scene import Scene, sample_scene

__all__ = [
    "Character",
    "Clip",
    "Motion",
    "Proportions",
    "Scene",
    "render",
    "render_reference",
    "sample_character",
    "sample_motion",
    "sample_scene",
]
