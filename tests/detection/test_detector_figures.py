"""A detector has one mAP: in training, in a search, of its export at any batch, and by COCO's own code."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from detection.config import DetectorPreprocess
from detection.data import DetectionSet, load
from detection.figures import confusion, curves_csv, detector_figures
from detection.metric import FIGURES, DetectionMetric
from detection.predictions import coco_results, detect, read_image, set_thresholds
from helpers.coco import CATEGORIES, annotation, settings, write
from helpers.detector_cases import KINDS, images, sampled_arch, tiny
from supernet.export import export, load_exported
from supernet.scoring.batch_norm import Inherit
from supernet.scoring.shared_weights import SharedWeights

ORIENTATION = 0x0112  # of EXIF


def _images(root: Path) -> Path:
    """Writes six images of noise: wide, tall, turned by EXIF data, and one without objects; returns the file."""
    rng = np.random.default_rng(0)
    entries = []
    for number in range(6):
        turned = number % 3 == 2
        width, height = (64, 48) if number % 3 == 0 or turned else (48, 64)  # as stored
        coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((width, height))
        exif = Image.Exif()
        if turned:
            exif[ORIENTATION] = 6
            width, height = height, width
        coarse.save(root / f"{number}.png", exif=exif)
        entries.append({"id": 7 * number + 3, "file_name": f"{number}.png", "width": width, "height": height})
    return write(root / "set.json", {"images": entries, "annotations": [], "categories": CATEGORIES})


def _own_objects(path: Path, rows: Tensor) -> None:
    """Adds objects to the annotations: two of three of the best detections of every image but the last, moved a bit."""
    document: dict[str, Any] = json.loads(path.read_text())
    categories = sorted(category["id"] for category in CATEGORIES)
    for image, entry in enumerate(document["images"][:-1]):
        detections = rows[rows[:, 0] == image].tolist()[:30]
        for at, (_, label, _, x1, y1, x2, y2) in enumerate(detections):
            if at % 3 < 2 and min(x2 - x1, y2 - y1) > 4:
                moved = at % 2
                box = [x1 + moved, y1, x2 - x1 - moved, y2 - y1]
                number = len(document["annotations"]) + 1
                document["annotations"].append(
                    annotation(number, entry["id"], categories[int(label) - 1], box, area=box[2] * box[3], iscrowd=0)
                )
    write(path, document)


def _by_coco(path: Path, results: list[dict[str, Any]]) -> list[float]:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth = COCO(str(path))
    evaluation = COCOeval(truth, truth.loadRes(results), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return [float(value) for value in evaluation.stats]


def _loaded(path: Path) -> DetectionSet:
    whole = {"validation_source": str(path), "test_source": str(path)}
    return load(settings(path, size=64, longest=80, memory=2**20, mean=(0.5,) * 3, std=(0.25,) * 3, **whole)).test


@torch.no_grad()
@pytest.mark.parametrize(
    ("kind", "exported"),
    [
        ("retinanet", False),
        *(pytest.param(kind, True, marks=pytest.mark.slow) for kind in KINDS),
    ],
)
def test_every_way_to_score_a_detector_gives_the_metrics_of_coco(kind: str, exported: bool, tmp_path: Path) -> None:
    threshold = 0.3 if kind == "retinanet" else 0.05
    detector = tiny(kind, seed=3, score_threshold=threshold, detections=60).eval()
    arch = sampled_arch(detector)
    network = detector.subnet(arch)
    path = _images(tmp_path)
    unlabelled = _loaded(path)
    _own_objects(path, DetectionMetric(unlabelled).detections(network, unlabelled, 1))
    data = _loaded(path)
    preprocess = DetectorPreprocess(
        64, (0.5,) * 3, (0.25,) * 3, data.classes, longest=80, category_ids=data.annotations.categories
    )
    results = []
    for i in range(len(data)):
        detections = detect(network, read_image(tmp_path / data.annotations.name(i)), preprocess)
        results += coco_results(int(data.annotations.ids[i]), "", detections, preprocess)
    expected = dict(zip(FIGURES, _by_coco(path, results), strict=True))
    assert expected["map"] > 0.3
    if exported:
        export(network, tmp_path / "export", arch=arch, space=kind, preprocess=preprocess)
        network = load_exported(tmp_path / "export")
    for batch in (1, 8, 16):
        figures = detector_figures(network, data, batch=batch)
        assert figures.metrics == pytest.approx(expected, abs=2e-4)  # results are rounded
        training = DetectionMetric(data)(network, data.images(), batch)  # as after every epoch
        search = SharedWeights(detector, data, data, bn=Inherit(), metric=DetectionMetric(data), batch=batch)([arch])[0]
        for scores in (training, search):
            assert {name: scores[name] for name in training} == pytest.approx(
                {name: figures.metrics[name] for name in training}, abs=1e-4
            )
    of_classes = figures.precision[figures.objects > 0]
    assert of_classes.mean(0).tolist() == pytest.approx(
        [expected[name] for name in ("map", "map50", "map75")], abs=2e-4
    )
    assert int(figures.objects.sum()) == len(data.annotations.labels) == int(figures.confusion[:-1].sum())
    lines = curves_csv(figures, data.classes).splitlines()
    assert len(lines) == 1 + 2 * 101 * len(of_classes)


@pytest.mark.slow
def test_a_class_alone_has_the_average_precision_of_coco(tmp_path: Path) -> None:
    detector = tiny("retinanet", seed=3, score_threshold=0.3, detections=60).eval()
    network = detector.subnet(sampled_arch(detector))
    path = _images(tmp_path)
    unlabelled = _loaded(path)
    with torch.no_grad():
        rows = DetectionMetric(unlabelled).detections(network, unlabelled, 1)
        _own_objects(path, rows)
        data = _loaded(path)
        figures = detector_figures(network, data)
        for label in (1, 2, 3):
            kept = data.annotations.labels == label
            image = torch.arange(len(data)).repeat_interleave(data.annotations.starts.diff())[kept]
            counts = torch.bincount(image, minlength=len(data))
            alone = dataclasses.replace(
                data.annotations,
                starts=torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)]),
                **{name: getattr(data.annotations, name)[kept] for name in ("boxes", "labels", "crowd", "areas")},
            )
            metric = DetectionMetric(dataclasses.replace(data, annotations=alone), every=True)
            scores = metric.truth.figures(rows[rows[:, 1] == label], every=True)
            assert figures.precision[label - 1].tolist() == pytest.approx(
                [scores[name] for name in ("map", "map50", "map75")], abs=1e-6
            )
            assert float(figures.recall[label - 1]) == pytest.approx(scores["mar100"], abs=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_thresholds_of_a_detector_can_be_changed(kind: str) -> None:
    detector = tiny(kind, seed=3, score_threshold=0.05, overlap=0.5).eval()
    network, x = detector.subnet(sampled_arch(detector)), images(number=1)
    (before,) = network(x)
    limit = float(before["scores"].sort().values[len(before["scores"]) // 2])
    set_thresholds(network, score=limit)
    (strict,) = network(x)
    assert 0 < len(strict["scores"]) < len(before["scores"])
    assert strict["scores"].min() >= limit
    set_thresholds(network, overlap=0.1)
    assert len(network(x)[0]["scores"]) < len(strict["scores"])
    set_thresholds(network, detections=3)
    assert len(network(x)[0]["scores"]) == 3


def test_the_confusion_matrix_pairs_the_largest_overlaps_first_and_ignores_crowds() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10], [60, 0, 90, 30]])
    target = {"boxes": boxes, "labels": torch.tensor([1, 2, 1, 2]), "crowd": torch.tensor([False] * 3 + [True])}
    rows = torch.tensor(
        [
            [0, 2, 0.9, 0, 0, 10, 10],  # the first object as the second class, exactly
            [0, 1, 0.95, 0, 0, 10, 9],  # the same object again, less exactly: nothing is left for it
            [0, 2, 0.8, 20, 0, 30, 9],  # right
            [0, 1, 0.7, 62, 2, 70, 9],  # inside the crowd
            [0, 1, 0.4, 40, 0, 50, 10],  # below the threshold
        ]
    )
    empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0).long(), "crowd": torch.zeros(0).bool()}
    matrix = confusion([target, empty], rows, classes=2, threshold=0.5)
    assert matrix.tolist() == [[0, 1, 1], [0, 1, 0], [1, 0, 0]]
