"""A puppet seen through the canvas that follows it, drawn at the canvas's own resolution."""

import numpy as np

from ..media.camera import camera_path
from .character import Character
from .motion import Motion
from .render import bounds, frame_camera, window_camera
from .scene import Scene

FRAME = 256  # pixels a side of the frames that the canvas is cut from


def following_camera(
    character: Character, motion: Motion, scene: Scene, size: tuple[int, int], context: float
) -> np.ndarray:
    """Maps float64 [F,2,3] of scene units to the pixels of a canvas of `size` (width, height) that follows the
    character as `media.camera.camera_path` does; context: of the longer side of its box, on each side."""
    camera = frame_camera(scene, len(motion.scale), (FRAME, FRAME))
    boxes = np.clip(bounds(character, motion, camera), 0, FRAME)
    seen = [box if (box[2:] > box[:2]).all() else None for box in boxes]
    windows = camera_path(seen, (FRAME, FRAME), size, context=context)
    return window_camera(camera, windows, size)
