"""MACs, parameters and activations of a module, from a trace on the meta device."""

from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from supernet.chain.copying import copy_module
from supernet.chain.searchable import Searchable
from supernet.checked import Count, checked_arguments
from supernet.errors import InputError

COSTS = ("macs", "params", "activations", "matmul_macs")
SAME_SHAPE = {
    *("native_batch_norm", "relu", "relu_", "hardtanh", "hardtanh_", "hardswish", "hardswish_", "hardsigmoid"),
    *("hardsigmoid_", "sigmoid", "silu", "silu_", "gelu"),
}
"""Names of operators whose output has the shape of their first input; none is counted."""
BROADCAST = {"add", "add_", "mul", "mul_", "sub", "div"}
"""Names of operators on two tensors, or on a tensor and a number."""


class _Counter(TorchDispatchMode):
    """Adds up the convolutions and matrix products that run inside it.

    For a batch of one torch runs every linear layer as `mm` or `addmm`, and products of activations with each other
    (matmul, einsum, attention) as `bmm`, `baddbmm` or a fused attention operator.
    """

    def __init__(self) -> None:
        super().__init__()
        self.macs = 0
        self.matmul_macs = 0
        self.activations = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Keeps torch from importing its compiler, for two seconds, to shield this class from it."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in SAME_SHAPE:
            return (args[0], *args[3:5]) if name == "native_batch_norm" else args[0]
        out = _shaped(name, args, kwargs or {})
        if out is None:
            out = func(*args, **(kwargs or {}))
        if name == "convolution":
            weight, transposed = args[1], args[6]
            larger = args[0] if transposed else out
            self._add_layer(larger.numel() * weight[0].numel(), out)
        elif name in ("mm", "addmm"):
            self._add_layer(out.numel() * args[-1].shape[0], out)
        elif name in ("bmm", "baddbmm"):
            self.matmul_macs += out.numel() * args[-1].shape[1]
        elif name.startswith("_scaled_dot_product"):
            query, key, value = args[:3]  # (N, heads, length, width of a head)
            pairs = query.shape[:-1].numel() * key.shape[-2]
            self.matmul_macs += pairs * (query.shape[-1] + value.shape[-1])
        return out

    def _add_layer(self, macs: int, out: Tensor) -> None:
        self.macs += macs
        self.activations += out.numel()


def _shaped(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """Returns the output of the most frequent operators on the meta device; None for others and for other devices.

    Torch would give the same, in Python and up to 2 ms for each, and its first call of one of them imports its compiler
    and sympy, which takes more processor time than all other imports of a search together.
    """
    first: Any = args[0] if args else None
    if name == "cat" and not kwargs and all(part.is_meta for part in first):
        dim = args[1] if len(args) > 1 else 0
        shape = list(first[0].shape)
        shape[dim] = sum(part.shape[dim] for part in first)
        return first[0].new_empty(shape) if len({(part.dtype, part.ndim) for part in first}) == 1 else None
    if not (isinstance(first, Tensor) and first.is_meta and first.is_floating_point()):
        return None
    if name == "convolution" and not args[6]:
        return first.new_empty(_convolved(first, args[1], *args[3:6], groups=args[8]))
    if name in BROADCAST:
        second = args[1]
        if not isinstance(second, int | float) and not (isinstance(second, Tensor) and second.dtype == first.dtype):
            return None
        other = second.shape if isinstance(second, Tensor) else ()
        return first if name.endswith("_") else first.new_empty(np.broadcast_shapes(first.shape, other))
    if name in ("mm", "addmm") and not kwargs:
        return first.new_empty(args[-2].shape[0], args[-1].shape[1])
    if name == "mean" and len(args) > 1 and args[1] and not kwargs:
        dims, keep = {dim % first.ndim for dim in args[1]}, len(args) > 2 and args[2]
        sides = [(1 if dim in dims else side) for dim, side in enumerate(first.shape) if keep or dim not in dims]
        return first.new_empty(sides)
    return None


def _convolved(
    x: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], *, groups: int
) -> list[int]:
    """Returns the shape of a convolution's output. Raises `RuntimeError`, as torch does, for other channels."""
    dims = weight.ndim - 2
    if groups * weight.shape[1] != x.shape[-dims - 1]:
        raise RuntimeError(f"a convolution of {groups * weight.shape[1]} channels got {x.shape[-dims - 1]}")
    steps, pads, gaps = (list(values) * (dims // len(values)) for values in (stride, padding, dilation))
    sides = [
        (side + 2 * pad - gap * (kernel - 1) - 1) // step + 1
        for side, kernel, step, pad, gap in zip(x.shape[-dims:], weight.shape[2:], steps, pads, gaps, strict=True)
    ]
    return [*x.shape[: -dims - 1], weight.shape[0], *sides]


def meta_copy(module: nn.Module) -> Any:
    """Returns a copy of the module on the meta device: shapes without storage, whatever its size."""
    memo: dict[int, Any] = {}
    for tensor in chain(module.parameters(), module.buffers()):
        empty = torch.empty_like(tensor, device="meta")
        memo[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
    return copy_module(module, memo)


def trace(module: nn.Module, state: Any) -> tuple[dict[str, int], Any]:
    """Runs a module and returns its costs and its output; cheap where both module and input are on the meta device."""
    with torch.no_grad(), _Counter() as counter:
        out = module(state)
    params = sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
    costs = {
        "macs": counter.macs,
        "params": params,
        "activations": counter.activations,
        "matmul_macs": counter.matmul_macs,
    }
    return costs, out


@checked_arguments
def count(module: nn.Module, input_shape: Sequence[Count]) -> dict[str, int]:
    """Returns the costs of an ordinary network for one input.

    Args:
        module: takes one tensor. The module itself is not run, only a copy without storage.
        input_shape: (C, H, W) of one input.

    Raises:
        InputError: the module is a supernet, or cannot take such an input.

    Returns:
        `macs`: multiply-accumulates of convolutions and linear layers, as papers count them. Bias, batch norm, pooling
            and activation functions count nothing.
        `params`: trainable parameters.
        `activations`: output elements of convolutions and linear layers.
        `matmul_macs`: multiply-accumulates of batched matrix products, that is of attention, matmul and einsum; they
            are not part of `macs`, and 0 for a network of convolutions.
    """
    if isinstance(module, Searchable) and module.space.choices:
        raise InputError(
            f"count takes an ordinary network, and {module.space.name!r} is a supernet; the costs of its architectures "
            "are those of CostTable"
        )
    try:
        return trace(meta_copy(module).eval(), torch.empty(1, *input_shape, device="meta"))[0]
    except (RuntimeError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"the module cannot take an input of input_shape={tuple(input_shape)}: {reason}") from error
