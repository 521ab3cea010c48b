"""Where a puppet performs: backdrop, camera, moving objects and occluders."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..opencv import cv2
from .backdrop import BACKDROPS, REACH, Gradient
from .character import CLOTH
from .draw import Shape, composite, mix, rasterise, tint, to_subpixels
from .props import MOVING, Prop
from .seeds import generator

# Backdrops are painted this far above and below the frame and this much finer than it.
_MARGIN = 0.3
_DETAIL = 1.25
_GRAIN_CELLS = 48


@dataclass(frozen=True)
class Scene:
    """A set in scene units: frame height 1, x 0 at the centre, y 0 top to 1 bottom before the camera moves.

    Attributes:
        gradient: RGB at the top of the frame and at the horizon.
        shapes: the backdrop, back to front.
        grain: float32 [N,N], brightness offsets -1..1 of the backdrop's texture.
        camera: zoom, pan x, pan y at the first and at the last frame (2 rows), pans in scene units.
        shake: amplitude in scene units, period in frames and phase in radians of a slow camera drift.
        movers: objects behind the puppet, back to front.
        occluders: objects in front of it, back to front.
    """

    gradient: Gradient
    shapes: tuple[Shape, ...]
    grain: np.ndarray
    camera: tuple[tuple[float, float, float], tuple[float, float, float]]
    shake: tuple[float, float, float]
    movers: tuple[Prop, ...]
    occluders: tuple[Prop, ...]


def sample_scene(seed: int, split: str = "train") -> Scene:
    """Samples scene number `seed` (>= 0) of `split`.

    Raises:
        KeyError: `split` is unknown.
        ValueError: `seed` is negative.
    """
    return build_scene(generator(split, "scene", seed))


def build_scene(rng: np.random.Generator, kinds: Sequence[str] = tuple(BACKDROPS)) -> Scene:
    """Samples a scene from `rng`, its backdrop one of `kinds`."""
    kind = str(rng.choice(list(kinds)))
    horizon = rng.uniform(0.68, 0.78)
    gradient, shapes = BACKDROPS[kind](rng, horizon)
    calm = rng.random() < 0.25
    low, high = (0.98, -0.06, -0.015), (1.12, 0.06, 0.015)
    moves = [tuple(rng.uniform(low, high).tolist()) for _ in range(2)]
    outdoor = kind in ("hills", "park", "street", "beach")
    movers = tuple(_mover(rng, kind, horizon) for _ in range(int(rng.choice(3, p=(0.35, 0.4, 0.25)))))
    occluders = (_occluder(rng, outdoor),) if rng.random() < 0.35 else ()
    return Scene(
        gradient=gradient,
        shapes=tuple(shapes),
        grain=rng.uniform(-1, 1, (_GRAIN_CELLS, _GRAIN_CELLS)).astype(np.float32),
        camera=(moves[0], moves[0] if calm else moves[1]),
        shake=(0.0 if calm else rng.uniform(0.0, 0.006), rng.uniform(20, 45), rng.uniform(0, 6)),
        movers=movers,
        occluders=occluders,
    )


def camera_matrices(scene: Scene, frames: int) -> np.ndarray:
    """Returns float64 [F,2,3], the map of scene units to frame units (frame height 1, x 0 at the centre)."""
    t = np.arange(frames)
    u = t / max(frames - 1, 1)
    u = (u * u * (3 - 2 * u))[:, None]
    zoom, x, y = (np.array(scene.camera[0]) * (1 - u) + np.array(scene.camera[1]) * u).T
    size, period, phase = scene.shake
    x = x + size * np.sin(2 * np.pi * t / period + phase)
    y = y + 0.6 * size * np.sin(2 * np.pi * t / (0.7 * period) + phase)
    zero = np.zeros(frames)
    # The zoom keeps the ground in the picture.
    across = np.stack([zoom, zero, -zoom * x], axis=-1)
    down = np.stack([zero, zoom, 0.8 - zoom * (0.8 + y)], axis=-1)
    return np.stack([across, down], axis=1)


def paint_backdrop(scene: Scene, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Paints the backdrop for frames of `size` (width, height).

    Returns the picture uint8 [h,w,3] and the float64 [2,3] map of scene units to its continuous pixels.
    """
    width, height = size
    density = height * _DETAIL
    half = min(0.5 * width / height + _MARGIN, REACH)
    columns, rows = round(2 * half * density), round((1 + 2 * _MARGIN) * density)
    to_pixels = np.array([[density, 0, half * density], [0, density, _MARGIN * density]])

    y = np.clip((np.arange(rows) + 0.5) / density - _MARGIN, 0, 0.75) / 0.75
    ramp = np.asarray(scene.gradient[0]) + y[:, None] * np.subtract(scene.gradient[1], scene.gradient[0])
    picture = np.repeat(np.rint(ramp).astype(np.uint8)[:, None], columns, axis=1)
    polygons = to_subpixels(scene.shapes, to_pixels[None, None])[0]
    colours = [shape.colour for shape in scene.shapes]
    layer = rasterise(polygons, colours, [0] * len(polygons), (columns, rows))
    if layer is not None:
        composite(picture, layer)

    cells = len(scene.grain)
    stretch = 2 * REACH * density / cells
    to_picture = np.array([[stretch, 0, (half - REACH) * density], [0, stretch, -_MARGIN * density]])
    coarse, fine = (
        amount * _warp(scene.grain, to_picture * (scale, scale, 1), (columns, rows), cv2.BORDER_WRAP)
        for amount, scale in ((5.0, 1.0), (4.0, 0.3))
    )
    return np.clip(picture + (coarse + fine)[..., None], 0, 255).round().astype(np.uint8), to_pixels


def _warp(image: np.ndarray, matrix: np.ndarray, size: tuple[int, int], border: int) -> np.ndarray:
    """Resamples by a map between continuous pixels, whose centres OpenCV puts at whole numbers."""
    shifted = matrix.astype(float)
    shifted[:, 2] += 0.5 * (matrix[:, 0] + matrix[:, 1]) - 0.5
    return cv2.warpAffine(image, shifted, size, flags=cv2.INTER_LINEAR, borderMode=border)


def sample_backdrop(picture: np.ndarray, matrix: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Returns the frame uint8 [H,W,3] of `size` (width, height); `matrix` maps picture to frame pixels."""
    return _warp(picture, matrix, size, cv2.BORDER_REPLICATE)


def _mover(rng: np.random.Generator, backdrop: str, horizon: float) -> Prop:
    kinds = {
        "room": ("ball", "balloon"),
        "stage": ("ball", "balloon"),
        "street": ("car", "bird", "balloon", "cloud"),
    }.get(backdrop, tuple(kind for kind in MOVING if kind != "car"))
    kind = str(rng.choice(kinds))
    direction = 1 if rng.random() < 0.5 else -1
    middle, travel = rng.uniform(-0.45, 0.45), rng.uniform(0.1, 0.5)
    colour = mix(CLOTH[rng.integers(len(CLOTH))], (215, 215, 215), 0.35)
    turn = 0.0
    match kind:
        case "cloud":
            y, size, colour = rng.uniform(0.02, 0.25), rng.uniform(0.12, 0.2), (248, 250, 252)
        case "bird":
            y, size, colour = rng.uniform(0.05, 0.3), rng.uniform(0.05, 0.09), (84, 84, 100)
        case "car":
            y, size, travel = horizon + 0.0, rng.uniform(0.28, 0.36), rng.uniform(0.5, 1.2)
        case "ball":
            size = rng.uniform(0.07, 0.13)
            y, turn = horizon + 0.04 - size / 2, 2 * direction * travel / size
        case _:
            y, size = rng.uniform(0.1, 0.35), rng.uniform(0.08, 0.15)
    rise = rng.uniform(-0.06, 0.06) if kind in ("bird", "balloon", "kite") else 0.0
    ends = middle - direction * travel / 2, middle + direction * travel / 2
    return Prop(kind, (ends[0], y), (ends[1], y + rise), size, turn, colour)


def _occluder(rng: np.random.Generator, outdoor: bool) -> Prop:
    kind = str(rng.choice(("pole", "bush", "fence", "ball", "leaf") if outdoor else ("pole", "ball")))
    x = rng.uniform(-0.4, 0.4)
    match kind:
        case "pole":
            colour = ((150, 150, 158), (176, 150, 124), (126, 140, 150))[rng.integers(3)]
            return Prop(kind, (x, 0.5), (x, 0.5), rng.uniform(0.6, 1.0), 0.0, colour)
        case "bush":
            colour = ((92, 140, 96), (112, 150, 84))[rng.integers(2)]
            return Prop(kind, (x, 0.99), (x, 0.99), rng.uniform(0.2, 0.3), 0.0, colour)
        case "fence":
            colour = ((226, 220, 208), (186, 158, 130))[rng.integers(2)]
            return Prop(kind, (x, 0.92), (x, 0.92), rng.uniform(0.12, 0.18), 0.0, colour)
        case _:
            size = rng.uniform(0.10, 0.17) if kind == "ball" else rng.uniform(0.06, 0.1)
            direction = 1 if rng.random() < 0.5 else -1
            y0, y1 = rng.uniform(0.2, 0.8), rng.uniform(0.3, 0.9)
            colour = tint(CLOTH[rng.integers(len(CLOTH))], 0.15)
            return Prop(kind, (-0.7 * direction, y0), (0.7 * direction, y1), size, 4.0 * direction, colour)
