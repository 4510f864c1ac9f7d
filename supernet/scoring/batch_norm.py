"""Batch-norm statistics when shared weights are scored: inherited from training, of the batch, or recalibrated."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from supernet.chain import Chain, largest
from supernet.checked import Checked, Count, NonNegative, checked_arguments, shown
from supernet.errors import InputError
from supernet.space import SearchSpace


@dataclass(frozen=True)
class Inherit:
    """Evaluates with the running statistics that training left: a mixture over all paths (SPOS, §3.4)."""


@dataclass(frozen=True)
class BatchStatistics:
    """Evaluates every batch with its own statistics, as ENAS does; scores then depend on the batch."""


@dataclass(frozen=True)
class Recalibrate(Checked):
    """Replaces running statistics by their mean over calibration batches, for each subnet separately.

    Attributes:
        batches: the number of batches, at least 1; fewer if the calibration images run out.
        size: images per batch, at least 1.
        settle: the calibration of a batch norm ends after a batch that moves its statistics by less than this, averaged
            over its channels: means in standard deviations, variances relative to themselves. 0 uses all batches.
    """

    batches: Count = 10
    size: Count = 64
    settle: NonNegative = field(default=0.0, repr=False)  # not in the text under which older scores are kept


@dataclass(frozen=True)
class Matched(Recalibrate):
    """Gives every batch norm the mean and deviation of its output in the full network, then recalibrates.

    For supernets that begin with the weights of a trained network and are scored without training. Scale and shift of
    every norm are replaced by the deviation and the mean, per channel, of the full network's output of this norm on the
    calibration images, where the full network keeps its statistics; the sign of the scale stays. No labels are used. A
    plain recalibration instead removes what all calibration images have in common, which is much on images of few
    classes. Statistics are repaired in this way after pruning and merging networks (Jordan et al., 2023).

    It needs a space in which every decision is ordered, so that there is a full network of which all others are parts.
    """


BatchNormPolicy = Inherit | BatchStatistics | Recalibrate


def norms_of(module: nn.Module) -> list[_BatchNorm]:
    """Returns every batch norm inside a module, each once."""
    return [part for part in module.modules() if isinstance(part, _BatchNorm)]


def use_batch_statistics(norm: _BatchNorm) -> None:
    """Makes a batch norm normalise every batch with its own statistics and leave the running ones alone."""
    norm.train()
    norm.momentum = 0.0


@contextmanager
def single_values_explained(remedy: str) -> Iterator[None]:
    """Turns torch's error about a batch norm that sees one value per channel into an `InputError` with this remedy."""
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise InputError(
            "a batch norm sees a single value per channel, which has no variance: one image whose feature map has one "
            f"position; {remedy}"
        ) from error


class Settling:
    """Ends the calibration of batch norms whose statistics a batch hardly moves.

    The norms are in train mode with torch's cumulative average (momentum None), and those that settle get a momentum of
    0. Whether a norm settles depends on its own batches only.

    Args:
        norms: the batch norms of one module.
        bound: see `Recalibrate.settle`; with 0 none settles.
        settled: positions of the norms that have settled; extended in place.
    """

    def __init__(self, norms: Sequence[_BatchNorm], bound: float, settled: set[int]) -> None:
        self._norms, self._bound, self._settled = norms, bound, settled
        self._before: dict[int, tuple[Tensor, Tensor]] = {}
        for position in settled:
            norms[position].momentum = 0.0

    def before_batch(self) -> None:
        """Remembers the statistics of the norms that have not settled."""
        if self._bound:
            self._before = {
                position: (norm.running_mean.clone(), norm.running_var.clone())
                for position, norm in enumerate(self._norms)
                if position not in self._settled and norm.running_mean is not None and norm.running_var is not None
            }

    def after_batch(self) -> None:
        """Marks the norms that the batch hardly moved as settled, but none after its first batch."""
        for position, (mean, variance) in self._before.items():
            norm = self._norms[position]
            assert norm.running_mean is not None
            assert norm.running_var is not None
            assert norm.num_batches_tracked is not None
            scale = variance + norm.eps
            moved = ((norm.running_mean - mean).abs() / scale.sqrt()).mean()
            changed = ((norm.running_var - variance).abs() / scale).mean()
            if norm.num_batches_tracked > 1 and max(float(moved), float(changed)) < self._bound:
                self._settled.add(position)
                norm.momentum = 0.0


@torch.no_grad()
@checked_arguments
def recalibrate_bn(module: nn.Module, batches: Iterable[Tensor], *, settle: NonNegative = 0.0) -> None:
    """Re-estimates all batch-norm statistics in place; everything else in the module stays in eval mode.

    The result is the plain mean of the batches' means and unbiased variances, so it does not depend on their order
    beyond rounding; an exponential average would forget all but the last few.

    Args:
        module: an ordinary network, left in eval mode.
        batches: normalised images, (N, C, H, W) each, all of the same N.
        settle: see `Recalibrate.settle`.

    Raises:
        InputError: there are no batches, or something else than images.
    """
    module.eval()
    norms = norms_of(module)
    settled: set[int] = set()
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # torch's cumulative average
        norm.train()
    settling, images = Settling(norms, settle, settled), None
    for images in batches:
        settling.before_batch()
        _run(module, images)
        settling.after_batch()
        if len(settled) == len(norms):
            break
    if norms and images is None:
        raise InputError("there are no batches to recalibrate batch norms with; give one or more")
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()


def _run(module: nn.Module, images: Any) -> None:
    """Runs a module; an `InputError` says so if it was given something else than images."""
    try:
        module(images)
    except (TypeError, AttributeError, RuntimeError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"the network cannot be run on a batch, {shown(images)}: {reason}") from error


# -- the full network's outputs ---------------------------------------------------------------------------------------

Moments = Mapping[str, tuple[Tensor, Tensor]]
"""Mean and standard deviation of the outputs of batch norms, (channels,) each, by the name of the norm."""


@torch.no_grad()
def output_moments(network: nn.Module, batches: Iterable[Tensor]) -> Moments:
    """Returns the moments of every batch norm's output, over all images and positions, before any activation.

    Args:
        network: an ordinary network, left in eval mode; its running statistics are used and stay as they are.
        batches: normalised images, (N, C, H, W) each.
    """
    norms = _named_norms(network)
    return {
        name: _through(norms[name], mean, variance.sqrt())
        for name, (mean, variance) in _input_moments(network, batches).items()
    }


def _named_norms(network: nn.Module) -> dict[str, _BatchNorm]:
    return {name: part for name, part in network.named_modules() if isinstance(part, _BatchNorm)}


def _input_moments(network: nn.Module, batches: Iterable[Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """Returns mean and variance of every batch norm's input in eval mode, float64, (channels,) each."""
    network.eval()
    sums: dict[str, list[Tensor]] = {}

    def record(norm: nn.Module, inputs: tuple[Tensor, ...], *, name: str) -> None:
        x = inputs[0].double()
        dims = [dim for dim in range(x.ndim) if dim != 1]
        count = torch.tensor(float(x.numel() // x.shape[1]), dtype=x.dtype, device=x.device)
        parts = [count, x.sum(dims), x.square().sum(dims)]
        sums[name] = [old + new for old, new in zip(sums[name], parts, strict=True)] if name in sums else parts

    norms = _named_norms(network)
    hooks = [norm.register_forward_pre_hook(partial(record, name=name)) for name, norm in norms.items()]
    try:
        for images in batches:
            network(images)
    finally:
        for hook in hooks:
            hook.remove()
    return {
        name: (total / count, (squares / count - (total / count) ** 2).clamp(min=0))
        for name, (count, total, squares) in sums.items()
    }


def _through(norm: _BatchNorm, mean: Tensor, deviation: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the moments of a norm's output from those of its input, (channels,) each."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    factor = (norm.running_var.double() + norm.eps).rsqrt()
    factor = factor if norm.weight is None else factor * norm.weight.double()
    shift = torch.zeros_like(mean) if norm.bias is None else norm.bias.double()
    dtype = norm.running_mean.dtype
    return ((mean - norm.running_mean.double()) * factor + shift).to(dtype), (deviation * factor.abs()).to(dtype)


@torch.no_grad()
def match_moments(module: nn.Module, moments: Moments, *, prefix: str = "") -> None:
    """Sets scale and shift of every batch norm in place, to the deviation and mean of its leading channels.

    Args:
        module: a network or a part of one.
        moments: the moments of the full network.
        prefix: what precedes the names of the module's norms in those of the full network.

    Raises:
        InputError: a norm that the full network does not have, or one without scale and shift.
    """
    for name, norm in module.named_modules():
        if not isinstance(norm, _BatchNorm):
            continue
        known = moments.get(f"{prefix}{name}")
        if known is None or norm.weight is None or len(known[0]) < norm.num_features:
            raise InputError(
                f"the batch norm {prefix + name!r} has no scale, or no counterpart in the full network, so Matched() "
                "cannot be used; take Recalibrate()"
            )
        mean, deviation = (moment[: norm.num_features] for moment in known)
        norm.weight.copy_(torch.where(norm.weight < 0, -deviation, deviation))
        norm.bias.copy_(mean)


def check_full(space: SearchSpace) -> None:
    """Raises `InputError` unless every decision is ordered, so that all networks are parts of a full one."""
    for choice in space.choices:
        if not choice.ordered and len(choice.options) > 1:
            raise InputError(
                f"the decision {choice.name!r} of {space.name!r} is not ordered, so there is no full network to match; "
                "take bn=Recalibrate()"
            )


# -- the norms of a supernet that begins with a trained network -------------------------------------------------------


@torch.no_grad()
@checked_arguments
def rebase_norms(supernet: Chain, batches: Iterable[Tensor]) -> None:
    """Makes the statistics of all batch norms those of these images, in place; the full network computes the same.

    Scale and shift take up the difference. Afterwards batches of such images, normalised with their own statistics as
    in training, pass through the full network nearly as they did with the statistics of its original training.

    Args:
        supernet: in which every decision is ordered (see `check_full`), with the weights of a trained network.
        batches: normalised images, (N, C, H, W) each.
    """
    network, pairs = _full_network(supernet)
    moments = _input_moments(network, batches)
    for name, shared, norm in pairs:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        if name not in moments or norm.weight is None:
            continue
        mean, variance = moments[name]
        old = (norm.running_var.double() + norm.eps).sqrt()
        shared.bias.copy_(norm.bias.double() + norm.weight.double() * (mean - norm.running_mean.double()) / old)
        shared.weight.copy_(norm.weight.double() * (variance + norm.eps).sqrt() / old)
        assert shared.running_mean is not None
        assert shared.running_var is not None
        shared.running_mean.copy_(mean)
        shared.running_var.copy_(variance)


@torch.no_grad()
@checked_arguments
def take_full_statistics(supernet: Chain, batches: Iterable[Tensor]) -> None:
    """Makes the running statistics of a supernet those of its full network on these images, in place.

    Training leaves a mixture over all paths.

    Args:
        supernet: in which every decision is ordered.
        batches: normalised images, (N, C, H, W) each, all of the same N.
    """
    network, pairs = _full_network(supernet)
    recalibrate_bn(network, batches)
    for _, shared, norm in pairs:
        for own, recalibrated in zip(shared.buffers(), norm.buffers(), strict=True):
            own.copy_(recalibrated)


def _full_network(supernet: Chain) -> tuple[nn.Module, list[tuple[str, _BatchNorm, _BatchNorm]]]:
    """Returns the full network, and for each of its norms the name, the supernet's norm and its own."""
    check_full(supernet.space)
    network = supernet.subnet(largest(supernet.space))
    copies = _named_norms(network)
    pairs = list(zip(copies, norms_of(supernet), copies.values(), strict=True))
    for name, shared, norm in pairs:  # both stand in the order of the steps and their layers
        copied = norm.state_dict()
        same = all(torch.equal(tensor, copied[key]) for key, tensor in shared.state_dict().items())
        assert same, f"the batch norm {name!r} of the full network is another in the supernet"
    return network, pairs
