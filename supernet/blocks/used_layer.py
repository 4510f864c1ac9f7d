"""Layers of mobile networks at the widths that an architecture uses: run, cut out, and listed as parts."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from supernet.blocks.mobile import ConvNormAct, SqueezeExcite
from supernet.blocks.slicing import Cut, convolve, leading, run_conv, run_norm, sliced, sliced_parts, sliced_state
from supernet.chain import Part


class UsedLayer(NamedTuple):
    """A layer and the leading channels and central taps of it that are in use.

    Attributes:
        name: the name of the layer in its block.
        layer: a `ConvNormAct` or `SqueezeExcite` at its largest width.
        reads, makes: input and output channels in use; the channels and the hidden channels of a `SqueezeExcite`.
        kernel: size of the kernel in use; 1 for a `SqueezeExcite`.
    """

    name: str
    layer: nn.Module
    reads: int
    makes: int
    kernel: int = 1

    def cut(self, *, taps: int = 0) -> Cut:
        """Returns the slice of a `ConvNormAct`; `taps` is the size of the centre to cut, that of the kernel if 0."""
        assert isinstance(self.layer, ConvNormAct)
        reads = self.reads if self.layer.groups == 1 else 1
        return leading(self.makes, reads, kernel=taps or self.kernel, largest=self.layer.kernel)

    def weight(self, *, taps: int = 0) -> Tensor:
        """Returns the used elements of the weight of a `ConvNormAct`, (makes, reads or 1, kernel, kernel)."""
        assert isinstance(self.layer, ConvNormAct)
        return sliced(self.layer.conv.weight, self.cut(taps=taps))

    def _squeeze_cuts(self) -> tuple[Cut, Cut]:
        return leading(self.makes, self.reads), leading(self.reads, self.makes)

    def run(self, x: Tensor, weight: Tensor | None = None) -> Tensor:
        """(N, reads, H, W) to (N, makes, H / stride, W / stride), or to its own shape by a `SqueezeExcite`.

        Args:
            x: the input.
            weight: the weight of the convolution, in place of the used elements.
        """
        layer = self.layer
        if isinstance(layer, SqueezeExcite):
            reduce, expand = self._squeeze_cuts()
            hidden = layer.act(run_conv(layer.reduce, reduce, x.mean((2, 3), keepdim=True)))
            scaled: Tensor = x * layer.scale(run_conv(layer.expand, expand, hidden))
            return scaled
        assert isinstance(layer, ConvNormAct)
        x = convolve(layer.conv, self.weight() if weight is None else weight, None, x)
        x = run_norm(layer.bn, self.cut(), x)
        return layer.act(x) if layer.activation is not None else x

    def copied(self, weight: Tensor | None = None) -> nn.Module:
        """Returns an ordinary layer with its own copy of the used elements."""
        layer = self.layer
        if isinstance(layer, SqueezeExcite):
            with torch.device("meta"):  # no memory and no random numbers for weights that are replaced
                squeeze = SqueezeExcite(self.reads, self.makes, activation=layer.activation, gate=layer.gate)
            for name, cut in zip(("reduce", "expand"), self._squeeze_cuts(), strict=True):
                state = sliced_state(layer.get_submodule(name), cut)
                squeeze.get_submodule(name).load_state_dict(state, assign=True)
            return squeeze
        assert isinstance(layer, ConvNormAct)
        padding, depthwise = layer.padding, layer.groups > 1
        if isinstance(padding, int):
            padding -= layer.dilation * (layer.kernel - self.kernel) // 2
        with torch.device("meta"):
            smaller = ConvNormAct(
                self.makes if depthwise else self.reads,
                self.makes,
                kernel=self.kernel,
                stride=layer.stride,
                padding=padding,
                dilation=layer.dilation,
                groups=self.makes if depthwise else 1,
                activation=layer.activation,
                eps=layer.eps,
                momentum=layer.momentum,
            )
        state = sliced_state(layer, self.cut())
        if weight is not None:
            state["conv.weight"] = weight.detach().clone()
        smaller.load_state_dict(state, assign=True)
        return smaller

    def parts(self, *, taps: int = 0) -> Iterator[Part]:
        """Yields the parameters of the layer with the index of the used elements; `taps` as in `cut`."""
        if isinstance(self.layer, SqueezeExcite):
            reduce, expand = self._squeeze_cuts()
            yield from sliced_parts(self.layer.reduce, reduce)
            yield from sliced_parts(self.layer.expand, expand)
        else:
            yield from sliced_parts(self.layer, self.cut(taps=taps))
