"""Layers of shapes on a frame: placed by affine maps, painted, labelled, and followed to the next frame."""

from collections.abc import Sequence

import numpy as np

from ..opencv import cv2
from .draw import Layer, Shape, rasterise, to_subpixels


def chain(outer: np.ndarray, inner: np.ndarray) -> np.ndarray:
    """Composes affine maps [...,2,3]: `inner` first."""
    linear = outer[..., :2] @ inner[..., :2]
    offset = outer[..., :2] @ inner[..., 2:] + outer[..., 2:]
    return np.concatenate([linear, offset], axis=-1)


def transform(matrices: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Maps points [...,2] by affine maps [...,2,3]."""
    return (matrices[..., :2] @ points[..., None])[..., 0] + matrices[..., 2]


def paint(shapes: Sequence[Shape], matrices: np.ndarray, size: tuple[int, int], labels: bool) -> Layer | None:
    polygons = to_subpixels(shapes, matrices[None])[0]
    colours, bones = [shape.colour for shape in shapes], [shape.bone for shape in shapes]
    return rasterise(polygons, colours, bones, size, labels)


def window_of(image: np.ndarray, layer: Layer) -> np.ndarray:
    height, width = layer.rgba.shape[:2]
    return image[layer.y : layer.y + height, layer.x : layer.x + width]


def stack_labels(labels: np.ndarray, layers: Sequence[tuple[Layer | None, int]]) -> None:
    """Writes the topmost label at each pixel, every layer's own numbers raised by its offset."""
    for layer, offset in layers:
        if layer is not None and layer.labels is not None:
            seen = layer.labels > 0
            window_of(labels, layer)[seen] = layer.labels[seen] + np.uint8(offset)


def label_flow(labels: np.ndarray, matrices: np.ndarray) -> np.ndarray:
    """Optical flow [F-1,H,W,2] of labelled pixels from the labels' maps to pixels [F,L,2,3]."""
    height, width = labels.shape[1:]
    centres = np.stack(np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5), axis=-1)
    flow = np.empty((len(labels) - 1, height, width, 2), np.float32)
    for t in range(len(flow)):
        steps = np.zeros((matrices.shape[1], 2, 3))
        for label in np.unique(labels[t]):
            steps[label] = chain(matrices[t + 1, label], cv2.invertAffineTransform(matrices[t, label]))
        flow[t] = transform(steps[labels[t]], centres) - centres
    return flow
