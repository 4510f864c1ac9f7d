"""Replacements for convolutions for which oneDNN has no good kernel, on the CPU.

Small images leave mobile networks with depthwise convolutions on maps of few pixels, and there oneDNN often falls back
to a reference loop. Times are of a batch of 128 in channels-last order on one core with AVX-512.

- The weight gradient of a depthwise convolution whose kernel is larger than its map (5×5, 1,536 channels, 2×2 maps)
  takes 170 to 240 ms and everything else 2 ms. As a sum over a few shifted products it takes 5 ms.
- The weight gradient of a depthwise kernel of more than 3 columns (5×5, 192 channels, 16×16 maps) takes 48 ms, that of
  a 5×3 kernel 8 ms. A kernel of more columns is computed in parts of at most 3.
- The gradients of a 1×1 convolution of a map of a single pixel take 2.4 times as long as those of a linear layer.
- The backward pass of a 1×1 convolution with a stride and fewer than 16 input channels ends the process by a
  segmentation fault on maps of 48×48 and more (torch 2.14.1). Without the pixels that the stride leaves out it is an
  ordinary convolution.
- The forward pass of a 1×1 convolution of maps of few pixels takes up to 2.5 times as long as the same product of
  matrices, in float32 and in bfloat16 (batches of 32). It is replaced where networks are scored.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.overrides import TorchFunctionMode

NARROW = 16
"""Input channels below which oneDNN's gradient of a 1×1 convolution with a stride is not called."""
COLUMNS = 3
"""Columns of the widest depthwise kernel for whose weight gradient oneDNN has a fast kernel."""
ROWS = 5
"""Rows of the tallest such kernel with a stride; without one there is no limit."""
PART_BYTES = 2**21
"""Input that is shifted at a time for the gradient of a part of a kernel, so that it stays in the cache."""

FEW_PIXELS = 16
"""The largest map, in pixels, on which a 1×1 convolution is computed as a product of matrices."""

Pair = tuple[int, int]


class FastConvolutions(TorchFunctionMode):
    """Replaces these convolutions while the mode is active; the bits of all outputs stay the same."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Runs `func`, or the same convolution in another way."""
        if func is torch.conv2d and not kwargs and len(args) == 7:
            replaced = _replaced(*args)
            if replaced is not None:
                return replaced
        return func(*args, **(kwargs or {}))


class PointwiseConv2d(nn.Conv2d):
    """A 1×1 convolution that is a product of matrices where it is faster: on maps of few pixels, without gradients.

    Its parameters and its state are those of `nn.Conv2d`; outputs differ from it by rounding.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Returns (N, C', H, W) of an input of (N, C, H, W)."""
        if torch.compiler.is_compiling() or torch.jit.is_tracing():  # type: ignore[attr-defined]  # for maps of any size
            return super().forward(input)
        few = input.ndim == 4 and input.stride(1) == 1 and input.shape[2] * input.shape[3] <= FEW_PIXELS
        if not few or input.device.type != "cpu" or torch.is_grad_enabled():
            return super().forward(input)
        return functional.linear(input.permute(0, 2, 3, 1), self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)


def use_matrix_products(module: nn.Module) -> None:
    """Turns the 1×1 convolutions of a module into `PointwiseConv2d`, in place."""
    for part in module.modules():
        if (
            type(part) is nn.Conv2d
            and part.kernel_size == part.stride == part.dilation == (1, 1)
            and part.padding in ((0, 0), "valid")
            and part.groups == 1
        ):
            part.__class__ = PointwiseConv2d


def _replaced(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any, groups: int
) -> Tensor | None:
    """Returns the output of a convolution that is replaced, None of any other."""
    if x.ndim != 4 or x.device.type != "cpu" or not x.dtype == weight.dtype == torch.float32:
        return None
    if padding in (0, "valid"):
        padding = (0, 0)
    if not all(isinstance(setting, tuple | list) and len(setting) == 2 for setting in (stride, padding, dilation)):
        return None
    if tuple(dilation) != (1, 1) or torch.is_autocast_enabled("cpu"):
        return None
    strides, pads = (stride[0], stride[1]), (padding[0], padding[1])
    kernel, size = weight.shape[2:], x.shape[2:]
    learned = torch.is_grad_enabled() and weight.requires_grad
    if groups > 1 and groups == x.shape[1] == weight.shape[0]:
        larger = kernel[0] > size[0] or kernel[1] > size[1]
        wide = kernel[1] > COLUMNS and x.is_contiguous(memory_format=torch.channels_last)
        return _Depthwise.apply(x, weight, bias, strides, pads) if learned and (larger or wide) else None  # type: ignore[no-any-return]
    if groups > 1 or tuple(kernel) != (1, 1) or any(pads) or not torch.is_grad_enabled():
        return None
    if size == (1, 1) and learned:
        return _OnePixel.apply(x, weight, bias)  # type: ignore[no-any-return]
    if max(strides) > 1 and x.shape[1] < NARROW:
        return _StridedPointwise.apply(x, weight, bias, strides)  # type: ignore[no-any-return]
    return None


def _gradients(
    grad: Tensor, x: Tensor, weight: Tensor, stride: Pair, padding: Pair, groups: int, wanted: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Returns torch's gradients of input and weight, None for one that is not wanted."""
    for_x, for_weight, _ = torch.ops.aten.convolution_backward(
        grad, x, weight, None, stride, padding, [1, 1], False, [0, 0], groups, [*wanted, False]
    )
    return for_x, for_weight


class _Depthwise(torch.autograd.Function):
    """A depthwise convolution with another way to its weight gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair, padding: Pair) -> Tensor:
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
            for_x, _ = _gradients(grad, x, weight, ctx.stride, ctx.padding, x.shape[1], (True, False))
        if ctx.needs_input_grad[1]:
            for_weight = weight_gradient(x, grad, (weight.shape[2], weight.shape[3]), ctx.stride, ctx.padding)
        if ctx.needs_input_grad[2]:
            for_bias = grad.sum((0, 2, 3))
        return for_x, for_weight, for_bias, None, None


class _OnePixel(torch.autograd.Function):
    """A 1×1 convolution of maps of one pixel whose gradients are those of a linear layer."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Returns (N, C', 1, 1) of x, (N, C, 1, 1), and weight, (C', C, 1, 1)."""
        ctx.save_for_backward(x, weight)
        return torch.conv2d(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Returns the gradients of x, weight and bias."""
        x, weight = ctx.saved_tensors
        rows = grad.flatten(1)  # (N, C')
        return (
            (rows @ weight.flatten(1)).view_as(x) if ctx.needs_input_grad[0] else None,
            (rows.T @ x.flatten(1)).view_as(weight) if ctx.needs_input_grad[1] else None,
            rows.sum(0) if ctx.needs_input_grad[2] else None,
        )


class _StridedPointwise(torch.autograd.Function):
    """A 1×1 convolution with a stride whose gradients are those of one without, on the pixels that it reads."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair) -> Tensor:
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
            wanted = (ctx.needs_input_grad[0], ctx.needs_input_grad[1])
            for_read, for_weight = _gradients(grad, read, weight, (1, 1), (0, 0), 1, wanted)
            if for_read is not None:
                for_x = torch.zeros_like(x)
                for_x[:, :, ::rows, ::columns] = for_read
        if ctx.needs_input_grad[2]:
            for_bias = grad.sum((0, 2, 3))
        return for_x, for_weight, for_bias, None


def weight_gradient(x: Tensor, grad: Tensor, kernel: Pair, stride: Pair, padding: Pair) -> Tensor:
    """Returns the weight gradient of a depthwise convolution, (C, 1, k, k).

    Args:
        x: input, (N, C, H, W).
        grad: gradient of the output, (N, C, H', W').
        kernel: height and width of the kernel.
        stride: stride of rows and of columns.
        padding: zeros around the rows and the columns.
    """
    if kernel[0] > x.shape[2] or kernel[1] > x.shape[3]:
        return _by_position(x, grad, kernel, stride, padding)
    return _by_part(x, grad, kernel, stride, padding)


def _by_position(x: Tensor, grad: Tensor, kernel: Pair, stride: Pair, padding: Pair) -> Tensor:
    """Returns the weight gradient as the products of the output's gradient with the shifted input, summed over both."""
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


class _Part(NamedTuple):
    """Neighbouring rows or columns of a kernel, and the zeros before and after the input that they meet."""

    positions: slice
    before: int
    after: int


def _by_part(x: Tensor, grad: Tensor, kernel: Pair, stride: Pair, padding: Pair) -> Tensor:
    """Returns the weight gradient in parts for which oneDNN is fast, each from the input shifted to its place."""
    rows = kernel[0] if stride[0] == 1 else ROWS
    parts = [
        (above, beside)
        for above in _parts(kernel[0], rows, x.shape[2], grad.shape[2], stride[0], padding[0])
        for beside in _parts(kernel[1], COLUMNS, x.shape[3], grad.shape[3], stride[1], padding[1])
    ]
    gradient = x.new_zeros(x.shape[1], 1, *kernel)
    images = max(1, PART_BYTES // (x[0].numel() * x.element_size()))
    for some, slopes in zip(x.split(images), grad.split(images), strict=True):
        for above, beside in parts:
            place = gradient[:, :, above.positions, beside.positions]
            shifted = functional.pad(some, (beside.before, beside.after, above.before, above.after))
            _, part = _gradients(slopes, shifted, place.contiguous(), stride, (0, 0), x.shape[1], (False, True))
            assert part is not None
            place += part
    return gradient


def _parts(kernel: int, largest: int, size: int, out: int, stride: int, padding: int) -> Iterator[_Part]:
    """Yields parts of nearly the same length, none above `largest`; a negative number of zeros cuts pixels off."""
    number = -(-kernel // largest)
    for index in range(number):
        first, end = index * kernel // number, (index + 1) * kernel // number
        before = padding - first
        yield _Part(slice(first, end), before, (out - 1) * stride + end - first - before - size)
