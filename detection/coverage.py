"""How well the anchors of a detector fit the objects of a set of images."""

from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from detection.data.images import DetectionSet
from detection.inputs import ImageBatch
from detection.pyramid import Anchors, Sizes
from detection.retinanet import OCTAVE
from supernet.checked import Positive, Probability, checked_arguments, shown
from supernet.errors import InputError

Part = TypeVar("Part", bound=nn.Module)

MOST_OBJECTS = 100_000
"""Only this many objects are looked at, the first ones of a set."""
MOST_TRIED = 10_000
"""The same where several sizes of anchors are tried."""
WORTH = 0.01
"""Share of the objects that other ratios must fit beyond another scale to be proposed."""
SCALES = (1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0)
"""Values of the setting `anchor_scale` that are tried."""


@checked_arguments
def anchor_coverage(detector: nn.Module, data: DetectionSet, *, overlap: Probability = 0.5) -> float:
    """Returns the share of objects that have an anchor of at least this IoU, 0..1; NaN without objects.

    Objects without one are learnt from poor matches only: a share far below 0.9 asks for another `anchor_scale`, or for
    larger images.

    Args:
        detector: a searchable detector or the network of one architecture.
        data: its objects, apart from crowds, are resized as a detector sees them, without augmentation.
        overlap: 0.5 is RetinaNet's threshold of a positive anchor.

    Raises:
        InputError: a network without anchors, no images with boxes, or an overlap beyond 0 to 1.
    """
    best = best_overlaps(detector, data)
    return float((best >= overlap).double().mean()) if len(best) else float("nan")


@checked_arguments
def proposed_scale(detector: nn.Module, data: DetectionSet, *, overlap: Probability = 0.5) -> tuple[float, float]:
    """Returns the setting `anchor_scale` of `SCALES` whose anchors fit most objects, and their share, 0..1.

    Of several with equal shares it is the one with the largest mean IoU. The first `MOST_TRIED` objects are looked at.

    Args:
        detector, data, overlap: see `anchor_coverage`.

    Raises:
        InputError: see `anchor_coverage`.
    """
    anchors = _part(detector, Anchors)
    octaves = OCTAVE[: len(anchors.sizes[0])]
    shares = {}
    for scale in SCALES:
        sizes = tuple(tuple(int(scale * stride * octave) for octave in octaves) for stride in anchors.strides)
        best = best_overlaps(detector, data, sizes=sizes, most=MOST_TRIED)
        if len(best):
            shares[scale] = (float((best >= overlap).double().mean()), float(best.mean()))
    if not shares:
        return SCALES[0], float("nan")
    chosen = max(shares, key=lambda scale: shares[scale])
    return chosen, shares[chosen][0]


@checked_arguments
def proposed_ratios(
    detector: nn.Module, data: DetectionSet, *, scale: Positive, overlap: Probability = 0.5
) -> tuple[tuple[float, ...], float]:
    """Returns the setting `anchor_ratios` that suits the objects' shapes, and the share of objects that it fits, 0..1.

    As many ratios as the detector has are the centres of a k-means clustering of the logarithms of height over width.
    YOLOv2 clusters widths and heights together (Redmon and Farhadi, 2017, § 2); here the sizes are those of the levels
    of the pyramid. The first `MOST_TRIED` objects are looked at.

    Args:
        detector, data, overlap: see `anchor_coverage`.
        scale: the setting `anchor_scale` that goes with the ratios, above 0.

    Raises:
        InputError: a scale that is not positive, and see `anchor_coverage`.
    """
    from scipy.cluster.vq import kmeans2  # scipy takes a moment to import

    anchors = _part(detector, Anchors)
    octaves = OCTAVE[: len(anchors.sizes[0])]
    boxes = data.annotations.boxes[~data.annotations.crowd][:MOST_TRIED]
    sides = boxes[:, 2:] - boxes[:, :2]
    shapes = (sides[:, 1] / sides[:, 0]).log().numpy()
    count = min(len(anchors.ratios), len(np.unique(shapes)))
    if count == 0:
        return anchors.ratios, float("nan")
    # Clusters begin at quantiles, so that the result needs no random numbers.
    start = np.quantile(shapes, (np.arange(count) + 0.5) / count)
    centres, _ = kmeans2(shapes, start, iter=50, minit="matrix", missing="warn")
    ratios = tuple(sorted({round(float(np.exp(centre)), 2) for centre in centres}))
    sizes = tuple(tuple(int(scale * stride * octave) for octave in octaves) for stride in anchors.strides)
    best = best_overlaps(detector, data, sizes=sizes, ratios=ratios, most=MOST_TRIED)
    return ratios, float((best >= overlap).double().mean())


def best_overlaps(
    detector: nn.Module,
    data: DetectionSet,
    *,
    sizes: Sizes | None = None,
    ratios: tuple[float, ...] | None = None,
    most: int = MOST_OBJECTS,
) -> Tensor:
    """Returns for every object the largest IoU with an anchor, float64, (objects,).

    Args:
        detector, data: see `anchor_coverage`.
        sizes, ratios: those of the anchors instead of the detector's.
        most: the number of objects that are looked at, the first ones of the set.

    Raises:
        InputError: a network without anchors, or sizes for another number of levels.
    """
    anchors, divisor = _part(detector, Anchors), _part(detector, ImageBatch).divisor
    if sizes is not None and len(sizes) != len(anchors.strides):
        raise InputError(f"sizes={shown(sizes)} should be those of {len(anchors.strides)} levels")
    annotations = data.annotations
    objects = (~annotations.crowd).nonzero().flatten()[:most]
    image = torch.arange(len(data)).repeat_interleave(annotations.starts.diff())[objects]
    boxes = annotations.boxes[objects] / data.scales[image].repeat(1, 2)
    seen = (annotations.sizes[image].double() / data.scales[image].flip(1)).round().long()  # height and width
    padded = seen + -seen % divisor
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    best = boxes.new_zeros(len(boxes))
    for stride, sides in zip(anchors.strides, sizes or anchors.sizes, strict=True):
        cells = anchors.generator.generate_anchors(sides, ratios or anchors.ratios).double()  # (A, 4), around 0
        # IoU falls with the distance of the centres in x and in y, so the nearest position of the grid is the best
        last = (-(-padded // stride) - 1).flip(1)
        nearest = (centers / stride).round().clamp_min(0).minimum(last) * stride
        for cell in cells:
            placed = cell + nearest.repeat(1, 2)
            best = best.maximum(_paired_iou(boxes, placed))
    return best


def _part(detector: nn.Module, kind: type[Part]) -> Part:
    """Returns the first part of a detector of a class. Raises `InputError` if there is none."""
    part = next((part for part in detector.modules() if isinstance(part, kind)), None)
    if part is None:
        raise InputError(f"detector={shown(detector)} has no {kind.__name__}; give a detector of this project")
    return part


def _paired_iou(first: Tensor, second: Tensor) -> Tensor:
    """Returns the IoU of boxes row by row, (n,), both (n, 4)."""
    low, high = first[:, :2].maximum(second[:, :2]), first[:, 2:].minimum(second[:, 2:])
    both = (high - low).clamp_min(0).prod(1)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(1) for boxes in (first, second)]
    return both / (areas[0] + areas[1] - both)
