"""The puppet world: seeded 2D characters, motions and scenes with exact ground truth for character swaps."""

from anycharv_core.puppets.character import Character, Proportions, sample_character
from anycharv_core.puppets.motion import Motion, sample_motion
from anycharv_core.puppets.render import Clip, render, render_reference
from anycharv_core.puppets.scene import Scene, sample_scene

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
