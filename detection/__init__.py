"""Searchable detectors: the backbones of classification spaces with torchvision's necks, heads and losses."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from detection.backbone import load_backbone
    from detection.build import DETECTORS, create_detector
    from detection.cost import DetectorCosts
    from detection.detector import Detector, DetectorNetwork, backbone_of
    from detection.inputs import Labelled
    from detection.preprocess import DetectorPreprocess

_HOME = {
    "create_detector": "detection.build",
    "DETECTORS": "detection.build",
    "load_backbone": "detection.backbone",
    "backbone_of": "detection.detector",
    "Detector": "detection.detector",
    "DetectorNetwork": "detection.detector",
    "DetectorCosts": "detection.cost",
    "DetectorPreprocess": "detection.preprocess",
    "Labelled": "detection.inputs",
}

__all__ = [
    "DETECTORS",
    "Detector",
    "DetectorCosts",
    "DetectorNetwork",
    "DetectorPreprocess",
    "Labelled",
    "backbone_of",
    "create_detector",
    "load_backbone",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'detection' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)  # PEP 562: torchvision's detectors take seconds to load
