"""MACs, parameters and activations of a module, from a trace on the meta device."""

import copy
from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

COSTS = ("macs", "params", "activations", "matmul_macs")
SAME_SHAPE = {"native_batch_norm", "relu", "relu_", "hardtanh", "hardtanh_"}  # names of operators; none is counted


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

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in SAME_SHAPE:  # torch takes 2 ms to infer the shape of a batch norm
            return (args[0], *args[3:5]) if name == "native_batch_norm" else args[0]
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


def meta_copy(module: nn.Module) -> Any:
    """Returns a copy of the module on the meta device: shapes without storage, whatever its size."""
    memo: dict[int, Any] = {}
    for tensor in chain(module.parameters(), module.buffers()):
        empty = torch.empty_like(tensor, device="meta")
        memo[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
    return copy.deepcopy(module, memo)


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


def count(module: nn.Module, input_shape: Sequence[int]) -> dict[str, int]:
    """Returns the costs of an ordinary network for one input.

    Args:
        module: takes one tensor. The module itself is not run, only a copy without storage.
        input_shape: (C, H, W) of one input.

    Returns:
        `macs`: multiply-accumulates of convolutions and linear layers, as papers count them. Bias, batch norm, pooling
            and activation functions count nothing.
        `params`: trainable parameters.
        `activations`: output elements of convolutions and linear layers.
        `matmul_macs`: multiply-accumulates of batched matrix products, that is of attention, matmul and einsum; they
            are not part of `macs`, and 0 for a network of convolutions.
    """
    return trace(meta_copy(module).eval(), torch.empty(1, *input_shape, device="meta"))[0]
