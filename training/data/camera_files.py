"""Camera files of HumanVid: one line a frame, `t tx ty tz qx qy qz qw fx fy [scale]`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np

from anycharv_core.errors import UserError
from anycharv_core.foreign import read_bytes
from anycharv_core.media.cameras import Cameras
from anycharv_core.media.imaging import Size

Source = Literal["pexels", "unreal"]
_MOST_BYTES = 64 * 1024**2  # a few hundred thousand frames


def read_cameras(path: Path, size: Size, source: Source) -> Cameras:
    """The cameras of a video whose frames have `size` (width, height), in its pixels.

    source: "pexels" files hold camera to world, their translation still to be multiplied by `scale`, and "unreal"
    files world to camera. Focal lengths are relative to the picture; pixels are square, so that the one of the
    longer side is enough; the axis goes through the middle.

    Raises UserError where the file does not hold such lines.
    """
    rows = _rows(path)
    width, height = size
    turn = _rotations(rows[:, 4:8])
    shift = rows[:, 1:4]
    if source == "pexels":
        shift = shift * (rows[:, 10:] if rows.shape[1] == 11 else 1.0)
        turn = turn.transpose(0, 2, 1)
        shift = -(turn @ shift[..., None])[..., 0]
    focal = rows[:, 8] * width if width > height else rows[:, 9] * height
    K = np.zeros((len(rows), 3, 3))
    K[:, 0, 0] = K[:, 1, 1] = focal
    K[:, :, 2] = (width / 2, height / 2, 1.0)
    return Cameras(K, turn, shift)


def _rows(path: Path) -> np.ndarray:
    lines = read_bytes(path, _MOST_BYTES).decode("utf-8", "replace").splitlines()
    rows: list[list[float]] = []
    for number, line in enumerate(lines, 1):
        words = line.split()
        if not words:
            continue
        try:
            values = [float(word) for word in words]
        except ValueError:
            values = []
        if len(values) not in (10, 11) or (rows and len(values) != len(rows[0])) or not np.isfinite(values).all():
            raise UserError(
                f"Line {number} of {path} is no camera: it takes 10 or 11 numbers, t tx ty tz qx qy qz qw fx fy "
                "and perhaps a scale, as many as the lines before; check that it is a camera file of HumanVid."
            )
        rows.append(values)
    if not rows:
        raise UserError(f"{path} holds no camera; check that it is a camera file of HumanVid.")
    found = np.array(rows)
    if (found[:, 8:10] <= 0).any() or (np.linalg.norm(found[:, 4:8], axis=1) < 1e-6).any():
        raise UserError(f"{path} has a camera without direction or focal length; leave this video out.")
    return found


def _rotations(quaternions: np.ndarray) -> np.ndarray:
    """Matrices [F, 3, 3] of quaternions [F, 4], x, y, z, w, of any length but 0."""
    x, y, z, w = (quaternions / np.linalg.norm(quaternions, axis=1, keepdims=True)).T
    return np.stack(
        [
            *(1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)),
            *(2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)),
            *(2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)),
        ],
        axis=-1,
    ).reshape(-1, 3, 3)
