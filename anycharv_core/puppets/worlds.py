"""The puppet worlds by name: who performs, how, and where."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from .bold import sample_bold_character, sample_bold_motion, sample_bold_scene, sample_close_motion
from .character import Character, sample_character
from .interact import sample_act
from .motion import Motion, sample_motion
from .render import still, studio
from .scene import Scene, sample_scene


@dataclass(frozen=True)
class World:
    """Samplers by seed and split: character(seed, split), motion(seed, frames, proportions, split) and
    scene(seed, split). An animation, which no canvas follows, shows the motion `close`, of the same arguments,
    before stage(scene), at rest. touching: whether performers touch things, as interact.py has them."""

    character: Callable[..., Character]
    motion: Callable[..., Motion]
    scene: Callable[..., Scene]
    close: Callable[..., Motion]
    stage: Callable[[Scene], Scene]
    touching: bool = False

    def perform(
        self, seeds: Sequence[int], frames: int, split: str, staged: bool = False
    ) -> tuple[Character, Motion, Scene, np.ndarray]:
        """Who does what where, for seeds of character, motion and scene, and [F,2], the points in scene units that
        stay where they are if the performer is made larger; staged: as an animation shows it."""
        if self.touching:
            act = sample_act(seeds[0], frames, split)
            anchor = act.contact if act.kind in ("sit", "lean") else act.motion.ground
            return act.character, act.motion, act.scene, anchor
        character = self.character(seeds[0], split)
        scene = self.scene(seeds[2], split)
        motion = (self.close if staged else self.motion)(seeds[1], frames, character.proportions, split)
        return character, motion, self.stage(scene) if staged else scene, motion.ground


WORLDS = {
    "first": World(sample_character, sample_motion, sample_scene, sample_motion, studio),
    "bold": World(sample_bold_character, sample_bold_motion, sample_bold_scene, sample_close_motion, still),
    "acts": World(
        sample_bold_character, sample_bold_motion, sample_bold_scene, sample_close_motion, still, touching=True
    ),
}
