"""The operations of the cells of NASNet, PNASNet, AmoebaNet and ENAS by name, each with a given number of filters."""

from typing import Any

from torch import nn

from supernet.blocks.cells.plain import ConvNorm, SamePool2d, Separable
from supernet.errors import InputError, nearest

IDENTITY = "identity"

NASNET_OPS = (
    IDENTITY,
    "conv1x3_3x1",
    "conv1x7_7x1",
    "dil3",
    "avg3",
    "max3",
    "max5",
    "max7",
    "conv1",
    "conv3",
    "sep3",
    "sep5",
    "sep7",
)
"""The operations of Zoph et al. (2018, §3.1), in the order of the paper."""

PNASNET_OPS = ("sep3", "sep5", "sep7", "conv1x7_7x1", IDENTITY, "avg3", "max3", "dil3")
"""The operations of Liu et al. (2018), in the order of the paper."""

AMOEBANET_OPS = (IDENTITY, "sep3", "sep5", "sep7", "avg3", "max3", "dilsep3", "neck1x7_7x1")
"""The operations of Real et al. (2019, search space), in the order of the paper."""

AMOEBANET_RELEASED = (*AMOEBANET_OPS, "conv1", "neck3", "max2")
"""These and the further operations of the released AmoebaNet-B and -D."""


def cell_op(
    name: str,
    in_channels: int,
    filters: int,
    *,
    stride: int = 1,
    eps: float = 1e-5,
    momentum: float = 0.1,
    count_padding: bool = False,
) -> nn.Module:
    """Returns an operation with `filters` output channels.

    `identity` (a strided or widening one is ReLU, 1×1 convolution, batch norm); `avgK`, `maxK`: pooling, and 1×1
    convolution and batch norm where the channels change; `sepK`, `dilsepK`: separable convolutions applied twice, the
    latter with dilation 2; `convK`, `dilK`, `convAxB_BxA`: convolutions of full width, the second with dilation 2;
    `neckK`, `neckdilK_R`, `neckAxB_BxA`: the same between two 1×1 convolutions, on a quarter of the filters (three
    eighths for 1×3), with dilation R.

    Raises:
        InputError: there is no such operation.
    """
    norm: dict[str, Any] = {"eps": eps, "momentum": momentum}
    if name == IDENTITY:
        if stride == 1 and in_channels == filters:
            return nn.Identity()
        return ConvNorm(in_channels, filters, stride=stride, **norm)
    if name in _POOLS:
        kind, kernel = _POOLS[name]
        pool = SamePool2d(kind, kernel=kernel, stride=stride, count_padding=count_padding and kind == "avg")
        if in_channels == filters:
            return pool
        return nn.Sequential(pool, ConvNorm(in_channels, filters, relu=False, **norm))
    if name in _SEPARABLE:
        kernel, dilation = _SEPARABLE[name]
        return Separable(in_channels, filters, kernel=kernel, stride=stride, dilation=dilation, **norm)
    if name in _CONVS:
        kernels, dilation, share = _CONVS[name]
        return _convolutions(in_channels, filters, kernels, stride, dilation, int(filters * share), norm)
    raise InputError(f"there is no cell operation {name!r}; {nearest(name, OPS)}")


_POOLS = {"avg3": ("avg", 3), "max2": ("max", 2), "max3": ("max", 3), "max5": ("max", 5), "max7": ("max", 7)}
_SEPARABLE = {"sep3": (3, 1), "sep5": (5, 1), "sep7": (7, 1), "dilsep3": (3, 2)}  # kernel, dilation
_CONVS: dict[str, tuple[tuple[tuple[int, int], ...], int, float]] = {
    # kernels one after the other, dilation, channels between two 1×1 convolutions as a share of the filters
    "conv1": (((1, 1),), 1, 0),
    "conv3": (((3, 3),), 1, 0),
    "dil3": (((3, 3),), 2, 0),
    "conv1x3_3x1": (((1, 3), (3, 1)), 1, 0),
    "conv1x7_7x1": (((1, 7), (7, 1)), 1, 0),
    "neck3": (((3, 3),), 1, 1 / 4),
    "neckdil3_2": (((3, 3),), 2, 1 / 4),
    "neckdil3_4": (((3, 3),), 4, 1 / 4),
    "neckdil3_6": (((3, 3),), 6, 1 / 4),
    "neck1x3_3x1": (((1, 3), (3, 1)), 1, 3 / 8),
    "neck1x7_7x1": (((1, 7), (7, 1)), 1, 1 / 4),
}
OPS = (IDENTITY, *_POOLS, *_SEPARABLE, *_CONVS)
"""The names of all operations."""


def _convolutions(
    in_channels: int,
    filters: int,
    kernels: tuple[tuple[int, int], ...],
    stride: int,
    dilation: int,
    hidden: int,
    norm: dict[str, Any],
) -> nn.Module:
    """Returns ReLU-convolution-BN once per kernel, between two of kernel 1 if there are hidden channels."""
    before, after = (hidden, hidden) if hidden else (in_channels, filters)
    core = []
    for kernel in kernels:  # each strides along the side on which it is wide
        steps = (stride if kernel[0] > 1 or kernel == (1, 1) else 1, stride if kernel[1] > 1 or kernel == (1, 1) else 1)
        core.append(ConvNorm(before, after, kernel=_short(kernel), stride=_short(steps), dilation=dilation, **norm))
        before = after
    if hidden:
        core = [ConvNorm(in_channels, hidden, **norm), *core, ConvNorm(hidden, filters, **norm)]
    return core[0] if len(core) == 1 else nn.Sequential(*core)


def _short(pair: tuple[int, int]) -> int | tuple[int, int]:
    return pair[0] if pair[0] == pair[1] else pair
