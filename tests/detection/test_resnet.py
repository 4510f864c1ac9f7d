"""ResNets as fixed backbones: torchvision's networks and weights, and retraining at a larger size than the search."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import load_file, save_file
from torch import Tensor
from torchvision.models.feature_extraction import create_feature_extractor
from torchvision.models.resnet import BasicBlock, ResNet

from detection import create_detector, load_backbone, wiring_arch
from detection.detector import backbone_of
from detection.resnet import resnet_10, resnet_18, resnet_50
from detection.retinanet import RetinaBoxes
from helpers.scripts import Call, one_line
from supernet import Arch
from supernet.errors import InputError
from supernet.testing import randomize

NETS = {"resnet_10": (resnet_10, None), "resnet_18": (resnet_18, "resnet18"), "resnet_50": (resnet_50, "resnet50")}


def torchvisions(name: str) -> ResNet:
    """torchvision's ResNet with random weights."""
    published = NETS[name][1]
    network = torchvision.models.get_model(published, weights=None) if published else ResNet(BasicBlock, [1, 1, 1, 1])
    randomize(network, seed=4)
    return network.eval()


@pytest.mark.parametrize("name", NETS)
def test_the_networks_compute_what_torchvisions_do(name: str) -> None:
    theirs, ours = torchvisions(name), NETS[name][0]()
    ours.load_state_dict(dict(zip(ours.state_dict(), theirs.state_dict().values(), strict=True)))
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(ours.eval()(x, Arch()), theirs(x))


@pytest.mark.parametrize(("name", "suffix"), [("resnet_10", ".pth"), ("resnet_18", ".safetensors")])
def test_files_of_torchvision_and_timm_fill_a_backbone(name: str, suffix: str, tmp_path: Path) -> None:
    """Tensors are loaded by name in any order; C3 to C5 of the detector then equal those of the classifier."""
    theirs, file = torchvisions(name), tmp_path / f"weights{suffix}"
    tensors = dict(reversed(theirs.state_dict().items()))
    torch.save(tensors, file) if suffix == ".pth" else save_file(tensors, file)
    detector = create_detector(
        "retinanet",
        neck="nasfpn",
        backbone=f"detection.resnet:{name}",
        num_classes=2,
        image_size=128,
        head_width=8,
        head_convs=1,
        repeats=1,
    )
    load_backbone(detector, file)
    maps = create_feature_extractor(theirs, ["layer2", "layer3", "layer4"])
    x = torch.randn(2, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours, *_ = backbone_of(detector).eval()(x, Arch())
        for own_map, expected in zip(ours, maps(x).values(), strict=True):
            assert torch.equal(own_map, expected)


def test_files_without_weights_of_the_backbone_are_refused(tmp_path: Path) -> None:
    detector = create_detector(
        "retinanet",
        neck="nasfpn",
        backbone="detection.resnet:resnet_10",
        num_classes=2,
        image_size=128,
        head_width=8,
        repeats=1,
    )
    (tmp_path / "cut.pth").write_bytes(b"PK\x03\x04 cut")
    torch.save({"model": torchvisions("resnet_10").state_dict()}, tmp_path / "nested.pth")
    save_file(torchvisions("resnet_18").state_dict(), tmp_path / "other.safetensors")
    for name, text in (
        ("none.pth", "does not exist"),
        ("cut.pth", "cut.pth is damaged"),
        ("nested.pth", "does not hold a state dict"),
        ("other.safetensors", r"another backbone: tensor 'layer1\.1\.bn1"),
    ):
        with pytest.raises(InputError, match=text):
            load_backbone(detector, tmp_path / name)


def test_the_loss_of_boxes_is_weighted_and_linear_or_quadratic() -> None:
    """Of one positive anchor with differences of 0.05 and 2 in two coordinates: L1, and Huber's loss from 0.1 on."""
    anchors = torch.tensor([[0.0, 0, 8, 8], [40.0, 0, 48, 8]])
    boxes = [{"boxes": anchors[:1], "labels": torch.tensor([1])}]
    deltas = torch.tensor([[[0.05, 0.0, 2.0, 0.0], [9.0] * 4]])

    def loss(**settings: float) -> Tensor:
        step = RetinaBoxes((8,), ((8,),), (1.0,), **settings)
        losses: Mapping[str, Tensor] = step.losses(torch.zeros(1, 2, 1), deltas, anchors, boxes)
        return losses["bbox_regression"]

    assert loss() == pytest.approx(2.05)
    assert loss(box_weight=3.0) == pytest.approx(6.15)
    assert loss(huber=0.1, box_weight=12.5) == pytest.approx(12.5 * (0.05**2 / 2 + 0.1 * (2.0 - 0.05)))


def test_the_focal_loss_follows_its_two_parameters() -> None:
    """With a gamma of 0 it is weighted cross-entropy."""
    logits = torch.randn(1, 12, 3, generator=torch.Generator().manual_seed(0))
    anchors = torch.tensor([[8.0 * i, 0, 8.0 * i + 8, 8] for i in range(12)])
    boxes = [{"boxes": anchors[2:3] + 0.5, "labels": torch.tensor([2])}]

    def loss(**focal: float) -> Tensor:
        step = RetinaBoxes((8,), ((8,),), (1.0,), **focal)
        losses: Mapping[str, Tensor] = step.losses(logits, torch.zeros(1, 12, 4), anchors, boxes)
        return losses["classification"]

    one_hot = torch.zeros(12, 3)
    one_hot[2, 1] = 1.0
    plain = torch.nn.functional.binary_cross_entropy_with_logits(logits[0], one_hot, reduction="none")
    weight = torch.where(one_hot == 1, 0.75, 0.25)
    assert loss(focal_alpha=0.75, focal_gamma=0.0) == pytest.approx(float((weight * plain).sum()))
    miss = torch.where(one_hot == 1, 1 - logits[0].sigmoid(), logits[0].sigmoid())
    weight = torch.where(one_hot == 1, 0.25, 0.75)
    assert loss(focal_gamma=1.5) == pytest.approx(float((weight * miss**1.5 * plain).sum()))
    assert loss() == loss(focal_alpha=0.25, focal_gamma=2.0)


SMALL = (
    "nasfpn-digits",
    "--backbone",
    "detection.resnet:resnet_10",
    "--backbone-arch",
    "",
    "--backbone-settings",
    "--data.size",
    128,
    "--data.compose",
    12,
    4,
    4,
    "--data.calibration",
    4,
    "--head-width",
    8,
    "--train.batch",
    4,
    "--retrain.batch",
    4,
    "--retrain.epochs",
    1,
    "--data.workers",
    0,
)
FINAL = ("--settings", "repeats=2", "focal_gamma=1.5", "--train.epochs", 0)


@pytest.mark.slow  # tests/tools/test_tools.py retrains a cell at another size
def test_a_searched_pyramid_is_retrained_at_another_size(call: Call, tmp_path: Path) -> None:
    """A run without a supernet: an architecture of the proxy task, more repeats, published weights of the backbone."""
    theirs, file, run = torchvisions("resnet_10"), tmp_path / "resnet10.pth", tmp_path / "final"
    torch.save(theirs.state_dict(), file)
    pretrained = ("--pretrained", file, "--start", "classification", "--out", run)
    code, out, err = call("train_supernet", *SMALL, *FINAL, *pretrained)
    assert code == 0, err
    assert "none, train.epochs is 0" in out
    assert not (run / "supernet.safetensors").exists()
    space = create_detector(
        "retinanet", neck="nasfpn", backbone="detection.resnet:resnet_10", num_classes=2, image_size=128, repeats=1
    ).space
    arch = tmp_path / "arch.json"
    arch.write_text(json.dumps({"values": dict(wiring_arch("nasfpn-7", space, prefix="neck"))}))
    code, out, err = call("retrain", run, "--arch", arch, "--lr", 1e-30)  # too small to move a weight
    assert code == 0, err
    trained = load_file(next((run / "retrain").glob("*/network.safetensors")))
    assert torch.equal(trained["backbone.stem.block.0.weight"], theirs.conv1.weight)
    assert torch.equal(trained["backbone.layer4.block.0.conv2.weight"], theirs.layer4[0].conv2.weight)
    code, out, err = call("predict", run, "--arch", arch, "--test", 1, "--out", tmp_path / "drawn")
    assert code == 0, err
    assert (tmp_path / "drawn" / "test0.png").exists()
    one_line(call("search", run, "--searcher", "random", "--trials", 2), "train.epochs=0")
    one_line(call("fidelity", run, "--truth", "retrain", "--n", 2), "train.epochs=0")  # before it retrains a network
    one_line(call("retrain", run, "--arch", arch, "--init", "shared"), "train.epochs=0")
    one_line(call("export", run, "--arch", arch, "--inherit"), "train.epochs=0")
    one_line(call("train_supernet", *SMALL, *FINAL, *pretrained, "--plan"), "nothing to plan")
    document = json.loads((run / "run.json").read_text())
    document["data"]["digest"] = "other"
    (run / "run.json").write_text(json.dumps(document))
    predict = ("predict", run, "--arch", arch, "--test", 1, "--out", tmp_path / "other")
    one_line(call(*predict), "another set of images")


def test_published_weights_are_checked_before_images_are_read(call: Call, tmp_path: Path) -> None:
    file = tmp_path / "resnet18.pth"
    torch.save(torchvisions("resnet_18").state_dict(), file)
    composed = SMALL.index("--data.compose")
    small = (*SMALL[:composed], *SMALL[composed + 4 :])
    flags = ("--data.source", tmp_path / "none.json", "--out", tmp_path / "run", "--start", "classification")
    one_line(call("train_supernet", *small, *FINAL, *flags, "--pretrained", file), "another backbone")
    one_line(call("train_supernet", *small, *FINAL, *flags, "--pretrained", tmp_path / "x.pth"), "file of weights")
    assert not (tmp_path / "run").exists()
