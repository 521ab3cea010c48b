"""Where AnimateAnywhere's transformer looks on held-out journeys, whose cameras are known."""

from __future__ import annotations

import math

import torch

from ..inference.anywhere import AnywhereBackend
from ..inference.pipeline import Pipeline
from ..inference.skeletons import PointSkeletons
from ..media.cameras import fundamental
from ..media.canvas import CanvasPath
from ..media.frames import Source
from ..models.dit import grid_of
from ..models.epipolar import background_tokens, band_mass, epipolar_mask, seen_through, unwanted_attention
from ..models.schedule import add_noise
from ..models.slots import layout
from ..puppets.travel import Travel

MASSES = {
    "tail mass": "attention of background tokens to tokens off their epipolar lines, of the small values that the "
    "paper's equation 4 punishes; mean over blocks, heads and tokens, of the truth half noise",
    "band mass": "of their attention to tokens of the clip, the share on those lines",
}
_STEP, _BAND = 499, 0.5


def masses(pipe: Pipeline, travel: Travel) -> dict[str, float]:
    """The scores of `MASSES`; NaN for a clip without background tokens or whose camera rests, and for frames
    that the networks see at another size."""
    backend, truth = pipe.backend, travel.truth
    assert isinstance(backend, AnywhereBackend) and truth.cameras is not None
    height, width = truth.mask.shape[1:]
    recipe, skeletons = pipe.system.recipe("default"), PointSkeletons(travel.poses())
    plan = pipe.plan(recipe, None, skeletons.size, (width, height), (width, height))
    path = CanvasPath(plan.canvas)
    _, pad, slots = layout(len(truth.frames))
    clean = backend.encode_clip(truth.frames)
    # As its pose: a latent in front shares the slot of the first frame.
    clean = torch.cat([clean[:1].expand(pad, -1, -1, -1), clean])
    grid = grid_of(clean[None])
    queries = background_tokens(torch.from_numpy(truth.mask > 0), slots, grid[1:]).nonzero().flatten()
    lines = torch.from_numpy(fundamental(truth.cameras))
    if path.canvas.padded != (width, height) or not len(queries) or not lines.any():
        return dict.fromkeys(MASSES, math.nan)
    drawn = Source("pose", skeletons.drawn(plan.drawn_at(path), path), 3)
    made = pipe.prepare(plan, travel.reference, None, None, drawn, path=path, background=travel.background)
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0)).to(clean)
    noisy, _ = add_noise(clean[None], noise[None], torch.tensor([_STEP]), backend.schedule)
    cell = width / grid[2], height / grid[1]
    near = epipolar_mask(lines, queries, seen_through(slots), grid[1:], cell, _BAND)[None]
    tail, band = [], []
    for each in backend.attention(made.video, pipe.reference_tokens(made), noisy[0], _STEP, queries):
        own = each[None].cpu()
        tail.append(float(unwanted_attention(own, near, len(slots)).mean()))
        band.append(float(band_mass(own, near, len(slots)).mean()))
    return {"tail mass": sum(tail) / len(tail), "band mass": sum(band) / len(band)}
