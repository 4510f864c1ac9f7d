"""Mean average precision equals that of COCO's own code, and candidates are scored with shared weights."""

import contextlib
import dataclasses
import importlib
import io
import itertools
import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from detection import Detector, create_detector
from detection.config import DetectionAugment, DetectionData
from detection.data.batches import training_batches
from detection.data.images import DetectionSet
from detection.data.load import DetectionSplits, load
from detection.metric import FIGURES, DetectionMetric, GroundTruth, coco_figures
from helpers.coco import make_coco, settings
from supernet.errors import InputError
from supernet.scoring.batch_norm import Recalibrate
from supernet.scoring.cache import ScoreCache
from supernet.scoring.shared_weights import SharedWeights

Boxes = list[dict[str, Tensor]]


def random_boxes(seed: int, *, images: int = 40, classes: int = 12) -> tuple[Boxes, Boxes]:
    """Random targets and detections near them.

    Targets have all of COCO's sizes, and some are crowds; some detections have equal scores.
    """
    generator = torch.Generator().manual_seed(seed)

    def rand(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator)

    targets, detections = [], []
    for image in range(images):
        n = 0 if image % 7 == 3 else int(rand(1) * 12)
        corner, sides = rand(n, 2) * 300, rand(n, 2) ** 3 * 290 + 3
        boxes, labels = torch.cat([corner, corner + sides], 1), (rand(n) * classes).long() + 1
        areas = sides.prod(1).double() * (0.4 + 0.6 * rand(n).double())
        targets.append({"boxes": boxes, "labels": labels, "crowd": rand(n) < 0.15, "areas": areas})
        m = 0 if image % 11 == 5 else int(rand(1) * (250 if image % 5 == 0 else 30))
        pick = (rand(m) * (n + 1)).long()
        near = torch.cat([boxes, torch.tensor([[5.0, 5, 50, 60]])])[pick] + 12 * rand(m, 4) - 6
        near[:, 2:] = near[:, 2:].maximum(near[:, :2] + 1)
        guesses = torch.cat([labels, torch.tensor([1])])[pick]
        guesses = torch.where(rand(m) < 0.3, (rand(m) * (classes + 2)).long() + 1, guesses)  # two occur in no target
        detections.append({"boxes": near, "labels": guesses, "scores": (rand(m) * 40).round() / 40})
    return targets, detections


def reference(targets: Boxes, detections: Boxes) -> list[float]:
    """COCO's twelve metrics, computed by its own code."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def listed(parts: Boxes) -> list[dict[str, Any]]:
        documents: list[dict[str, Any]] = []
        for image, part in enumerate(parts):
            for i, (x1, y1, x2, y2) in enumerate(part["boxes"].double().tolist()):
                box = [x1, y1, x2 - x1, y2 - y1]
                label = int(part["labels"][i])
                document = {"id": len(documents) + 1, "image_id": image, "category_id": label, "bbox": box}
                if "scores" in part:
                    document["score"] = float(part["scores"][i])
                else:
                    document |= {"iscrowd": int(part["crowd"][i]), "area": float(part["areas"][i])}
                documents.append(document)
        return documents

    with contextlib.redirect_stdout(io.StringIO()):
        truth, known = COCO(), listed(targets)
        truth.dataset = {
            "images": [{"id": i} for i in range(len(targets))],
            "annotations": known,
            "categories": [{"id": label} for label in sorted({document["category_id"] for document in known})],
        }
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(listed(detections)), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return [float(value) for value in evaluation.stats]


@pytest.mark.parametrize("seed", range(4))
def test_all_twelve_metrics_equal_those_of_pycocotools(seed: int) -> None:
    targets, detections = random_boxes(seed, classes=(1, 3, 12, 80)[seed])
    metrics = coco_figures(targets, detections)
    expected = dict(zip(FIGURES, reference(targets, detections), strict=True))
    assert metrics == pytest.approx(expected, rel=0, abs=1e-12)
    assert 0.02 < metrics["map"] < metrics["map50"] < 1
    assert len(set(metrics.values())) == 12
    rows = [
        torch.cat([torch.full((len(d["labels"]), 1), image), d["labels"][:, None], d["scores"][:, None], d["boxes"]], 1)
        for image, d in enumerate(detections)
    ]
    fast = GroundTruth(targets).figures(torch.cat(rows))
    assert fast == pytest.approx({name: expected[name] for name in ("map", "map50", "map75")}, rel=0, abs=1e-12)


def perfect_detections(targets: Boxes) -> Boxes:
    """The targets as detections, without crowds."""
    return [
        {
            "boxes": t["boxes"][~t["crowd"]],
            "labels": t["labels"][~t["crowd"]],
            "scores": torch.ones(int((~t["crowd"]).sum())),
        }
        for t in targets
    ]


def test_perfect_detections_score_one_and_none_score_zero() -> None:
    targets, _ = random_boxes(0)
    metrics = coco_figures(targets, perfect_detections(targets))
    assert (metrics["map"], metrics["map50"], metrics["map_small"], metrics["mar100"]) == (1, 1, 1, 1)
    nothing = [{"boxes": torch.empty(0, 4), "labels": torch.empty(0).long(), "scores": torch.empty(0)}] * len(targets)
    assert set(coco_figures(targets, nothing).values()) == {0.0}
    assert set(coco_figures(nothing, nothing).values()) == {-1.0}  # there are no objects
    with pytest.raises(InputError, match="40 targets and 39 detections"):
        coco_figures(targets, nothing[1:])


def test_detections_within_a_crowd_are_neither_right_nor_wrong() -> None:
    box = torch.tensor([[10.0, 10, 50, 50]])
    lone = {"boxes": box, "labels": torch.tensor([1]), "crowd": torch.tensor([False])}
    crowd = {"boxes": 4 * box, "labels": torch.tensor([1]), "crowd": torch.tensor([True])}
    right = {"boxes": box, "labels": torch.tensor([1]), "scores": torch.tensor([0.5])}
    inside = {"boxes": 5 * box[[0, 0, 0]] - 10, "labels": torch.tensor([1, 1, 1]), "scores": torch.ones(3)}
    inside["boxes"][:, 2:] = inside["boxes"][:, :2] + 20
    assert coco_figures([lone, crowd], [right, inside])["map"] == 1
    assert coco_figures([lone, {**crowd, "crowd": torch.tensor([False])}], [right, inside])["map"] < 0.3


# -- the metric of a set ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def splits() -> DetectionSplits:
    return load(DetectionData(size=64, compose=(12, 6, 6), calibration=8, seed=2))


def in_resized_images(data: DetectionSet, detections: Boxes) -> Boxes:
    """Detections with boxes in pixels of the resized images, which detectors see."""
    return [{**image, "boxes": image["boxes"] / data.scales[i].repeat(2)} for i, image in enumerate(detections)]


def test_object_sizes_are_measured_in_the_stored_images(tmp_path: Path) -> None:
    """Metrics do not depend on the input size, 96 or 40 pixels, not even those for small, medium and large objects."""
    path = make_coco(tmp_path, size=(200, 160))
    sets = [load(settings(path, size=size, test_source=str(path))).test for size in (96, 40)]
    targets = [sets[0].annotations.target(i) for i in range(12)]
    detections = perfect_detections(targets)
    for image in detections:
        image["boxes"] = image["boxes"] + torch.tensor([1.0, 0, 2, 0])
    expected = coco_figures(targets, detections)
    assert expected["map_medium"] == -1  # no object has 32 × 32 pixels
    for data in sets:
        metric = DetectionMetric(data, every=True)
        parts = [
            metric.of_batch(in_resized_images(data, detections)[start : start + 5], torch.arange(12)[start : start + 5])
            for start in (0, 5, 10)
        ]
        assert metric.combine(parts) == pytest.approx(expected, abs=1e-6)
    assert 0.5 < expected["map"] < 1


def test_detections_that_are_not_finite_are_no_score(splits: DetectionSplits) -> None:
    data = splits.validation
    metric = DetectionMetric(data)
    detections = perfect_detections([data.annotations.target(i) for i in range(len(data))])
    assert metric.combine([metric.of_batch(detections, torch.arange(len(data)))])["map"] == 1
    for name in ("scores", "boxes"):
        broken = [{**image, name: image[name].clone()} for image in detections]
        broken[-1][name][0] = float("nan")
        metrics = metric.combine([metric.of_batch(broken, torch.arange(len(data)))])
        assert len(metrics) == 3
        assert all(math.isnan(value) for value in metrics.values())


def test_boxes_are_clipped_to_the_stored_image(splits: DetectionSplits) -> None:
    boxes = torch.tensor([[-9.0, 5, 1000, 2000]])
    detections = {"boxes": boxes, "labels": torch.tensor([3]), "scores": torch.tensor([0.5])}
    rows = DetectionMetric(splits.validation).of_batch([detections], torch.tensor([4]))
    assert rows.tolist() == [[4, 3, 0.5, 0, 5, 64, 64]]


def test_half_precision_does_not_confuse_images() -> None:
    box = torch.tensor([[8.0, 8, 32, 32]])
    targets = [{"boxes": box, "labels": torch.tensor([1])}] * 2100  # half precision counts to 2048
    detections = {"boxes": box.half(), "labels": torch.tensor([1]), "scores": torch.tensor([0.5]).half()}
    assert coco_figures(targets, [detections] * 2100)["map"] == 1


def test_metrics_on_different_images_have_different_names(splits: DetectionSplits) -> None:
    metric = DetectionMetric(splits.validation)
    assert metric.name == DetectionMetric(splits.validation).name
    others = [DetectionMetric(splits.test), DetectionMetric(splits.validation, every=True)]
    assert len({metric.name, *(other.name for other in others)}) == 3
    data = splits.validation
    empty = data.subset(torch.tensor([0]))
    empty.annotations.crowd[:] = True
    nothing = [{"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}]
    some = [{"boxes": torch.tensor([[1.0, 1, 9, 9]]), "labels": torch.ones(1), "scores": torch.ones(1)}]
    for detections in (some, [{**nothing[0], "scores": torch.zeros(0)}]):
        figures = DetectionMetric(empty, every=True).combine(
            [DetectionMetric(empty).of_batch(detections, torch.zeros(1, dtype=torch.int64))]
        )
        assert set(figures.values()) == {-1.0}  # as in COCO
        assert set(coco_figures(nothing, detections).values()) == {-1.0}


@pytest.fixture(scope="module")
def data(splits: DetectionSplits) -> DetectionSet:
    """The validation images, with all digits in one class."""
    annotations = splits.validation.annotations
    labels = torch.ones_like(annotations.labels)
    annotations = dataclasses.replace(annotations, labels=labels, classes=("digit",), categories=(1,))
    return dataclasses.replace(splits.validation, annotations=annotations)


@pytest.fixture(scope="module")
def detector(data: DetectionSet) -> Detector:
    """A small RetinaNet supernet, trained for a few steps on the images that it is scored on."""
    detector = create_detector(
        "retinanet",
        backbone="shufflenet-small",
        num_classes=1,
        image_size=64,
        head_width=16,
        head_convs=1,
        backbone_settings={"depths": (1, 1, 1), "widths": (24, 32, 48)},
        score_threshold=0.02,
        anchor_scale=2.0,
        generator=torch.Generator().manual_seed(0),
    )
    rng, optimizer = random.Random(0), torch.optim.Adam(detector.parameters(), lr=1e-2)
    for images, targets in itertools.islice(training_batches(data, DetectionAugment(), batch=6, seed=0), 24):
        optimizer.zero_grad()
        sum(detector(images, detector.space.sample(rng), targets).values()).backward()
        optimizer.step()
    return detector.eval()


def test_candidates_are_scored_with_shared_weights(
    tmp_path: Path, splits: DetectionSplits, data: DetectionSet, detector: Detector
) -> None:
    rng = random.Random(0)
    archs = [detector.space.sample(rng) for _ in range(4)]
    metric = DetectionMetric(data)

    def scorer(**more: Any) -> SharedWeights:
        parts = splits.calibration.images(), data.images()
        return SharedWeights(
            detector, *parts, bn=Recalibrate(2, 4), metric=metric, batch=4, channels_last=False, **more
        )

    with ScoreCache(tmp_path / "scores.db") as cache:
        shared = scorer(cache=cache)
        scores = shared(archs)
        assert shared.steps_run < shared.steps_asked
        again = scorer(cache=cache)
        assert again(archs) == scores
        assert again.hits == len(set(archs))
    assert scorer(share=False)(archs) == scores
    assert len({tuple(score.values()) for score in scores}) == 4
    assert all(score["map50"] > 0.001 for score in scores), scores
    network = shared.subnet(archs[0])
    assert metric(network, data, 4) == metric(network, data.images(), 3) == scores[0]
    with torch.no_grad():
        detections = [network(images)[0] for images, _ in data.batches(1)]
    expected = coco_figures([data.annotations.target(i) for i in range(len(data))], detections)
    assert scores[0] == pytest.approx({name: expected[name] for name in FIGURES[:3]}, abs=1e-6)


def test_the_benchmark_agrees_with_coco(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "tools"))
    module = importlib.import_module("supernet_tools.benchmarks.detection_speed")
    module.mean_average_precision(images=4, detections=(10,), runs=1)
    printed = capsys.readouterr().out
    assert "│ 40 " in printed
    assert float(printed.split("│")[-2]) < 1e-12
