"""The puppet worlds by name: who performs, how, and where."""

from collections.abc import Callable
from dataclasses import dataclass

from .bold import sample_bold_character, sample_bold_motion, sample_bold_scene, sample_close_motion
from .character import Character, sample_character
from .motion import Motion, sample_motion
from .render import still, studio
from .scene import Scene, sample_scene


@dataclass(frozen=True)
class World:
    """Samplers by seed and split: character(seed, split), motion(seed, frames, proportions, split) and
    scene(seed, split). An animation, which no canvas follows, shows the motion `close`, of the same arguments,
    before stage(scene), at rest."""

    character: Callable[..., Character]
    motion: Callable[..., Motion]
    scene: Callable[..., Scene]
    close: Callable[..., Motion]
    stage: Callable[[Scene], Scene]


WORLDS = {
    "first": World(sample_character, sample_motion, sample_scene, sample_motion, studio),
    "bold": World(sample_bold_character, sample_bold_motion, sample_bold_scene, sample_close_motion, still),
}
