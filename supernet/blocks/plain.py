"""Ordinary modules, needing only torch: what subnets are made of and what an export writes out as source.

Every class keeps its constructor arguments as attributes of the same names, so that its constructor expression can be
written down; see `supernet.export.expression`. `out_channels` and `stride` are read by `supernet.searchable`.
"""

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
    """MobileNetV2's block: 1×1 expansion, depthwise k×k, linear 1×1 projection; residual where the shape is kept.

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

    At stride 1 the channels are shuffled and halved first: one half passes, the other goes through the main branch. At
    stride 2 both branches see the whole input; the projection keeps `in_channels`, the main branch gives the rest.

    Args:
        kernel: of the depthwise convolutions; 3 for Xception.
        xception: three depthwise-separable convolutions instead of one bottleneck.
        shuffle: `"parity"` (even channels pass, odd ones are transformed: the released SPOS weights) or
            `"interleave"` (torchvision's two-group shuffle, then halves: the DetNAS search). Weights trained with one
            are meaningless under the other.
        affine: of the batch norms; SPOS trains its supernet without.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel: int = 3,
        xception: bool = False,
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
        self.in_channels, self.out_channels, self.kernel, self.xception = in_channels, out_channels, kernel, xception
        self.stride, self.shuffle, self.affine = stride, shuffle, affine
        mid = out_channels // 2
        seen = in_channels if stride == 2 else in_channels // 2
        made = out_channels - seen

        def conv(before: int, after: int, act: bool = True) -> ConvBNAct:
            return ConvBNAct(before, after, act=act, affine=affine)

        def depthwise(width: int, step: int = 1) -> ConvBNAct:
            return ConvBNAct(width, width, kernel=kernel, stride=step, groups=width, act=False, affine=affine)

        if xception:
            pairs = [(depthwise(seen, stride), conv(seen, mid)), (depthwise(mid), conv(mid, mid))]
            parts = [part for pair in pairs for part in pair] + [depthwise(mid), conv(mid, made)]
        else:
            parts = [conv(seen, mid), depthwise(mid, stride), conv(mid, made)]
        self.main = nn.Sequential(*parts)
        if stride == 2:
            self.proj = nn.Sequential(depthwise(in_channels, 2), conv(in_channels, in_channels))

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) to (N, out_channels, H / stride, W / stride)."""
        if self.stride == 2:
            return torch.cat([self.proj(x), self.main(x)], dim=1)
        n, c, h, w = x.shape
        if self.shuffle == "parity":
            pairs = x.view(n, c // 2, 2, h, w)
            passed, changed = pairs[:, :, 0], pairs[:, :, 1]
        else:
            passed, changed = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w).chunk(2, dim=1)
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
        """The logits, (N, classes)."""
        pooled = self.conv(x).mean(dim=(2, 3))
        logits: Tensor = self.fc(self.drop(pooled))
        return logits
