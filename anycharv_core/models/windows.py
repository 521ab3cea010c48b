"""How a video is cut into windows: frames that are denoised together."""

from __future__ import annotations

from dataclasses import dataclass

WINDOW, OVERLAP = 24, 6


@dataclass(frozen=True)
class Windows:
    """Frame indices of each temporal window, the weight of each position, and whether to average."""

    indices: tuple[tuple[int, ...], ...]
    weights: tuple[tuple[float, ...], ...]
    average: bool = True


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


def window_ramp(size: int, overlap: int) -> tuple[float, ...]:
    """Weights of the `size` positions of a window: rising and falling over `overlap` frames at its ends."""
    return tuple(float(min(i + 1, size - i, overlap + 1)) for i in range(size))
