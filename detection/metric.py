"""Mean average precision as COCO defines it, by faster-coco-eval, from boxes in memory."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from detection.data.images import DetectionSet
from detection.inputs import Target
from supernet.data.images import Images
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
"""COCO's twelve figures in its order: average precision and recall over the IoU thresholds 0.5 to 0.95."""


def coco_figures(targets: Sequence[Mapping[str, Tensor]], detections: Sequence[Mapping[str, Tensor]]) -> Metrics:
    """All of COCO's figures (0..1; -1 where nothing is there to be found, e.g. no small object).

    Args:
        targets: of every image `boxes`, (n, 4), as x1, y1, x2, y2, and `labels`, (n,); optionally `crowd`, bool, (n,),
            and `areas`, (n,), of the objects, by default those of their boxes.
        detections: of every image `boxes`, `labels` and `scores`, (m,).

    Raises:
        InputError: lists of different lengths, or faster-coco-eval is not installed.
    """
    if len(targets) != len(detections):
        raise InputError(f"there are {len(targets)} targets and {len(detections)} detections; give both per image")
    rows = [_rows(found, torch.full((len(found["labels"]),), image)) for image, found in enumerate(detections)]
    return GroundTruth(targets).figures(torch.cat([*rows, torch.empty(0, 7)]), every=True)


class GroundTruth:
    """The boxes that detections are compared with, prepared once for any number of detectors.

    Args:
        targets: as in `coco_figures`.

    Raises:
        InputError: faster-coco-eval is not installed.
    """

    def __init__(self, targets: Sequence[Mapping[str, Tensor]]) -> None:
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
        """Annotations as the library's index. It numbers from 1: the number 0 would count as not matched."""
        COCO, _ = _library()
        numbered = [{"id": number, **annotation} for number, annotation in enumerate(annotations, start=1)]
        images = [{"id": image} for image in range(self.images)]
        return COCO({"images": images, "annotations": numbered, "categories": [{"id": k} for k in self.labels]})

    def figures(self, rows: Tensor, *, every: bool = False) -> Metrics:
        """The figures of detections, by name.

        Args:
            rows: (m, 7): image, label, score, x1, y1, x2, y2 of a detection, in the order in which ties are broken.
            every: all of `FIGURES`; otherwise `map`, `map50` and `map75` alone, in 70 to 85 % of the time.
        """
        if not self.labels:
            return dict.fromkeys(FIGURES if every else FIGURES[:3], -1.0)
        _, COCOeval = _library()
        evaluation = COCOeval(self._truth, self._coco(_annotations(rows)), "bbox")
        if not every:
            evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
            evaluation.params.maxDets = [100]
        evaluation.evaluate()
        evaluation.accumulate()
        if not every:
            precision = cast("NDArray[np.float64]", evaluation.eval["precision"])  # (IoU, recall, label, 1, 1)
            return {"map": _mean(precision), "map50": _mean(precision[0]), "map75": _mean(precision[5])}
        evaluation.summarize()
        return dict(zip(FIGURES, map(float, evaluation.stats), strict=True))


def _mean(values: NDArray[np.float64]) -> float:
    """Over what is defined, -1 if nothing is."""
    there = values[values > -1]
    return float(there.mean()) if there.size else -1.0


def _annotations(rows: Tensor) -> Any:
    values = rows.double()
    where, scores, corners = values[:, :2].long().tolist(), values[:, 2].tolist(), values[:, 3:]
    sides = corners[:, 2:] - corners[:, :2]
    boxes, areas = torch.cat([corners[:, :2], sides], 1).tolist(), sides.prod(1).tolist()
    for (image, label), score, box, area in zip(where, scores, boxes, areas, strict=True):
        yield {"image_id": image, "category_id": label, "score": score, "bbox": box, "area": area, "iscrowd": 0}


def _rows(found: Mapping[str, Tensor], images: Tensor) -> Tensor:
    """Detections as rows of `GroundTruth.figures`.

    In double precision, for half has no room for numbers of images. The scores of a diverged network, which are no
    numbers, become 0: the library refuses them, and one failed candidate must not end a search.
    """
    columns = [images[:, None], found["labels"][:, None], found["scores"].nan_to_num(0)[:, None], found["boxes"]]
    return torch.cat([column.double() for column in columns], 1)


def _library() -> tuple[Any, Any]:
    try:
        from faster_coco_eval import COCO  # type: ignore[import-untyped]
        from faster_coco_eval.core.faster_eval_api import COCOeval_faster  # type: ignore[import-untyped]
    except ImportError as error:
        raise InputError(
            f"mean average precision is computed by faster-coco-eval ({error}): pip install 'supernet[detection]'"
        ) from error
    return COCO, COCOeval_faster


class DetectionMetric(BatchMetric):
    """COCO's figures of a detector on the images of a set, for `SharedWeights` and for reports.

        validation = splits.validation
        SharedWeights(detector, splits.calibration.images(), validation.images(), metric=DetectionMetric(validation))
        DetectionMetric(splits.test, every=True)(network, splits.test, batch=16)

    Boxes are compared in pixels of the images as stored, whatever size the detector sees, so that "small" means what
    it does in COCO. The detector's last step hands on `boxes`, `scores` and `labels` of every image.

    Args:
        data: the set that is scored on. Labels of images are positions in it.
        every: all of `FIGURES`; otherwise `map`, `map50` and `map75`, which take less time.

    Raises:
        InputError: a set without boxes other than crowds, or faster-coco-eval is not installed.
    """

    def __init__(self, data: DetectionSet, *, every: bool = False) -> None:
        annotations = data.annotations
        if annotations.crowd.all():
            raise InputError(f"the set has {len(data)} images and no boxes to find; score on other images")
        self.every = every
        self.scales = data.scales.repeat(1, 2)  # (N, 4)
        self.borders = annotations.sizes.flip(1).repeat(1, 2)  # (N, 4)
        self.truth = GroundTruth([annotations.target(i) for i in range(len(data))])
        digest = hashlib.sha256(f"{annotations.identity()} {self.scales.tolist()}".encode()).hexdigest()
        self.name = f"coco-{'every' if every else 'map'}-{digest[:16]}"

    def of_batch(self, outputs: Sequence[Target], labels: Tensor) -> Tensor:
        """Detections as rows of `GroundTruth.figures`, float32, on the CPU."""
        rows = []
        for found, index in zip(outputs, labels.tolist(), strict=True):
            own = {name: found[name].detach().cpu() for name in ("boxes", "scores", "labels")}
            own["boxes"] = (own["boxes"].double() * self.scales[index]).clamp_min(0).minimum(self.borders[index])
            rows.append(_rows(own, torch.full((len(own["labels"]),), index)))
        return torch.cat(rows).float()

    def combine(self, parts: Sequence[Tensor]) -> Metrics:
        """The figures over all images."""
        return self.truth.figures(torch.cat(list(parts)), every=self.every)

    @torch.no_grad()
    def __call__(self, network: nn.Module, images: Images | DetectionSet, batch: int) -> Metrics:
        """The figures of a network in eval mode, over the set or over what its `images` returned."""
        return self.combine([self.of_batch(network(x), positions) for x, positions in images.batches(batch)])
