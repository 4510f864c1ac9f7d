"""Layers of timm and torchvision as ordinary modules with their own copies of the weights."""

import torch
from timm.layers import BatchNormAct2d, Conv2dSame
from timm.models import _efficientnet_blocks as timm_blocks
from torch import nn

from supernet.blocks.mobile import ConvNormAct, SqueezeExcite

ACTIVATIONS: dict[str, type[nn.Module]] = {
    kind.__name__.lower(): kind
    for kind in (nn.ReLU, nn.ReLU6, nn.SiLU, nn.Hardswish, nn.Hardsigmoid, nn.Sigmoid, nn.GELU)
}
"""torch's classes by name; timm's own classes of these names compute the same."""
STANDS_FOR = {"swish": "silu"}


class NoRule(Exception):
    """A module has a form that cannot be cut; the message says which."""


def activation(module: nn.Module) -> type[nn.Module] | None:
    """Returns torch's class of an activation, None for an identity."""
    if isinstance(module, nn.Identity):
        return None
    name = type(module).__name__.lower()
    kind = ACTIVATIONS.get(STANDS_FOR.get(name, name))
    if kind is None or any(True for _ in module.parameters()):
        raise NoRule(f"the activation {type(module).__name__}")
    if kind is nn.GELU and getattr(module, "approximate", "none") != "none":
        raise NoRule("an approximate GELU")
    return kind


def conv_norm(conv: nn.Module, norm: nn.Module, act: nn.Module | None = None) -> ConvNormAct:
    """Returns a convolution with its batch norm and activation as an ordinary module with its own weights."""
    if type(conv) not in (nn.Conv2d, Conv2dSame) or not isinstance(conv, nn.Conv2d):
        raise NoRule(type(conv).__name__)
    if type(norm) not in (BatchNormAct2d, nn.BatchNorm2d) or not isinstance(norm, nn.BatchNorm2d):
        raise NoRule(f"the norm {type(norm).__name__}")
    if not isinstance(getattr(norm, "drop", nn.Identity()), nn.Identity) or norm.momentum is None or not norm.affine:
        raise NoRule("a batch norm without scale or with dropout")
    sizes = (conv.kernel_size, conv.stride, conv.dilation, conv.padding)
    if conv.padding_mode != "zeros" or conv.bias is not None or any(len(set(pair)) > 1 for pair in sizes):
        raise NoRule("a convolution with a bias or another padding or shape")
    kind = activation(getattr(norm, "act", nn.Identity()) if act is None else act)
    with torch.device("meta"):
        block = ConvNormAct(
            conv.in_channels,
            conv.out_channels,
            kernel=conv.kernel_size[0],
            stride=conv.stride[0],
            padding="same" if isinstance(conv, Conv2dSame) else int(conv.padding[0]),
            dilation=conv.dilation[0],
            groups=conv.groups,
            activation=kind,
            eps=norm.eps,
            momentum=norm.momentum,
        )
    assign(block.conv, conv)
    assign(block.bn, norm)
    return block


def assign(target: nn.Module, source: nn.Module) -> None:
    """Gives a module copies of the tensors of another."""
    target.load_state_dict({name: tensor.clone() for name, tensor in source.state_dict().items()}, assign=True)


def squeeze(module: nn.Module) -> SqueezeExcite | None:
    """Returns timm's squeeze-and-excitation as an ordinary module; None for an identity."""
    if isinstance(module, nn.Identity):
        return None
    if type(module) is not timm_blocks.SqueezeExcite:
        raise NoRule(type(module).__name__)
    inner, gate = activation(module.act1), activation(module.gate)
    if inner is None or gate is None:
        raise NoRule("squeeze-and-excitation without an activation")
    with torch.device("meta"):
        excite = SqueezeExcite(
            module.conv_reduce.in_channels, module.conv_reduce.out_channels, activation=inner, gate=gate
        )
    assign(excite.reduce, module.conv_reduce)
    assign(excite.expand, module.conv_expand)
    return excite
