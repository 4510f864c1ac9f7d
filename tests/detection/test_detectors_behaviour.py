"""Detectors compute what torchvision's do, name wrong input, are initialised as published, and learn."""

import copy
import inspect
import random
import re
from collections import OrderedDict
from collections.abc import Callable
from inspect import Parameter
from typing import Any, get_type_hints

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import FeaturePyramidNetwork, FrozenBatchNorm2d, MultiScaleRoIAlign, remove_small_boxes
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

from detection import DetectorNetwork, Labelled, backbone_of, create_detector, create_detector_network, load_backbone
from detection.backbone import freeze_batch_norm
from detection.build import DETECTORS, DetectorSettings
from detection.faster_rcnn import ConvFCHead, RegionBoxes, faster_rcnn_fpn
from detection.nasfpn.supernet import retinanet_nasfpn
from detection.pyramid import Anchors, FeaturePyramid
from detection.retinanet import SMALLEST, RetinaBoxes, RetinaHead, retinanet
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
from supernet import Chain, create_network, create_supernet
from supernet.blocks.choice import ChoiceBlock
from supernet.blocks.plain import ClassifierHead, ConvBNAct
from supernet.chain import Layout
from supernet.errors import InputError
from supernet.scoring.batch_norm import recalibrate_bn
from supernet.testing import randomize

# -- torchvision's own ------------------------------------------------------------------------------------------------


class Body(nn.Module):
    """Our backbone with torchvision's feature pyramid, in the form that torchvision's detectors expect."""

    def __init__(self, network: DetectorNetwork, extra: nn.Module) -> None:
        super().__init__()
        self.body = copy.deepcopy(backbone_of(network))
        self.out_channels = WIDTH
        norm = nn.BatchNorm2d if isinstance(extra, LastLevelMaxPool) else None
        self.fpn = FeaturePyramidNetwork([8, 16, 32], WIDTH, extra, norm)
        self.fpn.load_state_dict(_step(network, FeaturePyramid).fpn.state_dict())

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        batch = Labelled(x, targets(largest=1)[:1] * len(x)) if self.training else x
        maps = self.body(batch)[0]
        pyramid: dict[str, Tensor] = self.fpn(OrderedDict((str(level), m) for level, m in enumerate(maps)))
        return pyramid


def _step(network: nn.Module, kind: type) -> Any:
    return next(part for part in network.modules() if isinstance(part, kind))


IMAGES_UNCHANGED = {
    "min_size": 64,
    "max_size": 96,
    "image_mean": [0.0] * 3,
    "image_std": [1.0] * 3,
    "size_divisible": 32,
    "_skip_resize": True,  # it would draw a size for every training image from the generator that samples anchors
}


def _torchvisions(kind: str, network: DetectorNetwork) -> nn.Module:
    """torchvision's own detector with the weights of ours."""
    ratios = ((0.5, 1.0, 2.0),)
    if kind == "retinanet":
        sides = [tuple(int(4 * s * 2 ** (octave / 3)) for octave in range(3)) for s in (2, 4, 8, 16, 32)]
        anchors = AnchorGenerator(tuple(sides), ratios * 5)
        head = RetinaNetHead(WIDTH, 9, CLASSES)
        head.load_state_dict(_step(network, RetinaHead).head.state_dict())
        body = Body(network, LastLevelP6P7(WIDTH, WIDTH))
        return RetinaNet(body, num_classes=CLASSES, anchor_generator=anchors, head=head, **IMAGES_UNCHANGED)
    last = network[-1]
    region_head = RPNHead(WIDTH, 3)
    region_head.load_state_dict(network[-2].head.state_dict())
    box_head = FastRCNNConvFCHead((WIDTH, 7, 7), [WIDTH] * 4, [16], nn.BatchNorm2d)
    box_head.load_state_dict(last.roi.box_head.layers.state_dict())
    predictor = FastRCNNPredictor(16, CLASSES + 1)
    predictor.load_state_dict(last.roi.box_predictor.state_dict())
    return FasterRCNN(
        Body(network, LastLevelMaxPool()),
        rpn_anchor_generator=AnchorGenerator(tuple((8 * s,) for s in (2, 4, 8, 16)), ratios * 4),
        rpn_head=region_head,
        box_roi_pool=MultiScaleRoIAlign(["0", "1", "2"], 7, 2),
        box_head=box_head,
        box_predictor=predictor,
        rpn_post_nms_top_n_test=20,
        rpn_post_nms_top_n_train=30,
        **IMAGES_UNCHANGED,
    )


def _begins_like(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    """Whether detections are torchvision's, whose RetinaNet also returns boxes without area, which take up places."""
    kept = remove_small_boxes(theirs["boxes"], SMALLEST)
    assert len(kept) > len(theirs["boxes"]) / 2
    return all(torch.equal(ours[name][: len(kept)], theirs[name][kept]) for name in ours)


@pytest.mark.parametrize("kind", KINDS)
def test_detectors_compute_what_torchvisions_do(kind: str) -> None:
    """Detections, losses and number of parameters are equal; the labels of torchvision's RetinaNet start at 0."""
    detector = tiny(kind, seed=6)
    ours = detector.subnet(sampled_arch(detector)).eval()
    theirs = _torchvisions(kind, ours).eval()
    assert sum(p.numel() for p in theirs.parameters()) == sum(p.numel() for p in ours.parameters())
    shift = 1 if kind == "retinanet" else 0
    x = images(64, 96)
    with torch.no_grad():
        detections, expected = ours(x), theirs(list(x))
    assert all(len(image["boxes"]) > 10 for image in detections)
    assert all(map(_begins_like, detections, [{**image, "labels": image["labels"] + shift} for image in expected]))
    torch.manual_seed(0)
    losses = ours.train()(list(x), targets())
    torch.manual_seed(0)
    shifted = [{**target, "labels": target["labels"] - shift} for target in targets()]
    expected_losses = theirs.train()(list(x), shifted)
    assert losses.keys() == expected_losses.keys()
    for name, loss in losses.items():
        torch.testing.assert_close(loss, expected_losses[name], rtol=1e-6, atol=0)


def test_anchors_are_torchvisions_if_strides_divide_the_size_and_centred_otherwise() -> None:
    sizes, strides = ((8, 10), (16, 20)), (4, 8)
    ours = Anchors(strides, sizes, (0.5, 2.0))
    theirs = AnchorGenerator(sizes, ((0.5, 2.0),) * 2)
    for side, equal in ((64, True), (60, False)):
        x = torch.zeros(1, 3, side, side)
        maps = [torch.zeros(1, 1, -(-side // s), -(-side // s)) for s in strides]
        anchors = ours([(m.shape[2], m.shape[3]) for m in maps], x.device)
        expected = theirs(ImageList(x, [(side, side)]), maps)[0]
        assert torch.equal(torch.cat(anchors), expected) == equal
        centres = (anchors[1][:, :2] + anchors[1][:, 2:]) / 2
        assert torch.equal(centres.unique(dim=0)[-1], torch.tensor([8.0 * (maps[1].shape[3] - 1)] * 2))


# -- inputs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_list_of_images_is_detected_like_a_batch(kind: str) -> None:
    detector = tiny(kind, seed=7).eval()
    network = detector.subnet(sampled_arch(detector)).eval()
    x = images(64, 64)
    with torch.no_grad():
        assert same(network(list(x)), network(x))
        small = x[0, :, :41, :53]
        detections = network([small, x[1]])
        padded = torch.stack([nn.functional.pad(small, (0, 11, 0, 23)), x[1]])
        assert same(network(padded)[1:], detections[1:])
    assert len(detections[0]["boxes"]) > 0
    assert (detections[0]["boxes"] <= torch.tensor([53, 41, 53, 41])).all()
    assert (detections[0]["boxes"] >= 0).all()
    assert {int(label) for image in detections for label in image["labels"]} <= {1, 2, 3}


@pytest.mark.parametrize("kind", KINDS)
def test_untrained_detectors_survive_boxes_without_area_and_images_without_boxes(kind: str) -> None:
    network = tiny_network(kind, arch=sampled_arch(tiny(kind)))
    with torch.no_grad():
        network.eval()(images(96, 96))
        for name, part in network.named_modules():
            if name.endswith(("bbox_reg", "bbox_pred")):
                part.bias.fill_(-1e4)  # widths and heights of exp(-1e4), far outside the image
        detections = network(images(96, 96))
    assert [image["boxes"].shape for image in detections] == [(0, 4), (0, 4)]
    assert all(image["labels"].dtype == torch.int64 and len(image["scores"]) == 0 for image in detections)
    losses = network.train()(images(), [targets()[1]] * 2)
    assert all(loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in network.parameters())


def test_a_batch_without_regions_does_not_count_in_calibration() -> None:
    few, more = (torch.randn(number, 8, 7, 7, generator=torch.Generator().manual_seed(number)) for number in (2, 5))
    with_empty, without_empty = (ConvFCHead(8, convs=1, hidden=4, norm="batch") for _ in range(2))
    without_empty.load_state_dict(with_empty.state_dict())
    recalibrate_bn(with_empty, [few, few[:0], more])
    recalibrate_bn(without_empty, [few, more])
    assert all(map(torch.equal, with_empty.state_dict().values(), without_empty.state_dict().values()))
    assert with_empty(few[:0]).shape == (0, 4)


def _wrong_targets(change: Callable[[list[dict[str, Tensor]]], Any]) -> Callable[[], Any]:
    """A training step on targets that `change` spoils in place or returns."""

    def run() -> None:
        network = tiny_network("retinanet", arch=sampled_arch(tiny("retinanet"))).train()
        spoiled = targets()
        changed = change(spoiled)
        network(images(), spoiled if changed is None else changed)

    return run


class Frozen(nn.Sequential):
    """A strided convolution with frozen batch norm."""

    def __init__(self, in_channels: int) -> None:
        super().__init__(nn.Conv2d(in_channels, 8, 3, 2, 1), FrozenBatchNorm2d(8))

    def out_layout(self, layout: Any) -> Layout:
        return Layout(8, layout.stride * 2)


def _frozen_supernet() -> Chain:
    widths = {"a": 3, "b": 8, "c": 8}
    steps: list[tuple[str, nn.Module]] = [
        (name, ChoiceBlock({"learns": ConvBNAct(width, 8, kernel=3, stride=2), "frozen": Frozen(width)}))
        for name, width in widths.items()
    ]
    return Chain("user", [*steps, ("head", ClassifierHead(8, 5, hidden=8))], input_shape=(3, 64, 64))


WRONG: dict[str, tuple[Callable[[], Any], str]] = {
    "kind": (lambda: tiny("retinanett"), "no detector 'retinanett'; did you mean 'retinanet'"),
    "backbone": (lambda: create_detector("retinanet", backbone="detnas-300n"), "no backbone 'detnas-300n'; did you"),
    "setting": (lambda: tiny("retinanet", head_conv=3), "no setting 'head_conv'; did you mean 'head_convs'"),
    "setting of another neck": (lambda: tiny("retinanet", repeats=3), "neck 'fpn' has no setting 'repeats'"),
    "arch of a searchable detector": (
        lambda: tiny("retinanet", arch={}),
        "takes no arch.*call create_detector_network",
    ),
    "no arch": (
        lambda: tiny_network("retinanet"),
        "'retinanet-shufflenet-small' has 4 choices; give arch, or call create_detector ",
    ),
    "nothing to search": (
        lambda: create_detector("retinanet", backbone="detnas-coco-fpn-300m"),
        "nothing to search.*call create_detector_network",
    ),
    "neck of a published backbone": (
        lambda: create_detector("retinanet", backbone="detnas-coco-fpn-300m", neck="nasfnp"),
        "no neck 'nasfnp'; did you mean 'nasfpn'",
    ),
    "backbone_arch twice": (
        lambda: create_detector_network("retinanet", backbone="detnas-coco-fpn-300m", backbone_arch={}),
        "is an architecture already; leave backbone_arch out",
    ),
    "size": (
        lambda: create_detector("retinanet", backbone="detnas-300m", image_size=96),
        "96×96 pixels are smaller than the largest stride of the detector, 128",
    ),
    "image": (
        lambda: tiny("retinanet").eval()(images(24, 24), sampled_arch(tiny("retinanet"))),
        "24×24 pixels is smaller than the largest stride of the detector, 32",
    ),
    "bytes": (
        lambda: tiny("retinanet").eval()(images().byte(), sampled_arch(tiny("retinanet"))),
        "normalised float images.*not torch.uint8",
    ),
    "no images": (lambda: tiny("retinanet").eval()([], sampled_arch(tiny("retinanet"))), "list of images is empty"),
    "no targets": (lambda: tiny("retinanet").train()(images(), sampled_arch(tiny("retinanet"))), "needs targets"),
    "too few": (_wrong_targets(lambda t: t[:1]), "2 images and 1 targets"),
    "shapes": (_wrong_targets(lambda t: t[0].update(labels=torch.ones(3))), r"target 0 has boxes \(2, 4\) and labels"),
    "area": (
        _wrong_targets(lambda t: t[1].update(boxes=torch.tensor([[5.0, 5, 5, 9]]), labels=torch.tensor([1]))),
        r"target 1 has a box without area, \[5.0, 5.0, 5.0, 9.0\]",
    ),
    "label": (_wrong_targets(lambda t: t[0].update(labels=torch.tensor([1, 4]))), "target 0 has the label 4; .*1 to 3"),
    "background": (_wrong_targets(lambda t: t[0].update(labels=torch.tensor([0, 1]))), "target 0 has the label 0"),
    "frozen": (lambda: tiny("retinanet", freeze_bn=True), "cannot be frozen in the supernet.*mix all paths"),
    "frozen backbone": (lambda: tiny("retinanet", backbone=_frozen_supernet()), "cannot be frozen in the supernet"),
    "arch": (lambda: tiny_network("retinanet", arch={"stage1.block0.op": "shuffle9"}), "shuffle9"),
    "arch twice": (
        lambda: create_detector_network("retinanet", backbone="detnas-coco-fpn-300m", arch={}),
        "is fixed to one architecture already; leave arch out",
    ),
    "norm": (lambda: tiny("retinanet", norm="layer"), "'none', 'batch' or 'group', not 'layer'"),
    "groups": (lambda: tiny("retinanet", norm="group"), "do not divide 8 channels"),
    "resolutions": (
        lambda: create_detector(
            "retinanet", backbone="attentivenas", backbone_settings={"input_size": 64, "resolutions": (32,)}
        ),
        "'attentivenas' cannot be a searchable backbone: its step 'input'.*fix the backbone to one architecture",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_named(case: str) -> None:
    run, message = WRONG[case]
    with pytest.raises(InputError, match=message):
        run()


# -- weights and training ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_fresh_weights_follow_the_generator_and_torchvisions_rules(kind: str) -> None:
    arch = sampled_arch(tiny(kind))

    def fresh_weights(seed: int, width: int = WIDTH) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        settings: dict[str, Any] = {"levels": 3} | ({"hidden": 16} if kind != "retinanet" else {})
        return dict(
            create_detector_network(
                kind,
                backbone="shufflenet-small",
                backbone_settings=BACKBONE,
                num_classes=CLASSES,
                image_size=64,
                head_width=width,
                arch=arch,
                generator=generator,
                **settings,
            ).state_dict()
        )

    first, again, other_seed = fresh_weights(1), fresh_weights(1), fresh_weights(2)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other_seed[name]) for name in first)
    wide = fresh_weights(1, 64)
    small = [t.std() for name, t in wide.items() if t.ndim == 4 and ("cls_logits" in name or ".head.conv" in name)]
    assert small
    assert all(0.009 < float(std) < 0.011 for std in small)
    bias = next(t for name, t in wide.items() if name.endswith("cls_logits.bias"))
    prior = torch.full_like(bias, 0.01 if kind == "retinanet" else 0.5)
    torch.testing.assert_close(bias.sigmoid(), prior)
    lateral = next(t for name, t in wide.items() if name.endswith("fpn.inner_blocks.2.0.weight"))
    torch.testing.assert_close(float(lateral.std()), 32**-0.5, rtol=0.05, atol=0)


@pytest.mark.parametrize("kind", ["retinanet", pytest.param("faster-rcnn-fpn", marks=pytest.mark.slow)])
def test_a_detector_learns_one_box(kind: str) -> None:
    """After forty steps the best detection lies on the only box and has its label."""
    generator, arch = torch.Generator().manual_seed(3), sampled_arch(tiny(kind))
    settings: dict[str, Any] = {"norm": "batch", "head_convs": 1}  # without norm, narrow towers learn slowly
    network = tiny_network(kind, arch=arch, generator=generator, **settings).train()
    x = images(seed=8, number=1)
    x[:, :, 16:40, 20:52] += 3.0
    truth = [{"boxes": torch.tensor([[20.0, 16.0, 52.0, 40.0]]), "labels": torch.tensor([2])}]
    optimizer = torch.optim.Adam(network.parameters(), lr=0.02)
    torch.manual_seed(0)
    for _ in range(40):
        optimizer.zero_grad()
        sum(network(x, truth).values()).backward()
        optimizer.step()
    recalibrate_bn(network, [x])
    with torch.no_grad():
        (detections,) = network(x)
    assert int(detections["labels"][0]) == 2
    assert detections["scores"][0] > 0.5
    assert (detections["boxes"][0] - truth[0]["boxes"][0]).abs().max() < 6


def test_frozen_batch_norm_keeps_the_loaded_values() -> None:
    arch = sampled_arch(tiny("retinanet"))
    classifier = create_network("shufflenet-small", arch=arch.sub("backbone"), **BACKBONE)
    randomize(classifier, seed=9)
    frozen, plain = (tiny_network("retinanet", arch=arch, freeze_bn=freeze) for freeze in (True, False))
    for network in (frozen, plain):
        load_backbone(network, classifier)
    x = images()
    maps = (backbone_of(network).eval()(x)[0] for network in (frozen, plain))
    for frozen_map, plain_map in zip(*maps, strict=True):
        torch.testing.assert_close(frozen_map, plain_map, rtol=1e-5, atol=1e-5)
    before = copy.deepcopy(frozen.state_dict())
    sum(frozen.train()(x, targets()).values()).backward()
    assert all(torch.equal(before[name], tensor) for name, tensor in frozen.state_dict().items())
    assert not any(isinstance(part, nn.BatchNorm2d) for part in frozen.modules())
    freeze_batch_norm(plain)
    assert all(torch.equal(before[name], tensor) for name, tensor in plain[1].state_dict(prefix="backbone.").items())


# -- settings ---------------------------------------------------------------------------------------------------------


def test_settings_are_written_out_consistently() -> None:
    """`DetectorSettings`, the builders, the last steps and the docstring agree on names, types and defaults."""
    settings = get_type_hints(DetectorSettings)
    known: dict[str, Any] = {}
    for necks in DETECTORS.values():
        for builder in necks.values():
            hints = get_type_hints(builder)
            known |= {name: hints[name] for name in inspect.signature(builder).parameters}
    for name in ("backbone", "num_classes", "image_size", "head_width"):
        del known[name]
    assert settings == known
    assert all(re.search(rf"\b{name}\b", create_detector.__doc__ or "") for name in settings)
    for step, builders in {RetinaBoxes: (retinanet, retinanet_nasfpn), RegionBoxes: (faster_rcnn_fpn,)}.items():
        own = inspect.signature(step).parameters
        for parameters in (inspect.signature(builder).parameters for builder in builders):
            shared = [name for name in own.keys() & parameters.keys() if own[name].default is not Parameter.empty]
            assert len(shared) >= 8
            assert {n: own[n].default for n in shared if n != "norm"} == {
                n: parameters[n].default for n in shared if n != "norm"
            }


def test_a_backbone_that_is_fixed_to_an_architecture_keeps_the_weights_of_its_supernet() -> None:
    classifier = create_supernet("shufflenet-small", **BACKBONE)
    arch = classifier.space.sample(random.Random(3))
    by_name, by_supernet = (
        tiny_network("retinanet", backbone=classifier, **how) for how in ({"arch": arch}, {"backbone_arch": arch})
    )
    for first, second in zip(backbone_of(by_name), backbone_of(by_supernet), strict=True):
        assert all(map(torch.equal, first.state_dict().values(), second.state_dict().values()))


# -- diverged networks ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["retinanet", pytest.param("faster-rcnn-fpn", marks=pytest.mark.slow)])
def test_a_detector_with_nan_anywhere_has_no_score(kind: str) -> None:
    """Boxes of NaN would be dropped, so that a diverged network would seem to see nothing: a finite mAP of 0."""
    sound = tiny_network(kind, arch=sampled_arch(tiny(kind))).eval()
    with torch.no_grad():
        assert all(detections["scores"].isfinite().all() for detections in sound(images()))
        last = {
            name.rpartition(".")[0]: name for name, _ in sound.named_parameters() if not name.startswith("backbone")
        }
        for name in ("0", *last.values()):
            network = copy.deepcopy(sound)
            broken = dict(network.named_parameters()).get(name, next(network.parameters()))
            broken.flatten()[0] = torch.nan
            for detections in network(images()):
                assert detections["scores"].isnan().all(), name
                assert len(detections["scores"]) == len(detections["boxes"]) == len(detections["labels"]) == 1
