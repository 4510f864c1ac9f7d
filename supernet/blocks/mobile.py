"""Ordinary modules of mobile networks (MobileNet, EfficientNet and their relatives), which an export writes out.

As in `plain`, every class keeps its constructor arguments as attributes of the same names.
"""

import torch
from torch import Tensor, nn

IN_PLACE = (nn.ReLU, nn.ReLU6, nn.SiLU, nn.Hardswish, nn.Hardsigmoid)
"""Activations that can overwrite their input."""


def multiple_of_8(value: float) -> int:
    """Rounds to the nearest multiple of 8, halves up, but at least to 8 and not below 0.9 times the value."""
    rounded = max(8, int(value + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * value else rounded + 8


def overwriting(activation: type[nn.Module]) -> nn.Module:
    """Returns an activation that overwrites its input if it can."""
    return activation(inplace=True) if activation in IN_PLACE else activation()


def pad_same(x: Tensor, kernel: tuple[int, int], stride: tuple[int, int], dilation: tuple[int, int]) -> Tensor:
    """Pads (N, C, H, W) with zeros as TensorFlow's SAME does, so that ceil(size / stride) pixels come out.

    An odd number of zeros puts the additional one at the bottom and on the right.
    """
    sides: list[int] = []
    for size, k, s, d in zip(x.shape[-2:], kernel, stride, dilation, strict=True):
        total = max((-(-size // s) - 1) * s + (k - 1) * d + 1 - size, 0)
        sides = [total // 2, total - total // 2, *sides]  # the last dimension comes first
    return nn.functional.pad(x, sides)


class Conv2dSame(nn.Conv2d):
    """A convolution with TensorFlow's SAME padding, which depends on the size of the input and may be asymmetric."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) to (N, out_channels, ceil(H / stride), ceil(W / stride))."""
        kernel, stride, dilation = self.kernel_size, self.stride, self.dilation
        x = pad_same(x, (kernel[0], kernel[1]), (stride[0], stride[1]), (dilation[0], dilation[1]))
        return nn.functional.conv2d(x, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class ConvNormAct(nn.Sequential):
    """Convolution without bias, batch norm and an activation.

    Args:
        kernel: height and width.
        padding: zeros on every side, `"same"` for TensorFlow's SAME, or None for half the kernel.
        dilation, groups: those of the convolution.
        activation: a class, or None for no activation.
        eps, momentum: those of the batch norm.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel: int = 1,
        stride: int = 1,
        padding: int | str | None = None,
        dilation: int = 1,
        groups: int = 1,
        activation: type[nn.Module] | None = None,
        eps: float = 1e-5,
        momentum: float = 0.1,
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels, self.kernel, self.stride = in_channels, out_channels, kernel, stride
        self.padding, self.dilation, self.groups = padding, dilation, groups
        self.activation, self.eps, self.momentum = activation, eps, momentum
        if padding == "same":
            self.conv: nn.Conv2d = Conv2dSame(
                in_channels, out_channels, kernel, stride, dilation=dilation, groups=groups, bias=False
            )
        else:
            around = dilation * (kernel // 2) if padding is None else padding
            self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride, around, dilation, groups, bias=False)
        self.bn = nn.BatchNorm2d(out_channels, eps, momentum)
        if activation is not None:
            self.act = overwriting(activation)


class SqueezeExcite(nn.Module):
    """Scales every channel by a function of the means of all channels (Hu et al., 2018).

    Args:
        channels: the number of input channels.
        hidden: channels between the two 1×1 convolutions, which have biases.
        activation: a class, between them.
        gate: a class, after them.
    """

    def __init__(
        self,
        channels: int,
        hidden: int,
        *,
        activation: type[nn.Module] = nn.ReLU,
        gate: type[nn.Module] = nn.Sigmoid,
    ) -> None:
        super().__init__()
        self.channels, self.hidden, self.activation, self.gate = channels, hidden, activation, gate
        self.reduce = nn.Conv2d(channels, hidden, 1)
        self.act = overwriting(activation)
        self.expand = nn.Conv2d(hidden, channels, 1)
        self.scale = gate()

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) to the same shape."""
        out: Tensor = x * self.scale(self.expand(self.act(self.reduce(x.mean((2, 3), keepdim=True)))))
        return out


def shrink(x: Tensor, stride: int) -> Tensor:
    """Returns (N, C, ceil(H / 2), ceil(W / 2)) by average pooling for a stride of 2, and `x` for one of 1.

    An odd side gets a zero before and after it, which count in the averages (AttentiveNAS).
    """
    if stride == 1:
        return x
    return nn.functional.avg_pool2d(x, 2, 2, padding=(x.shape[-2] % 2, x.shape[-1] % 2))


class PooledShortcut(nn.Module):
    """A shortcut around a block of any stride: average pooling, then a 1×1 convolution where the channels differ."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int = 1) -> None:
        super().__init__()
        self.in_channels, self.out_channels, self.stride = in_channels, out_channels, stride
        if in_channels != out_channels:
            self.conv = nn.Conv2d(in_channels, out_channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) to (N, out_channels, ceil(H / stride), ceil(W / stride))."""
        x = shrink(x, self.stride)
        return self.conv(x) if self.in_channels != self.out_channels else x


class DropPath(nn.Module):
    """Sets whole images to zero in training, each with probability `rate`, and scales the others (Huang et al., 2016).

    Args:
        rate: below 1.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to the same shape; the input itself in eval mode."""
        if not self.training:
            return x
        kept = x.new_empty(x.shape[0], 1, 1, 1).bernoulli_(1 - self.rate)
        return x * (kept / (1 - self.rate))


class HiddenClassifier(nn.Module):
    """Global average pooling, a linear layer, an activation, dropout, a linear layer (torchvision's MobileNetV3).

    Shapes: (N, in_channels, H, W) to logits (N, classes).

    Args:
        hidden: features between the linear layers.
        activation: a class.
        dropout: probability of the dropout.
    """

    stride = 0

    def __init__(
        self,
        in_channels: int,
        classes: int,
        *,
        hidden: int,
        activation: type[nn.Module] = nn.Hardswish,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.in_channels, self.classes, self.hidden = in_channels, classes, hidden
        self.activation, self.dropout, self.out_channels = activation, dropout, classes
        self.mix = nn.Linear(in_channels, hidden)
        self.act = overwriting(activation)
        self.drop = nn.Dropout(dropout)
        self.fc = nn.Linear(hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the logits, (N, classes)."""
        logits: Tensor = self.fc(self.drop(self.act(self.mix(x.mean((2, 3))))))
        return logits


class MixingClassifier(nn.Module):
    """Global average pooling, a 1×1 convolution of the pooled features, an activation, dropout, a linear layer.

    Shapes: (N, in_channels, H, W) to logits (N, classes). This is the head of MobileNetV3 (Howard et al., 2019).

    Args:
        hidden: output channels of the convolution.
        bias: whether the convolution has one.
        norm: whether a batch norm follows the convolution; `eps` and `momentum` are its own.
        activation: a class.
        dropout: probability of the dropout.
    """

    stride = 0

    def __init__(
        self,
        in_channels: int,
        classes: int,
        *,
        hidden: int,
        bias: bool = False,
        norm: bool = False,
        activation: type[nn.Module] = nn.Hardswish,
        dropout: float = 0.0,
        eps: float = 1e-5,
        momentum: float = 0.1,
    ) -> None:
        super().__init__()
        self.in_channels, self.classes, self.hidden = in_channels, classes, hidden
        self.bias, self.norm, self.activation, self.dropout = bias, norm, activation, dropout
        self.eps, self.momentum = eps, momentum
        self.out_channels = classes
        self.mix = nn.Conv2d(in_channels, hidden, 1, bias=bias)
        if norm:
            self.bn = nn.BatchNorm2d(hidden, eps, momentum)
        self.act = overwriting(activation)
        self.drop = nn.Dropout(dropout)
        self.fc = nn.Linear(hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the logits, (N, classes)."""
        x = self.mix(x.mean((2, 3), keepdim=True))
        x = self.act(self.bn(x) if self.norm else x)
        logits: Tensor = self.fc(self.drop(torch.flatten(x, 1)))
        return logits
