"""Cells of NASNet, PNASNet and AmoebaNet as ordinary modules, needing only torch; exports write them out as source.

Everywhere: ReLU, convolution without bias, batch norm. Padding is TensorFlow's SAME: at stride 2 an odd number of rows
goes half above and half below, the extra one below, and the size becomes ceil(size / stride). Every class keeps its
constructor arguments as attributes, as those of `supernet.blocks.plain` do.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

Pair = int | tuple[int, int]


class Output(NamedTuple):
    """The output of a classifier with an auxiliary head in training."""

    logits: Tensor  # (N, classes)
    aux: Tensor  # (N, classes)


class DropPath(nn.Module):
    """Zeroes whole examples in training and scales the others up (scheduled drop path, Zoph et al., 2018).

    Args:
        keep: probability at the end of training that an example is kept; it falls linearly from 1.

    Attributes:
        progress: how much of the training is over, set by `set_progress`; 1 at first.
    """

    def __init__(self, keep: float) -> None:
        super().__init__()
        self.keep = keep
        self.progress = 1.0

    def set_progress(self, t: float) -> None:
        """Sets how much of the training is over, from 0 to 1."""
        self.progress = min(max(t, 0.0), 1.0)

    def forward(self, x: Tensor) -> Tensor:
        """Returns a tensor of the same shape."""
        keep = 1.0 - self.progress * (1.0 - self.keep)
        if not self.training or keep == 1.0:
            return x
        mask = torch.empty(len(x), 1, 1, 1, dtype=x.dtype, device=x.device).bernoulli_(keep)
        return x / keep * mask


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Returns how many rows SAME padding adds before and after `size` rows."""
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


class SamePad2d(nn.Module):
    """Pads with as many zeros as windows of this kernel and stride need; both are (height, width)."""

    def __init__(self, kernel: tuple[int, int], stride: tuple[int, int]) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to a larger map."""
        top, bottom = same_padding(x.shape[2], self.kernel[0], self.stride[0])
        left, right = same_padding(x.shape[3], self.kernel[1], self.stride[1])
        return functional.pad(x, (left, right, top, bottom))


def _pair(value: Pair) -> tuple[int, int]:
    return value if isinstance(value, tuple) else (value, value)


def _padded(kernel: Pair, stride: Pair, dilation: int = 1) -> tuple[nn.Module | None, tuple[int, int]]:
    """Returns a padding module, if needed, and the padding of the convolution.

    At stride 1, SAME padding is symmetric for odd kernels, so that the convolution itself can pad.
    """
    extent = [(side - 1) * dilation + 1 for side in _pair(kernel)]
    if not all(side % 2 for side in extent):
        raise ValueError(f"convolutions have odd kernels, not {kernel}")
    if _pair(stride) == (1, 1):
        return None, (extent[0] // 2, extent[1] // 2)
    return (SamePad2d((extent[0], extent[1]), _pair(stride)) if max(extent) > 1 else None), (0, 0)


class ConvNorm(nn.Sequential):
    """ReLU (unless `relu` is off), convolution with SAME padding, batch norm.

    Shapes: (N, in_channels, H, W) to (N, out_channels, ceil(H / stride), ceil(W / stride)).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel: Pair = 1,
        stride: Pair = 1,
        dilation: int = 1,
        relu: bool = True,
        eps: float = 1e-5,
        momentum: float = 0.1,
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels, self.kernel, self.stride = in_channels, out_channels, kernel, stride
        self.dilation, self.relu, self.eps, self.momentum = dilation, relu, eps, momentum
        pad, padding = _padded(kernel, stride, dilation)
        if relu:
            self.act = nn.ReLU()  # not in place: other operations read the same input
        if pad is not None:
            self.pad = pad
        self.conv = nn.Conv2d(
            in_channels, out_channels, _pair(kernel), _pair(stride), padding, dilation=dilation, bias=False
        )
        self.bn = nn.BatchNorm2d(out_channels, eps, momentum)


class Separable(nn.Sequential):
    """A depthwise-separable convolution applied twice: ReLU, depthwise k×k, pointwise, batch norm, and again.

    There is nothing between depthwise and pointwise. The first depthwise convolution has the stride, the first
    pointwise convolution changes the channels (Zoph et al., 2018, appendix A.4).

    Shapes: (N, in_channels, H, W) to (N, out_channels, ceil(H / stride), ceil(W / stride)).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel: int,
        stride: int = 1,
        dilation: int = 1,
        eps: float = 1e-5,
        momentum: float = 0.1,
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels, self.kernel, self.stride = in_channels, out_channels, kernel, stride
        self.dilation, self.eps, self.momentum = dilation, eps, momentum
        pad, padding = _padded(kernel, stride, dilation)
        self.act1 = nn.ReLU()
        if pad is not None:
            self.pad1 = pad
        self.depthwise1 = nn.Conv2d(
            in_channels, in_channels, kernel, stride, padding, dilation, groups=in_channels, bias=False
        )
        self.pointwise1 = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels, eps, momentum)
        self.act2 = nn.ReLU(inplace=True)
        padding = _padded(kernel, 1, dilation)[1]
        self.depthwise2 = nn.Conv2d(
            out_channels, out_channels, kernel, 1, padding, dilation, groups=out_channels, bias=False
        )
        self.pointwise2 = nn.Conv2d(out_channels, out_channels, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels, eps, momentum)


class SamePool2d(nn.Module):
    """Pooling with SAME padding: averages exclude the padding from the divisor, maxima ignore it.

    Args:
        kind: `"avg"` (odd kernels only) or `"max"`.
        count_padding: the divisor counts the padding of stride-2 averages, as in timm's `nasnetalarge`.

    Shapes: (N, C, H, W) to (N, C, ceil(H / stride), ceil(W / stride)).
    """

    def __init__(self, kind: str, *, kernel: int = 3, stride: int = 1, count_padding: bool = False) -> None:
        super().__init__()
        if kind not in ("avg", "max") or (kind == "avg" and kernel % 2 == 0):
            raise ValueError(f"pooling is 'avg' with an odd kernel or 'max', not {kind!r} with kernel {kernel}")
        self.kind, self.kernel, self.stride, self.count_padding = kind, kernel, stride, count_padding

    def forward(self, x: Tensor) -> Tensor:
        """Returns the pooled map."""
        k, s = self.kernel, self.stride
        top, bottom = same_padding(x.shape[2], k, s)
        left, right = same_padding(x.shape[3], k, s)
        if self.kind == "avg" and self.count_padding and s > 1:
            return functional.avg_pool2d(functional.pad(x, (left, right, top, bottom)), k, s)
        if s == 1 and bottom > top:  # an even kernel
            x = functional.pad(x, (left, right, top, bottom), value=-torch.inf)
            top = left = 0
        # a window may stand out below and on the right by the extra row of SAME padding: that is what ceil_mode allows
        if self.kind == "max":
            return functional.max_pool2d(x, k, s, (top, left), ceil_mode=s > 1)
        return functional.avg_pool2d(x, k, s, (top, left), ceil_mode=s > 1, count_include_pad=False)


def halves(x: Tensor) -> tuple[Tensor, Tensor]:
    """Returns every second pixel of every second row, from the first and from the second on, padded with zeros."""
    return x[:, :, ::2, ::2], functional.pad(x, (-1, 1, -1, 1))[:, :, ::2, ::2]


class FactorizedReduction(nn.Module):
    """Halves the resolution: two 1×1 convolutions on half of the rows and columns each, one batch norm over both.

    If the number of filters is odd, the second convolution has the larger half.

    Shapes: (N, in_channels, H, W) to (N, out_channels, ceil(H / 2), ceil(W / 2)).
    """

    stride = 2

    def __init__(
        self, in_channels: int, out_channels: int, *, relu: bool = True, eps: float = 1e-5, momentum: float = 0.1
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels = in_channels, out_channels
        self.relu, self.eps, self.momentum = relu, eps, momentum
        half = out_channels // 2
        self.conv1 = nn.Conv2d(in_channels, half, 1, bias=False)
        self.conv2 = nn.Conv2d(in_channels, out_channels - half, 1, bias=False)
        self.bn = nn.BatchNorm2d(out_channels, eps, momentum)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the map at half the resolution."""
        even, odd = halves(functional.relu(x) if self.relu else x)
        out: Tensor = self.bn(torch.cat([self.conv1(even), self.conv2(odd)], dim=1))
        return out


# -- cells ------------------------------------------------------------------------------------------------------------

Operand = tuple[int, nn.Module, bool]
"""The state that an operation reads, the operation, and whether drop path applies to it."""


def run_blocks(
    states: list[Tensor], operands: Sequence[Operand], joins: Iterable[nn.Module | None], drop: nn.Module
) -> None:
    """Appends one state per block: the sum of two operands, or its entry of `joins` applied to their concatenation.

    Args:
        states: the two inputs, (N, C, H, W).
        operands: left and right of each block in turn.
        joins: one per block.
        drop: the cell's drop path.
    """
    for block, join in enumerate(joins):
        values = []
        for source, op, droppable in operands[2 * block : 2 * block + 2]:
            value = op(states[source])
            values.append(drop(value) if droppable else value)
        states.append(values[0] + values[1] if join is None else join(torch.cat(values, dim=1)))


def split_state(state: Any) -> tuple[Any, Any, tuple[Any, ...]]:
    """Returns the outputs of the last but one cell (None before the first) and of the last, and any further states."""
    if type(state) is not tuple:  # a tensor, or one with its ids
        return None, state, ()
    previous, current, *rest = state
    return previous, current, tuple(rest)


class BlockCell(nn.Module):
    """A cell of blocks that maps the outputs of two cells to those of the next two.

    Args:
        squeeze: computes state 0 from the output of the last cell.
        fit: computes state 1 from the output before it, or from that of the last cell if there is none.
        ops: left and right operation of each block in turn; both may be the same.
        inputs: the state that each reads.
        outputs: the states that are concatenated.
        joins: by block number, the module behind the concatenation of its operands; other blocks add them.
        output_fits: by state number, the module that brings an output to the shape of the others.
        keep_previous: whether the older input is returned instead of the newer one (it skips a reduction).
        keep: probability at the end of training that an example passes an operation; see `DropPath`.
        undropped: the positions in `ops` without drop path: identities, even strided ones.
    """

    def __init__(
        self,
        squeeze: nn.Module,
        fit: nn.Module,
        ops: nn.ModuleList,
        *,
        inputs: tuple[int, ...],
        outputs: tuple[int, ...],
        joins: nn.ModuleDict | None = None,
        output_fits: nn.ModuleDict | None = None,
        keep_previous: bool = False,
        keep: float = 1.0,
        undropped: tuple[int, ...] = (),
    ) -> None:
        super().__init__()
        self.squeeze, self.fit, self.ops, self.joins, self.output_fits = squeeze, fit, ops, joins, output_fits
        self.inputs, self.outputs, self.keep_previous = inputs, outputs, keep_previous
        self.keep, self.undropped = keep, undropped
        self.drop = DropPath(keep)

    def set_progress(self, t: float) -> None:
        """Sets how much of the training is over, from 0 to 1."""
        self.drop.set_progress(t)

    def forward(self, state: Any) -> tuple[Any, ...]:
        """`(previous, current, …)`, or the stem's output alone, to `(previous, current, …)`; (N, C, H, W) each."""
        previous, current, rest = split_state(state)
        states = [self.squeeze(current), self.fit(current if previous is None else previous)]
        operands = [
            (source, op, position not in self.undropped)
            for position, (source, op) in enumerate(zip(self.inputs, self.ops, strict=True))
        ]
        joins, fits = dict(self.joins or {}), dict(self.output_fits or {})
        run_blocks(states, operands, [joins.get(str(b)) for b in range(len(operands) // 2)], self.drop)
        out = [fits[str(s)](states[s]) if str(s) in fits else states[s] for s in self.outputs]
        return (previous if self.keep_previous else current, torch.cat(out, dim=1), *rest)


# -- stem and heads ---------------------------------------------------------------------------------------------------


class CellStem(nn.Sequential):
    """3×3 convolution and batch norm: at stride 1 with padding (small images), at stride 2 without (ImageNet).

    Shapes: (N, in_channels, H, W) to (N, out_channels, H, W), or ceil((H - 2) / 2) rows and columns.
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, stride: int = 1, eps: float = 1e-5, momentum: float = 0.1
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels = in_channels, out_channels
        self.stride, self.eps, self.momentum = stride, eps, momentum
        self.conv = nn.Conv2d(in_channels, out_channels, 3, stride, 1 if stride == 1 else 0, bias=False)
        self.bn = nn.BatchNorm2d(out_channels, eps, momentum)


class CellClassifier(nn.Module):
    """ReLU, global average pooling, dropout, linear layer on the last cell's output."""

    def __init__(self, in_channels: int, classes: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.in_channels, self.classes, self.dropout = in_channels, classes, dropout
        self.drop = nn.Dropout(dropout)
        self.fc = nn.Linear(in_channels, classes)

    def forward(self, state: Any) -> Tensor | Output:
        """Returns the logits, (N, classes), with those of the auxiliary head if the state has them."""
        _, current, rest = split_state(state)
        logits: Tensor = self.fc(self.drop(functional.relu(current).mean(dim=(2, 3))))
        return Output(logits, rest[0]) if rest else logits


class AuxiliaryHead(nn.Module):
    """A second classifier inside the network, which only runs in training; its logits are appended to the state.

    ReLU, 5×5 average pooling at stride 3, 1×1 convolution to `hidden[0]`, batch norm, ReLU, a convolution over the
    whole remaining map to `hidden[1]`, batch norm, ReLU, linear layer.

    Args:
        size: (height, width) of the input map.
    """

    def __init__(
        self,
        in_channels: int,
        classes: int,
        *,
        size: tuple[int, int],
        hidden: tuple[int, int] = (128, 768),
        eps: float = 1e-5,
        momentum: float = 0.1,
    ) -> None:
        super().__init__()
        self.in_channels, self.classes, self.size, self.hidden = in_channels, classes, size, hidden
        self.eps, self.momentum = eps, momentum
        self.conv = nn.Conv2d(in_channels, hidden[0], 1, bias=False)
        rest = [(side - 5) // 3 + 1 for side in size]
        self.tail = nn.Sequential(
            nn.BatchNorm2d(hidden[0], eps, momentum),
            nn.ReLU(),
            nn.Conv2d(hidden[0], hidden[1], (rest[0], rest[1]), bias=False),
            nn.BatchNorm2d(hidden[1], eps, momentum),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(hidden[1], classes),
        )

    def forward(self, state: Any) -> Any:
        """Returns the state; in training with the logits, (N, classes), appended."""
        if not self.training:
            return state
        x = functional.avg_pool2d(functional.relu(state[1]), 5, 3)
        return (*state, self.tail(self.conv(x)))
