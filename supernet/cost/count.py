"""MACs, parameters and activations of a module, from a trace on the meta device."""

import copy
from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

if TYPE_CHECKING:
    pass


COSTS = ("macs", "params", "activations")
SAME_SHAPE = {"native_batch_norm", "relu", "relu_", "hardtanh", "hardtanh_"}  # names of operators; none is counted


class _Counter(TorchDispatchMode):
    """Adds up the convolutions and matrix products that run inside it."""

    def __init__(self) -> None:
        super().__init__()
        self.macs = 0
        self.activations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in SAME_SHAPE:  # torch takes 2 ms to infer the shape of a batch norm
            return (args[0], *args[3:5]) if name == "native_batch_norm" else args[0]
        out = func(*args, **(kwargs or {}))
        if name == "convolution":
            weight, transposed = args[1], args[6]
            moved = args[0] if transposed else out
            self._add(moved.numel() * weight[0].numel(), out)
        elif name in ("mm", "addmm"):
            self._add(out.numel() * args[-1].shape[0], out)
        return out

    def _add(self, macs: int, out: Tensor) -> None:
        self.macs += macs
        self.activations += out.numel()


def meta_copy(module: nn.Module) -> Any:
    """The module on the meta device: shapes without storage, whatever its size."""
    memo: dict[int, Any] = {}
    for tensor in chain(module.parameters(), module.buffers()):
        empty = torch.empty_like(tensor, device="meta")
        memo[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
    return copy.deepcopy(module, memo)


def _run(module: nn.Module, state: Any) -> tuple[dict[str, int], Any]:
    with torch.no_grad(), _Counter() as counter:
        out = module(state)
    params = sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
    return {"macs": counter.macs, "params": params, "activations": counter.activations}, out


def count(module: nn.Module, input_shape: Sequence[int]) -> dict[str, int]:
    """Trace an ordinary network.

    Args:
        module: of one tensor argument. It is not run itself, only its shapes are.
        input_shape: (C, H, W) of one input.

    Returns:
        `macs`, `params`, `activations` for a batch of one.
    """
    return _run(meta_copy(module).eval(), torch.empty(1, *input_shape, device="meta"))[0]
