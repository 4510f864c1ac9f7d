"""The description of a step's output: channels, stride and the hidden states concatenated in a tensor."""

import math
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, nn

from supernet.checked import is_whole
from supernet.errors import InputError


@dataclass(frozen=True)
class Layout:
    """Describes one tensor of the state.

    Attributes:
        channels: size of dimension 1.
        stride: input pixels per pixel of this feature map; a fraction where images were resized, 0 if it has no spatial
            extent (logits).
        ids: the hidden states concatenated in it, in order, if a later step must distinguish them.
    """

    channels: int
    stride: float = 1
    ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not is_whole(self.channels, 1):
            raise InputError(f"a layout has channels={self.channels!r}; a tensor has at least one channel")
        if isinstance(self.stride, bool) or not isinstance(self.stride, int | float) or not 0 <= self.stride < math.inf:
            raise InputError(f"a layout has stride={self.stride!r}; give input pixels per pixel, 0 for logits")


Layouts = Layout | tuple["Layouts", ...] | None
"""The layout of a state: of a tensor, of a tuple of states, or None for outputs that no step reads (detections)."""


class Hidden(NamedTuple):
    """A tensor together with the ids of the hidden states concatenated in it (`Layout.ids`)."""

    tensor: Tensor  # (N, C, H, W)
    ids: tuple[int, ...]


@dataclass(frozen=True)
class Announced:
    """The layout after a module at its place in one network."""

    layout: Layouts


_ANNOUNCED = "announced_layout"


def announce(module: nn.Module, layout: Layouts) -> nn.Module:
    """Notes the layout after a module at its place in a network, for one that declares nothing; returns the module."""
    setattr(module, _ANNOUNCED, Announced(layout))
    return module


_ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.SiLU, nn.GELU, nn.Hardswish)
_SAME = (nn.Identity, *_ACTIVATIONS, nn.BatchNorm2d, nn.SyncBatchNorm, nn.Dropout, nn.Dropout2d)


def plain_layout(module: nn.Module, layout: Layouts) -> Layouts:
    """Returns the layout after an ordinary module, as the module declares it.

    What `announce` noted has precedence, then a method `out_layout(layout)`. Otherwise the attributes `out_channels`
    and `stride` (1 if absent; 0 after global pooling) are read, which torch's convolutions have. Activations, batch
    norm, dropout and identities leave the layout as it is; an `nn.Sequential` is traversed.

    Raises:
        InputError: the module declares nothing.
    """
    noted: Announced | None = getattr(module, _ANNOUNCED, None)
    if noted is not None:
        return noted.layout
    own = getattr(module, "out_layout", None)
    if own is not None:
        result: Layouts = own(layout)
        return result
    if isinstance(module, nn.Sequential):
        for part in module:
            layout = plain_layout(part, layout)
        return layout
    if isinstance(module, _SAME):
        return layout
    channels, stride = getattr(module, "out_channels", None), getattr(module, "stride", 1)
    if not isinstance(channels, int) or getattr(module, "transposed", False):
        raise InputError(
            f"{type(module).__name__} is a step of a chain and must declare its output: give it the attributes "
            "out_channels and stride, or a method out_layout(layout)"
        )
    stride = stride[0] if isinstance(stride, tuple) else stride
    before = layout.stride if isinstance(layout, Layout) else 1
    return Layout(channels, before * stride)
