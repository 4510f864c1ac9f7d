"""The neck and the dense head of RetinaNet as steps of a chain, wrapping torchvision's own modules."""

import dataclasses
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops import FeaturePyramidNetwork


class FeaturePyramid(nn.Module):
    """Top-down feature pyramid over a tuple of maps, finest first (Lin et al., 2017), by torchvision.

    Shapes: maps (N, in_channels[i], H_i, W_i) to maps (N, out_channels, H_i, W_i).
    """

    def __init__(self, in_channels: Sequence[int], out_channels: int) -> None:
        super().__init__()
        self.in_channels, self.out_channels = tuple(in_channels), out_channels
        self.fpn = FeaturePyramidNetwork(list(in_channels), out_channels)

    def forward(self, maps: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """One map per level, each with `out_channels`."""
        return tuple(self.fpn(OrderedDict((str(level), x) for level, x in enumerate(maps))).values())

    def out_layout(self, layout: Any) -> Any:
        """The strides of the input, each with `out_channels`."""
        return tuple(dataclasses.replace(part, channels=self.out_channels) for part in layout)


class RetinaHead(nn.Module):
    """RetinaNet's classification and box towers, shared by all levels (Lin et al., 2017b), by torchvision.

    Shapes: maps (N, in_channels, H_i, W_i) to `cls_logits` (N, A·ΣH_i·W_i, classes) and `bbox_regression`
    (N, A·ΣH_i·W_i, 4), A anchors per position.
    """

    def __init__(self, in_channels: int, anchors: int, classes: int) -> None:
        super().__init__()
        self.in_channels, self.anchors, self.classes = in_channels, anchors, classes
        self.head = RetinaNetHead(in_channels, anchors, classes)

    def forward(self, maps: tuple[Tensor, ...]) -> dict[str, Tensor]:
        """Raw outputs before anchors and non-maximum suppression."""
        out: dict[str, Tensor] = self.head(list(maps))
        return out

    def out_layout(self, layout: Any) -> None:
        """No step reads the outputs."""
        return None
