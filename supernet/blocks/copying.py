"""Copying the weights of one option into the others, so that all paths of a supernet start with the same features."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from supernet.blocks.plain import ShuffleUnit
from supernet.errors import InputError


@torch.no_grad()
def copy_option(options: Mapping[str, nn.Module], source: str) -> None:
    """Copies the weights of one option into all others, so that they compute the same or nearly the same.

    A kernel is centred in a larger one, or cropped to a smaller one. An Xception unit has more layers than a ShuffleNet
    unit: the additional ones, the first depthwise layer and those between its depthwise and last layers, become
    identities.

    Args:
        options: name to module; all but `source` are changed in place.
        source: the option to copy from.

    Raises:
        InputError: there is no such option, or an option differs from it in more than its kernel.
    """
    if source not in options:
        raise InputError(f"there is no option {source!r} to copy from; the options are {', '.join(options)}")
    for name, target in options.items():
        if name != source and not _copy_module(target, options[source]):
            raise InputError(
                f"the option {name!r} cannot start as a copy of {source!r}, since their layers differ; only options "
                "that differ in their kernel can, and Xception units from ShuffleNet units"
            )


def _copy_module(target: nn.Module, source: nn.Module) -> bool:
    """Copies source into target; False if a layer does not match, and then target may be partly overwritten."""
    if isinstance(target, ShuffleUnit) and isinstance(source, ShuffleUnit) and target.xception != source.xception:
        return not source.xception and _copy_into_xception(target, source)
    targets, sources = list(target.modules()), list(source.modules())
    return len(targets) == len(sources) and all(map(_copy_own_tensors, targets, sources))


def _copy_into_xception(target: ShuffleUnit, source: ShuffleUnit) -> bool:
    matched = [_copy_module(target.main[to], source.main[of]) for to, of in ((1, 0), (2, 1), (5, 2))]
    if target.stride == 2:
        matched.append(_copy_module(target.proj, source.proj))
    return all(matched) and all(_make_identity(target.main[index]) for index in (0, 3, 4))


def _copy_own_tensors(target: nn.Module, source: nn.Module) -> bool:
    """Copies the parameters and buffers of a module, without those of its children; False if they do not match."""
    targets, sources = (
        {**dict(module.named_parameters(recurse=False)), **dict(module.named_buffers(recurse=False))}
        for module in (target, source)
    )
    same = type(target) is type(source) and targets.keys() == sources.keys()
    return same and all(_copy_centred(tensor, sources[name]) for name, tensor in targets.items())


def _copy_centred(target: Tensor, source: Tensor) -> bool:
    """Copies a tensor of the same shape, or a kernel of another size: cropped to, or surrounded by zeros."""
    if target.shape == source.shape:
        target.copy_(source)
        return True
    if target.dim() != 4 or target.shape[:2] != source.shape[:2] or (target.shape[-1] - source.shape[-1]) % 2:
        return False
    margin = (target.shape[-1] - source.shape[-1]) // 2
    if margin < 0:
        target.copy_(source[:, :, -margin:margin, -margin:margin])
    else:
        target.zero_()
        target[:, :, margin:-margin, margin:-margin] = source
    return True


def _make_identity(layer: nn.Module) -> bool:
    """Turns a layer with equal input and output channels into the identity (Dirac kernel) and resets its batch norm."""
    for module in layer.modules():
        if isinstance(module, nn.Conv2d):
            if module.in_channels != module.out_channels:
                return False
            nn.init.dirac_(module.weight, groups=module.groups)
        elif isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
    return True
