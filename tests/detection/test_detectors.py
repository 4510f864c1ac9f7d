"""Detectors keep the contract of a space, share backbones with classifiers, and cost what papers report."""

import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import detection
from detection import DetectorCosts, Labelled, backbone_of, create_detector_network, load_backbone
from detection.backbone import MapStep, SearchableMapStep, as_backbone
from detection.detector import Detector
from detection.inputs import ImageBatch
from detection.pyramid import FeaturePyramid
from detection.retinanet import RetinaBoxes, RetinaPredictor, initialize_retinanet
from helpers.detector_cases import (
    BACKBONE,
    CLASSES,
    KINDS,
    WIDTH,
    images,
    same,
    sampled_arch,
    targets,
    tiny,
    tiny_network,
)
from supernet import Arch, Chain, create_supernet
from supernet.blocks.choice import ChoiceBlock
from supernet.blocks.plain import ClassifierHead, ConvBNAct
from supernet.cost import CostTable, Feasible, count
from supernet.errors import InputError
from supernet.scoring.batch_norm import recalibrate_bn
from supernet.scoring.prefix import PrefixSharing
from supernet.scoring.trie import Trie
from supernet.space import Choice, SearchSpace, compose
from supernet.spaces import GENOTYPES
from supernet.testing import check_space, randomize
from supernet.training.checkpoint import save_weights

PUBLISHED = {  # name: parameters and MACs / 1e6 of the backbone at 224×224
    "detnas-coco-fpn-300m": (1_849_664, 288.1),
    "detnas-coco-fpn-300m-alt": (1_857_344, 299.9),
    "detnas-coco-retinanet-300m": (2_041_872, 291.2),
    "detnas-voc-fpn-300m": (1_967_680, 316.4),
    "detnas-voc-retinanet-300m": (1_796_032, 327.5),
    "detnas-coco-fpn-1.3g": (8_415_168, 1269.2),
    "detnas-coco-fpn-3.8g": (26_724_356, 3937.8),
}


# -- the contract -----------------------------------------------------------------------------------------------------

CASES: dict[str, Callable[[], Detector]] = {
    **{kind: lambda kind=kind: tiny(kind) for kind in KINDS},  # type: ignore[misc]
    "elastic-with-batch-norm": lambda: tiny("retinanet", backbone=_elastic(), head_convs=1, norm="batch"),
    "searched-neck": lambda: _searched_neck(),
}


def _elastic() -> Chain:
    """A backbone of sliced convolutions; channels within blocks are searched, channels between blocks are fixed."""
    from supernet.spaces.shufflenet import channel_choice, shuffle_stages

    steps: list[tuple[str, nn.Module]] = [("stem", ConvBNAct(3, 4, kernel=3))]
    steps += shuffle_stages(4, (8, 16, 32), (1, 1, 1), shuffle="parity", affine=True, block=channel_choice)
    return Chain("elastic", [*steps, ("head", ClassifierHead(32, 5, hidden=8))], input_shape=(3, 64, 64))


def _searched_neck() -> Detector:
    """A detector whose neck has a choice of its own in addition to the backbone's."""
    classifier = create_supernet("shufflenet-small", **BACKBONE)
    backbone = as_backbone(classifier, levels=2)
    channels = tuple(backbone.out_channels.values())
    pyramids = {norm: FeaturePyramid(channels, WIDTH, norm=norm) for norm in ("none", "batch")}  # type: ignore[arg-type]
    strides = tuple(backbone.out_channels)
    steps: list[tuple[str, nn.Module]] = [
        ("neck", SearchableMapStep(ChoiceBlock(pyramids), "all")),
        ("head", RetinaPredictor(WIDTH, 1, CLASSES, levels=2, convs=1)),
        ("boxes", RetinaBoxes(strides, ((8,), (16,)), (1.0,))),
    ]
    batch = ImageBatch(divisor=8, stride=8, classes=CLASSES)
    return Detector("toy", backbone, batch, steps, image_size=(64, 64), heads_init=initialize_retinanet)


@pytest.mark.parametrize("case", CASES)
def test_detectors_keep_the_contract_of_a_space(case: str) -> None:
    """Losses and detections of supernet and subnet, gradients, layouts, storage, source and costs."""
    check_space(CASES[case](), archs=1, inputs=Labelled(images(), targets()))


def test_decisions_have_the_names_and_forms_of_the_classification_space() -> None:
    classifier = create_supernet("nasbench-macro", input_size=32)
    detector = tiny("retinanet", backbone=classifier, levels=2)
    assert [choice.name for choice in detector.space.choices] == [
        f"backbone.{c.name}" for c in classifier.space.choices
    ]
    arch = classifier.space.sample(random.Random(3))
    assert detector.space.normal_form(detector.architecture(arch)).sub("backbone") == classifier.space.normal_form(arch)
    assert detector.architecture(detector.architecture(arch)) == detector.architecture(arch)
    assert [choice.name for choice in CASES["searched-neck"]().space.choices][-1] == "neck.op"


def test_names_may_lack_the_prefix_of_their_part() -> None:
    joint = _searched_neck()
    arch = joint.space.sample(random.Random(2))
    bare = {name.partition(".")[2]: value for name, value in arch.items()}
    assert "op" in bare
    assert joint.architecture(arch) == joint.architecture(bare) == joint.architecture({**bare, "neck.op": bare["op"]})
    assert joint.architecture(bare) == arch
    with pytest.raises(InputError, match="no choice 'ops'"):
        joint.architecture({**bare, "ops": "none"})
    neck = SearchSpace("neck", [Choice("op", ("none", "batch"))])
    joint.space = compose("twice", {"one": neck, "two": neck})
    with pytest.raises(InputError, match=r"'op' is a choice in several parts .* \['one\.op', 'two\.op'\]"):
        joint.architecture({"op": "none"})


class DifferentInTraining(ChoiceBlock):
    """A choice whose materialised copy computes something else, but only in training mode."""

    def materialize(self, arch: Arch, layout: Any) -> nn.Module:
        return nn.Sequential(super().materialize(arch, layout), nn.Dropout(0.5))


def test_the_contract_covers_training_mode() -> None:
    """A detector whose networks differ in training mode only fails the check."""
    detector = tiny("retinanet", seed=1)
    for step in detector.step_modules:
        if isinstance(step, SearchableMapStep):
            step.block.__class__ = DifferentInTraining
    with pytest.raises(AssertionError, match="in training mode"):
        check_space(detector, archs=1, inputs=Labelled(images(), targets()))


def test_targets_may_be_an_argument_or_part_of_the_input() -> None:
    for kind in KINDS:
        detector = tiny(kind, seed=2).train()
        arch, losses = sampled_arch(detector), []
        network = detector.subnet(arch)
        for call in (
            lambda: detector(images(), arch, targets()),  # noqa: B023
            lambda: network(images(), targets()),  # noqa: B023
            lambda: network(Labelled(images(), targets())),  # noqa: B023
        ):
            torch.manual_seed(0)
            losses.append(call())
        first, *others = losses
        for other in others:
            assert first.keys() == other.keys()
            assert all(torch.equal(first[name], other[name]) for name in first)
        assert all(value.ndim == 0 and value.isfinite() and value > 0 for value in first.values())


def test_a_shared_prefix_is_calibrated_and_run_once_with_the_same_detections() -> None:
    for kind in KINDS:
        detector = tiny(kind, seed=3).eval()
        first = sampled_arch(detector)
        other = Arch({**first, "backbone.stage3.block0.op": "shuffle3"})
        archs = [first, other]
        calibration = [images(seed=seed) for seed in (5, 6)]
        sharing = PrefixSharing(detector, memory_format=torch.contiguous_format)
        trie = Trie(detector, archs)
        assert trie.size < len(archs) * len(detector.step_modules)
        outputs: dict[int, Any] = {}
        sharing.calibrate(trie, calibration)
        sharing.outputs(trie, [images(seed=9)], outputs.__setitem__)
        for number, arch in enumerate(archs):
            network = detector.subnet(arch)
            recalibrate_bn(network, calibration)
            with torch.no_grad():
                expected = network(images(seed=9))
            assert same(outputs[number], expected)
            assert sum(len(image["boxes"]) for image in expected) > 0


# -- backbones --------------------------------------------------------------------------------------------------------


def test_a_backbone_returns_the_maps_of_the_classifier() -> None:
    classifier = create_supernet("shufflenet-small", **BACKBONE)
    randomize(classifier, seed=4)
    classifier.eval()
    detector = tiny("retinanet")
    load_backbone(detector, classifier)
    arch = classifier.space.sample(random.Random(1))
    x = images()
    state, expected = x, {}
    with torch.no_grad():
        for name, step in classifier.steps[:-1]:
            state = step(state, arch.sub(name)) if hasattr(step, "space") else step(state)
            expected[64 // state.shape[-1]] = state  # ends with the last map at each stride
        maps, *_ = backbone_of(detector).eval()(x, detector.architecture(arch))
    assert list(detector.out_channels.items()) == [(2, 8), (4, 16), (8, 32)]
    assert [m.shape[1] for m in maps] == [8, 16, 32]
    assert all(torch.equal(m, expected[stride]) for m, stride in zip(maps, (2, 4, 8), strict=True))


def test_weights_are_loaded_by_name_from_supernets_subnets_and_files(tmp_path: Path) -> None:
    classifier = create_supernet("shufflenet-small", **BACKBONE)
    randomize(classifier, seed=5)
    save_weights(tmp_path / "supernet.safetensors", classifier, {})
    arch = classifier.space.sample(random.Random(2))
    from_file, from_supernet = tiny("retinanet"), tiny("retinanet", backbone=classifier)
    load_backbone(from_file, tmp_path / "supernet.safetensors")
    network = tiny_network("retinanet", arch=arch, phase="supernet")
    load_backbone(network, classifier.subnet(arch))
    copied = tiny_network("retinanet", backbone=classifier, arch=arch)
    assert all(map(torch.equal, copied[1].state_dict().values(), network[1].state_dict().values()))
    of_file, of_supernet = (
        backbone_of(detector).eval()(images(), detector.architecture(arch))[0]
        for detector in (from_file, from_supernet)
    )
    of_network = backbone_of(network).eval()(images())[0]
    for maps in zip(of_file, of_supernet, of_network, strict=True):
        assert torch.equal(maps[0], maps[1])
        assert torch.equal(maps[0], maps[2])
    with pytest.raises(InputError, match=r"another backbone: tensor 'stage1\.block0\.main.* give supernet\.subnet"):
        load_backbone(network, classifier)
    with pytest.raises(InputError, match="does not exist"):
        load_backbone(network, tmp_path / "none.safetensors")


def test_published_backbones_have_four_levels() -> None:
    with torch.device("meta"):
        classifier = create_supernet("detnas-300m")
    assert as_backbone(classifier, levels=4).out_channels == {4: 64, 8: 160, 16: 320, 32: 640}
    with pytest.raises(InputError, match=r"on 6 levels.*has \[2, 4, 8, 16, 32\]"):
        as_backbone(classifier, levels=6)


def _check_published(kind: str, name: str) -> None:
    network = create_detector_network(kind, backbone=name, num_classes=80, image_size=256)
    costs = count(backbone_of(network), (3, 224, 224))
    assert (costs["params"], round(costs["macs"] / 1e6, 1)) == PUBLISHED[name]
    with torch.no_grad():
        detections = network.eval()(images(256, 256, number=1))
    assert detections[0]["boxes"].shape[1] == 4


def test_a_published_backbone_has_the_published_costs() -> None:
    _check_published("retinanet", "detnas-coco-retinanet-300m")


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", PUBLISHED)
def test_all_published_backbones_in_both_detectors(kind: str, name: str) -> None:
    _check_published(kind, name)


def test_all_published_backbones_of_detnas_are_tested() -> None:
    assert PUBLISHED.keys() == {name for name in GENOTYPES if name.startswith("detnas")}


# -- costs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_costs_equal_those_of_the_network_and_of_its_backbone(kind: str) -> None:
    detector = tiny(kind)
    table, plain, backbone = (
        DetectorCosts(detector),
        CostTable(detector),
        CostTable(backbone_of(detector), (3, 224, 224)),
    )
    for seed in range(2):
        arch = sampled_arch(detector, seed)
        costs = table(arch)
        network = tiny_network(kind, arch=arch)
        assert {name: costs[name] for name in plain.costs} == plain(arch) == count(network, (3, 64, 64))
        assert costs["backbone_macs"] == backbone(arch)["macs"]
        assert costs["backbone_macs"] == count(backbone_of(network), (3, 224, 224))["macs"]
        assert costs["params"] == sum(p.numel() for p in network.parameters())
    low, high = table.extremes("backbone_macs") or (0, 0)
    assert low < high
    feasible = Feasible(table, {"backbone_macs": (low + high) // 2})
    assert 0 < (feasible.count() or 0) < detector.space.size()
    assert table(feasible.sample(random.Random(0)))["backbone_macs"] <= (low + high) // 2


def test_costs_count_the_box_head_for_every_proposal() -> None:
    arch = sampled_arch(tiny("faster-rcnn-fpn"))
    ten, twenty = (CostTable(tiny("faster-rcnn-fpn", proposals=n))(arch)["macs"] for n in (10, 20))
    convolutions = 4 * 49 * 9 * WIDTH * WIDTH
    assert twenty - ten == 10 * (convolutions + 49 * WIDTH * 16 + 16 * (CLASSES + 1) * 5)


def test_importing_the_package_loads_no_torch() -> None:
    code = "import detection, sys; sys.exit(int('torch' in sys.modules or 'torchvision' in sys.modules))"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert all(getattr(detection, name) is not None for name in detection.__all__)
    with pytest.raises(AttributeError, match="no_such_name"):
        detection.no_such_name  # noqa: B018


def test_networks_have_no_searchable_steps() -> None:
    network = tiny_network("retinanet", arch=sampled_arch(tiny("retinanet")))
    assert [type(part) for part in network.modules() if isinstance(part, MapStep)] == [MapStep] * 6
