"""Seeds: one independent random stream per split, kind of sample and number."""

import numpy as np

SPLIT_ID = {"train": 0, "heldout": 1}
DOMAIN_ID = {
    "character": 0,
    "motion": 1,
    "scene": 2,
    "reference": 3,
    "bold character": 4,
    "bold scene": 5,
    "framing": 6,
    "crowd": 7,
    "act": 8,
    "journey": 9,
    "place": 10,
    "wander": 11,
}


def generator(split: str, domain: str, seed: int) -> np.random.Generator:
    """Returns the random generator of sample `seed` (>= 0) of `domain` in `split`.

    Raises:
        KeyError: `split` or `domain` is unknown.
        ValueError: `seed` is negative.
    """
    return np.random.default_rng([SPLIT_ID[split], DOMAIN_ID[domain], seed])
