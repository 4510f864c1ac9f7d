"""Slices of convolutions, batch norms and linear layers: one function for the supernet and for its subnets."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

from supernet.blocks.mobile import Conv2dSame, pad_same
from supernet.blocks.plain import ConvBNAct
from supernet.chain import Part

Cut = tuple[slice, ...]
"""Slices of the output channels, input channels, kernel rows and kernel columns of a layer, or of the first of these.
Tensors with fewer dimensions use the leading entries: batch norm and bias are sliced by output channels."""


# -- layers -----------------------------------------------------------------------------------------------------------


def leading(out: int, before: int, *, kernel: int = 0, largest: int = 0) -> Cut:
    """Returns the slice of the leading channels and, if `kernel` is given, of the central taps of a `largest` kernel.

    Args:
        out, before: output and input channels; a depthwise weight has 1 input channel.
        kernel, largest: both odd, or both even.
    """
    start = (largest - kernel) // 2
    taps = slice(start, start + kernel)
    return (slice(out), slice(before), taps, taps) if kernel else (slice(out), slice(before))


def sliced(tensor: Tensor, cut: Cut) -> Tensor:
    """Returns the elements at `cut` of a parameter or buffer of a layer, as a view.

    One view over all dimensions has one backward, which fills a gradient in the tensor's own memory order. A slice per
    dimension would fill several, in another order, which are then copied.
    """
    size, stride, offset = list(tensor.shape), tensor.stride(), tensor.storage_offset()
    for number, part in enumerate(cut[: tensor.ndim]):
        start, stop, _ = part.indices(size[number])
        size[number] = stop - start
        offset += start * stride[number]
    return tensor if size == list(tensor.shape) else tensor.as_strided(size, stride, offset)


def run_conv(conv: nn.Conv2d, cut: Cut, x: Tensor) -> Tensor:
    """Applies a convolution with the weights at `cut`; the padding shrinks with the kernel, so sizes stay the same.

    Args:
        conv: dense or depthwise, with zero padding.
        x: (N, input channels in `cut`, H, W).
    """
    bias = None if conv.bias is None else sliced(conv.bias, cut)
    return convolve(conv, sliced(conv.weight, cut), bias, x)


def convolve(conv: nn.Conv2d, weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
    """Applies a convolution with other weights, of fewer channels or a smaller kernel; see `run_conv`.

    Args:
        conv: dense or depthwise, with zero padding or TensorFlow's SAME padding.
        weight: (out, in, height, width); (out, 1, height, width) if depthwise.
        bias: (out,).
        x: (N, in, H, W).
    """
    groups = conv.groups if conv.groups == 1 else len(weight)  # depthwise
    if isinstance(conv, Conv2dSame):
        sizes = [(pair[0], pair[1]) for pair in (weight.shape[2:], conv.stride, conv.dilation)]
        return functional.conv2d(pad_same(x, *sizes), weight, bias, conv.stride, 0, conv.dilation, groups)
    padding = conv.padding
    lost = [whole - used for whole, used in zip(conv.kernel_size, weight.shape[2:], strict=True)]
    if any(lost):
        assert isinstance(padding, tuple)
        padding = tuple(p - d * n // 2 for p, d, n in zip(padding, conv.dilation, lost, strict=True))
    return functional.conv2d(x, weight, bias, conv.stride, padding, conv.dilation, groups)


def run_norm(bn: nn.BatchNorm2d, cut: Cut, x: Tensor) -> Tensor:
    """Applies batch norm to the leading channels; in training only their running statistics are updated."""
    scale, shift = (None, None) if bn.weight is None else (sliced(bn.weight, cut), sliced(bn.bias, cut))
    assert bn.running_mean is not None
    assert bn.running_var is not None
    assert bn.momentum is not None
    mean, variance = sliced(bn.running_mean, cut), sliced(bn.running_var, cut)  # views, so that updates are kept
    return functional.batch_norm(x, mean, variance, scale, shift, bn.training, bn.momentum, bn.eps)


def run_linear(linear: nn.Linear, cut: Cut, x: Tensor) -> Tensor:
    """Applies a linear layer with the weights at `cut`; `x` is (N, input features in `cut`)."""
    bias = None if linear.bias is None else sliced(linear.bias, cut)
    return functional.linear(x, sliced(linear.weight, cut), bias)


def run_sliced(layer: ConvBNAct, cut: Cut, x: Tensor) -> Tensor:
    """Applies a `ConvBNAct` with the weights at `cut`; in training it updates the statistics of these channels.

    Args:
        x: (N, input channels in `cut`, H, W).
    """
    x = run_norm(layer.bn, cut, run_conv(layer.conv, cut, x))
    return layer.relu(x) if layer.act else x


def sliced_state(layer: nn.Module, cut: Cut) -> dict[str, Tensor]:
    """Returns copies of the tensors of a layer at `cut`, named as in its state dict."""
    return {name: sliced(tensor, cut).clone() for name, tensor in layer.state_dict().items()}


def sliced_parts(layer: nn.Module, cut: Cut) -> Iterator[Part]:
    """Yields the parameters of a layer, each with the index of its elements at `cut`."""
    for parameter in layer.parameters():
        index = cut[: parameter.ndim]
        yield parameter, () if sliced(parameter, cut).shape == parameter.shape else index


def cut_layer(layer: ConvBNAct, cut: Cut, *, act: bool | None = None) -> ConvBNAct:
    """Returns an ordinary layer with its own copy of the weights at `cut`.

    Args:
        act: whether an activation follows; as in `layer` if None.
    """
    out, before, kernel, _ = sliced(layer.conv.weight, cut).shape
    depthwise = layer.groups > 1
    with torch.device("meta"):  # no memory and no random numbers for weights that are replaced
        smaller = type(layer)(
            out if depthwise else before,
            out,
            kernel=kernel,
            stride=layer.stride,
            groups=out if depthwise else 1,
            act=layer.act if act is None else act,
            affine=layer.affine,
        )
    smaller.load_state_dict(sliced_state(layer, cut), assign=True)
    return smaller
