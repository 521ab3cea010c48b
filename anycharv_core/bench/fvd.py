"""Frechet video distance (Unterthiner et al. 2018) with a feature network given by path.

The package cd-fvd is not used: it needs torchvision, and fetches weights from the network where the path it is
given does not exist.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from ..errors import UserError
from ..media.imaging import to_unit
from .pretrained import load_pretrained

WINDOW = 16  # frames the features look at: what I3D is scored on by convention, and all that VideoMAE takes
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, which VideoMAE's input is scaled by

Features = Callable[[np.ndarray], np.ndarray]
"""uint8 [16, H, W, 3] -> float64 [D]."""


def load_features(path: Path, device: str) -> Features:
    """The feature network at `path`: a TorchScript file of I3D (the one StyleGAN-V and others publish, called
    with rescale, resize and return_features), or a folder of transformers' VideoMAE.

    Distances by different networks cannot be compared. Raises UserError for anything else.
    """
    return _videomae(path, device) if path.is_dir() else _torchscript(path, device)


def _centred(features: np.ndarray) -> np.ndarray:
    """X, of which X^T X is the covariance of `features`."""
    return (features - features.mean(axis=0)) / np.sqrt(len(features) - 1)


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Between the Gaussians of two sets of features, [n, D] and [m, D], n and m at least 2.

    |mean a - mean b|^2 + tr(Sa + Sb - 2 (Sa Sb)^1/2). With S = X^T X for the centred and scaled features X, the
    last trace is the sum of the singular values of Xa Xb^T: no root of a singular matrix is taken, and equal sets
    are 0 apart.
    """
    if min(len(a), len(b)) < 2:
        raise ValueError("A covariance needs at least two windows.")
    roots = [np.asarray(np.linalg.qr(_centred(x), mode="r")) for x in (a, b)]
    traces = sum(float((root**2).sum()) for root in roots)
    shared = float(np.linalg.svd(roots[0] @ roots[1].T, compute_uv=False).sum())
    means = float(((a.mean(axis=0) - b.mean(axis=0)) ** 2).sum())
    return max(0.0, means + traces - 2 * shared)


def _torchscript(path: Path, device: str) -> Features:
    try:
        network = torch.jit.load(str(path), map_location=device)
    except (RuntimeError, ValueError, OSError) as error:
        raise UserError(
            f"{path} is not a TorchScript file that can be read; give I3D as TorchScript, or a folder of VideoMAE."
        ) from error
    network.train(False)

    @torch.inference_mode()
    def features(frames: np.ndarray) -> np.ndarray:
        clip = torch.as_tensor(frames).movedim(-1, 0)[None].float().to(device)
        try:
            found = network(clip, rescale=True, resize=True, return_features=True)
        except RuntimeError as error:
            raise UserError(
                f"{path} cannot be called as the TorchScript I3D is, with rescale, resize and return_features "
                f"({str(error).strip().splitlines()[-1]})."
            ) from error
        return found.double().cpu().numpy().ravel()

    return features


def _videomae(path: Path, device: str) -> Features:
    from transformers import VideoMAEModel

    network = load_pretrained(VideoMAEModel, path, "transformers' VideoMAE", device)
    if network.config.num_frames != WINDOW:
        raise UserError(f"{path} looks at {network.config.num_frames} frames; give a VideoMAE of {WINDOW}.")
    mean, std = (torch.tensor(v, device=device)[:, None, None] for v in (_MEAN, _STD))

    @torch.inference_mode()
    def features(frames: np.ndarray) -> np.ndarray:
        side = network.config.image_size
        unit = torch.nn.functional.interpolate(
            to_unit(frames).to(device), (side, side), mode="bilinear", antialias=True
        )
        tokens = network(pixel_values=((unit - mean) / std)[None]).last_hidden_state
        return tokens.mean(dim=1)[0].double().cpu().numpy()

    return features
