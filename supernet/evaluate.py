"""Scores of subnets with shared weights: private copies, recalibrated batch norm, the supernet untouched."""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from supernet.data import Images
from supernet.searchable import Chain
from supernet.space import Arch

Metrics = dict[str, float]


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
        batches: how many; fewer if the calibration images run out.
        size: images per batch.
    """

    batches: int = 10
    size: int = 64


BatchNormPolicy = Inherit | BatchStatistics | Recalibrate


def _norms(module: nn.Module) -> list[_BatchNorm]:
    return [part for part in module.modules() if isinstance(part, _BatchNorm)]


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
    norms = _norms(module)
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


@torch.no_grad()
def classification(network: nn.Module, images: Images, batch: int) -> Metrics:
    """Accuracy (0..1) and mean cross-entropy of a classifier over a whole set, `network` in its present mode."""
    correct, loss = 0, 0.0
    for x, y in images.batches(batch):
        logits = network(x)
        correct += int((logits.argmax(1) == y).sum())
        loss += float(nn.functional.cross_entropy(logits, y, reduction="sum"))
    return {"accuracy": correct / len(images), "loss": loss / len(images)}


def accuracy(network: nn.Module, images: Images, batch: int = 256) -> float:
    """Share of images that a classifier in eval mode gets right, 0..1."""
    network.eval()
    return classification(network, images, batch)["accuracy"]


class SharedWeights:
    """Scores architectures with a supernet's weights: `SharedWeights(...)(archs) -> list of metrics`.

    Every candidate is a private copy, so the supernet is bit-identical afterwards and scores do not depend on what was
    scored before. All candidates see the same calibration and validation images in the same order.

    Args:
        supernet: trained; its device is used.
        calibration: images from the training split.
        validation: held-out images for the score.
        bn: what batch norm normalises with.
        metric: `(network, images, batch) -> metrics`; `classification` by default.
        batch: validation images per forward pass; has no influence on scores except under `BatchStatistics`.
        cost: adds its figures to the metrics, e.g. a `CostTable`.
        channels_last: run the candidates in channels-last order, several times faster for depthwise convolutions on the
            CPU; it changes rounding and nothing else.
    """

    def __init__(
        self,
        supernet: Chain,
        calibration: Images,
        validation: Images,
        *,
        bn: BatchNormPolicy | None = None,
        metric: Callable[[nn.Module, Images, int], Mapping[str, float]] = classification,
        batch: int = 256,
        cost: Callable[[Arch], Mapping[str, float]] | None = None,
        channels_last: bool = True,
    ) -> None:
        device = next(supernet.parameters()).device
        self.supernet, self.metric, self.batch, self.cost = supernet, metric, batch, cost
        self.bn = Recalibrate() if bn is None else bn
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.calibration, self.validation = calibration.to(device), validation.to(device)

    @property
    def settings(self) -> dict[str, str]:
        """What scores depend on: weights and images as digests, the policy, the metric. A study compares them."""
        return {
            "supernet": _digest(self.supernet.state_dict().values()),
            "images": _digest(t for part in (self.calibration, self.validation) for t in (part.pixels, part.labels)),
            "batch norm": str(self.bn),
            "memory format": str(self.memory_format),
            "metric": getattr(self.metric, "__qualname__", type(self.metric).__qualname__),
        }

    def __call__(self, archs: Sequence[Arch]) -> list[Metrics]:
        """One mapping per architecture, in order."""
        return [self._score(arch) for arch in archs]

    def _score(self, arch: Arch) -> Metrics:
        network = self.subnet(arch)
        metrics = dict(self.metric(network, self.validation, self.batch))
        return metrics | (dict(self.cost(arch)) if self.cost is not None else {})

    def subnet(self, arch: Arch) -> nn.Module:
        """The standalone copy of one architecture as it is scored: in normal form, eval mode, batch norm per policy."""
        network = self.supernet.subnet(self.supernet.space.normal_form(arch)).eval()
        network.to(memory_format=self.memory_format)
        if isinstance(self.bn, Recalibrate):
            size = min(self.bn.size, len(self.calibration))
            pairs = zip(range(self.bn.batches), self.calibration.batches(size, drop_last=True), strict=False)
            recalibrate_bn(network, (images for _, (images, _) in pairs))
        elif isinstance(self.bn, BatchStatistics):
            for norm in _norms(network):
                norm.train()
                norm.momentum = 0.0  # leave the copy's running statistics alone
        return network


def _digest(tensors: Iterable[Tensor]) -> str:
    """16 hex digits of SHA-256 over the contents."""
    sha = hashlib.sha256()
    for tensor in tensors:
        sha.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return sha.hexdigest()[:16]
