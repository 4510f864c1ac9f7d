"""Batch-norm statistics when shared weights are scored: inherited from training, of the batch, or recalibrated."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from supernet.errors import InputError


@dataclass(frozen=True)
class Inherit:
    """Evaluates with the running statistics that training left: a mixture over all paths (SPOS, §3.4)."""


@dataclass(frozen=True)
class BatchStatistics:
    """Evaluates every batch with its own statistics, as ENAS does; scores then depend on the batch."""


@dataclass(frozen=True)
class Recalibrate:
    """Replaces running statistics by their mean over calibration batches, for each subnet separately.

    Attributes:
        batches: the number of batches, at least 1; fewer if the calibration images run out.
        size: images per batch, at least 1.
    """

    batches: int = 10
    size: int = 64

    def __post_init__(self) -> None:
        if self.batches < 1 or self.size < 1:
            raise InputError(f"{self}: batches and size must be at least 1; to keep the training's use Inherit()")


BatchNormPolicy = Inherit | BatchStatistics | Recalibrate


def norms_of(module: nn.Module) -> list[_BatchNorm]:
    """Returns every batch norm inside a module, each once."""
    return [part for part in module.modules() if isinstance(part, _BatchNorm)]


def use_batch_statistics(norm: _BatchNorm) -> None:
    """Makes a batch norm normalise every batch with its own statistics and leave the running ones alone."""
    norm.train()
    norm.momentum = 0.0


@torch.no_grad()
def recalibrate_bn(module: nn.Module, batches: Iterable[Tensor]) -> None:
    """Re-estimates all batch-norm statistics in place; everything else in the module stays in eval mode.

    The result is the plain mean of the batches' means and unbiased variances, so it does not depend on their order
    beyond rounding; an exponential average would forget all but the last few.

    Args:
        module: an ordinary network, left in eval mode.
        batches: normalised images, (N, C, H, W) each, all of the same N.
    """
    module.eval()
    norms = norms_of(module)
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # torch's cumulative average
        norm.train()
    for images in batches:
        module(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()
