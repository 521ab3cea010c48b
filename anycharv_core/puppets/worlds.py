"""The puppet worlds by name: who performs, how, and where."""

from collections.abc import Callable
from dataclasses import dataclass

from .bold import sample_bold_character, sample_bold_motion, sample_bold_scene
from .character import Character, sample_character
from .motion import Motion, sample_motion
from .scene import Scene, sample_scene


@dataclass(frozen=True)
class World:
    """Samplers by seed and split: character(seed, split), motion(seed, frames, proportions, split) and
    scene(seed, split)."""

    character: Callable[..., Character]
    motion: Callable[..., Motion]
    scene: Callable[..., Scene]


WORLDS = {
    "first": World(sample_character, sample_motion, sample_scene),
    "bold": World(sample_bold_character, sample_bold_motion, sample_bold_scene),
}
