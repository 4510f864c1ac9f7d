"""Tiny detectors, images and targets for the tests of detection and of what is built on it."""

import random
from typing import Any

import torch
from torch import Tensor

from detection import Detector, DetectorNetwork, create_detector, create_detector_network
from supernet import Arch, Chain, create_supernet
from supernet.testing import randomize

KINDS = ("retinanet", "faster-rcnn-fpn")
CLASSES, WIDTH = 3, 8
BACKBONE: dict[str, Any] = {"widths": (8, 16, 32), "depths": (1, 2, 1), "stem": 4}


def tiny(kind: str, *, seed: int | None = None, **settings: Any) -> Detector:
    """A searchable detector on maps of strides 2, 4 and 8; with a seed all weights are random."""
    detector = create_detector(kind, **_tiny(kind, settings))
    if seed is not None:
        randomize(detector, seed)
    return detector


def tiny_network(kind: str, **settings: Any) -> DetectorNetwork:
    """The network of one architecture of `tiny`."""
    return create_detector_network(kind, **_tiny(kind, settings))


def _tiny(kind: str, settings: dict[str, Any]) -> dict[str, Any]:
    if kind == "faster-rcnn-fpn":
        settings = {"levels": 3, "hidden": 16, "proposals": 20, "train_proposals": 30, **settings}
    settings = {"backbone": "shufflenet-small", **settings}
    if settings["backbone"] == "shufflenet-small":
        settings = {"backbone_settings": BACKBONE, **settings}
    return {"num_classes": CLASSES, "image_size": 64, "head_width": WIDTH, **settings}


def fixed_backbone() -> Chain:
    """The network of one architecture as a chain without choices."""
    classifier = create_supernet("shufflenet-small", **BACKBONE)
    network = classifier.subnet(classifier.space.sample(random.Random(0)))
    steps = list(zip(classifier.step_names, classifier.steps_in(network), strict=True))
    return Chain("fixed", steps, input_shape=classifier.input_shape)


def images(height: int = 64, width: int = 64, *, seed: int = 0, number: int = 2) -> Tensor:
    """Normalised images, (number, 3, height, width)."""
    return torch.randn(number, 3, height, width, generator=torch.Generator().manual_seed(seed))


def targets(*, largest: int = CLASSES) -> list[dict[str, Tensor]]:
    """Targets of two images: two boxes, one of them of the largest label, and none."""
    two_boxes = {
        "boxes": torch.tensor([[3.0, 4.0, 30.0, 40.0], [10.0, 10.0, 20.0, 50.0]]),
        "labels": torch.tensor([1, largest]),
    }
    return [two_boxes, {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}]


def same(first: list[dict[str, Tensor]], second: list[dict[str, Tensor]]) -> bool:
    """Whether two lists of detections are equal to the bit."""
    return all(
        a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a) for a, b in zip(first, second, strict=True)
    )


def sampled_arch(detector: Detector, seed: int = 0) -> Arch:
    """A random architecture of a detector."""
    return detector.space.sample(random.Random(seed))
