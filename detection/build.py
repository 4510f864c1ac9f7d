"""Creation of detectors by name: searchable ones, and networks of single architectures."""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypedDict, Unpack, cast, get_type_hints

import torch
from torch import nn

from detection.backbone import as_backbone, check_frozen, freeze_batch_norm, freeze_stages
from detection.detector import Detector, DetectorNetwork
from detection.faster_rcnn import faster_rcnn_fpn
from detection.nasfpn.supernet import Gate, retinanet_nasfpn
from detection.pyramid import Norm
from detection.retinanet import retinanet
from detection.timm_backbone import feature_steps, is_timm, timm_backbone
from supernet import plugins
from supernet.chain import Chain, announce, realize, step_layout
from supernet.checked import checked_arguments, is_number, is_whole
from supernet.errors import InputError, nearest
from supernet.space import Arch
from supernet.spaces import GENOTYPES, SPACES, build
from supernet.spaces.create import Phase
from supernet.spaces.elastic import ElasticChain

Kind = Literal["retinanet", "faster-rcnn-fpn"]
Neck = Literal["fpn", "nasfpn"]

DETECTORS: dict[str, dict[str, Callable[..., Detector]]] = {
    "retinanet": {"fpn": retinanet, "nasfpn": retinanet_nasfpn},
    "faster-rcnn-fpn": {"fpn": faster_rcnn_fpn},
}
"""Kind of detector to its necks and the builder with each. The keyword arguments of a builder are its settings."""

SEARCHED_NECKS = ("nasfpn",)
"""Necks with choices of their own."""

MOST_RATIOS = 20
"""Of anchors at one position and size."""
LEVELS = {"retinanet": 3, "faster-rcnn-fpn": 4}
"""How many of the backbone's coarsest strides a detector reads by default: C3 to C5, C2 to C5."""

_ARGUMENTS = ("num_classes", "image_size", "head_width")
"""Keyword arguments of every builder that `create_detector` has arguments for."""


class DetectorSettings(TypedDict, total=False):
    """Settings of the builders; each builder's docstring explains those it takes."""

    # all detectors
    head_convs: int
    norm: Norm
    anchor_scale: float
    anchor_ratios: Sequence[float]
    score_threshold: float
    candidates: int
    overlap: float
    detections: int
    # retinanet
    positive: float
    negative: float
    focal_alpha: float
    focal_gamma: float
    box_weight: float
    huber: float
    # retinanet with the neck nasfpn
    repeats: int
    cells: int
    pooled_levels: int
    anytime: bool
    ops: Sequence[str]
    ordered: bool
    gate: Gate
    bias: bool
    drop_block: float
    drop_block_size: int
    # faster-rcnn-fpn
    region_convs: int
    hidden: int
    proposals: int
    train_proposals: int
    train_candidates: int


@checked_arguments
def create_detector(
    kind: Kind | str,
    *,
    backbone: str | Chain,
    neck: Neck | str = "fpn",
    num_classes: int = 80,
    image_size: int | tuple[int, int] = 800,
    phase: Phase | None = None,
    head_width: int = 256,
    levels: int | None = None,
    freeze_bn: bool = False,
    frozen_stages: int = 0,
    backbone_settings: Mapping[str, Any] | None = None,
    backbone_arch: Mapping[str, Any] | None = None,
    generator: torch.Generator | None = None,
    searched: bool = True,
    **settings: Unpack[DetectorSettings],
) -> Detector:
    """Returns a searchable detector with fresh weights; `create_detector_network` returns that of one architecture.

    Args:
        kind: "retinanet" or "faster-rcnn-fpn".
        backbone: a space in `SPACES` or `"package.module:builder"`; a classification supernet, whose modules become
            part of the detector and keep their weights; or, if the neck is searched, what is fixed: the name of a
            published network in `GENOTYPES`, or "timm:NAME" for a network of timm (see
            `detection.timm_backbone.timm_backbone`).
        neck: "fpn", which has no choices, or for RetinaNet "nasfpn", which is searched together with the backbone, or
            alone if the backbone is fixed.
        num_classes: number of classes without the background; labels run from 1 to this number.
        image_size: pixels, or height and width, at which costs are counted; images of any other size are detected too.
        phase: which layers the backbone's builder makes; "standalone" for a fixed backbone and "supernet" otherwise if
            None. See `create_supernet`.
        head_width: channels of the pyramid and the heads.
        levels: how many of the backbone's coarsest strides are read; by default 3 for RetinaNet, 4 for Faster R-CNN.
        freeze_bn: fixes statistics, scale and shift of batch norm in a fixed backbone; load its weights afterwards
            (`load_backbone`).
        frozen_stages: fixes the weights of the first stages, this many, of a fixed backbone (see
            `detection.backbone.freeze_stages`).
        backbone_settings: further arguments of the backbone's builder.
        backbone_arch: an architecture of the backbone's space; fixes the backbone to it.
        generator: source of the initial weights; torch's global generator if None.
        searched: whether something must be left to search; False also returns a detector without choices.
        settings: settings of the detector's builder. All detectors take head_convs, norm, anchor_scale,
            anchor_ratios, score_threshold, candidates, overlap and detections. RetinaNet takes positive, negative,
            focal_alpha, focal_gamma, box_weight and huber, with the neck "nasfpn" also repeats, cells, pooled_levels,
            anytime, ops, ordered, gate, bias, drop_block and drop_block_size. Faster R-CNN takes region_convs, hidden,
            proposals, train_proposals and train_candidates.
            They are explained in `detection.retinanet.retinanet`, `detection.nasfpn.supernet.retinanet_nasfpn` and
            `detection.faster_rcnn.faster_rcnn_fpn`.

    Raises:
        InputError: unknown kind, neck, backbone or setting; neither the backbone nor the neck is searched; images
            smaller than the largest stride; frozen batch norm in a searched backbone; a searched backbone that resizes
            images or has tokens in place of maps.
    """
    if "arch" in settings:
        raise InputError(
            "create_detector makes a searchable detector and takes no arch; for the network of one architecture call "
            "create_detector_network"
        )
    detector_builder(kind, neck)  # an unknown kind or neck is the first thing to report
    _check_backbone(backbone, backbone_settings)
    fixed = _is_fixed(backbone, backbone_arch)
    if searched and fixed and neck not in SEARCHED_NECKS:
        raise InputError(
            f"there is nothing to search: the backbone {_name(backbone)!r} is fixed, and the neck {neck!r} has no "
            "choices; give a space as backbone or neck='nasfpn', or call create_detector_network"
        )
    detector = _build(
        kind,
        backbone,
        neck=neck,
        phase=phase or ("standalone" if fixed else "supernet"),
        backbone_settings=backbone_settings or {},
        backbone_arch=backbone_arch,
        levels=levels,
        freeze_bn=freeze_bn,
        num_classes=num_classes,
        image_size=image_size,
        head_width=head_width,
        **settings,
    )
    detector.initialize(generator)
    if freeze_bn:
        freeze_batch_norm(detector)
    freeze_stages(detector, detector.backbone_strides, frozen_stages)
    if isinstance(backbone, str) and not fixed and phase != "standalone":
        detector.standalone = functools.partial(  # the layers of the networks, whose parameters are counted
            _build,
            kind,
            backbone,
            neck=neck,
            phase="standalone",
            backbone_settings=backbone_settings or {},
            backbone_arch=None,
            levels=levels,
            freeze_bn=False,
            num_classes=num_classes,
            image_size=image_size,
            head_width=head_width,
            **settings,
        )
    return detector


@checked_arguments
def create_detector_network(
    kind: Kind | str,
    *,
    backbone: str | Chain,
    arch: Mapping[str, Any] | None = None,
    neck: Neck | str = "fpn",
    num_classes: int = 80,
    image_size: int | tuple[int, int] = 800,
    phase: Phase = "standalone",
    head_width: int = 256,
    levels: int | None = None,
    freeze_bn: bool = False,
    frozen_stages: int = 0,
    backbone_settings: Mapping[str, Any] | None = None,
    backbone_arch: Mapping[str, Any] | None = None,
    generator: torch.Generator | None = None,
    **settings: Unpack[DetectorSettings],
) -> DetectorNetwork:
    """Returns the detector of one architecture with fresh weights, ready to be trained from scratch.

    The supernet that it is cut from exists on the meta device only, unless the backbone is a supernet itself.

    Args:
        backbone: as in `create_detector`; of a classification supernet the network has copies of the weights.
        arch: decisions of the detector's space, of the backbone's, or of the neck's if the backbone is fixed. None if
            nothing is left to decide: the backbone is fixed and the neck has no choices.
        freeze_bn: fixes statistics, scale and shift of batch norm in the backbone, for small batches on pre-trained
            weights; load these afterwards (`load_backbone`).
        frozen_stages: fixes the weights of the first stages, this many, of the backbone, also with its batch norm.
        kind, neck, num_classes, image_size, phase, head_width, levels, backbone_settings, backbone_arch, generator,
        settings: as in `create_detector`.

    Raises:
        InputError: as in `create_detector`; `arch` is missing or is not an architecture of this detector.
    """
    detector_builder(kind, neck)
    _check_backbone(backbone, backbone_settings)
    if arch is not None and _is_fixed(backbone, backbone_arch) and neck not in SEARCHED_NECKS:
        raise InputError(f"the backbone {_name(backbone)!r} is fixed to one architecture already; leave arch out")

    def build_supernet() -> Detector:
        return _build(
            kind,
            backbone,
            neck=neck,
            phase=phase,
            backbone_settings=backbone_settings or {},
            backbone_arch=backbone_arch,
            levels=levels,
            freeze_bn=False,  # batch norm is frozen in the network alone
            num_classes=num_classes,
            image_size=image_size,
            head_width=head_width,
            **settings,
        )

    if isinstance(backbone, Chain):
        detector = build_supernet()
        detector.init(detector, generator)
        network = _subnet(detector, arch)
    else:
        with torch.device("meta"):
            detector = build_supernet()
            network = _subnet(detector, arch)
        network = cast("DetectorNetwork", realize(network, detector.init, generator))
    if freeze_bn:
        freeze_batch_norm(network)
    freeze_stages(network, detector.backbone_strides, frozen_stages)
    return network


def detector_builder(kind: str, neck: str = "fpn") -> Callable[..., Detector]:
    """Returns the function that builds a detector on a backbone; its keyword arguments are the detector's settings.

    Raises:
        InputError: there is no such detector, or it has no such neck.
    """
    if kind not in DETECTORS:
        raise InputError(f"there is no detector {kind!r}; {nearest(kind, DETECTORS)}")
    if neck not in DETECTORS[kind]:
        raise InputError(f"the detector {kind!r} has no neck {neck!r}; {nearest(neck, DETECTORS[kind])}")
    return DETECTORS[kind][neck]


def _check_backbone(backbone: object, settings: object) -> None:
    """Raises `InputError` unless these can be a backbone and its settings."""
    if not isinstance(backbone, str | Chain):
        raise InputError(
            f"backbone={backbone!r} should be the name of a space or a supernet, as create_supernet returns"
        )
    if settings is not None and not isinstance(settings, Mapping):
        raise InputError(f"backbone_settings={settings!r} should be a dictionary of the builder's arguments")


def _build(
    kind: str,
    backbone: str | Chain,
    *,
    neck: str,
    phase: Phase,
    backbone_settings: Mapping[str, Any],
    backbone_arch: Mapping[str, Any] | None,
    levels: int | None,
    freeze_bn: bool,
    image_size: int | tuple[int, int],
    **settings: Any,
) -> Detector:
    """Returns a searchable detector without initial weights."""
    builder = detector_builder(kind, neck)
    known = [name for name in inspect.signature(builder).parameters if name != "backbone"]
    for name in settings:
        if name not in known:
            settable = [name for name in known if name not in _ARGUMENTS]
            raise InputError(
                f"the detector {kind!r} with the neck {neck!r} has no setting {name!r}; {nearest(name, settable)}"
            )
    _check_numbers(image_size, settings)
    if _is_fixed(backbone, backbone_arch):
        classifier = _fixed_classifier(backbone, phase, backbone_settings, backbone_arch)
    else:
        classifier = _classifier(backbone, phase, backbone_settings)
    if freeze_bn:
        check_frozen(classifier, [], freeze=True)
    body = as_backbone(classifier, levels=LEVELS[kind] if levels is None else levels, width=settings.get("head_width"))
    if isinstance(backbone, Chain):
        body = dataclasses.replace(body, init=_keep_weights, starts_alike=False)
    sides = (image_size, image_size) if isinstance(image_size, int) else image_size
    return builder(body, image_size=sides, **settings)


_LEAST = {"head_convs": 0, "region_convs": 0, "pooled_levels": 0}
"""Settings that may be less than 1."""

_SHARES = ("score_threshold", "overlap", "positive", "negative", "focal_alpha", "drop_block")
"""Settings from 0 to 1."""


def _check_numbers(image_size: object, settings: Mapping[str, Any]) -> None:
    """Raises `InputError` for numbers that no detector can have."""
    sides = (image_size, image_size) if isinstance(image_size, int) else image_size
    if not isinstance(sides, Sequence) or len(sides) != 2 or not all(is_whole(side, 1, 2**14) for side in sides):
        raise InputError(f"image_size={image_size!r} should be pixels from 1 to {2**14:,}, or height and width")
    kinds = get_type_hints(DetectorSettings)
    for name, value in settings.items():
        kind, least = kinds.get(name, int), _LEAST.get(name, 1)
        if kind is int and not is_whole(value, least, 10**6):
            raise InputError(f"{name}={value!r} should be an integer from {least} to {10**6:,}")
        high = 1.0 if name in _SHARES else 1e6
        if kind is float and not is_number(value, 0, high):
            raise InputError(f"{name}={value!r} should be a number from 0 to {high:g}")
    if settings.get("anchor_scale", 1) == 0:
        raise InputError("anchor_scale=0 makes anchors without area; give a number above 0")
    ratios = settings.get("anchor_ratios", (1.0,))
    listed = isinstance(ratios, Sequence) and not isinstance(ratios, str) and 0 < len(ratios) <= MOST_RATIOS
    if not listed or not all(is_number(ratio, 0.01, 100.0) for ratio in ratios):
        raise InputError(
            f"anchor_ratios={ratios!r} should be 1 to {MOST_RATIOS} numbers, heights divided by widths, each from 0.01 "
            "to 100, such as [0.5, 1, 2]"
        )


def _subnet(detector: Detector, arch: Mapping[str, Any] | None) -> DetectorNetwork:
    if arch is None and detector.space.choices:
        raise InputError(
            f"the detector {detector.space.name!r} has {len(detector.space.choices)} choices; give arch, or call "
            "create_detector for a searchable detector"
        )
    return detector.subnet(detector.architecture(arch or {}))


def _keep_weights(module: nn.Module, generator: torch.Generator | None) -> None:
    """Initialises nothing, for a backbone that brings its weights."""


def _is_fixed(backbone: str | Chain, backbone_arch: Mapping[str, Any] | None) -> bool:
    """Whether a backbone is given as a single architecture."""
    return backbone_arch is not None or (isinstance(backbone, str) and (backbone in GENOTYPES or is_timm(backbone)))


def _name(backbone: str | Chain) -> str:
    return backbone if isinstance(backbone, str) else backbone.space.name


def _classifier(backbone: str | Chain, phase: Phase, settings: Mapping[str, Any]) -> Chain:
    """Returns the classification supernet that a backbone is cut from."""
    if isinstance(backbone, Chain):
        return backbone
    if backbone not in SPACES and backbone not in plugins.plugins(plugins.SPACES) and ":" not in backbone:
        raise InputError(f"there is no backbone {backbone!r}; {nearest(backbone, [*SPACES, *GENOTYPES])}")
    chain = build(backbone, phase, settings)
    return feature_steps(chain) if isinstance(chain, ElasticChain) else chain


def _fixed_classifier(
    backbone: str | Chain, phase: Phase, settings: Mapping[str, Any], arch: Mapping[str, Any] | None
) -> Chain:
    """Returns a classification network as a chain without choices: published, of timm, or that of an architecture."""
    if is_timm(backbone):
        if arch is not None or settings:
            raise InputError(f"the backbone {backbone!r} has neither decisions nor settings; leave them out")
        return timm_backbone(str(backbone))
    if isinstance(backbone, str) and backbone in GENOTYPES:
        if arch is not None:
            raise InputError(f"the backbone {backbone!r} is an architecture already; leave backbone_arch out")
        genotype = GENOTYPES[backbone]
        own = {name: value for name, value in settings.items() if value is not None}
        chain = build(genotype.space, phase, {**genotype.settings, **own})
        name, arch = backbone, chain.space.from_indices(genotype.indices)
    else:
        assert arch is not None
        chain = _classifier(backbone, phase, settings)
        name = f"{chain.space.name}-{Arch(arch).key}"
    walked = chain.walk(chain.space.canonical(arch))
    layouts = [step_layout(step, sub, before) for step, sub, before in walked]
    modules = map(announce, chain.steps_in(chain.subnet(arch)), layouts)
    steps = list(zip(chain.step_names, modules, strict=True))
    return Chain(name, steps, input_shape=chain.input_shape, init=chain.init)
