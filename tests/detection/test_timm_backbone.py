"""Networks of timm as backbones: their maps are timm's, they train with frozen stages, and exports need only torch."""

from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from detection import backbone_of, create_detector, create_detector_network, load_backbone
from detection.backbone import FrozenNorm, backbone_steps
from detection.config import DetectorPreprocess
from detection.timm_backbone import normalisation, timm_backbone
from helpers.detector_cases import images, same, sampled_arch, targets
from supernet import Arch
from supernet.chain import largest
from supernet.errors import InputError
from supernet.export import export
from supernet.export.expression import written
from supernet.export.source import bundle
from supernet.spaces import build
from supernet.spaces.pretrained import load_pretrained
from supernet.testing import randomize
from supernet_tools.pipeline.config import DetectorRun
from supernet_tools.pipeline.trust import from_file

NAMES = (
    "resnet18",
    "resnet34",
    "resnet50",
    "mobilenetv2_050",
    "mobilenetv3_small_050",
    "mobilenetv3_large_100",
    "tf_efficientnet_lite0",
    "efficientnet_b0",
    "mnasnet_small",
    "tinynet_e",
    "lcnet_050",
    "fbnetc_100",
)


def _weights(name: str, folder: Path) -> tuple[nn.Module, Path]:
    """timm's own feature extractor with random weights, and a file of the whole network's."""
    model = timm.create_model(name, pretrained=False)
    randomize(model, seed=5)
    file = folder / f"{name}.pth"
    torch.save(model.state_dict(), file)
    features = timm.create_model(name, pretrained=False, features_only=True)
    features.load_state_dict(model.state_dict(), strict=False)
    return features.eval(), file


def _network(name: str, file: Path, **settings: int | bool) -> nn.Module:
    network = create_detector_network(
        "retinanet", backbone=f"timm:{name}", num_classes=3, image_size=128, head_width=8, head_convs=1, **settings
    )
    load_backbone(network, timm_backbone(name, file))
    return network


def _check(name: str, folder: Path) -> nn.Module:
    features, file = _weights(name, folder)
    network = _network(name, file, frozen_stages=1, freeze_bn=True)
    x = images(128, 128, number=2)
    with torch.no_grad():
        maps = backbone_of(network).eval()(x)[0]
        for ours, theirs in zip(maps, features(x)[-3:], strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * float(theirs.abs().max()))
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    sum(network.train()(x, targets()).values()).backward()
    after = network.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before if name.startswith("backbone."))
    frozen = [step.frozen for step in backbone_steps(network)]
    assert frozen == sorted(frozen, reverse=True)
    assert 0 < sum(frozen) < len(frozen)
    for step in backbone_steps(network):
        assert all((p.grad is None) is step.frozen for p in step.parameters())
        assert not any(isinstance(part, nn.BatchNorm2d) for part in step.modules())
    return network.eval()


def test_maps_are_those_of_timm_and_frozen_stages_stay(tmp_path: Path) -> None:
    """Of one network; the slow tests check all of `NAMES`."""
    network = _check("mobilenetv3_small_050", tmp_path)
    text, used = written(network)
    assert "frozen=True" in text
    assert FrozenNorm.__name__ in bundle(used, imported={"torch": torch, "nn": nn}, defined=()).definitions
    assert bundle(used, imported={"torch": torch, "nn": nn}, defined=()).requires == ("torch", "torchvision")


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_detectors_on_networks_of_timm_are_exported_with_torch_alone(name: str, tmp_path: Path) -> None:
    network = _check(name, tmp_path)
    preprocess = DetectorPreprocess(128, (0.5,) * 3, (0.2,) * 3, ("a", "b", "c"))
    parity = export(network, tmp_path / "export", arch=Arch({}), space="timm", preprocess=preprocess, tolerance=1e-4)
    assert parity["requires"] == ["torch", "torchvision"]
    assert "FrozenNorm" in (tmp_path / "export" / "model.py").read_text(encoding="utf-8")


def test_a_detector_on_a_network_of_timm_has_no_choices_or_those_of_its_pyramid() -> None:
    arguments = {"backbone": "timm:mobilenetv3_small_050", "num_classes": 3, "image_size": 128, "head_width": 8}
    with torch.device("meta"):
        fixed = create_detector("retinanet", searched=False, **arguments)
        pyramid = create_detector("retinanet", neck="nasfpn", repeats=1, **arguments)
    assert fixed.space.size() == 1
    assert {choice.name.partition(".")[0] for choice in pyramid.space.choices} == {"neck"}
    mean, std = normalisation("timm:mobilenetv3_small_050")
    assert mean == (0.485, 0.456, 0.406)
    assert len(std) == 3


@pytest.mark.slow
@torch.no_grad()
def test_the_blocks_of_a_network_of_timm_are_searched_with_its_weights(tmp_path: Path) -> None:
    features, file = _weights("mobilenetv3_small_050", tmp_path)
    settings = {"model": "mobilenetv3_small_050"}
    arguments = {"backbone": "elastic", "num_classes": 3, "image_size": 128, "head_width": 8, "head_convs": 1}
    detector = create_detector("retinanet", backbone_settings=settings, **arguments)
    supernet = build("elastic", "supernet", settings)
    load_pretrained(supernet, file)
    load_backbone(detector, supernet)
    detector.eval()
    x = images(128, 128, number=2)
    whole = detector.subnet(largest(detector.space)).eval()
    for ours, theirs in zip(backbone_of(whole)(x)[0], features(x)[-3:], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * float(theirs.abs().max()))
    arch = sampled_arch(detector)
    smaller = detector.subnet(arch).eval()
    assert same(detector(x, arch), smaller(x))
    assert sum(p.numel() for p in smaller.parameters()) < sum(p.numel() for p in whole.parameters())
    with torch.device("meta"), pytest.raises(InputError, match="cannot resize images"):
        create_detector("retinanet", backbone_settings={**settings, "resolutions": [96]}, **arguments)


def test_networks_that_cannot_be_written_are_refused_by_name(tmp_path: Path) -> None:
    with torch.device("meta"):
        with pytest.raises(InputError, match=r"timm has no network 'resnet1888'.*resnet18"):
            timm_backbone("timm:resnet1888")
        with pytest.raises(InputError, match="cannot be made elastic"):
            timm_backbone("timm:convnext_atto")
    torch.save({"x": torch.ones(1)}, tmp_path / "other.pth")
    with pytest.raises(InputError, match="holds the weights of another network"):
        timm_backbone("timm:mobilenetv3_small_050", tmp_path / "other.pth")


def test_a_run_may_name_a_network_of_timm_without_trust(tmp_path: Path) -> None:
    """It is no function of a user's module, although it has the form of one."""
    recipe = DetectorRun(backbone="timm:resnet18", neck="nasfpn")
    assert from_file(recipe, tmp_path / "run.json") == recipe
