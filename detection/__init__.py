"""Searchable detectors: backbones of classification spaces with torchvision's necks, heads and losses.

`build` creates detectors by name from a `backbone`, a neck (`pyramid`, `nasfpn`) and the steps of `retinanet` or
`faster_rcnn`; `data`, `task` and `metric` are what training and scoring need. The package may import `supernet`, but
neither `searchers` nor `tools`. Its public names are loaded on first use, so importing it loads no torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from detection.build import DETECTORS, create_detector, create_detector_network
    from detection.config import DetectorPreprocess
    from detection.cost import DetectorCosts
    from detection.detector import Detector, DetectorNetwork, backbone_of
    from detection.inputs import Labelled
    from detection.nasfpn.published import create_nasfpn
    from detection.nasfpn.space import pyramid_space, wiring_arch
    from detection.nasfpn.supernet import read_out
    from detection.weights import load_backbone

_HOME = {
    "create_detector": "detection.build",
    "create_detector_network": "detection.build",
    "DETECTORS": "detection.build",
    "load_backbone": "detection.weights",
    "backbone_of": "detection.detector",
    "Detector": "detection.detector",
    "DetectorNetwork": "detection.detector",
    "DetectorCosts": "detection.cost",
    "DetectorPreprocess": "detection.config",
    "Labelled": "detection.inputs",
    "create_nasfpn": "detection.nasfpn",
    "pyramid_space": "detection.nasfpn",
    "read_out": "detection.nasfpn",
    "wiring_arch": "detection.nasfpn",
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
    "create_detector_network",
    "create_nasfpn",
    "load_backbone",
    "pyramid_space",
    "read_out",
    "wiring_arch",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'detection' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)  # PEP 562; torchvision's detectors take seconds to load
