"""How well the anchors of a detector fit the objects of a set of images."""

import torch
from torch import Tensor, nn

from detection.data.images import DetectionSet
from detection.inputs import ImageBatch
from detection.pyramid import Anchors

MOST = 100_000
"""Objects that are looked at, the first ones of a set."""


def anchor_coverage(detector: nn.Module, data: DetectionSet, *, overlap: float = 0.5) -> float:
    """Returns the share of objects that have an anchor of at least this IoU, 0..1; NaN without objects.

    Objects without one are learnt from poor matches only: a share far below 0.9 asks for another `anchor_scale`, or for
    larger images.

    Args:
        detector: a searchable detector or the network of one architecture.
        data: its objects, apart from crowds, are resized as a detector sees them, without augmentation.
        overlap: 0.5 is RetinaNet's threshold of a positive anchor.
    """
    best = best_overlaps(detector, data)
    return float((best >= overlap).double().mean()) if len(best) else float("nan")


def best_overlaps(detector: nn.Module, data: DetectionSet) -> Tensor:
    """Returns for every object the largest IoU with an anchor, float64, (objects,); see `anchor_coverage`."""
    anchors = next(part for part in detector.modules() if isinstance(part, Anchors))
    divisor = next(part for part in detector.modules() if isinstance(part, ImageBatch)).divisor
    annotations = data.annotations
    objects = (~annotations.crowd).nonzero().flatten()[:MOST]
    image = torch.arange(len(data)).repeat_interleave(annotations.starts.diff())[objects]
    boxes = annotations.boxes[objects] / data.scales[image].repeat(1, 2)
    seen = (annotations.sizes[image].double() / data.scales[image].flip(1)).round().long()  # height and width
    padded = seen + -seen % divisor
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    best = boxes.new_zeros(len(boxes))
    for stride, sizes in zip(anchors.strides, anchors.sizes, strict=True):
        cells = anchors.generator.generate_anchors(sizes, anchors.ratios).double()  # (A, 4), around 0
        # IoU falls with the distance of the centres in x and in y, so the nearest position of the grid is the best
        last = (-(-padded // stride) - 1).flip(1)
        nearest = (centers / stride).round().clamp_min(0).minimum(last) * stride
        for cell in cells:
            placed = cell + nearest.repeat(1, 2)
            best = best.maximum(_paired_iou(boxes, placed))
    return best


def _paired_iou(first: Tensor, second: Tensor) -> Tensor:
    """Returns the IoU of boxes row by row, (n,), both (n, 4)."""
    low, high = first[:, :2].maximum(second[:, :2]), first[:, 2:].minimum(second[:, 2:])
    both = (high - low).clamp_min(0).prod(1)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(1) for boxes in (first, second)]
    return both / (areas[0] + areas[1] - both)
