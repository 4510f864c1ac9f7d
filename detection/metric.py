"""Mean average precision as COCO defines it, computed by faster-coco-eval from boxes in memory."""

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from detection.data.images import DetectionSet
from detection.inputs import Target
from supernet.checked import checked_arguments, shown
from supernet.data.batches import Batches
from supernet.errors import InputError
from supernet.scoring.metrics import BatchMetric, Metrics

FIGURES = (
    "map",
    "map50",
    "map75",
    "map_small",
    "map_medium",
    "map_large",
    "mar1",
    "mar10",
    "mar100",
    "mar_small",
    "mar_medium",
    "mar_large",
)
"""COCO's twelve metrics in its order: average precision and recall over the IoU thresholds 0.5 to 0.95."""


def coco_figures(targets: Sequence[Mapping[str, Tensor]], detections: Sequence[Mapping[str, Tensor]]) -> Metrics:
    """Returns all of COCO's metrics, each in 0..1, or -1 if there are no objects that it counts, such as small ones.

    Args:
        targets: for each image `boxes`, (n, 4), as x1, y1, x2, y2 in pixels, and `labels`, (n,); optionally `crowd`,
            bool, (n,), and `areas`, (n,), of the objects in square pixels, by default the areas of the boxes.
        detections: for each image `boxes`, (m, 4), `labels` and `scores`, (m,).

    Raises:
        InputError: the lists have different lengths, a mapping lacks a tensor or has one of another shape, or
            faster-coco-eval is not installed.
    """
    if len(targets) != len(detections):
        raise InputError(
            f"there are {len(targets)} targets and {len(detections)} detections; give both for every image"
        )
    check_boxes("detections", detections, ("labels", "scores"))
    rows = [_rows(boxes, torch.full((len(boxes["labels"]),), image)) for image, boxes in enumerate(detections)]
    return GroundTruth(targets).figures(torch.cat([*rows, torch.empty(0, 7)]), every=True)


def check_boxes(what: str, images: Sequence[Mapping[str, Tensor]], needed: Sequence[str] = ("labels",)) -> None:
    """Checks the boxes of images and what is said about each box.

    Args:
        what: the name of the argument, for the message.
        images: a mapping for each image.
        needed: what each has beside `boxes`; `crowd` and `areas` are checked where they are.

    Raises:
        InputError: a mapping lacks a tensor, or has one of another shape.
    """
    for number, image in enumerate(images):
        if not isinstance(image, Mapping):
            raise InputError(f"{what}[{number}] is {shown(image)}; give a mapping with boxes, {', '.join(needed)}")
        for name in ("boxes", *needed, *(name for name in ("crowd", "areas") if name in image)):
            if not isinstance(image.get(name), Tensor):
                found = f"has {shown(image[name])} for" if name in image else "lacks"
                raise InputError(f"{what}[{number}] {found} {name!r}; give a tensor")
            boxes = image["boxes"].shape[0] if image["boxes"].dim() else 0
            shape = (boxes, 4) if name == "boxes" else (boxes,)
            if tuple(image[name].shape) != shape:
                raise InputError(
                    f"{what}[{number}] has {name!r} of shape {tuple(image[name].shape)}, which should be {shape}"
                )


class GroundTruth:
    """The true boxes of a set of images, prepared once for any number of evaluations.

    Args:
        targets: see `coco_figures`.

    Raises:
        InputError: a target that `coco_figures` refuses, or faster-coco-eval is not installed.
    """

    def __init__(self, targets: Sequence[Mapping[str, Tensor]]) -> None:
        check_boxes("targets", targets)
        annotations = []
        for image, target in enumerate(targets):
            corners = target["boxes"].double()
            sides = corners[:, 2:] - corners[:, :2]
            boxes, areas = torch.cat([corners[:, :2], sides], 1).tolist(), target.get("areas", sides.prod(1)).tolist()
            crowd = target["crowd"].tolist() if "crowd" in target else [False] * len(boxes)
            for label, *values in zip(target["labels"].tolist(), boxes, areas, crowd, strict=True):
                annotations.append((image, label, *values))
        self.labels = sorted({label for _, label, *_ in annotations})
        self.images = len(targets)
        self._truth = self._coco(
            {"image_id": image, "category_id": label, "bbox": box, "area": area, "iscrowd": int(crowd)}
            for image, label, box, area, crowd in annotations
        )

    def _coco(self, annotations: Any) -> Any:
        """Returns the library's index of annotations, with ids from 1 on: it would count the id 0 as not matched."""
        COCO, _ = _library()
        numbered = [{"id": number, **annotation} for number, annotation in enumerate(annotations, start=1)]
        images = [{"id": image} for image in range(self.images)]
        return COCO({"images": images, "annotations": numbered, "categories": [{"id": k} for k in self.labels]})

    def figures(self, rows: Tensor, *, every: bool = False) -> Metrics:
        """Returns the metrics of detections by name.

        Args:
            rows: (m, 7), image, label, score, x1, y1, x2, y2 of each detection; ties between equal scores are broken
                in this order.
            every: whether to compute all of `FIGURES` instead of `map`, `map50` and `map75` alone, which take 70 to
                85 % of the time.
        """
        if every:
            return self.summarized(rows)[0]
        undefined = self._undefined(rows)
        if undefined is not None:
            return dict.fromkeys(FIGURES[:3], undefined)
        precision = self._evaluated(rows, all_sizes=True).eval["precision"]  # (IoU, recall, label, 1, 1)
        return {"map": _mean(precision), "map50": _mean(precision[0]), "map75": _mean(precision[5])}

    def summarized(self, rows: Tensor) -> tuple[Metrics, Any]:
        """Returns all of `FIGURES`, and the library's `COCOeval` that they are from.

        The latter is None if there is nothing to evaluate: no objects, or detections of a diverged network.

        Args:
            rows: see `figures`.
        """
        undefined = self._undefined(rows)
        if undefined is not None:
            return dict.fromkeys(FIGURES, undefined), None
        evaluation = self._evaluated(rows)
        evaluation.summarize()
        return dict(zip(FIGURES, map(float, evaluation.stats), strict=True)), evaluation

    def _undefined(self, rows: Tensor) -> float | None:
        """Returns the value of every metric where the library cannot compute any, else None."""
        if not rows.isfinite().all():  # of a diverged network; the library would refuse them
            return math.nan
        return None if self.labels else -1.0

    def _evaluated(self, rows: Tensor, *, all_sizes: bool = False) -> Any:
        """Returns the library's evaluation, with `all_sizes` of all objects together and 100 detections per image."""
        _, COCOeval = _library()
        evaluation = COCOeval(self._truth, self._coco(_annotations(rows)), "bbox")
        if all_sizes:
            evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
            evaluation.params.maxDets = [100]
        evaluation.evaluate()
        evaluation.accumulate()
        return evaluation


def _mean(values: NDArray[np.float64]) -> float:
    """Returns the mean of the values that are defined, -1 if none is."""
    defined = values[values > -1]
    return float(defined.mean()) if defined.size else -1.0


def _annotations(rows: Tensor) -> Iterator[dict[str, Any]]:
    """Yields rows of `GroundTruth.figures` as COCO's annotations."""
    values = rows.double()
    images_and_labels, scores, corners = values[:, :2].long().tolist(), values[:, 2].tolist(), values[:, 3:]
    sides = corners[:, 2:] - corners[:, :2]
    boxes, areas = torch.cat([corners[:, :2], sides], 1).tolist(), sides.prod(1).tolist()
    for (image, label), score, box, area in zip(images_and_labels, scores, boxes, areas, strict=True):
        yield {"image_id": image, "category_id": label, "score": score, "bbox": box, "area": area, "iscrowd": 0}


def _rows(detections: Mapping[str, Tensor], images: Tensor) -> Tensor:
    """Returns detections as rows of `GroundTruth.figures` in double precision, since half cannot count the images."""
    labels, scores = detections["labels"][:, None], detections["scores"][:, None]
    columns = [images[:, None], labels, scores, detections["boxes"]]
    return torch.cat([column.double() for column in columns], 1)


def _library() -> tuple[Any, Any]:
    """Returns the classes `COCO` and `COCOeval_faster` of faster-coco-eval."""
    try:
        from faster_coco_eval import COCO  # type: ignore[import-untyped]
        from faster_coco_eval.core.faster_eval_api import COCOeval_faster  # type: ignore[import-untyped]
    except ImportError as error:
        raise InputError(
            f"mean average precision is computed by faster-coco-eval ({error}): pip install 'supernet[detection]'"
        ) from error
    return COCO, COCOeval_faster


class DetectionMetric(BatchMetric):
    """COCO's metrics of a detector on the images of a set, for `SharedWeights` and for reports.

        validation = splits.validation
        SharedWeights(detector, splits.calibration.images(), validation.images(), metric=DetectionMetric(validation))
        DetectionMetric(splits.test, every=True)(network, splits.test, batch=16)

    Boxes are compared in pixels of the stored images, whatever size the detector sees, so that "small" means what it
    does in COCO. The detector's last step must return `boxes`, `scores` and `labels` of every image.

    Args:
        data: the images to score on. The label that a batch has for an image is its position in this set. Without boxes
            apart from crowds every metric is -1, as in COCO.
        every: whether to compute all of `FIGURES` instead of `map`, `map50` and `map75`, which take less time.

    Raises:
        InputError: faster-coco-eval is not installed.
    """

    @checked_arguments
    def __init__(self, data: DetectionSet, *, every: bool = False) -> None:
        annotations = data.annotations
        self.every = every
        self.scales = data.scales.repeat(1, 2)  # (N, 4)
        self.borders = annotations.sizes.flip(1).repeat(1, 2)  # (N, 4)
        self.truth = GroundTruth([annotations.target(i) for i in range(len(data))])
        digest = hashlib.sha256(f"{annotations.identity()} {self.scales.tolist()}".encode()).hexdigest()
        self.name = f"coco-{'every' if every else 'map'}-{digest[:16]}"

    def of_batch(self, outputs: Sequence[Target], labels: Tensor) -> Tensor:
        """Returns the detections of a batch as rows of `GroundTruth.figures`, float32, on the CPU."""
        rows = []
        for output, index in zip(outputs, labels.tolist(), strict=True):
            detections = {name: output[name].detach().cpu() for name in ("boxes", "scores", "labels")}
            stored = detections["boxes"].double() * self.scales[index]
            detections["boxes"] = stored.clamp_min(0).minimum(self.borders[index])
            rows.append(_rows(detections, torch.full((len(detections["labels"]),), index)))
        return torch.cat(rows).float()

    def combine(self, parts: Sequence[Tensor]) -> Metrics:
        """Returns the metrics over all images, whatever their order."""
        rows = torch.cat(list(parts))
        return self.truth.figures(rows[rows[:, 0].argsort(stable=True)], every=self.every)

    @torch.no_grad()
    def __call__(self, network: nn.Module, images: DetectionSet, batch: int) -> Metrics:
        """Returns the metrics of a network, which do not depend on `batch` beyond rounding.

        Args:
            network: a detector in eval mode.
            images: the set (see `DetectionSet.images` for its images in memory).
            batch: most images per forward pass, all of one height and width: padding an image to the size of
                another one would change what is detected in it.
        """
        return self.combine(self._parts(network, images, batch))

    @torch.no_grad()
    def detections(self, network: nn.Module, images: DetectionSet, batch: int) -> Tensor:
        """Returns the detections of a network as rows of `GroundTruth.figures`, sorted by image; see `__call__`."""
        rows = torch.cat(self._parts(network, images, batch))
        return rows[rows[:, 0].argsort(stable=True)]

    def _parts(self, network: nn.Module, images: DetectionSet, batch: int) -> list[Tensor]:
        batches = Batches(images, batch, alike=True)
        return [self.of_batch(network(x), batches.labels(number)) for number, x in enumerate(batches)]
