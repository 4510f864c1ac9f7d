"""The graphs of an exported detector take images of any size and return what the detector does, by name."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from detection import DetectorNetwork, DetectorPreprocess
from detection.retinanet import RetinaHead
from helpers.detector_cases import images, same, sampled_arch, tiny
from supernet.errors import InputError
from supernet.export import check_parity, export, load_exported
from supernet.export.folder import _save_graph, _shapes
from supernet.export.parity import _detection_difference

SIZES = ((1, 64, 64), (3, 50, 97), (2, 33, 20), (2, 128, 40))


def _detector(kind: str, **settings: Any) -> tuple[DetectorNetwork, Any]:
    detector = tiny(kind, seed=1, **settings)
    arch = sampled_arch(detector)
    return detector.subnet(arch).eval(), arch


def _check_rows(actual: dict[str, Tensor], expected: list[dict[str, Tensor]], *, boxes: float, scores: float) -> None:
    """The first rows are the detections, and the rest is zero."""
    for image, detections in enumerate(expected):
        count = len(detections["scores"])
        assert count > 20
        assert torch.equal(actual["labels"][image, :count], detections["labels"])
        torch.testing.assert_close(actual["boxes"][image, :count], detections["boxes"], rtol=0, atol=boxes)
        torch.testing.assert_close(actual["scores"][image, :count], detections["scores"], rtol=0, atol=scores)
        assert not any(part[image, count:].any() for part in actual.values())


@torch.no_grad()
@pytest.mark.parametrize("candidates", [1000, 40])
def test_detections_that_can_be_traced_are_those_of_the_network(candidates: int) -> None:
    network, _ = _detector("retinanet", score_threshold=0.3, candidates=candidates)
    for number, height, width in SIZES[:3]:
        x = images(height, width, number=number)
        state = network[:-1](x)
        assert same(network[-1](network[-1].state_of(network[-1].named(state))), network(x))
        _check_rows(network[-1].detected(state), network(x), boxes=1e-4, scores=1e-6)


def test_detections_are_compared_in_any_order_and_a_few_may_be_unmatched() -> None:
    boxes = 100 * torch.rand(1, 300, 4, generator=torch.Generator().manual_seed(0))
    first = {
        "output['boxes']": boxes,
        "output['scores']": torch.linspace(0.9, 0.1, 300)[None],
        "output['labels']": 1 + torch.arange(300)[None] % 3,
    }
    order = torch.randperm(300, generator=torch.Generator().manual_seed(1))
    second = {name: x[:, order] for name, x in first.items()}
    second["output['boxes']"] = second["output['boxes']"] + 0.01
    assert _detection_difference("detector.onnx", [first], [second]) == pytest.approx(0.01, rel=1e-3)
    for count, apart in ((2, pytest.approx(0.01, rel=1e-3)), (20, float("inf"))):
        changed = {name: x.clone() for name, x in second.items()}
        changed["output['labels']"][0, :count] = 9
        assert _detection_difference("detector.onnx", [first], [changed]) == apart


def test_exports_are_compared_at_sizes_that_the_detector_takes() -> None:
    preprocess = DetectorPreprocess(96, (0.5,) * 3, (0.5,) * 3, ("a",), longest=128)
    wide, tall, last = (shape[2:] for shape in _shapes(3, preprocess, detector=True))
    assert wide == last == (96, 128)  # 96 pixels on both sides may be less than the largest stride
    assert tall == (128, 96)


def test_only_detections_that_can_be_traced_become_a_graph(tmp_path: Path) -> None:
    network, arch = _detector("faster-rcnn-fpn")
    preprocess = DetectorPreprocess(64, (0.5,) * 3, (0.5,) * 3, ("a", "b", "c"))
    with pytest.raises(InputError, match="nms=True is for RetinaNet"):
        export(network, tmp_path / "folder", arch=arch, space="toy", preprocess=preprocess, nms=True)


def _run(session: Any, x: Tensor) -> dict[str, Tensor]:
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, map(torch.from_numpy, session.run(None, {"images": x.numpy()})), strict=True))


def _stacked(detections: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Detections as a graph returns them: 300 rows per image, of which those left over are zero."""
    columns = {}
    for name in ("boxes", "scores", "labels"):
        parts = [image[name] for image in detections]
        columns[name] = torch.stack([torch.cat([x, x.new_zeros(300 - len(x), *x.shape[1:])]) for x in parts])
    return columns


def _apart(actual: dict[str, Tensor], expected: list[dict[str, Tensor]]) -> float:
    """The largest difference, whatever the order of detections whose scores are nearly equal."""
    assert all(len(image["scores"]) > 20 for image in expected)
    sides = [{f"output[{name!r}]": x for name, x in side.items()} for side in (_stacked(expected), actual)]
    return _detection_difference("detector", sides[:1], sides[1:])


@pytest.mark.slow
@torch.no_grad()
def test_the_graph_of_a_whole_detector_runs_in_onnx_runtime(tmp_path: Path) -> None:
    """Boxes within 1e-4 pixels at sizes and batches that were not traced, also where a map has a single row."""
    runtime = pytest.importorskip("onnxruntime")
    network, arch = _detector("retinanet", score_threshold=0.3)
    preprocess = DetectorPreprocess(48, (0.5,) * 3, (0.5,) * 3, ("a", "b", "c"), longest=72)
    folder = tmp_path / "folder"
    parity = export(network, folder, arch=arch, space="toy", preprocess=preprocess, onnx=True, nms=True)
    assert list(parity["differences"]) == ["model.py", "model.pt2", "detector.pt2", "model.onnx", "detector.onnx"]
    assert parity["differences"]["detector.onnx"] <= 1e-4
    assert check_parity(network, folder) == parity["differences"]
    raw, whole = (runtime.InferenceSession(folder / f"{name}.onnx") for name in ("model", "detector"))
    assert [output.name for output in whole.get_outputs()] == ["boxes", "scores", "labels"]
    assert [output.name for output in raw.get_outputs()][:2] == ["cls_logits_p1", "cls_logits_p2"]
    program, heads = (torch.export.load(folder / f"{name}.pt2").module() for name in ("detector", "model"))
    model = sys.modules[type(load_exported(folder)).__module__]
    for number, height, width in SIZES:
        x = images(height, width, number=number)
        expected = network(x)
        assert _apart(_run(whole, x), expected) <= 1e-4
        assert _apart(program(x), expected) <= 1e-4
        for named in (_run(raw, x), heads(x)):
            assert _apart(_stacked(model.finish(named)), expected) <= 1e-4


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize(("kind", "settings"), [("retinanet", {"neck": "nasfpn"}), ("faster-rcnn-fpn", {})])
def test_raw_graphs_of_other_detectors_take_any_size(kind: str, settings: dict[str, Any], tmp_path: Path) -> None:
    network, arch = _detector(kind, **settings)
    preprocess = DetectorPreprocess(48, (0.5,) * 3, (0.5,) * 3, ("a", "b", "c"), longest=72)
    export(network, tmp_path / "folder", arch=arch, space="toy", preprocess=preprocess)
    program = torch.export.load(tmp_path / "folder" / "model.pt2").module()
    for number, height, width in SIZES:
        x = images(height, width, number=number)
        named = network[-1].named(network[:-1](x))
        actual = program(x)
        assert list(actual) == list(named)
        assert all(torch.equal(actual[name], named[name]) for name in named)


class _OnOneMap(nn.Module):
    """A head on a single map."""

    def __init__(self) -> None:
        super().__init__()
        self.head = RetinaHead(8, 3, 2, levels=1, convs=1)

    def forward(self, x: Tensor) -> Any:
        return self.head([x])


@torch.no_grad()
def test_the_graph_of_a_head_takes_a_map_of_one_position(tmp_path: Path) -> None:
    """As the coarsest map of images of 128 pixels is, whatever the size of those that were traced."""
    network = _OnOneMap().eval()
    _save_graph(network, tmp_path / "head", (2, 8, 3, 4), onnx=False, sizes=True)
    program = torch.export.load(tmp_path / "head.pt2").module()
    for shape in ((1, 8, 1, 1), (3, 8, 5, 1)):
        x = torch.rand(shape, generator=torch.Generator().manual_seed(0))
        actual, expected = program(x), network(x)
        assert all(torch.equal(actual[name], expected[name]) for name in expected)
