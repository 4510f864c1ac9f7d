"""Figures of a detector by class: average precision, curves of precision and recall, and a confusion matrix."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchvision.ops import box_iou

from detection.data.images import DetectionSet
from detection.metric import DetectionMetric, check_boxes
from supernet.checked import Count, Probability, checked_arguments
from supernet.errors import InputError
from supernet.scoring.metrics import Metrics

OVERLAPS = (0.5, 0.75)
"""The IoU thresholds of the curves."""
RECALLS = torch.linspace(0, 1, 101, dtype=torch.float64)
"""The recalls at which COCO reads the precision."""


@dataclass(frozen=True)
class DetectorFigures:
    """How well a detector does on a set of images.

    Attributes:
        metrics: COCO's twelve, `detection.metric.FIGURES`.
        objects: the number of objects of each class, without crowds, int64, (classes,).
        precision: average precision of each class over the IoU thresholds 0.5 to 0.95, at 0.5 and at 0.75, float64,
            (classes, 3); -1 for a class without objects.
        recall: average recall of each class with 100 detections per image, float64, (classes,); -1 as above.
        curves: precision at each of `RECALLS`, float64, (classes, `OVERLAPS`, 101); -1 as above.
        threshold: lowest score of the detections in the confusion matrix.
        confusion: objects by true class (row) and detected class (column), int64, (classes + 1, classes + 1). The last
            column counts objects that are missed, the last row detections where no object is.
    """

    metrics: Metrics
    objects: Tensor
    precision: Tensor
    recall: Tensor
    curves: Tensor
    threshold: float
    confusion: Tensor


@checked_arguments
def detector_figures(
    network: nn.Module, images: DetectionSet, *, batch: Count = 1, threshold: Probability = 0.5
) -> DetectorFigures:
    """Runs a detector on a set of images.

    Args:
        network: a detector in eval mode, on the device of the images.
        images: images with boxes.
        batch: images per forward pass, which does not change the figures beyond rounding.
        threshold: lowest score of the detections that the confusion matrix counts, 0 to 1.

    Raises:
        InputError: an argument of another type or out of range, or faster-coco-eval is not installed.
    """
    metric = DetectionMetric(images, every=True)
    return figures_of(metric, metric.detections(network, images, batch), images, threshold=threshold)


@checked_arguments
def figures_of(
    metric: DetectionMetric, rows: Tensor, images: DetectionSet, *, threshold: Probability = 0.5
) -> DetectorFigures:
    """Returns the figures of detections.

    Args:
        metric: the metric of the images.
        rows: what `metric.detections` returned.
        images, threshold: see `detector_figures`.

    Raises:
        InputError: an argument of another type, shape or range.
    """
    classes = len(images.classes)
    metrics, evaluation = metric.truth.summarized(rows)
    precision, recall = torch.full((classes, 3), -1.0).double(), torch.full((classes,), -1.0).double()
    curves = torch.full((classes, len(OVERLAPS), len(RECALLS)), -1.0).double()
    if evaluation is not None:
        values = torch.from_numpy(evaluation.eval["precision"])[..., 0, -1]  # (IoU, recall, label)
        recalls = torch.from_numpy(evaluation.eval["recall"])[..., 0, -1]  # (IoU, label)
        for column, label in enumerate(metric.truth.labels):
            of_class = values[:, :, column]
            precision[label - 1] = torch.stack([_mean(of_class), _mean(of_class[0]), _mean(of_class[5])])
            recall[label - 1] = _mean(recalls[:, column])
            curves[label - 1] = of_class[[0, 5]]
    single = images.annotations.labels[~images.annotations.crowd]
    return DetectorFigures(
        metrics=metrics,
        objects=torch.bincount(single - 1, minlength=classes),
        precision=precision,
        recall=recall,
        curves=curves,
        threshold=threshold,
        confusion=confusion(
            [images.annotations.target(i) for i in range(len(images))], rows, classes=classes, threshold=threshold
        ),
    )


def _mean(values: Tensor) -> Tensor:
    """Returns the mean of the values that are defined, -1 if none is."""
    defined = values[values > -1]
    return defined.mean() if len(defined) else values.new_tensor(-1.0)


@checked_arguments
def confusion(
    targets: Sequence[Mapping[str, Tensor]],
    rows: Tensor,
    *,
    classes: Count,
    threshold: Probability,
    overlap: Probability = 0.5,
) -> Tensor:
    """Returns the confusion matrix of detections, int64, (classes + 1, classes + 1); see `DetectorFigures`.

    An object and a detection of whatever class are a pair if their IoU is at least `overlap`; the pairs of the largest
    IoU come first, and each object and detection is in one pair at most. Detections that are left over are not counted
    if half of their area lies in a crowd.

    Args:
        targets: for each image `boxes`, (n, 4), `labels`, (n,), and `crowd`, (n,).
        rows: (m, 7), image, label, score, x1, y1, x2, y2 of each detection.
        classes: number of classes; labels are 1 to this.
        threshold: lowest score of the detections that are counted.
        overlap: lowest IoU of a pair.

    Raises:
        InputError: an argument of another type or out of range, rows of another shape, or a label without a class.
    """
    check_boxes("targets", targets, ("labels", "crowd"))
    if rows.dim() != 2 or rows.shape[1] != 7:
        raise InputError(f"rows of shape {tuple(rows.shape)} should be (m, 7): image, label, score and four corners")
    labels = torch.cat([rows[:, 1].double(), *(target["labels"].double() for target in targets)])
    if len(labels) and not 1 <= float(labels.min()) <= float(labels.max()) <= classes:
        raise InputError(
            f"labels are from {labels.min():g} to {labels.max():g}, and classes={classes} has the labels 1 to {classes}"
        )
    matrix = torch.zeros(classes + 1, classes + 1, dtype=torch.int64)
    rows = rows[rows[:, 2] >= threshold].double()
    for image, target in enumerate(targets):
        detections = rows[rows[:, 0] == image]
        labels, boxes = detections[:, 1].long() - 1, detections[:, 3:]
        crowd = target["crowd"]
        truth, true_labels = target["boxes"][~crowd].double(), target["labels"][~crowd] - 1
        ious = box_iou(truth, boxes)
        first, second = torch.where(ious >= overlap)
        paired: tuple[set[int], set[int]] = (set(), set())
        for at in ious[first, second].argsort(descending=True, stable=True).tolist():
            i, j = int(first[at]), int(second[at])
            if i not in paired[0] and j not in paired[1]:
                paired[0].add(i)
                paired[1].add(j)
                matrix[true_labels[i], labels[j]] += 1
        for i in set(range(len(truth))) - paired[0]:
            matrix[true_labels[i], classes] += 1
        inside = _shares_inside(boxes, target["boxes"][crowd].double()) >= 0.5
        for j in set(range(len(boxes))) - paired[1]:
            if not inside[j]:
                matrix[classes, labels[j]] += 1
    return matrix


def _shares_inside(boxes: Tensor, crowds: Tensor) -> Tensor:
    """Returns the largest share of each box's area that lies in a crowd, (n,)."""
    if not len(crowds):
        return boxes.new_zeros(len(boxes))
    low, high = boxes[:, None, :2].maximum(crowds[:, :2]), boxes[:, None, 2:].minimum(crowds[:, 2:])
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1, keepdim=True)
    return ((high - low).clamp_min(0).prod(-1) / areas).amax(1)


def curves_csv(figures: DetectorFigures, classes: Sequence[str]) -> str:
    """Returns the curves as a table: class, IoU threshold, recall, precision; classes without objects are left out."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("category", "iou", "recall", "precision"))
    for name, curves in zip(classes, figures.curves.tolist(), strict=True):
        for overlap, curve in zip(OVERLAPS, curves, strict=True):
            for recall, precision in zip(RECALLS.tolist(), curve, strict=True):
                if precision > -1:
                    writer.writerow((name, overlap, f"{recall:.2f}", f"{precision:.6f}"))
    return text.getvalue()
