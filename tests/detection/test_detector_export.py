"""Exported detectors make the same detections without this project."""

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from detection import DetectorNetwork, DetectorPreprocess, create_detector
from detection.data.augment import Resize
from supernet.errors import InputError
from supernet.export import check_parity, export, load_exported
from supernet.testing import randomize

NAMES = ("cat", "dog", "bird")
PREPROCESS = DetectorPreprocess(input_size=64, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4), classes=NAMES)

APART = """
import sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("supernet", "searchers", "detection", "timm", "einops", "safetensors"):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Block())
import json, runpy, torch
torch.set_num_threads(int(sys.argv[3]))
x, pictures = torch.load(sys.argv[1], weights_only=True)
model = runpy.run_path(sys.argv[2] + "/model.py")
with torch.no_grad():
    whole = model["load"]()(x)
    raw = torch.export.load(sys.argv[2] + "/model.pt2").module()(x)
found = json.dumps(model["predict"](pictures))
torch.save({"whole": whole, "graph": model["finish"](raw), "predicted": found}, sys.argv[1])
"""


def network_of(kind: str) -> tuple[DetectorNetwork, Any]:
    settings: dict[str, Any] = {} if kind == "retinanet" else {"levels": 3, "hidden": 16, "proposals": 20}
    detector = create_detector(
        kind,
        backbone="shufflenet-small",
        num_classes=3,
        image_size=64,
        head_width=8,
        head_convs=2,
        backbone_settings={"widths": (8, 16, 32), "depths": (1, 1, 1), "stem": 4},
        **settings,
    )
    randomize(detector, seed=1)
    arch = detector.space.sample(random.Random(2))
    return detector.subnet(arch).eval(), arch


@pytest.mark.slow  # tests/tools/test_tools_detection.py exports one, and each export runs apart to measure its parity
@pytest.mark.parametrize("kind", ["retinanet", "faster-rcnn-fpn"])
def test_exported_detectors_detect_the_same_without_this_project(kind: str, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 3, 64, 64, generator=generator)
    sizes = ((40, 90), (64, 64))
    pictures = [torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=generator) for size in sizes]
    network, arch = network_of(kind)
    folder, data = tmp_path / kind, tmp_path / "images.pt"
    result = export(network, folder, arch=arch, space=kind, preprocess=PREPROCESS)
    assert result["requires"] == ["torch", "torchvision"]
    assert result["differences"].keys() == {"model.py", "model.pt2"}
    assert result["differences"]["model.py"] == 0.0
    torch.save((x, pictures), data)
    command = [sys.executable, "-I", "-B", "-c", APART, str(data), str(folder), str(torch.get_num_threads())]
    done = subprocess.run(command, capture_output=True, text=True, cwd="/", check=False)
    assert done.returncode == 0, done.stderr
    answers = torch.load(data, weights_only=True)
    with torch.no_grad():
        expected = network(x)
    assert sum(len(image["boxes"]) for image in expected) > 50
    for detections in (answers["whole"], answers["graph"], load_exported(folder)(x)):
        _close(detections, expected)
    _check_predictions(network, pictures, json.loads(answers["predicted"]))


def _close(detections: list[dict[str, Tensor]], expected: list[dict[str, Tensor]]) -> None:
    for image, expected_image in zip(detections, expected, strict=True):
        assert torch.equal(image["labels"], expected_image["labels"])
        torch.testing.assert_close(image["scores"], expected_image["scores"], rtol=0, atol=1e-5)
        torch.testing.assert_close(image["boxes"], expected_image["boxes"], rtol=0, atol=1e-3)  # pixels


def _check_predictions(network: DetectorNetwork, pictures: list[Tensor], predicted: list[Any]) -> None:
    """Pictures are stretched to the input size as the training does it, and boxes are scaled back."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (PREPROCESS.mean, PREPROCESS.std))
    with torch.no_grad():
        expected = [network([(Resize(64)(picture) / 255 - mean) / std])[0] for picture in pictures]
    for picture, detections, expected_image in zip(pictures, predicted, expected, strict=True):
        assert [name for name, _, _ in detections] == [NAMES[label - 1] for label in expected_image["labels"].tolist()]
        assert detections == sorted(detections, key=lambda detection: -detection[1])
        height, width = picture.shape[1:]
        boxes = expected_image["boxes"] * torch.tensor([width, height, width, height]) / 64
        torch.testing.assert_close(torch.tensor([box for *_, box in detections]).view(-1, 4), boxes, rtol=0, atol=1e-3)


class Random(nn.Module):
    """A last step whose detections are random."""

    traceable = False

    def forward(self, state: Any) -> Any:
        """Returns random detections."""
        return [{"boxes": torch.rand(1, 4), "scores": torch.rand(1), "labels": torch.ones(1, dtype=torch.int64)}]


@pytest.mark.slow
def test_an_export_fails_where_the_part_after_the_graph_differs(tmp_path: Path) -> None:
    network, arch = network_of("retinanet")
    network[-1] = Random()
    with pytest.raises(InputError, match=r"model\.py differs from the trained network"):
        export(network, tmp_path / "folder", arch=arch, space="toy", preprocess=PREPROCESS)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_parity_notices_other_weights_and_pictures_keep_their_aspect_ratio(tmp_path: Path) -> None:
    """Parity is also checked if nothing is detected, since the raw outputs are compared too."""
    network, arch = network_of("retinanet")
    network[-1].score_threshold = 2.0
    preprocess = DetectorPreprocess(input_size=64, mean=(0.5,) * 3, std=(0.5,) * 3, classes=(), longest=96)
    export(network, tmp_path / "folder", arch=arch, space="toy", preprocess=preprocess)
    assert network(torch.randn(1, 3, 64, 64))[0]["boxes"].shape == (0, 4)
    assert set(check_parity(network, tmp_path / "folder")) == {"model.py", "model.pt2"}
    loaded = load_exported(tmp_path / "folder")
    module = sys.modules[type(loaded).__module__]
    inputs: list[Tensor] = []
    module._loaded()[0][0].register_forward_pre_hook(lambda _, arguments: inputs.extend(arguments[0]))
    assert module.predict([torch.zeros(3, 100, 200, dtype=torch.uint8), torch.zeros(3, 80, 40, dtype=torch.uint8)]) == [
        [],
        [],
    ]
    assert [tuple(image.shape[1:]) for image in inputs] == [(48, 96), (96, 48)]
    with torch.no_grad():
        network.get_parameter("backbone.stem.block.conv.weight").mul_(1.5)
    with pytest.raises(InputError, match=r"model\.py differs"):
        check_parity(network, tmp_path / "folder")
