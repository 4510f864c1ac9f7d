"""What batch norm uses when shared weights are scored: inherited, batch or recalibrated statistics."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from supernet.errors import InputError
from supernet.scoring.prefix import norms_of

# -- batch norm -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Inherit:
    """Evaluate with the running statistics as training left them: a mixture over all paths (SPOS, §3.4)."""


@dataclass(frozen=True)
class BatchStatistics:
    """Evaluate every batch with its own statistics, as ENAS does; scores then depend on the batch."""


@dataclass(frozen=True)
class Recalibrate:
    """Replace running statistics by the mean over calibration batches of exactly this subnet.

    Attributes:
        batches: how many, at least 1; fewer if the calibration images run out.
        size: images per batch, at least 1.
    """

    batches: int = 10
    size: int = 64

    def __post_init__(self) -> None:
        if self.batches < 1 or self.size < 1:
            raise InputError(f"{self}: batches and size are at least 1; to use what training left, choose Inherit()")


BatchNormPolicy = Inherit | BatchStatistics | Recalibrate


@torch.no_grad()
def recalibrate_bn(module: nn.Module, batches: Iterable[Tensor]) -> None:
    """Re-estimate all batch-norm statistics in place; everything else of the module stays in eval mode.

    The result is the plain mean of the batches' means and unbiased variances, so it does not depend on their order
    beyond rounding; an exponential average would forget all but the last few.

    Args:
        module: an ordinary network, left in eval mode.
        batches: normalised images, (N, C, H, W) each, of equal N.
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
