"""Torchvision's feature pyramid over a tuple of maps, and the anchors and layers that detectors lay on it."""

import dataclasses
import functools
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import Conv2dNormActivation, FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

from supernet.errors import InputError

Norm = Literal["none", "batch", "group"]
Extra = Literal["none", "pool", "convs"]
Sizes = tuple[tuple[int, ...], ...]

_GROUPS = 32  # of group norm (Wu & He, 2018, Table 3)


def norm_layer(norm: Norm, width: int) -> Callable[[int], nn.Module] | None:
    """What makes the norm after a convolution to `width` channels; None for a convolution with bias and no norm.

    Raises:
        InputError: an unknown norm, or a width that group norm cannot divide.
    """
    if norm not in ("none", "batch", "group"):
        raise InputError(f"norm is 'none', 'batch' or 'group', not {norm!r}")
    if norm == "group" and width % _GROUPS:
        raise InputError(f"group norm has {_GROUPS} groups, which do not divide {width} channels; give a multiple")
    return {"none": None, "batch": nn.BatchNorm2d, "group": functools.partial(nn.GroupNorm, _GROUPS)}[norm]


class FeaturePyramid(nn.Module):
    """Top-down feature pyramid over a tuple of maps, finest first (Lin et al., 2017), by torchvision.

    Shapes: maps (N, in_channels[i], H_i, W_i) to maps (N, out_channels, H_i, W_i), and those of further levels.

    Args:
        extra: further levels, each at twice the stride of the one before: none; one, every second pixel of the
            coarsest ("pool": P6 of the two-stage detector); or two, by stride-2 convolutions of the coarsest ("convs":
            P6 and P7 of RetinaNet).
        norm: after every convolution but those of "convs".
    """

    def __init__(
        self, in_channels: Sequence[int], out_channels: int, *, extra: Extra = "none", norm: Norm = "none"
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels, self.extra, self.norm = tuple(in_channels), out_channels, extra, norm
        further = {
            "none": lambda: None,
            "pool": LastLevelMaxPool,
            "convs": lambda: LastLevelP6P7(out_channels, out_channels),  # of equal widths: it reads P5, not C5
        }[extra]()
        layer = norm_layer(norm, out_channels)
        self.fpn = FeaturePyramidNetwork(list(in_channels), out_channels, further, norm_layer=layer)

    def forward(self, maps: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """One map per level, each with `out_channels`."""
        return tuple(self.fpn(OrderedDict((str(level), x) for level, x in enumerate(maps))).values())

    def out_layout(self, layout: Any) -> Any:
        """The strides of the input and of the further levels, each with `out_channels`."""
        levels = [dataclasses.replace(part, channels=self.out_channels) for part in layout]
        for _ in range({"none": 0, "pool": 1, "convs": 2}[self.extra]):
            levels.append(dataclasses.replace(levels[-1], stride=2 * levels[-1].stride))
        return tuple(levels)


def tower(width: int, convs: int, norm: Norm) -> nn.Sequential:
    """3×3 convolutions with ReLU, as the heads of torchvision have."""
    layer = norm_layer(norm, width)
    return nn.Sequential(*(Conv2dNormActivation(width, width, norm_layer=layer) for _ in range(convs)))


class Anchors(nn.Module):
    """The anchors of every position of every level, by torchvision; centred on what the maps' pixels look at.

    torchvision's detectors divide the size of the padded images by that of a map instead, which is the stride wherever
    the map's stride divides the size and up to a half less elsewhere.

    Args:
        strides: of the levels, in pixels.
        sizes: per level the sides of the square anchors, in pixels.
        ratios: height over width of every anchor.
    """

    def __init__(self, strides: tuple[int, ...], sizes: Sizes, ratios: tuple[float, ...]) -> None:
        super().__init__()
        self.strides, self.sizes, self.ratios = strides, sizes, ratios
        self.generator = AnchorGenerator(sizes, (ratios,) * len(sizes))

    def forward(self, grids: Sequence[tuple[int, int]], device: torch.device) -> list[Tensor]:
        """Per level (H_i·W_i·A, 4), in the order of rows, columns, anchors; from the heights and widths of the maps."""
        self.generator.set_cell_anchors(torch.float32, device)
        strides = [(stride, stride) for stride in self.strides]
        anchors: list[Tensor] = self.generator.grid_anchors(list(grids), strides)
        return anchors


# -- initial weights --------------------------------------------------------------------------------------------------

Draw = Callable[[Tensor], object]


def draw_weights(module: nn.Module, draw: Draw) -> None:
    """Set the weights of convolutions and linear layers by `draw`, in place; biases to zero, norms to the identity."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.Linear):
            draw(part.weight)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        elif isinstance(part, nn.BatchNorm2d | nn.GroupNorm):
            part.reset_parameters()


def initialize_pyramid(module: nn.Module, generator: torch.Generator | None) -> None:
    """Uniform weights of variance 1 / fan-in for every `FeaturePyramid` inside, as torchvision has them."""
    for part in module.modules():
        if isinstance(part, FeaturePyramid):
            draw_weights(part, functools.partial(nn.init.kaiming_uniform_, a=1, generator=generator))


def draw_small(module: nn.Module, generator: torch.Generator | None) -> None:
    """Normal weights of deviation 0.01: dense heads, of which most positions are background."""
    draw_weights(module, functools.partial(nn.init.normal_, std=0.01, generator=generator))
