"""Copying the weights of one option into the others, so that all paths of a supernet start with the same features."""

import functools
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from supernet.errors import InputError
from supernet.seeding import derive_seed

NOISE = 0.1
"""Deviation of the noise on the weights of repeated channels, as a share of theirs; equal channels would stay equal."""

Copies = list[tuple[Tensor, Tensor]]
"""Pairs of a tensor and its new value."""


@torch.no_grad()
def copy_option(options: Mapping[str, nn.Module], source: str) -> None:
    """Copies the weights of one option into all others, so that they compute the same or nearly the same.

    A kernel is centred in a larger one, or cropped to a smaller one. Inner channels are repeated in a wider option, and
    the weights behind them divided by the number of copies, which leaves its output as it is (Chen et al., 2016,
    "Net2Net", section 2.2) up to noise that lets the copies become different; a narrower option takes the first ones.
    Layers that an Xception unit has and a ShuffleNet unit has not become identities. Options without weights, such as
    an identity, stay as they are.

    Args:
        options: name to module; all but `source` are changed in place.
        source: the option to copy from.

    Raises:
        InputError: there is no such option, or an option has other layers than it; then none is changed.
    """
    if source not in options:
        raise InputError(f"there is no option {source!r} to copy from; the options are {', '.join(options)}")
    copies: Copies = []
    for name, target in options.items():
        if name == source or not any(True for _ in target.parameters()):
            continue
        own = copies_of(target, options[source])
        if own is None:
            raise InputError(
                f"the option {name!r} cannot start as a copy of {source!r}, since their layers differ; only options "
                "that differ in kernels and inner channels can, and Xception units from ShuffleNet units"
            )
        copies += own
    _carry_out(copies)


@torch.no_grad()
def begin_alike(options: Sequence[nn.Module]) -> None:
    """Lets options begin as the same function where their layers are the same but for kernels and inner channels.

    The smallest option is copied into the others, since a larger one can compute the same. Those with other layers are
    copied from the smallest of their own kind.
    """
    left = sorted(options, key=lambda option: sum(parameter.numel() for parameter in option.parameters()))
    while left:
        source, *others = left
        copies = [copies_of(target, source) for target in others]
        for own in copies:
            _carry_out(own or [])
        left = [target for target, own in zip(others, copies, strict=True) if own is None]


def _carry_out(copies: Copies) -> None:
    for target, value in copies:
        target.copy_(value)


@functools.singledispatch
def copies_of(target: nn.Module, source: nn.Module) -> Copies | None:
    """Returns what makes a module a copy of another, tensor by tensor; None if their layers differ.

    Classes for which copying layer by layer is not enough register a function of their own (`copies_of.register`).
    """
    return layer_by_layer(target, source)


def layer_by_layer(target: nn.Module, source: nn.Module) -> Copies | None:
    """Returns what makes a module of the same layers, but for kernels and channels, a copy of another; or None."""
    if getattr(target, "out_channels", None) != getattr(source, "out_channels", None):
        return None
    copies: Copies = []
    targets, sources = list(target.modules()), list(source.modules())
    if len(targets) != len(sources):
        return None
    for of_target, of_source in zip(targets, sources, strict=True):
        new, old = (
            {**dict(module.named_parameters(recurse=False)), **dict(module.named_buffers(recurse=False))}
            for module in (of_target, of_source)
        )
        if type(of_target) is not type(of_source) or new.keys() != old.keys() or _mixed_groups(of_target, of_source):
            return None
        for name, tensor in new.items():
            value = _fitted(old[name], tensor)
            if value is None:
                return None
            copies.append((tensor, value))
    return copies


def _mixed_groups(target: nn.Module, source: nn.Module) -> bool:
    """Returns whether two convolutions connect their channels in different ways."""
    if not isinstance(target, nn.Conv2d) or not isinstance(source, nn.Conv2d):
        return False
    depthwise = [conv.groups == conv.in_channels and conv.groups > 1 for conv in (target, source)]
    return target.groups != source.groups and not all(depthwise)


def _fitted(source: Tensor, target: Tensor) -> Tensor | None:
    """Returns the source in the shape of the target: channels repeated or left out, kernels padded or cropped."""
    if source.shape == target.shape:
        return source
    if source.dim() != target.dim() or source.dim() not in (1, 2, 4):
        return None
    value = source
    for dim in range(2, source.dim()):
        margin, odd = divmod(target.shape[dim] - source.shape[dim], 2)
        if odd:
            return None
        value = _padded(value, dim, margin) if margin > 0 else value.narrow(dim, -margin, target.shape[dim])
    for dim in range(min(source.dim(), 2)):
        repeated = torch.arange(target.shape[dim]) % source.shape[dim]
        value = value.index_select(dim, repeated.to(value.device))
        if dim == 1:  # every output sums over its inputs
            times = torch.bincount(repeated)[repeated]
            value = value / times.reshape(1, -1, *[1] * (value.dim() - 2)).to(value)
    if source.dim() > 1 and any(new > old for new, old in zip(target.shape[:2], source.shape[:2], strict=True)):
        generator = torch.Generator().manual_seed(derive_seed("noise of repeated channels", tuple(target.shape)))
        noise = torch.randn(target.shape, generator=generator).to(value)
        value = value + NOISE * source.square().mean().sqrt() * noise  # a single weight has no deviation
    return value


def _padded(value: Tensor, dim: int, margin: int) -> Tensor:
    zeros = value.new_zeros([margin if d == dim else size for d, size in enumerate(value.shape)])
    return torch.cat([zeros, value, zeros], dim)
