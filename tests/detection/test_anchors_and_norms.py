"""Frozen norms in exports, how anchors fit the objects, and the error about a batch norm without a variance."""

import re
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.ops import box_iou

from detection.backbone import FrozenNorm, MapStep, backbone_steps
from detection.config import DetectionData
from detection.coverage import SCALES, anchor_coverage, best_overlaps, proposed_ratios, proposed_scale
from detection.data import load
from detection.data.summary import summary_row
from detection.pyramid import Anchors
from detection.task import Detection
from helpers.coco import make_coco, mixed_coco, settings, write
from helpers.detector_cases import KINDS, images, sampled_arch, targets, tiny, tiny_network
from supernet.config import Train
from supernet.data.images import Images
from supernet.errors import InputError
from supernet.export.expression import written
from supernet.scoring.batch_norm import Recalibrate
from supernet.scoring.shared_weights import SharedWeights
from supernet.testing import randomize
from supernet_tools.pipeline.config import DetectorRun
from supernet_tools.pipeline.detector import DetectorKind
from supernet_tools.pipeline.recipes import detnas_bccd


def test_frozen_norms_are_written_out_with_an_export() -> None:
    network = tiny_network("retinanet", arch=sampled_arch(tiny("retinanet")), freeze_bn=True).eval()
    randomize(network, seed=1)
    for step in backbone_steps(network):
        assert isinstance(step, MapStep)
        text, used = written(step)
        again = eval(text, {"nn": nn, **{named.__name__: named for named in used}})
        again.load_state_dict(step.state_dict())
        kinds = [type(part) for part in again.train().modules()]
        assert kinds == [type(part) for part in step.modules()]
        assert FrozenNorm in kinds
        assert nn.BatchNorm2d not in kinds


@pytest.mark.parametrize("kind", KINDS)
def test_the_coverage_of_anchors_equals_that_of_all_anchors(kind: str, tmp_path: Path) -> None:
    path = mixed_coco(tmp_path, images=5)
    whole = {"validation_source": str(path), "test_source": str(path)}
    data = load(settings(path, size=50, longest=70, **whole)).test
    detector = tiny(kind).eval()
    anchors = next(part for part in detector.modules() if isinstance(part, Anchors))
    expected = []
    for index in range(len(data)):
        seen, target = data.seen(index), data.annotations.target(index)
        padded = [side + -side % 8 for side in seen.shape[1:]]
        grids = [(-(-padded[0] // stride), -(-padded[1] // stride)) for stride in anchors.strides]
        placed = torch.cat(anchors(grids, torch.device("cpu"))).double()
        boxes = target["boxes"][~target["crowd"]] / data.scales[index].repeat(2)
        expected.append(box_iou(boxes, placed).amax(1))
    best = best_overlaps(detector, data)
    torch.testing.assert_close(best, torch.cat(expected))
    assert anchor_coverage(detector, data, overlap=float(best.median())) >= 0.5
    assert anchor_coverage(tiny(kind, anchor_scale=40.0), data) == 0
    scale, share = proposed_scale(detector, data)
    assert share == anchor_coverage(tiny(kind, anchor_scale=scale), data) >= anchor_coverage(detector, data)
    assert scale in SCALES


def test_ratios_are_proposed_for_long_objects(tmp_path: Path) -> None:
    """Columns and beams of which no anchor of the usual ratios covers a half."""
    boxes = [[5, 4, 4, 40 + i % 3] if i % 2 else [4, 10, 40 + i % 3, 4] for i in range(12)]
    names = [f"{i}.png" for i in range(12)]
    for name in names:
        Image.new("RGB", (64, 64)).save(tmp_path / name)
    document = {
        "images": [{"id": i, "file_name": name, "width": 64, "height": 64} for i, name in enumerate(names)],
        "annotations": [{"id": i, "image_id": i, "category_id": 1, "bbox": box} for i, box in enumerate(boxes)],
        "categories": [{"id": 1, "name": "beam"}],
    }
    path = tmp_path / "beams.json"
    write(path, document)
    data = load(DetectionData(str(path), str(tmp_path), size=64, calibration=2)).train
    detector = tiny("retinanet")
    scale, share = proposed_scale(detector, data)
    ratios, reached = proposed_ratios(detector, data, scale=scale)
    assert share < 0.5 < reached
    assert len(ratios) <= 3
    assert ratios[0] == pytest.approx(0.1, abs=0.02)
    assert ratios[-1] == pytest.approx(10, abs=1)
    fitted = tiny("retinanet", anchor_scale=scale, anchor_ratios=ratios)
    assert anchor_coverage(fitted, data) == reached
    assert proposed_ratios(detector, data, scale=scale) == (ratios, reached)
    config = DetectorRun(**{**vars(detnas_bccd()), "data": DetectionData(str(path), str(tmp_path), size=64)})
    everything = load(config.data)
    facts = dict(DetectorKind(config).tables(detector, everything)[1][2])
    said = facts["… and with the ratios of a k-means"]
    assert re.search(r"%, anchor_ratios=\[0\.[\d.,]+\]$", said)


@pytest.mark.parametrize("kind", ["retinanet", "faster-rcnn-fpn"])
def test_a_detector_has_the_anchor_ratios_that_it_is_given(kind: str) -> None:
    detector = tiny(kind, anchor_ratios=(0.2, 5.0))
    anchors = next(part for part in detector.modules() if isinstance(part, Anchors))
    assert anchors.ratios == (0.2, 5.0)
    sides = anchors.generator.generate_anchors([32], list(anchors.ratios))
    heights, widths = sides[:, 3] - sides[:, 1], sides[:, 2] - sides[:, 0]
    torch.testing.assert_close(heights / widths, torch.tensor([0.2, 5.0]), rtol=0.1, atol=0)
    network = detector.eval().subnet(sampled_arch(detector)).eval()
    with torch.no_grad():
        found = network(images(64, 64, number=1))
    assert set(found[0]) == {"boxes", "scores", "labels"}
    for wrong in ((), "1,2", (0.5, -1), (float("nan"),), (True,)):
        with pytest.raises(InputError, match=r"anchor_ratios=.*heights divided by widths"):
            tiny(kind, anchor_ratios=wrong)


def test_a_summary_counts_images_objects_and_sizes(tmp_path: Path) -> None:
    path = make_coco(tmp_path, images=4)
    data = load(settings(path, validation_source=str(path), test_source=str(path))).test
    assert summary_row(data) == ["4", "4 (1 ignored)", "1.0, at most 1", "100 % / 0 % / 0 %"]


def test_a_setting_may_hold_for_one_detector_alone() -> None:
    recipe = detnas_bccd()

    def scale(**changes: object) -> float | None:
        arguments = DetectorKind(DetectorRun(**{**vars(recipe), **changes}))._arguments(3)
        assert arguments["levels"] == 2
        return arguments.get("anchor_scale")

    assert scale() == 3
    assert scale(detector="faster-rcnn-fpn") is None  # its own, 8
    assert scale(detector="faster-rcnn-fpn", settings=("levels=2", "faster-rcnn-fpn.anchor_scale=6")) == 6


def test_a_norm_over_a_single_value_is_explained() -> None:
    """torch raises a ValueError about the shape of a tensor, in the middle of a training or of a search."""
    detector = tiny("retinanet", norm="batch", head_convs=1, image_size=32)
    arch, one = sampled_arch(detector), images(32, 32, number=1)
    loss = Detection().paths(detector.train(), (one, targets()[:1]), None, Train(), step=0, rank=0)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"single value per channel.*raise train\.batch to two"):
        loss(arch)
    pixels, zero, unit = torch.zeros(2, 3, 32, 32, dtype=torch.uint8), torch.zeros(3, 1, 1), torch.ones(3, 1, 1)
    part = Images(pixels, torch.arange(2), zero, unit)
    with pytest.raises(InputError, match="scoring_batch"):
        SharedWeights(detector.eval(), part, part, bn=Recalibrate(1, 1))([arch])
