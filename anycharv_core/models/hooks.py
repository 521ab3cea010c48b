"""What a caller may hand to one forward pass of a UNet: its attention, and hooks at its blocks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Protocol

import torch
from torch import Tensor

AttentionFunction = Callable[[Tensor, Tensor, Tensor, int], Tensor]
"""(q [N, L, C], k [N, T, C], v [N, T, C], heads) -> multi-head attention of q over k and v, [N, L, C]."""
Half = Literal["input", "middle", "output"]
Which = Literal["self", "cross"]


class Hooks(Protocol):
    """What a forward pass of N rows calls at its blocks; a method that changes nothing returns what it got.

    Blocks are those of the original SD1.5, which are distinguished by their half and their order in it: the first
    convolution, every resnet with its attention and motion module, and every downsampler is one; an upsampler
    belongs to the block before it.
    """

    context: Tensor | None
    """Image embeddings [N, 1, D], of which cross-attention is then computed token by token, with this method's
    changes; None: cross-attention over a single token is the same for all queries, and was computed beforehand."""

    def time(self, embedding: Tensor) -> Tensor:
        """The timestep's embedding [N or 1, 4 C0]."""

    def block(self, half: Half) -> None:
        """The next block of that half begins."""

    def transformer(self, shape: torch.Size, heads: int) -> None:
        """Spatial attention on [N, C, h, w] begins, the only one of its block."""

    def sources(self, which: Which, x: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What queries [N, L, C], keys and values [N, T, C'] are projected from.

        The queries may come back as fewer tokens, or as r N rows of L / r tokens; row n's lie behind each other.
        """

    def attention(self, which: Which, plain: bool) -> AttentionFunction:
        """What computes the attention of the rows without the reference's keys and values (`plain`, which for
        cross-attention are all rows), or of those with them; there the picture's own come first."""

    def added(self, which: Which, x: Tensor) -> Tensor:
        """What attention adds to the tokens, [N, L, C]."""

    def between(self, x: Tensor) -> Tensor:
        """Tokens [N, L, C] after self-attention, before cross-attention."""

    def input(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The result of an input block, [N, C, h, w] -> what the next one gets, and the skip."""

    def middle(self, x: Tensor, time: Tensor) -> Tensor:
        """The result of the middle block, [N, C, h, w]; time: the embedding."""

    def output(self, x: Tensor, skip: Tensor) -> tuple[Tensor, Tensor]:
        """What an output block is about to join, [N, C, h, w] and [N, C', h, w]."""
