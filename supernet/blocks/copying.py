"""Copying one option into the others, Xception units from ShuffleNet units included, which have fewer layers."""

import torch
from torch import nn

from supernet.blocks.plain import ShuffleUnit
from supernet.chain.alike import Copies, copies_of, copy_option, layer_by_layer

__all__ = ["copy_option"]


@copies_of.register
def _copies_of_unit(target: ShuffleUnit, source: nn.Module) -> Copies | None:
    """The layers that the source does not have become identities.

    The depthwise layer of the source is copied into the last one: the layers before that follow a ReLU, so an identity
    with batch norm and ReLU changes little (the outputs of random units have a correlation of 0.96 with those of the
    source, and 0.79 with the second one in its place).
    """
    if not isinstance(source, ShuffleUnit) or target.xception == source.xception:
        return layer_by_layer(target, source)
    if source.xception:
        return None
    pairs = [(target.main[to], source.main[of]) for to, of in ((1, 0), (4, 1), (5, 2))]
    if target.stride == 2:
        pairs.append((target.proj, source.proj))
    parts = [layer_by_layer(*pair) for pair in pairs] + [_identity(target.main[index]) for index in (0, 2, 3)]
    return None if None in parts else [copy for part in parts for copy in part or []]


def _identity(layer: nn.Module) -> Copies | None:
    """Returns what turns a layer with equal input and output channels into the identity: Dirac kernels, plain norms."""
    copies: Copies = []
    for module in layer.modules():
        if isinstance(module, nn.Conv2d):
            if module.in_channels != module.out_channels:
                return None
            copies.append((module.weight, nn.init.dirac_(torch.empty_like(module.weight), groups=module.groups)))
        elif isinstance(module, nn.BatchNorm2d):
            for name, tensor in module.state_dict(keep_vars=True).items():
                one = name in ("weight", "running_var")
                copies.append((tensor, torch.ones_like(tensor) if one else torch.zeros_like(tensor)))
    return copies
