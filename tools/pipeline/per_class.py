"""Figures of a classifier beyond its accuracy: per class, confusion matrix, calibration error, throughput."""

import time
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from supernet.data.images import Images

BINS = 15
"""The number of bins of the expected calibration error (Guo et al., 2017, §2)."""


@dataclass(frozen=True)
class ClassFigures:
    """What a classifier does on labelled images.

    Attributes:
        probabilities: (images, classes).
        labels: (images,).
        confusion: images by true class (row) and predicted class (column), (classes, classes).
        precision, recall, f1: per class, (classes,); 0 for a class that was never predicted, or has no images.
        accuracy: share of images that are classified correctly.
        calibration_error: mean distance between confidence and accuracy over `BINS` bins of equal width.
        images_per_second: through the network, normalisation included.
    """

    probabilities: Tensor
    labels: Tensor
    confusion: NDArray[np.int64]
    precision: NDArray[np.float64]
    recall: NDArray[np.float64]
    f1: NDArray[np.float64]
    accuracy: float
    calibration_error: float
    images_per_second: float

    @property
    def predicted(self) -> Tensor:
        """The most likely class of each image, (images,)."""
        return self.probabilities.argmax(dim=1)


def class_figures(network: nn.Module, images: Images, n_classes: int, *, batch: int = 256) -> ClassFigures:
    """Runs a classifier on labelled images.

    Args:
        network: in eval mode, on the device of the images; returns logits (N, n_classes).
        images: labelled.
        n_classes: number of classes.
        batch: images per forward pass.
    """
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    outputs = []
    with torch.no_grad():
        network(next(images.batches(min(batch, len(images))))[0])  # the first pass is slower
        began = time.perf_counter()
        for pixels, _ in images.batches(batch):
            outputs.append(network(pixels).float().softmax(dim=1).cpu())
        seconds = time.perf_counter() - began
    probabilities, labels = torch.cat(outputs), images.labels.cpu()
    predicted, names = probabilities.argmax(dim=1), list(range(n_classes))
    precision, recall, f1, _ = precision_recall_fscore_support(labels, predicted, labels=names, zero_division=0)
    return ClassFigures(
        probabilities=probabilities,
        labels=labels,
        confusion=confusion_matrix(labels, predicted, labels=names),
        precision=precision,
        recall=recall,
        f1=f1,
        accuracy=float((predicted == labels).double().mean()),
        calibration_error=calibration_error(probabilities, labels),
        images_per_second=len(labels) / max(seconds, 1e-9),
    )


def calibration_error(probabilities: Tensor, labels: Tensor, bins: int = BINS) -> float:
    """The expected calibration error (Guo et al., 2017, eq. 3): bins of equal width over the highest probability.

    Args:
        probabilities: (images, classes).
        labels: (images,).
        bins: number of bins.
    """
    confidence, predicted = probabilities.double().max(dim=1)
    correct = (predicted == labels).double()
    place = (confidence * bins).ceil().clamp(1, bins).long() - 1  # intervals are open on the left, as in the paper
    error = 0.0
    for index in range(bins):
        inside = place == index
        if inside.any():
            gap = (confidence[inside].mean() - correct[inside].mean()).abs()
            error += float(inside.double().mean() * gap)
    return error
