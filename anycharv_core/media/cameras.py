"""The cameras of a clip, and how they change when its frames are cut, scaled, mirrored or left out.

A point X of the world is seen at K (R X + T), in pixels, pixel i covering i..i+1. Cameras move, turn and zoom;
lenses do not distort.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

# A camera that moves less than this part of the clip's longest way has not moved: its epipolar lines are noise.
STILL = 1e-4


@dataclass(frozen=True, eq=False)
class Cameras:
    """One camera per frame. K: float64 [F, 3, 3], pixels; R: [F, 3, 3] and T: [F, 3], world to camera, the camera
    looking along z, x to the right and y down. Lengths are in any unit."""

    K: np.ndarray
    R: np.ndarray
    T: np.ndarray

    def __len__(self) -> int:
        return len(self.T)

    @classmethod
    def unpacked(cls, packed: np.ndarray) -> Cameras:
        """Of `packed`'s array."""
        return cls(packed[..., :3], packed[..., 3:6], packed[..., 6])

    def packed(self) -> np.ndarray:
        """All of it as float64 [F, 3, 7]: K, R and T side by side."""
        return np.concatenate([self.K, self.R, self.T[..., None]], axis=-1)

    def at(self, frames: slice | list[int] | np.ndarray) -> Cameras:
        """Of these frames alone."""
        return Cameras(self.K[frames], self.R[frames], self.T[frames])

    def cropped(self, x: float, y: float) -> Cameras:
        """For frames cut out with their upper left corner at x, y."""
        return self._placed(np.array([(1, 0, -x), (0, 1, -y), (0, 0, 1)], float))

    def scaled(self, x: float, y: float) -> Cameras:
        """For frames made x times as wide and y times as high."""
        return self._placed(np.diag((x, y, 1.0)))

    def mirrored(self, width: float) -> Cameras:
        """For frames `width` pixels wide, left and right changed: of the world in the same mirror."""
        K, turn = self.K.copy(), np.diag((-1.0, 1.0, 1.0))
        K[:, 0, 2] = width - K[:, 0, 2]
        K[:, 0, 1] = -K[:, 0, 1]
        return Cameras(K, turn @ self.R @ turn, self.T @ turn)

    def _placed(self, change: np.ndarray) -> Cameras:
        return replace(self, K=change @ self.K)


def plane_maps(cameras: Cameras, depths: np.ndarray) -> np.ndarray:
    """The affine maps float64 [F, P, 2, 3], of X, Y on a plane to pixels, by which cameras see planes that face
    them at `depths`: [P], or [F, P] where they move.

    The cameras may only roll about their axis, or a plane would not stay affine.
    """
    depths = np.broadcast_to(depths, (len(cameras), np.shape(depths)[-1]))
    distance = (depths + cameras.T[:, 2:])[..., None, None]
    focal, centre = cameras.K[:, None, :2, :2], cameras.K[:, None, :2, 2:]
    linear = focal @ cameras.R[:, None, :2, :2] / distance
    offset = focal @ cameras.T[:, None, :2, None] / distance + centre
    return np.concatenate([linear, offset], axis=-1)


def fundamental(cameras: Cameras) -> np.ndarray:
    """F [i, j] float64 [F, F, 3, 3] of all pairs of frames: what is at u, v in frame i lies in frame j on the line
    F (u, v, 1). Zero where nothing says on which: between a frame and itself, and cameras in one place
    (AnimateAnywhere, equation 3)."""
    # Relative motion: x_j = R_ij x_i + T_ij.
    turn = cameras.R[None] @ cameras.R[:, None].transpose(0, 1, 3, 2)
    shift = cameras.T[None] - (turn @ cameras.T[:, None, :, None])[..., 0]
    way = np.linalg.norm(shift, axis=-1)
    # Cameras that only turn are a rounding error apart, which no other way need exceed.
    least = max(STILL * way.max(initial=0), 1e-9 * np.abs(cameras.T).max(initial=0))
    shift = np.where((way <= least)[..., None], 0, shift)
    x, y, z = np.moveaxis(shift, -1, 0)
    zero = np.zeros_like(x)
    cross = np.stack([zero, -z, y, z, zero, -x, -y, x, zero], axis=-1).reshape(*x.shape, 3, 3)
    inverse = np.linalg.inv(cameras.K)
    return inverse.transpose(0, 2, 1)[None] @ cross @ turn @ inverse[:, None]
