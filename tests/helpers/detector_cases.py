"""Tiny detectors, images and targets that several test files share."""

import random
from typing import Any

import torch
from torch import Tensor

from detection import create_detector
from detection.detector import Detector
from supernet import Arch
from supernet.testing import randomize

KINDS = ("retinanet", "faster-rcnn-fpn")
CLASSES, WIDTH = 3, 8
BACKBONE: dict[str, Any] = {"widths": (8, 16, 32), "depths": (1, 2, 1), "stem": 4}


def tiny(kind: str, *, seed: int | None = None, **settings: Any) -> Any:
    """A detector on maps of strides 2, 4 and 8, with weights far from their first ones if there is a seed."""
    if kind == "faster-rcnn-fpn":
        settings = {"levels": 3, "hidden": 16, "proposals": 20, "train_proposals": 30, **settings}
    given = {"backbone": "shufflenet-small", "backbone_settings": BACKBONE, **settings}
    if not isinstance(given["backbone"], str) or given["backbone"] != "shufflenet-small":
        given.pop("backbone_settings")
    made = create_detector(kind, num_classes=CLASSES, image_size=64, head_width=WIDTH, **given)
    if seed is not None:
        randomize(made, seed)
    return made


def images(height: int = 64, width: int = 64, *, seed: int = 0, number: int = 2) -> Tensor:
    return torch.randn(number, 3, height, width, generator=torch.Generator().manual_seed(seed))


def targets(*, largest: int = CLASSES) -> list[dict[str, Tensor]]:
    """Two boxes, one of the largest label, and an image without any."""
    some = {
        "boxes": torch.tensor([[3.0, 4.0, 30.0, 40.0], [10.0, 10.0, 20.0, 50.0]]),
        "labels": torch.tensor([1, largest]),
    }
    return [some, {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}]


def same(one: list[dict[str, Tensor]], other: list[dict[str, Tensor]]) -> bool:
    return all(
        a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a) for a, b in zip(one, other, strict=True)
    )


def drawn(detector: Detector, seed: int = 0) -> Arch:
    return detector.space.sample(random.Random(seed))
