"""The published NAS-FPN detectors."""

import torch
from torch import nn

from detection.backbone import as_backbone
from detection.detector import Detector, DetectorNetwork
from detection.nasfpn.space import wiring_arch
from detection.nasfpn.supernet import NECK, retinanet_nasfpn
from detection.resnet import resnet_50
from supernet.chain import realize
from supernet.checked import Count, Pixels, Size, checked_arguments
from supernet.errors import InputError, nearest
from supernet.space import Arch

NASFPN_NETWORKS = {"nasfpn-r50-7at256": (256, 640), "nasfpn-r50-7at384": (384, 1280)}
"""Name to channels and image size; the networks have seven repeats on ResNet-50 (Ghiasi et al., 2019, Table 1)."""
COCO_IDS = 91
"""Logits per anchor in the released TensorFlow code, one per COCO id; the published costs count as many classes."""


@checked_arguments
def published_nasfpn(
    name: str, *, num_classes: Size = COCO_IDS, image_size: Pixels | None = None, repeats: Count = 7
) -> tuple[Detector, Arch]:
    """Returns a published network as a searchable detector without initial weights and the published architecture.

    Args:
        name, num_classes, image_size, repeats: see `create_nasfpn`.

    Raises:
        InputError: there is no such network, or a number is out of range.
    """
    if name not in NASFPN_NETWORKS:
        raise InputError(f"there is no NAS-FPN network {name!r}; {nearest(name, NASFPN_NETWORKS)}")
    width, size = NASFPN_NETWORKS[name]
    side = image_size or size
    body = as_backbone(resnet_50(), levels=3)
    detector = retinanet_nasfpn(
        body, num_classes=num_classes, image_size=(side, side), head_width=width, repeats=repeats
    )
    return detector, wiring_arch("nasfpn-7", detector.space, prefix=NECK)


@checked_arguments
def create_nasfpn(
    name: str,
    *,
    num_classes: int = COCO_IDS,
    image_size: int | None = None,
    repeats: int = 7,
    generator: torch.Generator | None = None,
) -> DetectorNetwork:
    """Returns a network of `NASFPN_NETWORKS` with fresh weights; `load_backbone` loads those of a `resnet_50`.

    Args:
        name: "nasfpn-r50-7at256" or "nasfpn-r50-7at384".
        num_classes: number of classes without the background.
        image_size: height and width in pixels at which costs are counted; the published size if None.
        repeats: how often the pyramid is stacked.
        generator: source of the initial weights; torch's global generator if None.

    Raises:
        InputError: there is no such network.
    """
    with torch.device("meta"):
        detector, arch = published_nasfpn(name, num_classes=num_classes, image_size=image_size, repeats=repeats)
        network: nn.Module = detector.subnet(arch)
    network = realize(network, detector.init, generator)
    assert isinstance(network, DetectorNetwork)
    return network
