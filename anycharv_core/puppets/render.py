"""Renders puppets: video, mask, pose, depth and optical flow that agree exactly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..media.cameras import Cameras
from ..media.masks import mask_box
from ..media.pose import BODY, Poses, pack_person
from ..opencv import cv2
from .character import Character
from .draw import Layer, Shape, composite, ellipse, rasterise, to_subpixels
from .layers import chain, label_flow, paint, stack_labels, transform, window_of
from .motion import Motion, standing_motion
from .props import Prop, prop_matrices, prop_shapes
from .rig import BONES, HELD_BONES, bone_ends, bone_matrices, build_rig, drawing_order
from .scene import Scene, build_scene, camera_matrices, paint_backdrop, sample_backdrop
from .seeds import generator

_SHADOW_OPACITY = 0.2
_CAMERA_DISTANCE = 1.5  # body heights from somebody as tall as the frame


@dataclass(frozen=True)
class Parts:
    """Body and held thing of a clip, and how near they are.

    Attributes:
        body, objects: uint8 [F,H,W], 255 on every pixel that the visible body, or what it holds, touches.
        joint_depth: float32 [F,18], of the joints in body heights, nearer being larger.
        depth: float32 [F,H,W], the same of what is seen at a pixel centre, NaN where that is neither.
    """

    body: np.ndarray
    objects: np.ndarray
    joint_depth: np.ndarray
    depth: np.ndarray

    def depth_pictures(self) -> np.ndarray:
        """The depth as uint16 [F,H,W], 0 where there is none, as depth.py takes it."""
        low, high = (float(limit(self.joint_depth)) for limit in (np.min, np.max))
        levels = 1 + 65534 * np.clip((self.depth - low) / max(high - low, 1e-6), 0, 1)
        return np.where(np.isnan(levels), 0, levels).astype(np.uint16)


@dataclass(frozen=True)
class Clip:
    """A rendered performance of F frames, W x H pixels.

    Attributes:
        frames: uint8 [F,H,W,3] RGB.
        mask: uint8 [F,H,W], 255 on every pixel that the character touches visibly, 0 elsewhere.
        keypoints: float32 [F,18,3], OpenPose-18 x, y in pixels (pixel i covers i..i+1) and score: 1 inside
            the frame, occluded or not; all three are 0 outside.
        boxes: int64 [F,4] x0, y0, x1, y1 around the mask, x1 and y1 exclusive; zeros where the mask is empty.
        flow: float32 [F-1,H,W,2], displacement x, y in pixels of what is seen at a pixel centre of frame t to
            its place at t+1, visible there or not; None unless asked for.
        parts: what the mask is made of; None unless asked for.

    Of a journey (travel.py) alone, else None:
        cameras: of all frames, in pixels and body heights.
        layers: uint8 [F,H,W], the number of the plane that is seen at a pixel centre, the farthest being 0, and
            how many there are where it is the character.
        depth: float32 [F,H,W], how far away along the camera's axis that is, in body heights.
        background: uint8 [F,H,W,3], the clean plates: the frames without character and shadow.
        hands: uint8 [F,H,W], 255 on every pixel that a visible hand touches.
    """

    frames: np.ndarray
    mask: np.ndarray
    keypoints: np.ndarray
    boxes: np.ndarray
    flow: np.ndarray | None
    parts: Parts | None = None
    cameras: Cameras | None = None
    layers: np.ndarray | None = None
    depth: np.ndarray | None = None
    background: np.ndarray | None = None
    hands: np.ndarray | None = None

    def poses(self) -> Poses:
        """The body points of all frames."""
        height, width = self.mask.shape[1:]
        return Poses(width, height, [pack_person({BODY: points})[None] for points in self.keypoints])


def render(
    character: Character,
    motion: Motion,
    scene: Scene,
    size: tuple[int, int] = (128, 128),
    flow: bool = False,
    camera: np.ndarray | None = None,
    parts: bool = False,
) -> Clip:
    """Renders `character` performing `motion` in `scene`; `size` is (width, height) in pixels.

    `camera` float [F,2,3] maps scene units to pixels, scaling both axes alike; None = the scene's own, of which
    `size` shows the whole frame (`frame_camera`). `flow` and `parts`: whether they are computed.

    Two characters rendered with the same motion and scene are each other's exact swap: joints, camera and
    objects are the same, and pixels outside the union of both masks are equal bit for bit.
    """
    width, height = size
    count = len(motion.scale)
    if camera is None:
        camera, whole = frame_camera(scene, count, size), size
    else:
        finest = float(camera[:, 0, 0].max())
        whole = (round(finest * width / height), round(finest))
    picture, to_picture = paint_backdrop(scene, whole)
    from_picture = cv2.invertAffineTransform(to_picture)
    bones = chain(camera[:, None], bone_matrices(motion))
    rig = build_rig(character, motion)
    shadow = shadows(motion, camera)
    movers, behind = _props(scene.movers, camera)
    occluders, in_front = _props(scene.occluders, camera)

    frames = np.empty((count, height, width, 3), np.uint8)
    mask = np.zeros((count, height, width), np.uint8)
    labels = np.zeros((count, height, width), np.uint8) if flow else None
    seen = _Seen.of(motion, mask.shape) if parts else None
    projected = transform(camera[:, None], motion.joints.astype(float))
    for t in range(count):
        frame = sample_backdrop(picture, chain(camera[t], from_picture), size)
        order = drawing_order(rig, tuple(motion.arm_front[t]), bool(motion.right_leg_front[t]))
        rear = paint(movers, behind[t], size, flow)
        body = paint(order, bones[t], size, flow or parts)
        front = paint(occluders, in_front[t], size, flow)
        if rear is not None:
            composite(frame, rear)
        cast(frame, shadow[t])
        if body is not None:
            composite(frame, body)
            window_of(mask[t], body)[:] = (body.rgba[..., 3] > 0) * np.uint8(255)
            if seen is not None:
                seen.add(t, body, projected[t])
        if front is not None:
            composite(frame, front)
            window_of(mask[t], front)[front.rgba[..., 3] == 255] = 0
            if seen is not None:
                seen.hide(t, front)
        frames[t] = frame
        if labels is not None:
            first = len(scene.movers)
            stack_labels(labels[t], ((rear, 0), (body, first), (front, first + len(BONES))))

    tracks = np.concatenate([camera[:, None], behind, bones, in_front], axis=1)
    return Clip(
        frames=frames,
        mask=mask,
        keypoints=frame_points(projected, size),
        boxes=np.array([mask_box(m) or (0, 0, 0, 0) for m in mask]),
        flow=None if labels is None else label_flow(labels, tracks),
        parts=None if seen is None else seen.parts,
    )


def frame_camera(scene: Scene, frames: int, size: tuple[int, int]) -> np.ndarray:
    """Maps float64 [F,2,3] of scene units to pixels of whole frames of `size` (width, height)."""
    width, height = size
    view = np.array([[height, 0, width / 2], [0, height, 0]], dtype=float)
    return chain(view, camera_matrices(scene, frames))


def window_camera(camera: np.ndarray, windows: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """What shows of each frame of `camera` [F,2,3] a window [F,4] (x0, y0, x1, y1 in its pixels) at `size`."""
    near, far = windows[:, :2], windows[:, 2:]
    scale = np.asarray(size) / (far - near)
    cut = np.zeros((len(windows), 2, 3))
    cut[:, 0, 0], cut[:, 1, 1] = scale.T
    cut[:, :, 2] = -scale * near
    return chain(cut, camera)


def bounds(character: Character, motion: Motion, camera: np.ndarray) -> np.ndarray:
    """Boxes float64 [F,4] (x0, y0, x1, y1) around all that is drawn of the character, seen or hidden, through
    `camera` [F,2,3]."""
    rig = build_rig(character, motion)
    shapes = drawing_order(rig, (True, True), True)
    points = np.concatenate([shape.points for shape in shapes])
    bones = np.repeat([shape.bone for shape in shapes], [len(shape.points) for shape in shapes])
    placed = transform(chain(camera[:, None], bone_matrices(motion))[:, bones], points)
    return np.concatenate([placed.min(axis=1), placed.max(axis=1)], axis=1)


def render_reference(
    character: Character,
    seed: int,
    size: tuple[int, int],
    split: str = "train",
    backdrop: Scene | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Renders `character` standing at ease in its own proportions before `backdrop`, or else a random one.

    `size` is (width, height) in pixels. Returns the picture uint8 [H,W,3] RGB and its mask uint8 [H,W] 0/255.

    Raises:
        KeyError: `split` is unknown.
        ValueError: `seed` is negative.
    """
    rng = generator(split, "reference", seed)
    held_up = character.held in ("balloon", "umbrella")
    tall = rng.uniform(0.66, 0.70) if held_up else rng.uniform(0.82, 0.90)
    tall *= min(1.0, 1.5 * size[0] / size[1])
    motion = standing_motion(rng, character.proportions, tall, character.side if held_up else None)
    clip = render(character, motion, backdrop or still(build_scene(rng)), size)
    return clip.frames[0], clip.mask[0]


def studio(scene: Scene) -> Scene:
    """The colours of the scene alone, as a plain wall, before a camera at rest."""
    return replace(still(scene), shapes=(), grain=np.zeros_like(scene.grain))


def still(scene: Scene) -> Scene:
    """The scene with a camera at rest, and nothing in it that moves or hides the character."""
    camera = ((1.0, 0.0, 0.0),) * 2
    return replace(scene, camera=camera, shake=(0.0, 1.0, 0.0), movers=(), occluders=())


def _props(props: Sequence[Prop], camera: np.ndarray) -> tuple[list[Shape], np.ndarray]:
    """Returns all shapes, with one bone per prop, and the bones' maps to pixels [F,P,2,3]."""
    shapes = [shape for i, prop in enumerate(props) for shape in prop_shapes(prop, i)]
    matrices = np.empty((len(camera), len(props), 2, 3))
    for i, prop in enumerate(props):
        matrices[:, i] = chain(camera, prop_matrices(prop, len(camera)))
    return shapes, matrices


def frame_points(projected: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Joints [F,18,2] in pixels as `Clip.keypoints`, for frames of `size` (width, height)."""
    inside = ((projected >= 0) & (projected < size)).all(-1, keepdims=True)
    return np.where(inside, np.concatenate([projected, inside], axis=-1), 0).astype(np.float32)


def shadows(motion: Motion, camera: np.ndarray) -> list[np.ndarray]:
    """Polygons of the shadow on the ground, one a frame.

    It follows the motion alone, so that swapping the character leaves it untouched.
    """
    blob = Shape(ellipse(0, 0, 0.17, 0.026), (0, 0, 0))
    scale = motion.scale.astype(float)
    place = np.zeros((len(scale), 1, 2, 3))
    place[:, 0, 0, 0] = place[:, 0, 1, 1] = scale
    place[:, 0, :, 2] = motion.ground
    return [polygons[0] for polygons in to_subpixels([blob], chain(camera[:, None], place))]


def cast(frame: np.ndarray, shadow: np.ndarray) -> None:
    """Darkens `frame` uint8 [H,W,3] in place where the polygon `shadow` lies."""
    height, width = frame.shape[:2]
    shade = rasterise([shadow], [(0, 0, 0)], [0], (width, height))
    if shade is not None:
        composite(frame, replace(shade, rgba=(shade.rgba * _SHADOW_OPACITY).astype(np.uint8)))


class _Seen:
    """What `Parts` are made of while a clip is rendered."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self._starts, self._ends = bone_ends()

    @classmethod
    def of(cls, motion: Motion, shape: tuple[int, ...]) -> _Seen:
        # Who is larger is nearer: the camera is as far away as their height is small.
        nearness = (motion.depth - _CAMERA_DISTANCE / motion.scale[:, None]).astype(np.float32)
        body, objects = np.zeros((2, *shape), np.uint8)
        return cls(Parts(body, objects, nearness, np.full(shape, np.nan, np.float32)))

    def add(self, t: int, layer: Layer, points: np.ndarray) -> None:
        """Frame `t` with the layer of the character, whose joints lie at points [18,2] in pixels."""
        for store, bones in ((self.parts.body, ~HELD_BONES), (self.parts.objects, HELD_BONES)):
            window_of(store[t], layer)[layer.touched(bones)] = 255
        assert layer.labels is not None
        window, depth = window_of(self.parts.depth[t], layer), self.parts.joint_depth[t]
        for label in np.unique(layer.labels[layer.labels > 0]).tolist():
            start, end = list(self._starts[label - 1]), list(self._ends[label - 1])
            rows, columns = np.nonzero(layer.labels == label)
            pixels = np.stack([columns + layer.x, rows + layer.y], axis=-1) + 0.5
            first, way = points[start].mean(0), points[end].mean(0) - points[start].mean(0)
            along = np.clip((pixels - first) @ way / max(float(way @ way), 1e-6), 0, 1)
            window[rows, columns] = depth[start].mean() * (1 - along) + depth[end].mean() * along

    def hide(self, t: int, layer: Layer) -> None:
        """Takes away what lies behind a layer."""
        covered = layer.rgba[..., 3] == 255
        for store, nothing in ((self.parts.body, 0), (self.parts.objects, 0), (self.parts.depth, np.nan)):
            window_of(store[t], layer)[covered] = nothing
