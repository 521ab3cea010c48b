"""How a video is cut into windows: frames that are denoised together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

WINDOW, OVERLAP = 24, 6


@dataclass(frozen=True)
class Windows:
    """Frame indices of each temporal window, the weight of each position, and whether to average.

    chained: each window is denoised to its end before the next begins, which is given the frames that are
    finished; then nothing is weighed.
    """

    indices: tuple[tuple[int, ...], ...]
    weights: tuple[tuple[float, ...], ...]
    average: bool = True
    chained: bool = False

    @property
    def apart(self) -> int:
        """How many windows on none shares a frame any more; in a closed loop as many as there are."""
        first, last = dict[int, int](), dict[int, int]()
        for number, index in enumerate(self.indices):
            for frame in index:
                first.setdefault(frame, number)
                last[frame] = number
        return 1 + max((last[frame] - first[frame] for frame in last), default=0)


def rounds_of(count: int, steps: int, apart: int) -> Iterator[list[tuple[int, int]]]:
    """The order in which `count` fused windows take their steps: rounds of (step, window), `apart` windows or more
    between those of a round, which must not share a frame.

    A window takes a step after all that it shares frames with have taken the one before, and after those of them
    with a lower number have taken the same. Beyond that the first windows go ahead: the first one is finished when
    `apart` x `steps` of them have begun. With `count` windows apart they take every step together.
    """
    for time in range(apart * (steps - 1) + count):
        # The window that is furthest comes last.
        yield [(step, time - apart * step) for step in range(steps) if 0 <= time - apart * step < count]


def closed_loop_windows(frames: int, average: bool, size: int = WINDOW, overlap: int = OVERLAP) -> Windows:
    """The release's windows: the last one wraps to the start of the video, and all weigh the same."""
    indices: tuple[tuple[int, ...], ...] = (tuple(range(frames)),)
    if frames > size:
        starts = range(0, frames, size - overlap)
        indices = tuple(tuple(i % frames for i in range(s, s + size)) for s in starts)
    return Windows(indices, tuple((1.0,) * len(w) for w in indices), average)


def linear_windows(frames: int, size: int = WINDOW, overlap: int = OVERLAP) -> Windows:
    """Evenly spaced windows from the first frame to the last, overlapping by at least `overlap`.

    Inside an overlap each window's weight ramps linearly, so that one hands over to the next.
    """
    if frames <= size:
        return Windows((tuple(range(frames)),), ((1.0,) * frames,))
    count = -(-(frames - overlap) // (size - overlap))
    starts = [round(i * (frames - size) / (count - 1)) for i in range(count)]
    return Windows(tuple(tuple(range(s, s + size)) for s in starts), (window_ramp(size, overlap),) * count)


def chained_windows(frames: int, size: int, carried: int) -> Windows:
    """Windows that begin with the last `carried` frames of the one before (Animate Anyone 2, section 4.1).

    What the last one has too little of is filled up with its own frames in reverse.
    """
    indices = [tuple(range(min(frames, size)))]
    while indices[-1][-1] < frames - 1:
        start = indices[-1][-1] + 1 - carried
        rest = list(range(start, min(frames, start + size)))
        if len(rest) < size:
            rest += [_reflected(place, len(rest)) + start for place in range(len(rest), size)]
            indices.append(tuple(rest))
            break
        indices.append(tuple(rest))
    return Windows(tuple(indices), tuple((1.0,) * len(index) for index in indices), chained=True)


def _reflected(place: int, length: int) -> int:
    """The place in a row of `length` that one behind its end is the mirror image of."""
    turn = place % max(1, 2 * length - 2)
    return min(turn, 2 * length - 2 - turn)


def window_ramp(size: int, overlap: int) -> tuple[float, ...]:
    """Weights of the `size` positions of a window: rising and falling over `overlap` frames at its ends."""
    return tuple(float(min(i + 1, size - i, overlap + 1)) for i in range(size))
