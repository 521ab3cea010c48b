"""How close a generated video is to the truth, over a region of it."""

from __future__ import annotations

import math

import numpy as np

from ..opencv import cv2


def decibels(error: float) -> float:
    """PSNR in dB of a mean squared error of levels 0 to 255; inf for 0."""
    return 10 * math.log10(255.0**2 / error) if error else math.inf


def psnr(made: np.ndarray, truth: np.ndarray, region: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB of uint8 [..., H, W, 3] over a bool region [..., H, W].

    Capped at 148.13 dB, so that a mean exists where one video equals the truth.
    """
    error = made[region].astype(np.float64) - truth[region]
    return decibels(max(float(np.mean(error**2)), 1e-10))


def ssim(made: np.ndarray, truth: np.ndarray, region: np.ndarray) -> float:
    """Structural similarity (Wang et al. 2004, Gaussian window of 1.5 px, grey) averaged over a region.

    Of grey pictures the map equals that of torchmetrics on floats.

    made, truth: uint8 [F, H, W, 3]; region: bool [F, H, W].
    """
    maps = [_ssim_map(_grey(a), _grey(b)) for a, b in zip(made, truth, strict=True)]
    return float(np.stack(maps)[region].mean())


def gradient_energy(made: np.ndarray, truth: np.ndarray, region: np.ndarray) -> float:
    """Mean squared gradient inside a region relative to the truth's: 1 = as sharp, < 1 blur, > 1 noise.

    made, truth: uint8 [F, H, W, 3]; region: bool [F, H, W].
    """
    return _energy(made, region) / max(_energy(truth, region), 1e-10)


def warp_error(frames: np.ndarray, flow: np.ndarray, region: np.ndarray) -> float:
    """Mean absolute difference, in levels, between each frame and the next one warped back by the true flow.

    frames: uint8 [F, H, W, 3]; flow: float32 [F-1, H, W, 2] pixels from t to t+1; region: bool [F, H, W],
    counted where both the pixel and its place in the next frame are inside.
    """
    height, width = region.shape[1:]
    columns, rows = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    total, count = 0.0, 0
    for t, step in enumerate(flow):
        places = (columns + step[..., 0], rows + step[..., 1])
        back = cv2.remap(frames[t + 1], *places, cv2.INTER_LINEAR)
        stays = cv2.remap(region[t + 1].astype(np.uint8), *places, cv2.INTER_NEAREST) > 0
        seen = region[t] & stays
        total += float(np.abs(back[seen].astype(np.float64) - frames[t][seen]).sum())
        count += 3 * int(seen.sum())
    return total / max(count, 1)


def lab(picture: np.ndarray) -> np.ndarray:
    """CIE Lab float32 [H, W, 3] of a picture of levels 0 to 255 [H, W, 3]."""
    return cv2.cvtColor(picture.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)


def _grey(picture: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY).astype(np.float64)


def _ssim_map(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    def blur(x: np.ndarray) -> np.ndarray:
        return cv2.GaussianBlur(x, (11, 11), 1.5)

    mean_a, mean_b = blur(a), blur(b)
    var_a, var_b = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2
    covariance = blur(a * b) - mean_a * mean_b
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    similar = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    return similar / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))


def _energy(frames: np.ndarray, region: np.ndarray) -> float:
    values = frames.astype(np.float64)
    x, y = np.zeros_like(values), np.zeros_like(values)
    x[:, :, :-1], y[:, :-1] = np.diff(values, axis=2), np.diff(values, axis=1)
    return float((x**2 + y**2)[region].mean())
