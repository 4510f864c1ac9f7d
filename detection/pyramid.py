"""torchvision's feature pyramid over a tuple of maps, and the anchors, norms and towers of the heads on it."""

import dataclasses
import functools
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
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

_GROUPS = 32  # groups of group norm (Wu & He, 2018, Table 3)


def norm_layer(norm: Norm, width: int) -> Callable[[int], nn.Module] | None:
    """Returns the constructor of a norm layer for `width` channels, or None for a convolution with bias and no norm.

    Raises:
        InputError: the norm is unknown, or the width is not a multiple of group norm's groups.
    """
    if norm not in ("none", "batch", "group"):
        raise InputError(f"norm must be 'none', 'batch' or 'group', not {norm!r}")
    if norm == "group" and width % _GROUPS:
        raise InputError(
            f"group norm has {_GROUPS} groups, which do not divide {width} channels; give a multiple of {_GROUPS}"
        )
    return {"none": None, "batch": nn.BatchNorm2d, "group": functools.partial(nn.GroupNorm, _GROUPS)}[norm]


class FeaturePyramid(nn.Module):
    """torchvision's top-down feature pyramid over a tuple of maps, the finest first (Lin et al., 2017).

    Shapes: maps (N, in_channels[i], H_i, W_i) to maps (N, out_channels, H_i, W_i), followed by the additional levels.

    Args:
        in_channels: channels of the maps.
        out_channels: channels of every level.
        extra: additional levels, each at twice the stride of the one before. "none"; "pool" adds one, every second
            pixel of the coarsest (P6 of Faster R-CNN); "convs" adds two by stride-2 convolutions of the coarsest (P6
            and P7 of RetinaNet).
        norm: normalisation after every convolution except those of "convs".
    """

    def __init__(
        self, in_channels: Sequence[int], out_channels: int, *, extra: Extra = "none", norm: Norm = "none"
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels, self.extra, self.norm = tuple(in_channels), out_channels, extra, norm
        extra_block = {
            "none": lambda: None,
            "pool": LastLevelMaxPool,
            "convs": lambda: LastLevelP6P7(out_channels, out_channels),  # with equal widths it reads P5, not C5
        }[extra]()
        layer = norm_layer(norm, out_channels)
        self.fpn = FeaturePyramidNetwork(list(in_channels), out_channels, extra_block, norm_layer=layer)

    def forward(self, maps: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Returns one map per level, each with `out_channels` channels."""
        return tuple(self.fpn(OrderedDict((str(level), x) for level, x in enumerate(maps))).values())

    def lateral_blocks(self) -> list[nn.Sequential]:
        """Returns for each map the 1×1 convolution that reads it, with its norm."""
        return [block for block in self.fpn.inner_blocks if isinstance(block, nn.Sequential)]

    def out_layout(self, layout: Any) -> Any:
        """Returns the layouts of all levels, each with `out_channels` channels."""
        levels = [dataclasses.replace(part, channels=self.out_channels) for part in layout]
        for _ in range({"none": 0, "pool": 1, "convs": 2}[self.extra]):
            levels.append(dataclasses.replace(levels[-1], stride=2 * levels[-1].stride))
        return tuple(levels)


class LevelNorms(nn.ModuleList):
    """One batch norm per level of a pyramid, under a convolution that all levels share.

    Levels differ in their statistics by orders of magnitude, so one running mean and variance would fit none of them in
    evaluation. As in the released code of NAS-FPN and EfficientDet and in MMDetection's `RetinaSepBNHead`, each level
    also has its own scale and shift.

    Args:
        width: channels.
        levels: number of levels.
    """

    def __init__(self, width: int, *, levels: int) -> None:
        super().__init__(nn.BatchNorm2d(width) for _ in range(levels))

    def forward(self, x: Tensor, level: int) -> Tensor:
        """Returns the normalised map of a level, (N, width, H, W)."""
        normalized: Tensor = self[level](x)
        return normalized

    def older_release(self, names: Collection[str]) -> str | None:
        """Returns what is wrong with the tensors of an older release, None if these are not from one."""
        if "running_mean" not in names:
            return None
        return "its RetinaNet towers have one batch norm for all levels, which fits none of them in evaluation"


class Tower(nn.Sequential):
    """3×3 convolutions with norm and ReLU, as in torchvision's heads, shared by all levels of a pyramid.

    Batch norm is the levels' own (`LevelNorms`). Group norm keeps no statistics and is shared.

    Args:
        width: channels.
        convs: number of convolutions.
        norm: normalisation after each of them.
        levels: number of levels.
    """

    def __init__(self, width: int, *, convs: int, norm: Norm, levels: int) -> None:
        layer = norm_layer(norm, width)
        if norm == "batch":
            layer = functools.partial(LevelNorms, levels=levels)
        super().__init__(*(Conv2dNormActivation(width, width, norm_layer=layer) for _ in range(convs)))

    def forward(self, x: Tensor, level: int) -> Tensor:  # type: ignore[override]
        """Returns the features of a level, (N, width, H, W)."""
        for block in self:
            for part in block.children():
                x = part(x, level) if isinstance(part, LevelNorms) else part(x)
        return x


def level_names(strides: Sequence[int]) -> list[str]:
    """Returns the names of levels by their strides, "p3" for a stride of 2**3 pixels."""
    return [f"p{stride.bit_length() - 1}" for stride in strides]


class Anchors(nn.Module):
    """torchvision's anchors at every position of every level, spaced by the true strides of the maps.

    torchvision's detectors divide the size of the padded images by that of a map instead; the result equals the stride
    if the stride divides the image size, and is up to half of it too small otherwise.

    Args:
        strides: strides of the levels in pixels.
        sizes: for each level the sides of the square anchors in pixels.
        ratios: height divided by width of the anchors.
    """

    def __init__(self, strides: tuple[int, ...], sizes: Sizes, ratios: tuple[float, ...]) -> None:
        super().__init__()
        self.strides, self.sizes, self.ratios = strides, sizes, ratios
        self.generator = AnchorGenerator(sizes, (ratios,) * len(sizes))

    def forward(self, grids: Sequence[tuple[int, int]], device: torch.device) -> list[Tensor]:
        """Returns the anchors of each level, (H_i·W_i·A, 4), ordered by row, column and anchor.

        Args:
            grids: height and width of each level's map.
            device: where the anchors are needed.
        """
        self.generator.set_cell_anchors(torch.float32, device)
        strides = [(stride, stride) for stride in self.strides]
        anchors: list[Tensor] = self.generator.grid_anchors(list(grids), strides)
        return anchors


# -- initial weights --------------------------------------------------------------------------------------------------

Draw = Callable[[Tensor], object]


def draw_weights(module: nn.Module, draw: Draw) -> None:
    """Initialises convolutions and linear layers with `draw`, biases with zeros and norms as the identity, in place."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.Linear):
            draw(part.weight)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        elif isinstance(part, nn.BatchNorm2d | nn.GroupNorm):
            part.reset_parameters()


def initialize_pyramid(module: nn.Module, generator: torch.Generator | None) -> None:
    """Initialises every `FeaturePyramid` in a module as torchvision does: uniform with variance 1 / fan-in."""
    for part in module.modules():
        if isinstance(part, FeaturePyramid):
            draw_weights(part, functools.partial(nn.init.kaiming_uniform_, a=1, generator=generator))


def draw_small(module: nn.Module, generator: torch.Generator | None) -> None:
    """Initialises dense heads, most of whose positions are background: normal with standard deviation 0.01."""
    draw_weights(module, functools.partial(nn.init.normal_, std=0.01, generator=generator))
