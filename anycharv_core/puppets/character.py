"""What a puppet looks like: its proportions, body, hair and clothes."""

from dataclasses import dataclass

import numpy as np

from .draw import Colour
from .seeds import generator

SKIN: tuple[Colour, ...] = (
    (255, 222, 196),
    (247, 200, 162),
    (226, 170, 124),
    (188, 128, 86),
    (142, 90, 60),
    (100, 64, 48),
)
HAIR: tuple[Colour, ...] = (
    (40, 34, 40),
    (84, 52, 40),
    (146, 82, 44),
    (216, 104, 44),
    (242, 204, 112),
    (196, 198, 206),
    (72, 112, 196),
    (232, 104, 150),
)
CLOTH: tuple[Colour, ...] = (
    (216, 58, 56),
    (242, 136, 46),
    (248, 200, 62),
    (66, 162, 92),
    (34, 156, 160),
    (56, 112, 206),
    (42, 54, 108),
    (132, 78, 176),
    (240, 122, 164),
    (246, 243, 236),
    (54, 56, 66),
    (134, 88, 56),
)
HAIR_STYLES = ("short", "spiky", "curly", "bob", "long", "ponytail", "pigtails", "bun", "afro", "bald")
# Hats sit on hair that lies close to the skull.
HAT_HAIR = ("short", "bob", "long", "pigtails", "bald")
HATS = ("beanie", "cap", "sunhat")
PATTERNS = ("plain", "stripes", "dots", "block")
BOLD_PATTERNS = ("plain", "bands", "spots")
Range = tuple[float, float]
ANKLE = 0.035  # body heights above the ground
PROPORTIONS: dict[str, Range] = {
    "head": (0.20, 0.255),
    "neck": (0.018, 0.03),
    "torso": (0.255, 0.29),
    "arms": (0.29, 0.325),
    "shoulder": (0.088, 0.118),
    "hip": (0.046, 0.060),
}
BOTTOMS = ("trousers", "shorts", "skirt")
HELD = ("balloon", "umbrella", "ball", "bag")
MOUTHS = ("smile", "open", "calm")


@dataclass(frozen=True)
class Proportions:
    """Skeleton lengths as fractions of the body height; `shoulder` and `hip` are half widths."""

    head: float
    neck: float
    torso: float
    shoulder: float
    hip: float
    upper_arm: float
    forearm: float
    thigh: float
    shin: float
    ankle: float


@dataclass(frozen=True)
class Character:
    """Everything that draws one puppet.

    Radii (`arm`, `leg`) are fractions of the body height; `head_scale`, `head_width`, `waist` and `flare`
    are factors; `jaw` 0..1 narrows the chin; `side` is the hand that holds `held` (0 right, 1 left).
    """

    proportions: Proportions
    skin: Colour
    arm: float
    leg: float
    waist: float
    head_scale: float
    head_width: float
    jaw: float
    hair: str
    hair_colour: Colour
    fringe: float
    hat: str
    hat_colour: Colour
    brow: float
    mouth: str
    glasses: bool
    top: Colour
    pattern: str
    pattern_colour: Colour
    long_sleeves: bool
    bottom: str
    bottom_colour: Colour
    flare: float
    shoe: Colour
    held: str
    held_colour: Colour
    side: int


def sample_character(seed: int, split: str = "train") -> Character:
    """Samples character number `seed` (>= 0) of `split` ("train" or "heldout").

    Raises:
        KeyError: `split` is unknown.
        ValueError: `seed` is negative.
    """
    rng = generator(split, "character", seed)
    skin = pick(rng, SKIN)
    hair = str(rng.choice(HAIR_STYLES))
    hair_colour = pick(rng, HAIR, away=((skin, 100),))
    top = pick(rng, CLOTH, away=((skin, 75),))
    bottom_colour = pick(rng, CLOTH, away=((top, 130), (skin, 75)))
    hat = str(rng.choice(HATS)) if hair in HAT_HAIR and rng.random() < 0.4 else "none"
    return Character(
        proportions=sample_proportions(rng, **PROPORTIONS),
        skin=skin,
        arm=rng.uniform(0.024, 0.035),
        leg=rng.uniform(0.040, 0.056),
        waist=rng.uniform(0.78, 1.15),
        head_scale=rng.uniform(0.96, 1.12),
        head_width=rng.uniform(0.90, 1.06),
        jaw=rng.uniform(0.10, 0.36),
        hair=hair,
        hair_colour=hair_colour,
        fringe=rng.uniform(-1, 1),
        hat=hat,
        hat_colour=pick(rng, CLOTH, away=((hair_colour, 110), (skin, 90))),
        brow=rng.uniform(-0.25, 0.06),
        mouth=str(rng.choice(MOUTHS)),
        glasses=bool(rng.random() < 0.15),
        top=top,
        pattern=str(rng.choice(PATTERNS, p=(0.4, 0.22, 0.18, 0.2))),
        pattern_colour=pick(rng, CLOTH, away=((top, 150), (skin, 75), (bottom_colour, 60))),
        long_sleeves=bool(rng.random() < 0.5),
        bottom=str(rng.choice(BOTTOMS, p=(0.5, 0.22, 0.28))),
        bottom_colour=bottom_colour,
        flare=rng.uniform(1.0, 1.35),
        shoe=pick(rng, CLOTH, away=((bottom_colour, 90), (skin, 75))),
        held=str(rng.choice(HELD)) if rng.random() < 0.35 else "none",
        held_colour=pick(rng, CLOTH, away=((top, 110), (bottom_colour, 110))),
        side=int(rng.integers(2)),
    )


def sample_proportions(
    rng: np.random.Generator, head: Range, neck: Range, torso: Range, arms: Range, shoulder: Range, hip: Range
) -> Proportions:
    """Lengths in body heights, each from (lowest, highest), in the order of the arguments; legs are the rest."""
    tall, thin, long, arm = (rng.uniform(*each) for each in (head, neck, torso, arms))
    legs = 1 - tall - thin - long - ANKLE
    return Proportions(
        head=tall,
        neck=thin,
        torso=long,
        shoulder=rng.uniform(*shoulder),
        hip=rng.uniform(*hip),
        upper_arm=arm * 0.52,
        forearm=arm * 0.48,
        thigh=legs * 0.51,
        shin=legs * 0.49,
        ankle=ANKLE,
    )


def pick(
    rng: np.random.Generator, palette: tuple[Colour, ...], away: tuple[tuple[Colour, float], ...] = ()
) -> Colour:
    """Picks a colour at least the given RGB distances from `away`, or the one that comes closest to that."""

    def margin(colour: Colour) -> float:
        return min((float(np.linalg.norm(np.subtract(colour, c))) / d for c, d in away), default=1.0)

    clear = [colour for colour in palette if margin(colour) >= 1]
    return clear[rng.integers(len(clear))] if clear else max(palette, key=margin)
