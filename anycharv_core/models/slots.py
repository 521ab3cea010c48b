"""How the frames of a clip lie in the latents of a CogVideoX VAE, and those in the slots of a DiT's tokens."""

from __future__ import annotations

from typing import NamedTuple

from ..errors import UserError

FRAMES = 8  # of a slot: a VAE makes one latent of four frames, a DiT one token of two latents
COMPRESSION = 4


class Layout(NamedTuple):
    """latents: of the clip; pad: latents that a DiT needs in front of them, 0 or 1, which are not decoded; slots:
    the frames of each of its (latents + pad) / 2 slots of tokens."""

    latents: int
    pad: int
    slots: tuple[range, ...]


def layout(frames: int) -> Layout:
    """The latents and slots of a clip of 8k frames, or of 8k + 1, the first of which then is a latent alone.

    Raises UserError for other numbers, of which the VAE would give back more or fewer frames.
    """
    whole, alone = divmod(frames, FRAMES)
    if frames < 1 or alone > 1:
        below, above = max(1, whole * FRAMES + 1), (whole + 1) * FRAMES
        raise UserError(
            f"A clip of {frames} frames can't be made: clips have 8, 9, 16, 17, 24, 25 ... frames; the nearest "
            f"numbers are {below} and {above}."
        )
    slots = tuple(range(max(0, end - FRAMES), end) for end in range(alone or FRAMES, frames + 1, FRAMES))
    return Layout(2 * whole + alone, alone, slots)
