"""Gradients of two kinds of convolutions for which oneDNN has no good kernel, on the CPU.

The first are depthwise convolutions whose kernel is larger than their feature map.

oneDNN falls back to a reference loop: a 5×5 depthwise convolution of 1,536 channels on
2×2 maps needs 170 to 240 ms for its weight gradient and 2 ms for everything else. The last stages of most mobile
networks look like this once images are small. The gradient is a sum over a few shifted products, which takes 5 ms.

The second are 1×1 convolutions with a stride and fewer than 16 input channels: with torch 2.14.1 on processors with
AVX-512 their backward pass in channels-last order ends the process by a segmentation fault on maps of 48×48 and more.
Without the pixels that the stride leaves out they are ordinary convolutions.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

NARROW = 16
"""Input channels below which oneDNN's gradient of a 1×1 convolution with a stride is not called."""


class ConvolutionGradients(TorchFunctionMode):
    """Replaces the gradients of such convolutions while the mode is active; the forward pass stays the same."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Runs `func`, or the same convolution with another backward pass."""
        if func is torch.conv2d and not kwargs and len(args) == 7 and _is_slow(*args):
            x, weight, bias, stride, padding, _, _ = args
            return _Depthwise.apply(x, weight, bias, tuple(stride), tuple(padding))
        if func is torch.conv2d and not kwargs and len(args) == 7 and _is_fatal(*args):
            x, weight, bias, stride, _, _, _ = args
            return _StridedPointwise.apply(x, weight, bias, tuple(stride))
        return func(*args, **(kwargs or {}))


def _is_slow(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any, groups: int
) -> bool:
    """Says whether oneDNN would need its reference loop for the weight gradient."""
    return (
        groups > 1
        and groups == x.shape[-3] == weight.shape[0]
        and weight.shape[1] == 1
        and (weight.shape[2] > x.shape[-2] or weight.shape[3] > x.shape[-1])
        and x.ndim == 4
        and x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and weight.requires_grad
        and torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and all(isinstance(setting, tuple | list) and len(setting) == 2 for setting in (stride, padding, dilation))
        and tuple(dilation) == (1, 1)
    )


def _is_fatal(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any, groups: int
) -> bool:
    """Says whether oneDNN's backward pass of a 1×1 convolution with a stride may end the process."""
    return (
        groups == 1
        and x.ndim == 4
        and x.shape[1] < NARROW
        and tuple(weight.shape[2:]) == (1, 1)
        and isinstance(stride, tuple | list)
        and len(stride) == 2
        and max(stride) > 1
        and (not any(padding) if isinstance(padding, tuple | list) else padding in (0, "valid"))
        and x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
    )


class _Depthwise(torch.autograd.Function):
    """A depthwise convolution whose weight gradient is a sum of shifted products."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple[int, int], padding: tuple[int, int]
    ) -> Tensor:
        """Returns (N, C, H', W') of x, (N, C, H, W), and weight, (C, 1, k, k)."""
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = stride, padding
        return torch.conv2d(x, weight, bias, stride, padding, 1, x.shape[1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        """Returns the gradients of x, weight and bias."""
        x, weight = ctx.saved_tensors
        for_x = for_weight = for_bias = None
        if ctx.needs_input_grad[0]:
            for_x = torch.ops.aten.convolution_backward(
                grad,
                x,
                weight,
                None,
                ctx.stride,
                ctx.padding,
                [1, 1],
                False,
                [0, 0],
                x.shape[1],
                [True, False, False],
            )[0]
        if ctx.needs_input_grad[1]:
            for_weight = weight_gradient(x, grad, weight.shape[2:], ctx.stride, ctx.padding)
        if ctx.needs_input_grad[2]:
            for_bias = grad.sum((0, 2, 3))
        return for_x, for_weight, for_bias, None, None


class _StridedPointwise(torch.autograd.Function):
    """A 1×1 convolution with a stride whose gradients are those of one without, on the pixels that it reads."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple[int, int]) -> Tensor:
        """Returns (N, C', H', W') of x, (N, C, H, W), and weight, (C', C, 1, 1)."""
        ctx.save_for_backward(x, weight)
        ctx.stride = stride
        return torch.conv2d(x, weight, bias, stride)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        """Returns the gradients of x, weight and bias."""
        x, weight = ctx.saved_tensors
        rows, columns = ctx.stride
        read = x[:, :, ::rows, ::columns].contiguous(memory_format=torch.channels_last)
        for_x = for_weight = for_bias = None
        if ctx.needs_input_grad[0] or ctx.needs_input_grad[1]:
            wanted = [ctx.needs_input_grad[0], ctx.needs_input_grad[1], False]
            for_read, for_weight, _ = torch.ops.aten.convolution_backward(
                grad, read, weight, None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1, wanted
            )
            if for_read is not None:
                for_x = torch.zeros_like(x)
                for_x[:, :, ::rows, ::columns] = for_read
        if ctx.needs_input_grad[2]:
            for_bias = grad.sum((0, 2, 3))
        return for_x, for_weight, for_bias, None


def weight_gradient(
    x: Tensor, grad: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int]
) -> Tensor:
    """Returns the weight gradient of a depthwise convolution, (C, 1, k, k).

    Args:
        x: Input, (N, C, H, W).
        grad: Gradient of the output, (N, C, H', W').
        kernel: Height and width of the kernel.
        stride: Stride of rows and of columns.
        padding: Zeros around the rows and the columns.
    """
    pixels, slopes = x.permute(0, 2, 3, 1), grad.permute(0, 2, 3, 1)
    gradient = x.new_zeros(*kernel, x.shape[1])
    for i, rows, out_rows in _overlaps(kernel[0], x.shape[2], grad.shape[2], stride[0], padding[0]):
        for j, columns, out_columns in _overlaps(kernel[1], x.shape[3], grad.shape[3], stride[1], padding[1]):
            gradient[i, j] = (pixels[:, rows, columns] * slopes[:, out_rows, out_columns]).sum((0, 1, 2))
    return gradient.permute(2, 0, 1).unsqueeze(1)


def _overlaps(kernel: int, size: int, out: int, stride: int, padding: int) -> Iterator[tuple[int, slice, slice]]:
    """Yields, for each kernel position that meets the input at all, the input positions and their output positions."""
    for position in range(kernel):
        shift = position - padding
        first = -(min(shift, 0) // stride)
        last = min(out - 1, (size - 1 - shift) // stride)
        if first <= last:
            yield position, slice(first * stride + shift, last * stride + shift + 1, stride), slice(first, last + 1)
