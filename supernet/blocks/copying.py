"""Options that begin as copies of another one, so that all paths of a supernet start with the same features."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from supernet.blocks.plain import ShuffleUnit
from supernet.errors import InputError


@torch.no_grad()
def spread_option(options: Mapping[str, nn.Module], chosen: str) -> None:
    """Give every option the weights of one of them, so that it computes the same or nearly so.

    Kernels are put in the middle of larger ones, and cut to smaller ones. The Xception unit passes its input on at its
    first depthwise layer, and between the ShuffleNet unit's depthwise and last layers, which are its others.

    Args:
        options: name to module; changed in place but for `chosen`.
        chosen: the option whose weights are spread.

    Raises:
        InputError: no such option, or options that share no form.
    """
    if chosen not in options:
        raise InputError(f"there is no option {chosen!r} to spread; the options are {', '.join(options)}")
    source = options[chosen]
    for name, target in options.items():
        if name != chosen and not _copied(target, source):
            raise InputError(
                f"the option {name!r} cannot begin as a copy of {chosen!r}, whose layers are others; options that "
                "differ in their kernel can, and Xception units from ShuffleNet's"
            )


def _copied(target: nn.Module, source: nn.Module) -> bool:
    """Whether the target could be made a copy; if not, it may be one in part."""
    if isinstance(target, ShuffleUnit) and isinstance(source, ShuffleUnit) and target.xception != source.xception:
        return not source.xception and _xception_copied(target, source)
    own, theirs = list(target.modules()), list(source.modules())
    return len(own) == len(theirs) and all(map(_tensors_copied, own, theirs))


def _xception_copied(target: ShuffleUnit, source: ShuffleUnit) -> bool:
    layers = [_copied(target.main[to], source.main[of]) for to, of in ((1, 0), (2, 1), (5, 2))]
    projections = [_copied(target.proj, source.proj)] if target.stride == 2 else []
    return all(layers + projections) and all(_passes(target.main[index]) for index in (0, 3, 4))


def _tensors_copied(target: nn.Module, source: nn.Module) -> bool:
    """Copies the tensors of a module without its children's."""
    own, theirs = (
        {**dict(part.named_parameters(recurse=False)), **dict(part.named_buffers(recurse=False))}
        for part in (target, source)
    )
    same = type(target) is type(source) and own.keys() == theirs.keys()
    return same and all(_centred(tensor, theirs[name]) for name, tensor in own.items())


def _centred(target: Tensor, source: Tensor) -> bool:
    """Copies a tensor of the same shape, or a kernel of another size by their centres, zeros around."""
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


def _passes(layer: nn.Module) -> bool:
    """Makes a layer of equally many channels before and after hand on its input, normalised anew."""
    for part in layer.modules():
        if isinstance(part, nn.Conv2d):
            if part.in_channels != part.out_channels:
                return False
            nn.init.dirac_(part.weight, groups=part.groups)
        elif isinstance(part, nn.BatchNorm2d):
            part.reset_parameters()
    return True
