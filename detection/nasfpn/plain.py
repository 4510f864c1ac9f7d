"""The modules of NAS-FPN networks: merging cells and what feeds them."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

MergingCell = tuple[int, str, int, int, tuple[int, ...]]
"""Output level, operation, its two operands, and the feature maps added after it. Levels and the maps that a pyramid is
given count from 0, the finest first; cell k makes the map that comes k-th after those. Of "gp" the first operand is the
one of the coarser level."""


class MergingConv(nn.Module):
    """ReLU, 3×3 convolution, batch norm: the end of a merging cell. Keeps the shape, (N, width, H, W).

    Args:
        bias: of the convolution. The batch norm takes it away again, but published parameter counts hold it.
    """

    def __init__(self, width: int, *, bias: bool = True, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        self.width, self.bias, self.eps, self.momentum = width, bias, eps, momentum
        self.conv = nn.Conv2d(width, width, 3, padding=1, bias=bias)
        self.bn = nn.BatchNorm2d(width, eps, momentum)

    def forward(self, x: Tensor) -> Tensor:
        """Normalised, without activation: the next cell begins with one."""
        out: Tensor = self.bn(self.conv(functional.relu(x)))
        return out


class PyramidInputs(nn.Module):
    """The maps that the first cell may read: a backbone's at one width, and coarser ones by max pooling of the last.

    Shapes: maps (N, in_channels[i], H_i, W_i), the finest first, to maps (N, width, H_i, W_i) and `pooled` more.

    Args:
        pooled: further levels, each of half the size of the one before.
        bias: of the 1×1 convolutions, which have a batch norm; a map of `width` channels is taken as it is.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        width: int,
        *,
        pooled: int = 2,
        bias: bool = True,
        eps: float = 1e-5,
        momentum: float = 0.1,
    ) -> None:
        super().__init__()
        self.in_channels, self.width, self.pooled, self.bias = tuple(in_channels), width, pooled, bias
        self.eps, self.momentum = eps, momentum
        self.laterals = nn.ModuleList(
            nn.Identity()
            if channels == width
            else nn.Sequential(nn.Conv2d(channels, width, 1, bias=bias), nn.BatchNorm2d(width, eps, momentum))
            for channels in in_channels
        )

    def forward(self, maps: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """One map per level, each with `width` channels."""
        made = [lateral(x) for lateral, x in zip(self.laterals, maps, strict=True)]
        for _ in range(self.pooled):
            made.append(pool_same(made[-1], 2))
        return tuple(made)

    def out_layout(self, layout: Any) -> Any:
        """The strides of the input and of the further levels, each with `width` channels."""
        levels = [dataclasses.replace(part, channels=self.width) for part in layout]
        for _ in range(self.pooled):
            levels.append(dataclasses.replace(levels[-1], stride=2 * levels[-1].stride))
        return tuple(levels)


class MergingPyramid(nn.Module):
    """The merging cells of one pyramid (Ghiasi et al., 2019): maps in, as many maps of the same shapes out.

    Args:
        convs: one per cell.
        cells: each a `MergingCell`; the last ones are the outputs, one per level in any order.
        gate: of the attention; see `attended`.
    """

    def __init__(self, convs: nn.ModuleList, cells: tuple[MergingCell, ...], *, gate: str = "tf") -> None:
        super().__init__()
        self.convs, self.cells, self.gate = convs, cells, gate

    def forward(self, maps: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """One map per level, the finest first."""
        return merge(maps, self.cells, self.convs, self.gate)

    def out_layout(self, layout: Any) -> Any:
        """That of the input."""
        return layout


def merge(
    maps: Sequence[Tensor], cells: Sequence[MergingCell], convs: Iterable[nn.Module], gate: str
) -> tuple[Tensor, ...]:
    """What the cells make of the maps, the finest level first."""
    states = list(enumerate(maps))  # (level, map)
    for (level, op, first, second, leftovers), conv in zip(cells, convs, strict=True):
        size = (maps[level].shape[-2], maps[level].shape[-1])
        one, other = (resampled(states[s][1], level - states[s][0], size) for s in (first, second))
        merged = attended(one, other, gate) if op == "gp" else one + other
        for state in leftovers:
            merged = merged + states[state][1]
        states.append((level, conv(merged)))
    return tuple(made for _, made in sorted(states[-len(maps) :], key=lambda pair: pair[0]))


def attended(coarser: Tensor, finer: Tensor, gate: str) -> Tensor:
    """Global attention between two maps of one size, named by the levels that they come from.

    Args:
        gate: "tf", as in TensorFlow's released code: the coarser map, plus the finer one times the sigmoid of the
            coarser one's global maximum. "mmcv", as there: the finer map, plus the coarser one times the sigmoid of
            the finer one's global average.
    """
    if gate == "tf":
        return coarser + torch.sigmoid(coarser.amax(dim=(2, 3), keepdim=True)) * finer
    return finer + torch.sigmoid(finer.mean(dim=(2, 3), keepdim=True)) * coarser


def resampled(x: Tensor, steps: int, size: tuple[int, int]) -> Tensor:
    """A map that many levels coarser, by max pooling, or finer, by its nearest pixels; `size` is the other level's."""
    if steps > 0:
        return pool_same(x, 2**steps)
    if steps < 0:
        scale = 2**-steps
        return functional.interpolate(x, scale_factor=scale, mode="nearest")[..., : size[0], : size[1]]
    return x


def pool_same(x: Tensor, factor: int) -> Tensor:
    """Max pooling to 1 / factor of the size, rounded up; of the padding the smaller half comes first (TensorFlow)."""
    height, width = -x.shape[-2] % factor, -x.shape[-1] % factor
    if height or width:
        around = (width // 2, width - width // 2, height // 2, height - height // 2)
        x = functional.pad(x, around, value=float("-inf"))
    return functional.max_pool2d(x, factor, factor)
