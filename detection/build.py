"""Detectors by name."""

import dataclasses
import functools
import importlib
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import nn

from detection.backbone import as_backbone, check_frozen, freeze_batch_norm
from detection.detector import Detector, DetectorNetwork
from supernet.chain import Chain, realize
from supernet.errors import InputError, nearest
from supernet.space import Arch
from supernet.spaces import GENOTYPES, SPACES, build
from supernet.spaces.create import Phase

DETECTORS: dict[str, tuple[str, int]] = {
    "retinanet": ("detection.retinanet:retinanet", 3),
    "faster-rcnn-fpn": ("detection.faster_rcnn:faster_rcnn_fpn", 4),
}
"""Name to builder, and how many levels of the backbone it reads by default (C3 to C5, C2 to C5)."""

NECKS: dict[str, dict[str, str]] = {"nasfpn": {"retinanet": "detection.nasfpn.supernet:retinanet_nasfpn"}}
"""Name of a searched neck to the detectors that have it and their builders."""


def create_detector(
    kind: str,
    *,
    backbone: str | Chain,
    neck: str = "fpn",
    num_classes: int = 80,
    image_size: int | tuple[int, int] = 800,
    arch: Mapping[str, Any] | None = None,
    phase: Phase | None = None,
    head_width: int = 256,
    levels: int | None = None,
    freeze_bn: bool = False,
    backbone_settings: Mapping[str, Any] | None = None,
    backbone_arch: Mapping[str, Any] | None = None,
    generator: torch.Generator | None = None,
    **settings: Any,
) -> Detector | DetectorNetwork:
    """A searchable detector, or with an architecture a single one, with fresh weights.

    Args:
        kind: "retinanet" or "faster-rcnn-fpn".
        backbone: a space in `SPACES`, `"package.module:builder"`, or the name of a published network in `GENOTYPES`,
            which then is the architecture; or a classification supernet, whose modules become part of the detector with
            the weights that they have.
        neck: "fpn", which decides nothing, or for RetinaNet "nasfpn", which is searched with the backbone, and alone
            on a published one; `arch` then decides on all that is searched.
        num_classes: without the background; labels are 1 to this.
        image_size: pixels, or height and width, at which costs are counted; images of other sizes are detected too.
        arch: decisions of the detector's space, or of the backbone's.
        phase: "supernet" without `arch` and "standalone" with it, where not given; see `create_supernet`.
        head_width: channels of the pyramid and the heads.
        levels: how many of the backbone's coarsest strides are read; three for RetinaNet, four for two stages.
        freeze_bn: fixed statistics, scale and shift in the backbone of a single detector, for small batches on
            pre-trained weights; load them after (`load_backbone`).
        backbone_settings: further arguments of the backbone's builder.
        backbone_arch: of a space as `backbone`: fixes it to this architecture of it, as a published name does.
        generator: of the initial weights; torch's global generator if None.
        settings: further arguments of the detector's builder, e.g. `head_convs` and `norm`.

    Returns:
        a `Detector` (a `Chain`), or with an architecture a `DetectorNetwork`.

    Raises:
        InputError: an unknown kind, backbone or setting; no architecture of this space; images smaller than the largest
            stride; frozen batch norm in a supernet; a backbone that hands on no maps of fixed shape.
    """
    published = isinstance(backbone, str) and (backbone in GENOTYPES or backbone_arch is not None)
    single = arch is not None or (published and neck not in NECKS)
    make = functools.partial(
        _build,
        kind,
        backbone,
        phase or ("standalone" if single or published else "supernet"),
        backbone_settings or {},
        backbone_arch,
        arch,
        neck=neck,
        freeze_bn=freeze_bn and not single,
        levels=levels,
        num_classes=num_classes,
        head_width=head_width,
        image_size=(image_size, image_size) if isinstance(image_size, int) else image_size,
        **settings,
    )
    made: Detector | DetectorNetwork
    if single and isinstance(backbone, str):
        with torch.device("meta"):  # the supernet that the network is cut from costs no memory
            detector, chosen = make()
            network = detector.subnet(detector.architecture(chosen or {}))
        made = cast("DetectorNetwork", realize(network, detector.init, generator))
    else:
        detector, chosen = make()
        detector.init(detector, generator)
        made = detector if chosen is None else detector.subnet(detector.architecture(chosen))
    if freeze_bn:
        freeze_batch_norm(made)
    return made


def _build(
    kind: str,
    backbone: str | Chain,
    phase: Phase,
    backbone_settings: Mapping[str, Any],
    backbone_arch: Mapping[str, Any] | None,
    arch: Mapping[str, Any] | None,
    *,
    neck: str,
    freeze_bn: bool,
    levels: int | None,
    **settings: Any,
) -> tuple[Detector, Mapping[str, Any] | None]:
    """A searchable detector without initial weights, and the architecture that is wanted of it, if one is."""
    if kind not in DETECTORS:
        raise InputError(f"there is no detector {kind!r}; {nearest(kind, DETECTORS)}")
    home, usual = DETECTORS[kind]
    if neck != "fpn":
        if kind not in NECKS.get(neck, {}):
            known = ["fpn", *(name for name, homes in NECKS.items() if kind in homes)]
            raise InputError(f"the detector {kind!r} has no neck {neck!r}; {nearest(neck, known)}")
        home = NECKS[neck][kind]
    module, _, name = home.partition(":")
    make: Callable[..., Detector] = getattr(importlib.import_module(module), name)
    if backbone_arch is not None or (neck in NECKS and isinstance(backbone, str) and backbone in GENOTYPES):
        classifier, chosen = _fixed(backbone, phase, backbone_settings, backbone_arch), arch
    else:
        classifier, chosen = _classifier(backbone, phase, backbone_settings, arch)
    if freeze_bn:
        check_frozen(classifier, [], freeze=True)
    body = as_backbone(classifier, levels=usual if levels is None else levels)
    if classifier is backbone:
        body = dataclasses.replace(body, init=_as_given)
    try:
        return make(body, **settings), chosen
    except TypeError as error:
        raise InputError(f"the detector {kind!r} does not take these settings: {error}") from error


def _as_given(module: nn.Module, generator: torch.Generator | None) -> None:
    """The weights stay as they are."""


def _classifier(
    backbone: str | Chain, phase: Phase, settings: Mapping[str, Any], arch: Mapping[str, Any] | None
) -> tuple[Chain, Mapping[str, Any] | None]:
    """The classification supernet that a backbone is cut from, and the architecture that its name stands for."""
    if isinstance(backbone, Chain):
        return backbone, arch
    if backbone not in GENOTYPES:
        if backbone not in SPACES and ":" not in backbone:
            raise InputError(f"there is no backbone {backbone!r}; {nearest(backbone, [*SPACES, *GENOTYPES])}")
        return build(backbone, phase, settings), arch
    if arch is not None:
        raise InputError(f"the backbone {backbone!r} is an architecture already; leave arch out")
    genotype = GENOTYPES[backbone]
    chain = build(genotype.space, phase, settings)
    return chain, chain.space.from_indices(genotype.indices)


def _fixed(backbone: str | Chain, phase: Phase, settings: Mapping[str, Any], arch: Mapping[str, Any] | None) -> Chain:
    """A classification network, published or of an architecture, as a chain without decisions."""
    chain, chosen = _classifier(backbone, phase, settings, arch)
    steps = zip(chain.step_names, chain.subnet(chosen or {}), strict=True)
    name = backbone if isinstance(backbone, str) and arch is None else f"{chain.space.name}-{Arch(chosen or {}).key}"
    return Chain(name, list(steps), input_shape=chain.input_shape, init=chain.init)
