"""Convolutions of 3 x 3 with 16 products for every 2 x 2 outputs in place of 36: Winograd's F(2x2, 3x3), by Lavin
and Gray, "Fast Algorithms for Convolutional Neural Networks" (2016), section 4.1.

For a processor in float32, whose library multiplies all 36. The sums are taken in another order, so that results
differ from torch's by rounding, some 3e-6 of the largest value.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Below it the sums before and after cost as much as the products saved. Measured at 128 and 256 channels.
LEAST_CHANNELS = 256
# Tiles of 2 x 2 outputs that are worked on at once: few enough for the processor's cache.
TILES = 256
# Fewer than this, and bringing the weights into shape costs what is gained. Measured at 16 rows of 4 x 4 pixels.
LEAST_TILES = 128
ONCE = torch.tensor([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])  # the paper's G
BOTH_WAYS = torch.einsum("ik,jl->ijkl", ONCE, ONCE).reshape(16, 9)


class WinogradConv2d(nn.Conv2d):
    """A convolution of 3 x 3, stride 1, padding 1, that takes the short way where it is one, see `shorten`."""

    def forward(self, x: Tensor) -> Tensor:
        here = x.dtype == torch.float32 and x.device.type == "cpu" and not torch.is_autocast_enabled("cpu")
        if not here or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return super().forward(x)
        _, _, height, width = x.shape
        if height % 2 or width % 2 or x[:, 0].numel() < 4 * LEAST_TILES:
            # In channels_last the weights, which are not, would be copied into it at every call.
            return super().forward(x.contiguous())
        return convolve(x, self.weight, self.bias)


def shorten(*networks: nn.Module) -> None:
    """Makes the wide convolutions of 3 x 3 in the networks `WinogradConv2d`, whose weights stay what they are."""
    for network in networks:
        for module in network.modules():
            if type(module) is nn.Conv2d and _is_wide(module):
                module.__class__ = WinogradConv2d
                module.weight.data = module.weight.data.contiguous()


def _is_wide(conv: nn.Conv2d) -> bool:
    shape = (conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups, conv.padding_mode)
    channels = min(conv.in_channels, conv.out_channels)
    return shape == ((3, 3), (1, 1), (1, 1), (1, 1), 1, "zeros") and channels >= LEAST_CHANNELS


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x [N, C, H, W], H and W even, weight [D, C, 3, 3], bias [D] -> [N, D, H, W] in channels_last, as
    `F.conv2d(x, weight, bias, padding=1)` gives it."""
    rows, channels, height, width = x.shape
    high, wide = height // 2, width // 2
    # At every call, as they take nearly twice the weights' memory.
    kernels = (BOTH_WAYS @ weight.reshape(-1, 9).T).view(16, *weight.shape[:2]).transpose(1, 2)
    padded = F.pad(x.movedim(1, -1), (0, 0, 1, 1, 1, 1))
    result = x.new_empty(rows, height, width, len(weight))
    # A block of tiles: some lines of one picture, or some whole pictures.
    lines = _share(high, TILES // wide)
    pictures = _share(rows, TILES // (wide * high))
    block = (pictures, lines, wide)
    across = x.new_empty(4, pictures, lines, width + 2, channels)
    tiles = x.new_empty(4, 4, *block, channels)
    products = x.new_empty(4, 4, *block, len(weight))
    down = x.new_empty(2, 4, *block, len(weight))
    for first in range(0, rows, pictures):
        for top in range(0, height, 2 * lines):
            part = padded[first : first + pictures, top : top + 2 * lines + 2]
            _spread([part[:, i : i + 2 * lines - 1 : 2] for i in range(4)], across)
            for line, out in zip(across, tiles, strict=True):
                _spread([line[:, :, j : j + width - 1 : 2] for j in range(4)], out)
            torch.bmm(tiles.view(16, -1, channels), kernels, out=products.view(16, -1, len(weight)))
            if bias is not None:
                products[1, 1] += bias  # which comes into each of the four outputs once
            _gather(products, down)
            drawn = result[first : first + pictures, top : top + 2 * lines]
            for i, line in enumerate(down):
                _gather(line, [drawn[:, i::2, j::2] for j in range(2)])
    return result.movedim(-1, 1)


def _share(whole: int, most: int) -> int:
    """The largest divisor of `whole` that is at most `most`, or 1."""
    return next((part for part in range(min(most, whole), 1, -1) if whole % part == 0), 1)


def _spread(parts: Sequence[Tensor], out: Tensor) -> None:
    """The paper's B along one axis: four inputs to four."""
    torch.sub(parts[0], parts[2], out=out[0])
    torch.add(parts[1], parts[2], out=out[1])
    torch.sub(parts[2], parts[1], out=out[2])
    torch.sub(parts[1], parts[3], out=out[3])


def _gather(parts: Sequence[Tensor] | Tensor, out: Sequence[Tensor] | Tensor) -> None:
    """The paper's A along one axis: four products to two outputs."""
    torch.add(parts[1], parts[2], out=out[0]).add_(parts[0])
    torch.sub(parts[1], parts[2], out=out[1]).sub_(parts[3])
