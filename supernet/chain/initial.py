"""Initial weights of fresh networks."""

from collections.abc import Callable

import torch
from torch import nn

from supernet.errors import InputError

Init = Callable[[nn.Module, torch.Generator | None], None]


def initialize(module: nn.Module, generator: torch.Generator | None = None) -> None:
    """Applies He initialisation (fan-out) to convolutions and linear layers, and resets batch norms.

    Convolutions: normal, variance 2 / (k·k·out / groups) (He et al., 2015). Linear: normal with deviation 0.01, bias 0.

    Args:
        module: a network, changed in place.
        generator: for the draws; torch's global generator if None.
    """
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            fan_out = part.kernel_size[0] * part.kernel_size[1] * part.out_channels // part.groups
            nn.init.normal_(part.weight, 0.0, (2.0 / fan_out) ** 0.5, generator=generator)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        elif isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, 0.0, 0.01, generator=generator)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        elif isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.reset_parameters()


def realize(network: nn.Module, init: Init, generator: torch.Generator | None = None) -> nn.Module:
    """Moves a network from the meta device to the default device and initialises it.

    Every tensor is first filled with NaN (integers with their smallest value), so that a tensor that `init` forgets is
    detected here and not in training.

    Raises:
        InputError: `init` left a parameter or buffer unset.
    """
    network = network.to_empty(device=torch.get_default_device())
    tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    marks = {name: _mark(tensor.dtype) for name, tensor in tensors.items()}
    with torch.no_grad():
        for name, tensor in tensors.items():
            tensor.fill_(marks[name])
    init(network, generator)
    for name, tensor in tensors.items():
        mark = marks[name]
        if mark and (tensor.isnan() if mark != mark else tensor == mark).any():
            raise InputError(f"the space's init leaves {name!r} unset; it must set every parameter and buffer")
    return network


def _mark(dtype: torch.dtype) -> float:
    """Returns a value that no init sets; 0 for booleans and unsigned integers, which have no such value."""
    if dtype.is_floating_point or dtype.is_complex:
        return float("nan")
    return torch.iinfo(dtype).min if dtype.is_signed else 0
