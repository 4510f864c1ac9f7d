"""Any architecture carries a detector: cells that hand on two states, sums of edges, searched widths.

The cells of NASNet, PNASNet and AmoebaNet are also searched below a pyramid, and so are widths.
"""

import copy
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from detection import Detector, DetectorCosts, DetectorPreprocess, Labelled
from detection.detector import backbone_of
from detection.nasfpn.space import wiring_arch
from helpers.detector_cases import CLASSES, images, same, targets, tiny, tiny_network
from searchers import MorphNet
from supernet import Arch, Chain, SearchSpace, create_supernet
from supernet.cost import CostTable, Feasible, count
from supernet.export import export
from supernet.spaces import builder
from supernet.spaces.published_cells import CELLS, arch_of
from supernet.testing import check_space, randomize

CELL = {"filters": 4, "repeats": 1, "blocks": 2}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "nasbench201": ("nasbench201", {"channels": 4, "cells": 1}),
    "nasnet": ("nasnet-small", {**CELL, "skip_reduction": True}),
    "pnasnet": ("pnasnet-small", CELL),
    "amoebanet": ("amoebanet-search", CELL),
    "widths": ("resnet-20-widths", {"widths": (4, 6, 8), "blocks": 1}),
}

WIDTHS: dict[str, tuple[str, dict[str, Any]]] = {
    "mobilenet": (
        "mobilenetv2-widths",
        {"headroom": 1, "stem": 4, "table": ((1, 4, 1, 1), (2, 6, 2, 2), (2, 8, 1, 2), (2, 8, 1, 2)), "last": 12},
    ),
    "attentivenas": (
        "attentivenas",
        {
            "stem": (8, 16),
            "head": (8, 16),  # a decision of the classifier head, which a detector lacks
            "table": (
                ((8, 16), (1, 2), (1,), 1, False),
                ((8, 16), (1, 2), (2, 3), 2, True),
                ((16, 24), (1,), (2,), 2, True),
            ),
        },
    ),
}
"""Spaces of widths beside resnet-20-widths."""


def space_of(name: str, settings: dict[str, Any]) -> SearchSpace:
    with torch.device("meta"):
        return builder(name)(**settings).space


def check_detector(network: Any, *, side: int = 64) -> None:
    """All weights of its backbone learn, and a copy detects the same."""
    losses = network.train()(Labelled(images(side, side), targets()))
    sum(losses.values()).backward()
    unused = [name for name, p in network.named_parameters() if name.startswith("backbone") and p.grad is None]
    assert not unused
    network.eval()
    with torch.no_grad():
        first, again = (model(images(side, side)) for model in (network, copy.deepcopy(network)))
    assert same(first, again)


CHEAP = ("nasbench201", "amoebanet", "widths")


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=[] if case in CHEAP else pytest.mark.slow) for case in CASES]
)
def test_an_architecture_of_any_space_is_a_backbone(case: str) -> None:
    name, settings = CASES[case]
    arch = space_of(name, settings).sample(random.Random(5))
    backbone = {"backbone": name, "backbone_settings": settings, "backbone_arch": arch}
    check_detector(tiny_network("retinanet", **backbone))


@pytest.mark.slow
def test_a_detector_on_cells_is_exported(tmp_path: Path) -> None:
    name, settings = CASES["amoebanet"]
    arch = space_of(name, settings).sample(random.Random(5))
    network = tiny_network("retinanet", backbone=name, backbone_settings=settings, backbone_arch=arch).eval()
    names = tuple(f"class{number}" for number in range(CLASSES))
    preprocess = DetectorPreprocess(input_size=64, mean=(0.5,) * 3, std=(0.2,) * 3, classes=names)
    result = export(network, tmp_path / "folder", arch=Arch(), space="retinanet", preprocess=preprocess)
    assert result["differences"]["model.py"] == 0.0


@pytest.mark.parametrize("case", ["widths", pytest.param("amoebanet", marks=pytest.mark.slow)])
def test_a_searched_pyramid_on_a_fixed_architecture_has_costs(case: str) -> None:
    name, settings = CASES[case]
    arch = space_of(name, settings).sample(random.Random(5))
    backbone = {"backbone": name, "backbone_settings": settings, "backbone_arch": arch, "neck": "nasfpn"}
    detector = tiny("retinanet", **backbone)
    pyramid = detector.space.sample(random.Random(0))
    costs = DetectorCosts(detector)(pyramid)
    network = tiny_network("retinanet", **backbone, arch=pyramid)
    assert costs["params"] == sum(p.numel() for p in network.parameters())
    assert costs["backbone_macs"] > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cells", "space", "settings"),
    [
        ("amoebanet-a", "amoebanet-imagenet", {}),
        ("nasnet-a", "nasnet-imagenet", {"combiners": ("add",)}),
    ],
)
def test_published_cells_under_a_pyramid_of_nasfpn(cells: str, space: str, settings: dict[str, Any]) -> None:
    """As NAS-FPN was trained on AmoebaNet (Ghiasi et al., 2019, Table 1): P3 to P7, 7 merging cells."""
    settings = {"filters": 8, "repeats": 1, "input_size": 128, **settings}
    cell_arch = arch_of(CELLS[cells], space_of(space, settings))
    detector = {"neck": "nasfpn", "levels": 3, "pooled_levels": 2, "image_size": 128}
    detector |= {"backbone": space, "backbone_settings": settings, "backbone_arch": cell_arch}
    with torch.device("meta"):
        pyramids = tiny("retinanet", **detector).space
    network = tiny_network("retinanet", **detector, arch=wiring_arch("nasfpn-7", pyramids, prefix="neck"))
    check_detector(network, side=128)


# -- searched cells ---------------------------------------------------------------------------------------------------


def searched(case: str, kind: str = "retinanet", **settings: Any) -> Detector:
    name, of_space = {**CASES, **WIDTHS}[case]
    return tiny(kind, backbone=name, backbone_settings=of_space, seed=3, **settings)


@pytest.mark.parametrize(
    ("case", "neck"),
    [
        ("amoebanet", "fpn"),
        pytest.param("nasnet", "fpn", marks=pytest.mark.slow),
        pytest.param("pnasnet", "nasfpn", marks=pytest.mark.slow),
        pytest.param("amoebanet", "nasfpn", marks=pytest.mark.slow),
    ],
)
def test_cells_are_searched_in_a_detector(case: str, neck: str) -> None:
    """Their loose ends differ between architectures; a pyramid reads those that are there."""
    detector = searched(case, neck=neck, **({"repeats": 1} if neck == "nasfpn" else {}))
    archs = [detector.space.sample(random.Random(seed)) for seed in (1, 2, 3)]
    states, costs = set(), DetectorCosts(detector)
    for arch in archs:
        network = detector.eval().subnet(arch)
        with torch.no_grad():
            assert same(detector(images(), arch), network(images()))
        losses = detector.train()(Labelled(images(), targets()), arch)
        sum(losses.values()).backward()
        learnt = {id(p) for p in detector.parameters() if p.grad is not None}
        assert learnt == {id(p) for p in detector.active_parameters(arch)}
        states.add(frozenset(name for name, p in detector.named_parameters() if "states." in name and id(p) in learnt))
        detector.zero_grad(set_to_none=True)
        backbone = count(backbone_of(network), (3, 224, 224))["macs"]
        assert (costs(arch)["params"], costs(arch)["backbone_macs"]) == (
            count(network, (3, 64, 64))["params"],
            backbone,
        )
    assert len(states) > 1  # not always the same states


@pytest.mark.slow
def test_searched_cells_keep_the_contract_of_a_space() -> None:
    check_space(searched("amoebanet"), archs=1, inputs=Labelled(images(), targets()))


# -- searched widths --------------------------------------------------------------------------------------------------


def maps_of(detector: Detector, arch: Arch) -> list[int]:
    """The channels of the maps that the neck of a detector reads."""
    maps = next(layout for step, _, layout in detector.walk(arch) if step is detector.step_modules[-3])
    return [part.channels for part in maps[0]]  # type: ignore[index]


def test_the_pyramid_follows_searched_widths() -> None:
    """The channels of the maps are decisions; the 1×1 convolutions of the pyramid read the leading ones."""
    detector = searched("widths")
    archs = [detector.space.sample(random.Random(seed)) for seed in (1, 2)]
    assert maps_of(detector, archs[0]) != maps_of(detector, archs[1])
    costs = DetectorCosts(detector)
    for arch in archs:
        channels = maps_of(detector, arch)
        assert channels == [arch["backbone.stem.width"], *(arch[f"backbone.stage{s}.block0.out"] for s in (2, 3))]
        network = detector.eval().subnet(arch)
        laterals = [block[0].weight for block in network.neck.block.fpn.inner_blocks]
        assert [weight.shape[1] for weight in laterals] == channels
        with torch.no_grad():
            assert same(detector(images(), arch), network(images()))
        sum(detector.train()(Labelled(images(), targets()), arch).values()).backward()
        shared = [block[0].weight.grad for block in detector.neck.block.block.fpn.inner_blocks]
        learnt = [int(grad.abs().amax(dim=(0, 2, 3)).count_nonzero()) for grad in shared]
        assert learnt == channels  # no channel beyond them has a gradient
        detector.zero_grad(set_to_none=True)
        assert costs(arch)["params"] == count(network, (3, 64, 64))["params"]


def test_costs_of_many_widths_are_not_enumerated() -> None:
    """Each map that a pyramid reads has its own width, so the states before the neck are too many to list."""
    costs = DetectorCosts(searched("widths"))
    assert costs.extremes("macs") is None
    arch = costs.space.sample(random.Random(0))
    assert Feasible(costs, {"macs": costs(arch)["macs"]})(arch)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["widths", *WIDTHS])
@pytest.mark.parametrize(("kind", "neck"), [("retinanet", "fpn"), ("retinanet", "nasfpn"), ("faster-rcnn-fpn", "fpn")])
def test_searched_widths_keep_the_contract_of_a_space(case: str, kind: str, neck: str) -> None:
    detector = searched(case, kind, neck=neck, levels=3, **({"repeats": 1} if neck == "nasfpn" else {}))
    check_space(detector, archs=2, inputs=Labelled(images(), targets()))
    assert not any(choice.name.startswith("backbone.head") for choice in detector.space.choices)


@pytest.mark.slow
def test_widths_below_a_searched_pyramid_read_a_map_of_its_width_with_a_convolution() -> None:
    """A fixed map of the pyramid's width is read as it is; among widths it would be the only one without weights."""
    detector = searched("widths", neck="nasfpn", repeats=1)
    arch = detector.space.canonical({**detector.space.sample(random.Random(1)), "backbone.stem.width": 8})
    network = detector.eval().subnet(arch)
    assert isinstance(network.inputs.block.laterals[0][0], nn.Conv2d)
    with torch.no_grad():
        assert same(detector(images(), arch), network(images()))


@pytest.mark.slow
def test_a_detector_of_searched_widths_is_exported(tmp_path: Path) -> None:
    detector = searched("widths")
    network = detector.subnet(detector.space.sample(random.Random(1))).eval()
    names = tuple(f"class{number}" for number in range(CLASSES))
    preprocess = DetectorPreprocess(input_size=64, mean=(0.5,) * 3, std=(0.2,) * 3, classes=names)
    result = export(network, tmp_path / "folder", arch=Arch(), space="retinanet", preprocess=preprocess)
    assert result["differences"]["model.py"] == 0.0


# -- what MorphNet finds ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("neck", ["fpn", pytest.param("nasfpn", marks=pytest.mark.slow)])
def test_a_result_of_morphnet_carries_a_detector(neck: str) -> None:
    """The scales of a supernet say which channels go; what remains is the backbone of a detector."""
    name: str = "resnet-20-widths"
    settings: dict[str, Any] = {"widths": (8, 12, 16), "blocks": 1}
    net = create_supernet(name, input_size=8, **settings)
    randomize(net, 0)

    def keep(chain: Chain, arch: Arch, penalty: Any, run: str) -> None:
        """No training: the random scales, from 0.5 to 1.5, stand for trained ones."""

    table = CostTable(net)
    feasible = Feasible(table, {"macs": 0.8 * table(net.seed)["macs"]})
    morphnet = MorphNet(net.space, supernet=net, train=keep, feasible=feasible, scan=(3.0,), threshold=0.9)
    (arch,) = morphnet.ask(1)
    assert arch != net.seed
    backbone: dict[str, Any] = {"backbone": name, "backbone_settings": settings, "backbone_arch": arch, "neck": neck}
    pyramid = tiny("retinanet", **backbone).space.sample(random.Random(0)) if neck == "nasfpn" else None
    network = tiny_network("retinanet", **backbone, arch=pyramid)
    widths = [module.out_channels for module in network.backbone.modules() if isinstance(module, nn.Conv2d)]
    assert {value for value in arch.values() if value} <= set(widths)
    check_detector(network)
