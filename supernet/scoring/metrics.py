"""Metrics of a network on a set of images."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from supernet.data.batches import ImageSet
from supernet.ranking.paired import Bits

Metrics = dict[str, float]


# -- metrics ----------------------------------------------------------------------------------------------------------


class BatchMetric:
    """A metric that is put together from batches of outputs; subclass it for one that shares prefixes in full.

    Any callable `(network, images, batch) -> metrics` is a metric. Because it runs the network itself, candidates then
    share calibration alone. One that says what it takes from a batch of outputs is handed outputs of shared prefixes:

        class TopFive(BatchMetric):
            name = "top-five"

            def of_batch(self, outputs, labels):
                return (outputs.topk(5).indices == labels[:, None]).any(1)

            def combine(self, parts):
                return {"top-five": float(torch.cat(list(parts)).double().mean())}

    Attributes:
        name: what studies and caches know it by; it tells metrics, and one metric's settings, apart.
    """

    name = ""

    def of_batch(self, outputs: Any, labels: Tensor) -> Any:
        """What is kept of a batch: small, for it is held for all candidates at a time.

        Args:
            outputs: what the network's last step hands on; for classifiers logits, (N, classes).
            labels: int64, (N,).
        """
        raise NotImplementedError

    def combine(self, parts: Sequence[Any]) -> Metrics:
        """The metrics, from what `of_batch` kept of every batch in order."""
        raise NotImplementedError

    def correct(self, parts: Sequence[Any]) -> Bits | None:
        """Per image whether the network is right, (N,), for paired tests; None if the metric knows no such thing."""
        return None

    @torch.no_grad()
    def __call__(self, network: nn.Module, images: Any, batch: int) -> Metrics:
        """The metrics of a network over a whole set, in its present mode."""
        return self.combine([self.of_batch(network(x), y) for x, y in images.batches(batch)])


class Classification(BatchMetric):
    """Accuracy (0..1) and mean cross-entropy of a classifier."""

    name = "classification"

    def of_batch(self, outputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Which images are right, (N,), and the summed cross-entropy."""
        return outputs.argmax(1) == labels, nn.functional.cross_entropy(outputs, labels, reduction="sum")

    def combine(self, parts: Sequence[tuple[Tensor, Tensor]]) -> Metrics:
        """Means over all images."""
        images = sum(len(correct) for correct, _ in parts)
        right, loss = sum(int(correct.sum()) for correct, _ in parts), sum(float(loss) for _, loss in parts)
        return {"accuracy": right / images, "loss": loss / images}

    def correct(self, parts: Sequence[tuple[Tensor, Tensor]]) -> Bits:
        """Per image whether the largest logit is that of its label."""
        found: Bits = torch.cat([correct for correct, _ in parts]).cpu().numpy()
        return found


classification = Classification()
"""`classification(network, images, batch)`: accuracy and loss of a classifier, `network` in its present mode."""

Metric = Callable[[nn.Module, Any, int], Mapping[str, float]]


def accuracy(network: nn.Module, images: ImageSet, batch: int = 256) -> float:
    """Share of images that a classifier in eval mode gets right, 0..1."""
    network.eval()
    return classification(network, images, batch)["accuracy"]
