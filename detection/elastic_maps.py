"""Necks on maps whose numbers of channels are decisions of the backbone, as in spaces of widths."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from detection.backbone import Backbone, map_step
from supernet.blocks.slicing import Cut, leading, run_conv, sliced, sliced_parts
from supernet.chain import Layout, Layouts, Part, Searchable, parameters_of, plain_layout
from supernet.space import Arch, SearchSpace


class LeadingConv(nn.Conv2d):
    """A convolution that applies the weights of the leading input channels, of as many as its input has."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, at most `in_channels`, H, W) to (N, `out_channels`, H, W)."""
        return run_conv(self, leading(self.out_channels, x.shape[1]), x)


class Lateral(Protocol):
    """A neck with one 1×1 convolution for each map, which alone depends on the channels of the map."""

    def lateral_blocks(self) -> Sequence[nn.Sequential]:
        """Returns one block for each map, the finest first, whose first layer is the convolution."""


class ElasticNeck(Searchable):
    """A neck without decisions on maps whose numbers of channels differ between architectures.

    Its 1×1 convolutions use the leading input channels, as the elastic layers that produce the maps.

    Args:
        build: returns the neck, a `Lateral` module, for the channels of its maps, the finest first.
        in_channels: the largest numbers of channels.
    """

    def __init__(self, build: Callable[[Sequence[int]], nn.Module], in_channels: Sequence[int]) -> None:
        super().__init__()
        self.space, self.build, self.block = SearchSpace("elastic-neck"), build, build(in_channels)
        for block in _laterals(self.block):
            conv = block[0]
            assert isinstance(conv, nn.Conv2d)
            block[0] = LeadingConv(conv.in_channels, conv.out_channels, 1, bias=conv.bias is not None)

    def forward(self, maps: tuple[Tensor, ...], arch: Arch) -> Any:
        """Returns the output of the neck."""
        return self.block(maps)

    def out_layout(self, arch: Arch, layout: Layouts) -> Layouts:
        """Returns the layout of the neck's output, which does not depend on the channels of the maps."""
        return plain_layout(self.block, layout)

    def materialize(self, arch: Arch, layout: Layouts) -> nn.Module:
        """Returns the neck for the channels of the maps."""
        assert isinstance(layout, tuple)
        tensors = dict(self.block.state_dict())
        for conv, cut in self._cuts(layout):
            for name, parameter in self.block.named_parameters():
                if parameter is conv.weight:
                    tensors[name] = sliced(parameter.detach(), cut)
        with torch.device("meta"):  # no memory and no random numbers for weights that are replaced
            maps = self.build([part.channels for part in layout if isinstance(part, Layout)])
        maps.load_state_dict({name: tensor.clone() for name, tensor in tensors.items()}, assign=True)
        return maps

    def active_parts(self, arch: Arch, layout: Layouts) -> Iterator[Part]:
        """Yields all parameters; of the 1×1 convolutions the weights of the channels that the maps have."""
        parts = {id(part): index for conv, cut in self._cuts(layout) for part, index in sliced_parts(conv, cut)}
        for parameter, _ in parameters_of([self.block]):
            yield parameter, parts.get(id(parameter), ())

    def _cuts(self, layout: Layouts) -> list[tuple[nn.Conv2d, Cut]]:
        """Returns the 1×1 convolutions, each with the slice for its map."""
        assert isinstance(layout, tuple)
        cuts = []
        for block, part in zip(_laterals(self.block), layout, strict=True):
            conv = block[0]
            assert isinstance(conv, nn.Conv2d)
            assert isinstance(part, Layout)
            cuts.append((conv, leading(conv.out_channels, part.channels)))
        return cuts


def _laterals(neck: Any) -> Sequence[nn.Sequential]:
    blocks: Sequence[nn.Sequential] = neck.lateral_blocks()
    return blocks


def neck_step(backbone: Backbone, build: Callable[[Sequence[int]], nn.Module]) -> nn.Module:
    """Returns the step of a detector that reads the maps of a backbone.

    Args:
        backbone: see `as_backbone`.
        build: returns a neck, a `Lateral` module, for the channels of its maps, the finest first.
    """
    channels = tuple(backbone.out_channels.values())
    return map_step(ElasticNeck(build, channels) if backbone.elastic else build(channels), "all")
