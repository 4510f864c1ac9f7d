"""Stages whose width, depth, kernel and expansion are each one decision, as in AttentiveNAS (Wang et al., 2021)."""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from itertools import islice

import torch
from torch import Tensor, nn

from supernet.blocks.mobile import (
    ConvNormAct,
    MixingClassifier,
    PooledShortcut,
    SqueezeExcite,
    multiple_of_8,
    shrink,
)
from supernet.blocks.plain import Residual
from supernet.blocks.slicing import leading, run_conv, run_linear, sliced_parts, sliced_state
from supernet.blocks.used_layer import UsedLayer
from supernet.chain import Layout, Layouts, Part, Searchable
from supernet.space import Arch, Choice, SearchSpace


def middle(in_channels: int, expansion: float) -> int:
    """Returns the middle channels of a block."""
    return multiple_of_8(round(in_channels * expansion))


class ElasticConv(Searchable):
    """A convolution with batch norm and activation whose output channels are searched (decision `width`).

    Args:
        layer: dense, at its largest width.
        widths: options, ascending.
    """

    def __init__(self, layer: ConvNormAct, widths: Sequence[int]) -> None:
        super().__init__()
        self.layer = layer
        self.space = SearchSpace("elastic-conv", [Choice("width", tuple(widths), ordered=True)])

    def _used(self, arch: Arch, before: int) -> UsedLayer:
        return UsedLayer("layer", self.layer, before, int(arch["width"]), self.layer.kernel)

    def forward(self, state: Tensor, arch: Arch) -> Tensor:
        """(N, C, H, W) to (N, width, H / stride, W / stride)."""
        return self._used(arch, state.shape[1]).run(state)

    def out_layout(self, arch: Arch, layout: Layouts) -> Layout:
        """Returns the layout with the chosen width."""
        assert isinstance(layout, Layout)
        return Layout(int(arch["width"]), layout.stride * self.layer.stride)

    def materialize(self, arch: Arch, layout: Layouts) -> nn.Module:
        """Returns a `ConvNormAct`."""
        assert isinstance(layout, Layout)
        return self._used(arch, layout.channels).copied()

    def active_parts(self, arch: Arch, layout: Layouts) -> Iterator[Part]:
        """Yields the leading channels."""
        assert isinstance(layout, Layout)
        return self._used(arch, layout.channels).parts()


class _Block(nn.Module):
    """The layers of a block at their largest, and the 1×1 convolution of its shortcut."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        expansion: int,
        kernel: int,
        stride: int,
        squeeze: bool,
        activation: type[nn.Module],
        projects: bool,
    ) -> None:
        super().__init__()
        self.stride = stride
        mid = middle(in_channels, expansion)
        layers: dict[str, nn.Module] = {}
        if expansion > 1:
            layers["expand"] = ConvNormAct(in_channels, mid, activation=activation)
        layers["depthwise"] = ConvNormAct(mid, mid, kernel=kernel, stride=stride, groups=mid, activation=activation)
        if squeeze:
            layers["squeeze"] = SqueezeExcite(mid, multiple_of_8(mid // 4), gate=nn.Hardsigmoid)
        layers["project"] = ConvNormAct(mid, out_channels)
        self.body = nn.ModuleDict(layers)
        if projects:
            self.shortcut = nn.Conv2d(in_channels, out_channels, 1, bias=False)

    def used(self, before: int, width: int, *, expansion: float, kernel: int) -> Iterator[UsedLayer]:
        """Yields the layers at the widths and the kernel in use, for an input of `before` channels."""
        mid = middle(before, expansion)
        for name, layer in self.body.items():
            if isinstance(layer, SqueezeExcite):
                yield UsedLayer(name, layer, mid, multiple_of_8(mid // 4))
                continue
            makes = width if name == "project" else mid
            yield UsedLayer(name, layer, before, makes, kernel if name == "depthwise" else 1)
            before = makes


class ElasticStage(Searchable):
    """The first blocks of a stage, all with one width, kernel and expansion.

    A block is an inverted residual with squeeze-and-excitation after the second activation. Every block has a shortcut:
    average pooling where it halves the resolution, then a 1×1 convolution without batch norm where the channels differ.
    Architectures use leading channels, central taps and first blocks.

    Decisions: `width`, `depth`, `kernel` and `expand`, the ratio of the middle to the input channels of a block; only
    those with several options.

    Args:
        in_channels: the largest number.
        widths, depths, kernels, expansions: options, ascending; an expansion of 1 is a block without expansion.
        stride: the stride of the first block, 1 or 2.
        squeeze: whether the blocks have squeeze-and-excitation.
        activation: a class.
    """

    def __init__(
        self,
        in_channels: int,
        *,
        widths: Sequence[int],
        depths: Sequence[int],
        kernels: Sequence[int],
        expansions: Sequence[int],
        stride: int,
        squeeze: bool,
        activation: type[nn.Module] = nn.SiLU,
    ) -> None:
        super().__init__()
        self.stride = stride
        options = {"width": widths, "depth": depths, "kernel": kernels, "expand": expansions}
        self.fixed = {name: values[0] for name, values in options.items() if len(values) == 1}
        choices = [Choice(name, tuple(values), ordered=True) for name, values in options.items() if len(values) > 1]
        self.space = SearchSpace("elastic-stage", choices)
        widest = max(widths)
        self.blocks = nn.ModuleList(
            _Block(
                widest if number else in_channels,
                widest,
                expansion=max(expansions),
                kernel=max(kernels),
                stride=1 if number else stride,
                squeeze=squeeze,
                activation=activation,
                projects=number == 0,
            )
            for number in range(max(depths))
        )

    def _value(self, arch: Arch, name: str) -> int:
        return int(arch.get(name, self.fixed.get(name, 0)))

    def _used(self, arch: Arch, before: int) -> Iterator[tuple[_Block, int, list[UsedLayer]]]:
        """Yields the blocks in use, with their input channels and their layers."""
        width, kernel, expansion = (self._value(arch, name) for name in ("width", "kernel", "expand"))
        for block in islice(self.blocks, self._value(arch, "depth")):
            assert isinstance(block, _Block)
            yield block, before, list(block.used(before, width, expansion=expansion, kernel=kernel))
            before = width

    def forward(self, state: Tensor, arch: Arch) -> Tensor:
        """(N, C, H, W) to (N, width, ceil(H / stride), ceil(W / stride))."""
        width = self._value(arch, "width")
        for block, before, layers in self._used(arch, state.shape[1]):
            x = state
            for used in layers:
                x = used.run(x)
            beside = shrink(state, block.stride)
            state = x + (beside if before == width else run_conv(block.shortcut, leading(width, before), beside))
        return state

    def out_layout(self, arch: Arch, layout: Layouts) -> Layout:
        """Returns the layout with the chosen width."""
        assert isinstance(layout, Layout)
        return Layout(self._value(arch, "width"), layout.stride * self.stride)

    def materialize(self, arch: Arch, layout: Layouts) -> nn.Module:
        """Returns the blocks in use as `Residual`s in an `nn.Sequential`."""
        assert isinstance(layout, Layout)
        width, blocks = self._value(arch, "width"), []
        for block, before, layers in self._used(arch, layout.channels):
            body = nn.Sequential(OrderedDict((used.name, used.copied()) for used in layers))
            with torch.device("meta"):
                shortcut = PooledShortcut(before, width, stride=block.stride)
            if before != width:
                state = sliced_state(block.shortcut, leading(width, before))
                shortcut.conv.load_state_dict(state, assign=True)
            blocks.append(Residual(body, shortcut, act=False))
        return nn.Sequential(*blocks)

    def active_parts(self, arch: Arch, layout: Layouts) -> Iterator[Part]:
        """Yields the leading channels and central taps of the blocks in use."""
        assert isinstance(layout, Layout)
        width = self._value(arch, "width")
        for block, before, layers in self._used(arch, layout.channels):
            for used in layers:
                yield from used.parts()
            if before != width:
                yield from sliced_parts(block.shortcut, leading(width, before))


class ElasticMixingHead(Searchable):
    """A 1×1 convolution to a multiple of the input channels, then a `MixingClassifier` of searched width.

    Args:
        in_channels: the largest number.
        classes: number of logits.
        ratio: output channels of the first convolution per input channel.
        widths: options of the decision `width`, the features before the last layer.
        activation: a class.
        dropout: before the last layer.
    """

    def __init__(
        self,
        in_channels: int,
        classes: int,
        *,
        ratio: int,
        widths: Sequence[int],
        activation: type[nn.Module] = nn.SiLU,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.ratio = ratio
        self.expand = ConvNormAct(in_channels, in_channels * ratio, activation=activation)
        self.full = MixingClassifier(
            in_channels * ratio, classes, hidden=max(widths), activation=activation, dropout=dropout
        )
        self.space = SearchSpace("elastic-mixing-head", [Choice("width", tuple(widths), ordered=True)])

    def _used(self, before: int) -> UsedLayer:
        return UsedLayer("expand", self.expand, before, before * self.ratio)

    def forward(self, state: Tensor, arch: Arch) -> Tensor:
        """(N, C, H, W) to logits (N, classes)."""
        full, width, before = self.full, int(arch["width"]), state.shape[1]
        x = self._used(before).run(state).mean((2, 3), keepdim=True)
        x = full.act(run_conv(full.mix, leading(width, before * self.ratio), x))
        return run_linear(full.fc, leading(full.classes, width), full.drop(torch.flatten(x, 1)))

    def out_layout(self, arch: Arch, layout: Layouts) -> Layout:
        """Returns that of the logits."""
        return Layout(self.full.classes, 0)

    def materialize(self, arch: Arch, layout: Layouts) -> nn.Module:
        """Returns the convolution and a `MixingClassifier`."""
        assert isinstance(layout, Layout)
        full, width, before = self.full, int(arch["width"]), layout.channels
        with torch.device("meta"):
            classifier = MixingClassifier(
                before * self.ratio, full.classes, hidden=width, activation=full.activation, dropout=full.dropout
            )
        for name, cut in (("mix", leading(width, before * self.ratio)), ("fc", leading(full.classes, width))):
            classifier.get_submodule(name).load_state_dict(sliced_state(full.get_submodule(name), cut), assign=True)
        return nn.Sequential(OrderedDict(expand=self._used(before).copied(), classifier=classifier))

    def active_parts(self, arch: Arch, layout: Layouts) -> Iterator[Part]:
        """Yields the leading channels of all layers."""
        assert isinstance(layout, Layout)
        width, before = int(arch["width"]), layout.channels
        yield from self._used(before).parts()
        yield from sliced_parts(self.full.mix, leading(width, before * self.ratio))
        yield from sliced_parts(self.full.fc, leading(self.full.classes, width))
