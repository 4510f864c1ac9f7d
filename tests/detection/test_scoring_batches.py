"""What is detected in an image, and with it every score, does not depend on the other images of its batch."""

import pytest
import torch
from torch import Tensor, nn

from detection.config import DetectionAugment
from detection.data import DetectionSet, load
from detection.data.augment import Resize, vary
from detection.metric import DetectionMetric
from helpers.coco import mixed_coco, settings
from helpers.detector_cases import KINDS, images, sampled_arch, tiny
from supernet.export.runtime import detect
from supernet.scoring.batch_norm import Inherit
from supernet.scoring.shared_weights import SharedWeights


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> DetectionSet:
    """Four wide images of 64×48 pixels and four tall ones, seen at 85×64 and 64×85."""
    path = mixed_coco(tmp_path_factory.mktemp("mixed"), images=4)
    whole = {"validation_source": str(path), "test_source": str(path)}
    return load(settings(path, size=64, longest=90, memory=2**20, **whole)).test


def _rows(metric: DetectionMetric, network: nn.Module, data: DetectionSet, batch: int) -> Tensor:
    """The detections of all images, ordered by image and score."""
    parts: list[Tensor] = []
    metric.combine = lambda batch_rows: parts.extend(batch_rows) or {}  # type: ignore[method-assign,func-returns-value]
    metric(network, data, batch)
    rows = torch.cat(parts)
    rows = rows[rows[:, 2].argsort(descending=True, stable=True)]
    return rows[rows[:, 0].argsort(stable=True)]


@pytest.mark.parametrize("kind", KINDS)
def test_detections_do_not_depend_on_the_batch(kind: str, mixed: DetectionSet) -> None:
    """Padded to the size of another image, an image gets other features, and boxes in the padding."""
    threshold = 0.3 if kind == "retinanet" else 0.05
    detector = tiny(kind, seed=3, num_classes=len(mixed.classes), score_threshold=threshold, detections=50).eval()
    arch = sampled_arch(detector)
    network = detector.subnet(arch)
    alone = _rows(DetectionMetric(mixed), network, mixed, 1)
    assert len(alone) > 50
    sides = alone[:, 5:] - alone[:, 3:5]
    assert (sides > 0).all()
    for data, batch in ((mixed, 8), (mixed.images(), 3)):
        rows = _rows(DetectionMetric(mixed), network, data, batch)
        assert rows.shape == alone.shape
        agree = ((rows - alone).abs() <= 1e-3).all(1).double().mean()
        assert agree > 0.999  # boxes of nearly equal scores may change places
    expected = DetectionMetric(mixed)(network, mixed, 1)
    for batch in (1, 8):
        search = SharedWeights(
            detector, mixed, mixed, bn=Inherit(), metric=DetectionMetric(mixed), batch=batch, channels_last=False
        )
        for score in (DetectionMetric(mixed)(network, mixed, batch), search([arch])[0]):
            assert score == pytest.approx(expected, abs=1e-6)


def test_boxes_in_the_padding_are_not_detections() -> None:
    """They have no area inside the image, and would take the places of others."""
    network = tiny("retinanet", seed=3, score_threshold=0.0)
    detections = network.eval().subnet(sampled_arch(network))(images(33, 57))
    for image in detections:
        assert len(image["boxes"]) == 300
        assert (image["boxes"][:, 2:] - image["boxes"][:, :2]).min() >= 0.01


@pytest.mark.parametrize("resize", [Resize(64), Resize(48, 80)])
def test_training_scoring_and_exports_see_the_same_pixels(resize: Resize) -> None:
    image = torch.randint(0, 256, (3, 70, 111), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    target = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0).long(), "crowd": torch.zeros(0).bool()}
    trained, _ = vary(image, target, DetectionAugment(), resize, torch.rand(4))
    scored = resize(image)
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
    document = {"mean": mean, "std": std, "input_size": resize.size, "longest": resize.longest}
    exported, scale = detect._prepared(image, document)
    assert torch.equal(trained, scored)
    normalised = (scored.float() / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    assert torch.equal(exported, normalised)
    assert (scale[:2] * torch.tensor(scored.shape[1:]).flip(0)).tolist() == pytest.approx([111, 70])
