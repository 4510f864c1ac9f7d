"""Widths cut from one set of weights: a choice of operations whose middle channels are searched too."""

import copy
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from supernet.blocks.plain import ConvBNAct, ShuffleUnit
from supernet.searchable import Layout, Layouts, Part, Searchable, parameters_of
from supernet.space import Arch, Choice, SearchSpace

Cut = tuple[slice, ...]
"""The used output and input channels of a layer; the first entry alone serves what there is per output channel."""


def run_sliced(layer: ConvBNAct, cut: Cut, x: Tensor) -> Tensor:
    """A `ConvBNAct` with the weights at `cut` alone; in training the running statistics of these channels move.

    Args:
        x: (N, channels that `cut` leaves to read, H, W).
    """
    conv, bn, out = layer.conv, layer.bn, cut[0]
    weight = conv.weight[cut]
    groups = conv.groups if conv.groups == 1 else len(weight)  # depthwise
    x = functional.conv2d(x, weight, None, conv.stride, conv.padding, conv.dilation, groups)
    scale, shift = (None, None) if bn.weight is None else (bn.weight[out], bn.bias[out])
    assert bn.running_mean is not None
    assert bn.running_var is not None
    assert bn.momentum is not None
    mean, variance = bn.running_mean[out], bn.running_var[out]  # views, so that their updates are kept
    x = functional.batch_norm(x, mean, variance, scale, shift, bn.training, bn.momentum, bn.eps)
    return functional.relu(x) if layer.act else x


def sliced_state(layer: ConvBNAct, cut: Cut) -> dict[str, Tensor]:
    """Copies of what `run_sliced` reads, named as in the layer's state dict."""
    return {name: tensor[cut[: tensor.ndim]].clone() for name, tensor in layer.state_dict().items()}


def sliced_parts(layer: ConvBNAct, cut: Cut) -> Iterator[Part]:
    """The parameters that `run_sliced` reads, with the index of the used elements."""
    for parameter in layer.parameters():
        index = cut[: parameter.ndim]
        yield parameter, () if parameter[index].shape == parameter.shape else index


class ElasticShuffle(Searchable):
    """Several shuffle units, each at its widest; `op` names one, `scale` how many middle channels it uses.

    Channels are taken from the front, so a narrow architecture's weights are part of a wide one's.

    Args:
        operations: name to `kernel` and `xception` of its unit, in the order of index vectors.
        mids: scale to channels between the main branch's layers, ascending.
        stride, shuffle, affine: of every unit.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        operations: Mapping[str, Mapping[str, Any]],
        mids: Mapping[float, int],
        stride: int = 1,
        shuffle: str = "parity",
        affine: bool = True,
    ) -> None:
        super().__init__()
        self.out_channels, self.stride, self.mids = out_channels, stride, dict(mids)
        common: dict[str, Any] = {"mid": max(mids.values()), "stride": stride, "shuffle": shuffle, "affine": affine}
        self.units = nn.ModuleDict(
            {name: ShuffleUnit(in_channels, out_channels, **op, **common) for name, op in operations.items()}
        )
        choices = [Choice("op", tuple(operations)), Choice("scale", tuple(mids), ordered=True)]
        self.space = SearchSpace("elastic-shuffle", choices)

    def _chosen(self, arch: Arch) -> tuple[ShuffleUnit, int]:
        """The unit and its number of middle channels."""
        unit = self.units[str(arch["op"])]
        assert isinstance(unit, ShuffleUnit)
        return unit, self.mids[float(arch["scale"])]

    def forward(self, state: Tensor, arch: Arch) -> Tensor:
        """(N, in_channels, H, W) to (N, out_channels, H / stride, W / stride)."""
        unit, mid = self._chosen(arch)
        passed, x = unit.branches(state)
        for layer, cut in _cuts(unit, mid):
            x = run_sliced(layer, cut, x)
        return torch.cat([passed, x], dim=1)

    def out_layout(self, arch: Arch, layout: Layouts) -> Layout:
        """The same for every architecture."""
        assert isinstance(layout, Layout)
        return Layout(self.out_channels, layout.stride * self.stride)

    def materialize(self, arch: Arch, layout: Layouts) -> nn.Module:
        """A `ShuffleUnit` with `mid` middle channels."""
        unit, mid = self._chosen(arch)
        with torch.device("meta"):  # no memory and no random numbers for weights that are replaced
            made = ShuffleUnit(
                unit.in_channels, unit.out_channels, kernel=unit.kernel, xception=unit.xception, mid=mid,
                stride=unit.stride, shuffle=unit.shuffle, affine=unit.affine,
            )  # fmt: skip
        for (layer, cut), (target, _) in zip(_cuts(unit, mid), _cuts(made, mid), strict=True):
            target.load_state_dict(sliced_state(layer, cut), assign=True)
        if unit.stride == 2:
            made.proj = copy.deepcopy(unit.proj)
        return made

    def active_parts(self, arch: Arch, layout: Layouts) -> Iterator[Part]:
        """The leading channels of the main branch's layers; the projection whole."""
        unit, mid = self._chosen(arch)
        for layer, cut in _cuts(unit, mid):
            yield from sliced_parts(layer, cut)
        if unit.stride == 2:
            yield from parameters_of([unit.proj])


def _cuts(unit: ShuffleUnit, mid: int) -> Iterator[tuple[ConvBNAct, Cut]]:
    """The main branch's layers in order, with what `mid` middle channels use of each: the one place that says so."""
    for layer, (before, after) in zip(unit.main, pairwise(unit.main_widths(mid)), strict=True):
        assert isinstance(layer, ConvBNAct)
        yield layer, (slice(after), slice(before if layer.groups == 1 else 1))
