"""Who is who: tracklets within a shot, what people look like, and tracks over the whole video."""

from .looks import body_looks, looks_distance, mean_looks
from .track import Track, observe, track
from .tracklets import Observation, box_area, box_overlap, spans

__all__ = [
    "Observation",
    "Track",
    "body_looks",
    "box_area",
    "box_overlap",
    "looks_distance",
    "mean_looks",
    "observe",
    "spans",
    "track",
]
