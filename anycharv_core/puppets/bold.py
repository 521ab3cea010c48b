"""The bold world: puppets that a small network can draw and an eye can read at 64 pixels.

Larger heads, few colours far apart, one of three bold patterns, calm scenes. Its seeds are its own; what the first
world draws for a seed does not change.
"""

from dataclasses import replace

import numpy as np

from .character import (
    BOLD_PATTERNS,
    BOTTOMS,
    HAT_HAIR,
    HATS,
    MOUTHS,
    Character,
    Proportions,
    Range,
    pick,
    sample_character,
    sample_proportions,
)
from .draw import Colour
from .motion import Motion, sample_motion
from .scene import Scene, build_scene
from .seeds import generator

SKIN: tuple[Colour, ...] = ((255, 222, 196), (226, 170, 124), (160, 104, 70), (100, 64, 48))
HAIR: tuple[Colour, ...] = ((40, 34, 40), (128, 74, 42), (224, 112, 44), (242, 204, 112), (72, 112, 196))
CLOTH: tuple[Colour, ...] = (
    (216, 58, 56),
    (248, 200, 62),
    (66, 162, 92),
    (56, 112, 206),
    (132, 78, 176),
    (240, 122, 164),
    (246, 243, 236),
    (54, 56, 66),
)
PROPORTIONS: dict[str, Range] = {
    "head": (0.28, 0.33),
    "neck": (0.014, 0.020),
    "torso": (0.25, 0.275),
    "arms": (0.26, 0.29),
    "shoulder": (0.100, 0.122),
    "hip": (0.052, 0.064),
}
HAIR_STYLES = ("short", "spiky", "bob", "long", "ponytail", "afro", "bald")
BACKDROPS = ("hills", "stage", "beach", "room")
HEIGHTS: Range = (0.24, 0.40)  # of the frame: how tall a performer is
CLOSE: Range = (0.66, 0.80)  # the same where no canvas follows them
GRAIN = 0.4  # of the first world's


def sample_bold_character(seed: int, split: str = "train") -> Character:
    """Samples bold character number `seed` (>= 0) of `split` ("train" or "heldout").

    Raises:
        KeyError: `split` is unknown.
        ValueError: `seed` is negative.
    """
    rng = generator(split, "bold character", seed)
    skin = pick(rng, SKIN)
    hair = str(rng.choice(HAIR_STYLES))
    hair_colour = pick(rng, HAIR, away=((skin, 90),))
    top = pick(rng, CLOTH, away=((skin, 75),))
    bottom_colour = pick(rng, CLOTH, away=((top, 130), (skin, 75)))
    hat = str(rng.choice(HATS)) if hair in HAT_HAIR and rng.random() < 0.35 else "none"
    return replace(
        sample_character(seed, split),
        proportions=sample_proportions(rng, **PROPORTIONS),
        skin=skin,
        arm=rng.uniform(0.032, 0.040),
        leg=rng.uniform(0.048, 0.060),
        head_scale=rng.uniform(1.0, 1.1),
        hair=hair,
        hair_colour=hair_colour,
        hat=hat,
        hat_colour=pick(rng, CLOTH, away=((hair_colour, 110), (skin, 90))),
        mouth=str(rng.choice(MOUTHS)),
        glasses=bool(rng.random() < 0.1),
        top=top,
        pattern=str(rng.choice(BOLD_PATTERNS, p=(0.4, 0.32, 0.28))),
        pattern_colour=pick(rng, CLOTH, away=((top, 170), (skin, 75), (bottom_colour, 60))),
        long_sleeves=bool(rng.random() < 0.5),
        bottom=str(rng.choice(BOTTOMS, p=(0.55, 0.2, 0.25))),
        bottom_colour=bottom_colour,
        shoe=pick(rng, CLOTH, away=((bottom_colour, 90), (skin, 75))),
        held=str(rng.choice(("ball", "bag"))) if rng.random() < 0.15 else "none",
        held_colour=pick(rng, CLOTH, away=((top, 110), (bottom_colour, 110))),
    )


def sample_bold_scene(seed: int, split: str = "train") -> Scene:
    """Samples bold scene number `seed` (>= 0) of `split`; raises as `sample_bold_character`."""
    rng = generator(split, "bold scene", seed)
    scene = build_scene(rng, BACKDROPS)
    return replace(
        scene,
        grain=GRAIN * scene.grain,
        movers=scene.movers[:1],
        occluders=scene.occluders if rng.random() < 0.4 else (),
    )


def sample_bold_motion(
    seed: int, frames: int, proportions: Proportions, split: str = "train", heights: Range = HEIGHTS
) -> Motion:
    """Motion number `seed` of `split` by a performer `heights` of the frame tall; raises as `sample_motion`."""
    rng = generator(split, "framing", seed)
    motion = sample_motion(seed, frames, proportions, split)
    factor = np.float32(rng.uniform(*heights) / motion.scale.mean())
    lift = np.array((0, rng.uniform(0.0, 0.08)), np.float32)
    ground = motion.ground * (factor**0.5, 1) - lift

    def placed(points: np.ndarray, root: np.ndarray, new_root: np.ndarray) -> np.ndarray:
        return (new_root + factor * (points - root)).astype(np.float32)

    return replace(
        motion,
        joints=placed(motion.joints, motion.ground[:, None], ground[:, None]),
        head=placed(motion.head, motion.ground, ground),
        scale=factor * motion.scale,
        ground=ground.astype(np.float32),
    )


def sample_close_motion(seed: int, frames: int, proportions: Proportions, split: str = "train") -> Motion:
    """The same motion by a performer who fills the frame."""
    return sample_bold_motion(seed, frames, proportions, split, CLOSE)
