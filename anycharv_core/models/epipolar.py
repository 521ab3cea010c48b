"""Where the cameras of a clip say that a token may be found again, and how far attention looks elsewhere.

AnimateAnywhere, section III-C: what a background token shows lies in another frame on its epipolar line. Large
values off that line are spared, as the paper's ablation advises; only the small ones are punished (equation 4).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Frames = Sequence[int]


def epipolar_mask(
    lines: Tensor,
    queries: Tensor,
    slots: Sequence[Frames],
    grid: tuple[int, int],
    cell: tuple[float, float],
    band: float,
) -> Tensor:
    """M of equation 3: the tokens of every slot whose centre is near an epipolar line of a query's centre.

    A slot is seen by several cameras: a token counts if it is near in one of all pairs of its slot's frames and
    the query's. Between frames whose cameras are in one place, all of them count.

    Args:
        lines: fundamental matrices [F, F, 3, 3] of all pairs of frames (`media.cameras.fundamental`), in pixels.
        queries: int64 [q], places among all tokens: by slot, row, column.
        slots: the frames that stand for each slot (`seen_through`).
        grid: rows and columns of tokens. cell: width and height of one in pixels.
        band: how near, in diagonals of a cell.

    Returns bool [q, S, rows * columns].
    """
    rows, columns = grid
    width, height = cell
    size = lines.new_tensor((width, height))
    places = torch.arange(rows * columns, device=lines.device)
    centres = torch.cat(
        [(torch.stack([places % columns, places // columns], -1) + 0.5) * size, lines.new_ones(rows * columns, 1)],
        -1,
    )
    reach = band * float(size.norm())
    found = torch.zeros(len(queries), len(slots), rows * columns, dtype=torch.bool, device=lines.device)
    slot, place = queries // (rows * columns), queries % (rows * columns)
    for i in slot.unique().tolist():
        asked = slot == i
        points = centres[place[asked]]
        for j, others in enumerate(slots):
            near = torch.zeros(len(points), rows * columns, dtype=torch.bool, device=lines.device)
            for a in slots[i]:
                for b in others:
                    line = points @ lines[a, b].mT
                    near |= (line @ centres.mT).abs() <= reach * line[:, :2].norm(dim=-1, keepdim=True)
            found[asked, j] = near
    return found


def seen_through(slots: Sequence[Frames]) -> list[Frames]:
    """The frames that stand for each slot: its first, middle and last."""
    return [sorted({slot[0], slot[len(slot) // 2], slot[-1]}) for slot in slots]


def background_tokens(person: Tensor, slots: Sequence[Frames], grid: tuple[int, int]) -> Tensor:
    """bool [L]: the tokens in whose cell the person, bool [F, H, W], has no pixel in any frame of their slot."""
    over = [person[list(slot)].any(dim=0)[None].float() for slot in slots]
    return torch.cat([torch.nn.functional.adaptive_max_pool2d(each, grid).flatten() == 0 for each in over])


def unwanted_attention(
    attention: Tensor, near: Tensor, slots: int, percentile: float = 0.3, adaptive: bool = True
) -> Tensor:
    """What equation 4 sums: the attention of each query to tokens off its epipolar lines, [B, heads, q].

    attention: [B, heads, q, L], of softmaxes over all keys; near: bool [B, q, slots, L / slots], M. adaptive: only
    values below the percentile of those from this head and query to this slot; the choice has no gradient.
    """
    to_slot = attention.unflatten(-1, (slots, -1))
    unwanted = ~near[:, None]
    if adaptive:
        values = to_slot.detach()
        rank = max(1, round(percentile * values.shape[-1]))
        # Strictly less: values that are all equal say nothing.
        unwanted = unwanted & (values < values.kthvalue(rank, dim=-1, keepdim=True).values)
    return (to_slot * unwanted).sum(dim=(-2, -1))


def band_mass(attention: Tensor, near: Tensor, slots: int) -> Tensor:
    """The share of the attention to all video tokens that is on the epipolar lines, [B, heads, q]. All tokens of
    the query's own slot are; a query that attends to none has 1. Arguments as for `unwanted_attention`."""
    to_slot = attention.unflatten(-1, (slots, -1))
    total = to_slot.sum(dim=(-2, -1))
    return torch.where(total > 0, (to_slot * near[:, None]).sum(dim=(-2, -1)) / total, 1.0)
