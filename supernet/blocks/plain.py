"""Ordinary modules that only need torch, of which subnets consist; an export writes them out as source.

Every class keeps its constructor arguments as attributes of the same names, so that its constructor call can be
written; see `supernet.export.expression`. `out_channels` and `stride` are read by `supernet.chain.searchable`.
"""

from collections.abc import Iterable
from itertools import pairwise

import torch
from torch import Tensor, nn


class ConvBNAct(nn.Sequential):
    """Convolution without bias, batch norm and, unless `act` is off, ReLU. Padding keeps the size at stride 1.

    Shapes: (N, in_channels, H, W) to (N, out_channels, ceil(H / stride), ceil(W / stride)), odd kernels.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel: int = 1,
        stride: int = 1,
        groups: int = 1,
        act: bool = True,
        affine: bool = True,
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel, self.stride, self.groups, self.act, self.affine = kernel, stride, groups, act, affine
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(out_channels, affine=affine)
        if act:
            self.relu = nn.ReLU(inplace=True)


class InvertedResidual(nn.Module):
    """MobileNetV2's block: 1×1 expansion, depthwise k×k, linear 1×1 projection; residual if the shape is kept.

    ReLU after the first two convolutions, as NAS-Bench-Macro trains it (Su et al., 2021).
    """

    def __init__(self, in_channels: int, out_channels: int, *, kernel: int, expansion: int, stride: int = 1) -> None:
        super().__init__()
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel, self.expansion, self.stride = kernel, expansion, stride
        hidden = in_channels * expansion
        self.residual = stride == 1 and in_channels == out_channels
        self.body = nn.Sequential(
            ConvBNAct(in_channels, hidden),
            ConvBNAct(hidden, hidden, kernel=kernel, stride=stride, groups=hidden),
            ConvBNAct(hidden, out_channels, act=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) to (N, out_channels, H / stride, W / stride)."""
        out: Tensor = self.body(x)
        return x + out if self.residual else out


class ShuffleUnit(nn.Module):
    """ShuffleNetV2 unit with a k×k ShuffleNet or a 3×3 Xception main branch (DetNAS and SPOS, Figure 3 of both).

    At stride 1 the channels are shuffled and split into halves: one passes, the other goes through the main branch.
    At stride 2 both branches read the whole input; the projection has `in_channels` outputs, the main branch the rest.

    Args:
        kernel: the kernel size of the depthwise convolutions; 3 for Xception.
        xception: three depthwise-separable convolutions instead of one bottleneck.
        mid: channels between the layers of the main branch; half of `out_channels` if None.
        shuffle: `"parity"` (even channels pass, odd ones are transformed: the released SPOS weights) or
            `"interleave"` (torchvision's two-group shuffle, then halves: the DetNAS search). Weights trained with one
            are meaningless under the other.
        affine: whether batch norms have scale and shift; SPOS trains its supernet without.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel: int = 3,
        xception: bool = False,
        mid: int | None = None,
        stride: int = 1,
        shuffle: str = "parity",
        affine: bool = True,
    ) -> None:
        super().__init__()
        if shuffle not in ("parity", "interleave"):
            raise ValueError(f"shuffle is 'parity' or 'interleave', not {shuffle!r}")
        if stride == 1 and (in_channels != out_channels or in_channels % 2):
            raise ValueError(f"a stride-1 unit keeps an even number of channels, not {in_channels} -> {out_channels}")
        if stride not in (1, 2):
            raise ValueError(f"stride is 1 or 2, not {stride}")
        if stride == 2 and out_channels <= in_channels:
            raise ValueError(f"a stride-2 unit adds channels, not {in_channels} -> {out_channels}")
        if mid is not None and mid < 1:
            raise ValueError(f"mid is at least 1 channel, not {mid}")
        self.in_channels, self.out_channels, self.kernel, self.xception = in_channels, out_channels, kernel, xception
        self.mid, self.stride, self.shuffle, self.affine = mid, stride, shuffle, affine

        def conv(before: int, after: int) -> ConvBNAct:
            return ConvBNAct(before, after, affine=affine)

        def depthwise(width: int, step: int = 1) -> ConvBNAct:
            return ConvBNAct(width, width, kernel=kernel, stride=step, groups=width, act=False, affine=affine)

        widths = self.main_widths(out_channels // 2 if mid is None else mid)
        first = 0 if xception else 1  # the depthwise layers: every second one
        parts = []
        for index, (before, after) in enumerate(pairwise(widths)):
            if index % 2 == first:
                parts.append(depthwise(before, stride if index == first else 1))
            else:
                parts.append(conv(before, after))
        self.main = nn.Sequential(*parts)
        if stride == 2:
            self.proj = nn.Sequential(depthwise(in_channels, 2), conv(in_channels, in_channels))

    def main_widths(self, mid: int) -> tuple[int, ...]:
        """Returns the channels before each layer of the main branch and after the last."""
        seen = self.in_channels if self.stride == 2 else self.in_channels // 2
        computed = self.out_channels - seen
        return (seen, seen, mid, mid, mid, mid, computed) if self.xception else (seen, mid, mid, computed)

    def branches(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the tensor beside the output of the main branch, and the input of the main branch."""
        if self.stride == 2:
            return self.proj(x), x
        n, c, h, w = x.shape
        if self.shuffle == "parity":
            pairs = x.view(n, c // 2, 2, h, w)
            return pairs[:, :, 0], pairs[:, :, 1]
        passed, changed = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w).chunk(2, dim=1)
        return passed, changed

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) to (N, out_channels, H / stride, W / stride)."""
        passed, changed = self.branches(x)
        return torch.cat([passed, self.main(changed)], dim=1)


class ClassifierHead(nn.Module):
    """1×1 convolution to `hidden`, batch norm, ReLU, global average pooling, dropout, linear layer.

    Shapes: (N, in_channels, H, W) to logits (N, classes).
    """

    stride = 0

    def __init__(self, in_channels: int, classes: int, *, hidden: int, dropout: float = 0.0, bias: bool = True) -> None:
        super().__init__()
        self.in_channels, self.classes = in_channels, classes
        self.hidden, self.dropout, self.bias = hidden, dropout, bias
        self.out_channels = classes
        self.conv = ConvBNAct(in_channels, hidden)
        self.drop = nn.Dropout(dropout)
        self.fc = nn.Linear(hidden, classes, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the logits, (N, classes)."""
        pooled = self.conv(x).mean(dim=(2, 3))
        logits: Tensor = self.fc(self.drop(pooled))
        return logits


class ReLUConvBN(nn.Sequential):
    """ReLU, convolution without bias, batch norm: the order inside cells. Padding keeps the size at stride 1.

    Shapes: (N, in_channels, H, W) to (N, out_channels, ceil(H / stride), ceil(W / stride)), odd kernels.
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, kernel: int = 1, stride: int = 1, affine: bool = True
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel, self.stride, self.affine = kernel, stride, affine
        self.relu = nn.ReLU()  # not in place: other edges read the same input
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(out_channels, affine=affine)


class PooledResidual(nn.Module):
    """Halves the resolution: two ReLU-conv-BN of kernel 3, plus 2×2 average pooling and a 1×1 convolution.

    The shortcut has no batch norm (between the stages of NAS-Bench-201, Dong & Yang, 2020).
    """

    stride = 2

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.in_channels, self.out_channels = in_channels, out_channels
        self.body = nn.Sequential(
            ReLUConvBN(in_channels, out_channels, kernel=3, stride=2), ReLUConvBN(out_channels, out_channels, kernel=3)
        )
        self.shortcut = nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(in_channels, out_channels, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) to (N, out_channels, H / 2, W / 2); H and W must be even."""
        out: Tensor = self.body(x) + self.shortcut(x)
        return out


class NormClassifier(nn.Module):
    """Batch norm, ReLU, global average pooling, linear layer.

    Shapes: (N, in_channels, H, W) to logits (N, classes).
    """

    stride = 0

    def __init__(self, in_channels: int, classes: int) -> None:
        super().__init__()
        self.in_channels, self.classes = in_channels, classes
        self.out_channels = classes
        self.bn = nn.BatchNorm2d(in_channels)
        self.fc = nn.Linear(in_channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the logits, (N, classes)."""
        logits: Tensor = self.fc(nn.functional.relu(self.bn(x)).mean(dim=(2, 3)))
        return logits


def sum_nodes(x: Tensor, edges: Iterable[tuple[int, int, nn.Module]], last: int) -> Tensor:
    """Returns the value of node `last` of a graph: node 0 is `x`, every other node the sum of its edges.

    Args:
        edges: `(source, target, module)`, sorted by target, then source; every source but 0 is the target of one.

    Returns:
        The value; zeros if no edge leads to `last`. They are `x` times zero, so that gradients exist and are zero.
    """
    values = {0: x}
    for source, target, module in edges:
        value = module(values[source])
        values[target] = values[target] + value if target in values else value
    return values[last] if last in values else x * 0


class GraphCell(nn.Module):
    """A cell whose nodes are sums: node 0 is the input, the last node the output.

    Args:
        ops: one module per edge; all keep the shape.
        edges: `(source, target)` of each, sorted by target, then source.
        last: the number of the output node.
    """

    def __init__(self, ops: nn.ModuleList, edges: tuple[tuple[int, int], ...], *, last: int) -> None:
        super().__init__()
        self.ops, self.edges, self.last = ops, edges, last

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to the same shape; zeros if no edge leads to the output."""
        edges = [(source, target, op) for (source, target), op in zip(self.edges, self.ops, strict=True)]
        return sum_nodes(x, edges, self.last)


class ConvBNReLU6(ConvBNAct):
    """`ConvBNAct` with ReLU6 as its activation (MobileNetV2, Sandler et al., 2018)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel: int = 1,
        stride: int = 1,
        groups: int = 1,
        act: bool = True,
        affine: bool = True,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel=kernel, stride=stride, groups=groups, act=act, affine=affine)
        if act:
            self.relu = nn.ReLU6(inplace=True)  # type: ignore[assignment]


class Residual(nn.Module):
    """The sum of the outputs of two modules, then ReLU unless `act` is off (He et al., 2016).

    Args:
        body, shortcut: modules with outputs of the same shape; neither may write into its input.
    """

    def __init__(self, body: nn.Module, shortcut: nn.Module, *, act: bool = True) -> None:
        super().__init__()
        self.body, self.shortcut, self.act = body, shortcut, act

    def forward(self, x: Tensor) -> Tensor:
        """Returns the sum of both outputs."""
        out: Tensor = self.body(x) + self.shortcut(x)
        return nn.functional.relu(out) if self.act else out


class PooledClassifier(nn.Module):
    """Global average pooling, dropout, linear layer.

    Shapes: (N, in_channels, H, W) to logits (N, classes).
    """

    stride = 0

    def __init__(self, in_channels: int, classes: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.in_channels, self.classes, self.dropout = in_channels, classes, dropout
        self.out_channels = classes
        self.drop = nn.Dropout(dropout)
        self.fc = nn.Linear(in_channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the logits, (N, classes)."""
        logits: Tensor = self.fc(self.drop(x.mean(dim=(2, 3))))
        return logits


class Whole(nn.Module):
    """A module of another library, used as it is, with its output declared.

    Args:
        module: takes and returns a feature map.
        out_channels, stride: those of its output.
    """

    def __init__(self, module: nn.Module, *, out_channels: int, stride: int) -> None:
        super().__init__()
        self.module, self.out_channels, self.stride = module, out_channels, stride

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, out_channels, H / stride, W / stride)."""
        out: Tensor = self.module(x)
        return out
