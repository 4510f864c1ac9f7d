"""The ordinary modules of NAS-FPN networks: merging cells and the maps that they read."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

MergingCell = tuple[int, str, int, int, tuple[int, ...]]
"""Output level, operation, its two operands, and the feature maps that are added to the result.

Levels and input maps are numbered from 0, the finest first; the output of cell k has the number of input maps plus k,
also from 0. The first operand of "gp" is the one of the coarser level; at equal levels it is the one that
gates."""


class DropBlock(nn.Module):
    """Sets square blocks of every channel to zero in training and scales up the rest (Ghiasi et al., 2018, § 3).

    Blocks lie within the map; on a map smaller than a block, the block is the largest square that fits.

    Args:
        rate: expected share of a map that is dropped, if blocks did not overlap.
        size: side of a block in pixels.
    """

    def __init__(self, rate: float, size: int) -> None:
        super().__init__()
        self.rate, self.size = rate, size

    def forward(self, x: Tensor) -> Tensor:
        """Returns a tensor of the same shape, (N, C, H, W)."""
        if not self.training or not self.rate:
            return x
        height, width = x.shape[2:]
        side = min(self.size, height, width)
        corners = (height - side + 1, width - side + 1)  # rows and columns where a block can begin
        rate = min(self.rate * height * width / side**2 / (corners[0] * corners[1]), 1.0)
        begins = torch.empty(*x.shape[:2], *corners, device=x.device).bernoulli_(rate)
        edge = side - 1
        kept = 1 - functional.max_pool2d(functional.pad(begins, (edge, edge, edge, edge)), side, 1)
        return x * (kept * (kept.numel() / kept.sum().clamp(min=1))).to(x.dtype)


class MergingConv(nn.Module):
    """ReLU, 3×3 convolution and batch norm, which end a merging cell; the shape, (N, width, H, W), stays the same.

    Args:
        width: channels.
        bias: whether the convolution has a bias, which batch norm cancels but published parameter counts include.
        eps, momentum: those of the batch norm.
        drop_block, drop_block_size: rate and size of the `DropBlock` behind the batch norm.
    """

    def __init__(
        self,
        width: int,
        *,
        bias: bool = True,
        eps: float = 1e-5,
        momentum: float = 0.1,
        drop_block: float = 0.0,
        drop_block_size: int = 3,
    ) -> None:
        super().__init__()
        self.width, self.bias, self.eps, self.momentum = width, bias, eps, momentum
        self.drop_block, self.drop_block_size = drop_block, drop_block_size
        self.conv = nn.Conv2d(width, width, 3, padding=1, bias=bias)
        self.bn = nn.BatchNorm2d(width, eps, momentum)
        self.drop = DropBlock(drop_block, drop_block_size)

    def forward(self, x: Tensor) -> Tensor:
        """Returns a normalised map without activation, since the next cell begins with one."""
        out: Tensor = self.drop(self.bn(self.conv(functional.relu(x))))
        return out


class PyramidInputs(nn.Module):
    """The input maps of a pyramid: those of the backbone at one width, and coarser ones, max-pooled from the last.

    Shapes: maps (N, in_channels[i], H_i, W_i), the finest first, to maps (N, width, H_i, W_i) and `pooled` coarser.

    Args:
        in_channels: channels of the backbone's maps.
        width: channels of all input maps.
        pooled: number of additional levels, each half the size of the one before.
        bias: whether the 1×1 convolutions, which batch norm follows, have a bias.
        unchanged: whether a map that has `width` channels already is used as it is, without a convolution.
        eps, momentum: those of batch norm.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        width: int,
        *,
        pooled: int = 2,
        bias: bool = True,
        unchanged: bool = True,
        eps: float = 1e-5,
        momentum: float = 0.1,
    ) -> None:
        super().__init__()
        self.in_channels, self.width, self.pooled, self.bias = tuple(in_channels), width, pooled, bias
        self.unchanged, self.eps, self.momentum = unchanged, eps, momentum
        self.laterals = nn.ModuleList(
            nn.Identity()
            if unchanged and channels == width
            else nn.Sequential(nn.Conv2d(channels, width, 1, bias=bias), nn.BatchNorm2d(width, eps, momentum))
            for channels in in_channels
        )

    def forward(self, maps: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Returns one map per level, each with `width` channels."""
        levels = [lateral(x) for lateral, x in zip(self.laterals, maps, strict=True)]
        for _ in range(self.pooled):
            levels.append(pool_same(levels[-1], 2))
        return tuple(levels)

    def lateral_blocks(self) -> list[nn.Sequential]:
        """Returns the 1×1 convolutions with their batch norms."""
        return [lateral for lateral in self.laterals if isinstance(lateral, nn.Sequential)]

    def out_layout(self, layout: Any) -> Any:
        """Returns the layouts of all levels, each with `width` channels."""
        levels = [dataclasses.replace(part, channels=self.width) for part in layout]
        for _ in range(self.pooled):
            levels.append(dataclasses.replace(levels[-1], stride=2 * levels[-1].stride))
        return tuple(levels)


class MergingPyramid(nn.Module):
    """The merging cells of one pyramid (Ghiasi et al., 2019); inputs and outputs are one map per level, same shapes.

    Args:
        convs: the `MergingConv` of each cell.
        cells: a `MergingCell` each; the last ones are the outputs, one per level in any order.
        gate: "tf" or "mmcv"; see `attention`.
        keeps: whether the output is preceded by all maps of the input in training, for heads that read every repeat.
    """

    def __init__(
        self, convs: nn.ModuleList, cells: tuple[MergingCell, ...], *, gate: str = "tf", keeps: bool = False
    ) -> None:
        super().__init__()
        self.convs, self.cells, self.gate, self.keeps = convs, cells, gate, keeps

    def forward(self, maps: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Returns one map per level, the finest first; it reads the last ones that it gets."""
        levels = 1 + max(cell[0] for cell in self.cells)
        outputs = merge(maps[-levels:], self.cells, self.convs, self.gate)
        return (*maps, *outputs) if self.keeps and self.training else outputs

    def out_layout(self, layout: Any) -> Any:
        """Returns the layout of the input."""
        return layout


def merge(
    maps: Sequence[Tensor], cells: Sequence[MergingCell], convs: Iterable[nn.Module], gate: str
) -> tuple[Tensor, ...]:
    """Returns the outputs of a pyramid, one map per level, the finest first.

    Args:
        maps: the inputs, one per level, the finest first.
        cells: in order; the last ones are the outputs.
        convs: one per cell.
        gate: "tf" or "mmcv"; see `attention`.
    """
    states = list(enumerate(maps))  # (level, map)
    for (level, op, first, second, leftovers), conv in zip(cells, convs, strict=True):
        size = (maps[level].shape[-2], maps[level].shape[-1])
        x, y = (resample(states[state][1], level - states[state][0], size) for state in (first, second))
        merged = attention(x, y, gate) if op == "gp" else x + y
        for state in leftovers:
            merged = merged + states[state][1]
        states.append((level, conv(merged)))
    return tuple(output for _, output in sorted(states[-len(maps) :], key=lambda pair: pair[0]))


def attention(coarser: Tensor, finer: Tensor, gate: str) -> Tensor:
    """Returns the global-pooling attention of two maps that were resampled to one size (Ghiasi et al., 2019).

    Args:
        coarser, finer: the maps that come from the coarser and the finer level, (N, C, H, W).
        gate: "tf", as in the released TensorFlow code, adds to the coarser map the finer one times the sigmoid of the
            coarser one's global maximum. "mmcv", as in MMCV, adds to the finer map the coarser one times the sigmoid of
            the finer one's global average.
    """
    if gate == "tf":
        return coarser + torch.sigmoid(coarser.amax(dim=(2, 3), keepdim=True)) * finer
    return finer + torch.sigmoid(finer.mean(dim=(2, 3), keepdim=True)) * coarser


def resample(x: Tensor, steps: int, size: tuple[int, int]) -> Tensor:
    """Returns a map at another level, max-pooled if that is coarser, its nearest pixels repeated if it is finer.

    Args:
        x: (N, C, H, W).
        steps: number of levels to go; positive is coarser.
        size: height and width of the level it goes to: repeated pixels are cropped to it, and pooled maps have it. A
            graph that takes any size is traced with these expressions; others, which torch cannot show to be equal,
            would grow with every cell.
    """
    if steps > 0:
        return pool_same(x, 2**steps, size)
    if steps < 0:
        scale = 2**-steps
        x = functional.interpolate(x, scale_factor=scale, mode="nearest")
        height, width = size[0] - x.shape[-2], size[1] - x.shape[-1]
        if torch.compiler.is_compiling() or height or width:  # in a graph, a slice would have the smaller of two sizes
            x = functional.pad(x, (0, width, 0, height))
    return x


def pool_same(x: Tensor, factor: int, size: tuple[int, int] | None = None) -> Tensor:
    """Returns the max-pooled map, whose size is divided by `factor` and rounded up.

    As in TensorFlow's SAME padding, the smaller half of the padding comes first.

    Args:
        x: (N, C, H, W).
        factor: size and stride of the windows.
        size: height and width of the output where the caller knows them.
    """
    rows, columns = size or ((x.shape[-2] + factor - 1) // factor, (x.shape[-1] + factor - 1) // factor)
    height, width = rows * factor - x.shape[-2], columns * factor - x.shape[-1]
    if torch.compiler.is_compiling() or height or width:  # in a graph the sizes are not known
        padding = (width // 2, width - width // 2, height // 2, height - height // 2)
        x = functional.pad(x, padding, value=float("-inf"))
    return functional.max_pool2d(x, factor, factor)
