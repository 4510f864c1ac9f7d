"""Metrics of a network on a set of images."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from supernet.checked import Count, arguments_explained, checked_arguments
from supernet.data.batches import ImageSet
from supernet.errors import InputError, RunError
from supernet.ranking.paired import Bits

Metrics = dict[str, float]


class BatchMetric:
    """A metric that is combined from batches of outputs; subclass it to share prefixes in the validation pass too.

    Any callable `(network, images, batch) -> metrics` is a metric. Because it runs the network itself, candidates then
    share only the calibration. A `BatchMetric` says what it keeps of each batch of outputs instead, and receives the
    outputs of shared prefixes:

        class TopFive(BatchMetric):
            name = "top-five"

            def of_batch(self, outputs, labels):
                return (outputs.topk(5).indices == labels[:, None]).any(1)

            def combine(self, parts):
                return {"top-five": float(torch.cat(list(parts)).double().mean())}

    Attributes:
        name: identifies the metric, including its settings, in studies and caches.
    """

    name = ""

    def of_batch(self, outputs: Any, labels: Tensor) -> Any:
        """Returns what is kept of a batch; it should be small, since it is kept for all candidates at a time.

        Args:
            outputs: the output of the network's last step; for classifiers logits, (N, classes).
            labels: int64, (N,).
        """
        raise NotImplementedError

    def combine(self, parts: Sequence[Any]) -> Metrics:
        """Returns the metrics from what `of_batch` kept of every batch, in order."""
        raise NotImplementedError

    def correct(self, parts: Sequence[Any]) -> Bits | None:
        """Returns for each image whether the network is right, (N,), for paired tests; None if that is undefined."""
        return None

    @torch.no_grad()
    def __call__(self, network: nn.Module, images: Any, batch: int) -> Metrics:
        """Returns the metrics of a network over a whole set, in the network's current mode."""
        return self.combine([self.of_batch(_outputs(network, x), y) for x, y in images.batches(batch)])


def _outputs(network: nn.Module, images: Any) -> Any:
    """Returns the outputs of a network. Raises `InputError` if its first convolution reads other channels."""
    try:
        return network(images)
    except RuntimeError as error:
        first = next((module for module in network.modules() if isinstance(module, nn.Conv2d)), None)
        if first is None or not isinstance(images, Tensor) or images.ndim != 4:
            raise
        if (channels := images.shape[1]) == first.in_channels:
            raise
        raise InputError(
            f"the images have {channels} channels, and the network reads {first.in_channels}; build it with "
            f"in_channels={channels}"
        ) from error


class ClassificationMetric(BatchMetric):
    """Accuracy (0..1) and mean cross-entropy of a classifier."""

    name = "classification"

    def of_batch(self, outputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Returns which images are classified correctly, (N,), and the summed cross-entropy.

        The cross-entropy is NaN if a logit is not finite, even where that of the label is.
        """
        try:
            loss = nn.functional.cross_entropy(outputs, labels, reduction="sum")
        except IndexError as error:  # of the CPU only
            raise InputError(
                f"the network has {outputs.shape[1]:,} outputs, and the label {int(labels.max())} needs "
                f"{int(labels.max()) + 1:,}; build it with as many outputs as classes"
            ) from error
        loss = torch.where(outputs.isfinite().all(), loss, math.nan)  # decided on the device, without waiting for it
        return outputs.argmax(1) == labels, loss

    def combine(self, parts: Sequence[tuple[Tensor, Tensor]]) -> Metrics:
        """Returns the means over all images; both are NaN if a logit or a loss is not finite.

        The largest of logits that are NaN is the first, so such a network would score the share of the first class.
        """
        images = sum(len(correct) for correct, _ in parts)
        right, loss = sum(int(correct.sum()) for correct, _ in parts), _loss(parts)
        if not math.isfinite(loss):
            return {"accuracy": math.nan, "loss": math.nan}
        return {"accuracy": right / images, "loss": loss / images}

    def correct(self, parts: Sequence[tuple[Tensor, Tensor]]) -> Bits | None:
        """Returns for each image whether the largest logit is that of its label, (N,); None if some are not finite."""
        if not math.isfinite(_loss(parts)):
            return None
        bits: Bits = torch.cat([correct for correct, _ in parts]).cpu().numpy()
        return bits


def _loss(parts: Sequence[tuple[Tensor, Tensor]]) -> float:
    return sum(float(loss) for _, loss in parts)


classification = ClassificationMetric()
"""`classification(network, images, batch)`: accuracy and loss of a classifier in its current mode."""

Metric = Callable[[nn.Module, Any, int], Mapping[str, float]]


@arguments_explained
def check_finite(metrics: Mapping[str, float], network: str) -> None:
    """Checks that metrics are numbers that mean something.

    Args:
        metrics: by name.
        network: what was scored, for the message.

    Raises:
        RunError: a metric is NaN or infinite, as those of a network with such outputs are.
        InputError: something else than numbers by name.
    """
    bad = [f"{name}={value}" for name, value in metrics.items() if not math.isfinite(value)]
    if bad:
        raise RunError(f"{network} scores {', '.join(bad)}: its outputs are not finite, so it has no score")


@checked_arguments
def accuracy(network: nn.Module, images: ImageSet, batch: Count = 256) -> float:
    """Returns the share of images that a classifier in eval mode gets right, 0..1; NaN if an output is not finite.

    Raises:
        InputError: the network reads images of other channels, or has fewer outputs than the images have classes.
    """
    network.eval()
    return classification(network, images, batch)["accuracy"]
