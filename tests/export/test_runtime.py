"""The code of every export: real modules that are copied unchanged and import torch but not this project."""

import ast
import inspect
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from supernet.export.runtime import classify, detect, runner, weights

MODULES = (weights, classify, detect, runner)
SETTINGS = {"mean": [0.5], "std": [0.25], "input_size": 8, "interpolation": "bilinear", "classes": ["a", "b"]}


def test_the_modules_import_only_torch_and_each_other() -> None:
    """Detectors, whose last module is torchvision's, also resize by it, as in training."""
    for module in MODULES:
        tree = ast.parse(inspect.getsource(module))
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                root = name.partition(".")[0]
                allowed = {"torch", "torchvision"} if module is detect else {"torch"}
                known = root in allowed or root in sys.stdlib_module_names
                copied = name.startswith("supernet.export.runtime.") or name == "supernet.data.opening"
                assert known or copied, f"{module.__name__} imports {name}"


def test_every_type_of_weight_is_read_as_it_was_written(tmp_path: Path) -> None:
    types = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
    types += [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool]
    written = {str(dtype): torch.arange(-3, 3).to(dtype).reshape(2, 3) for dtype in types}
    written |= {"empty": torch.empty(0, 4), "scalar": torch.tensor(7)}
    save_file(written, tmp_path / "w.safetensors", metadata={"format": "pt"})
    read = weights._tensors(tmp_path / "w.safetensors")
    assert read.keys() == written.keys()
    for name, tensor in written.items():
        assert read[name].dtype == tensor.dtype
        assert torch.equal(read[name], tensor), name


def test_images_of_a_classifier_are_resized_cropped_and_named() -> None:
    x = classify._prepared(torch.full((1, 16, 24), 255, dtype=torch.uint8), SETTINGS)
    assert x.shape == (1, 1, 8, 8)
    assert (x == 2).all()
    for bad in (torch.zeros(1, 8, 8), torch.zeros(3, 8, 8, dtype=torch.uint8)):
        with pytest.raises(ValueError, match=r"images are uint8, \(N, 1, H, W\)"):
            classify._prepared(bad, SETTINGS)
    ((first, second),) = classify._named(torch.tensor([[0.0, 3.0]]), ["a", "b"])
    assert [first[0], second[0]] == ["b", "a"]
    assert first[1] + second[1] == pytest.approx(1)


def test_images_of_a_detector_keep_their_proportions_within_a_longest_side() -> None:
    image = torch.zeros(1, 20, 40, dtype=torch.uint8)
    x, scale = detect._prepared(image, SETTINGS)
    assert x.shape == (1, 8, 8)
    assert scale.tolist() == [5.0, 2.5, 5.0, 2.5]
    x, scale = detect._prepared(image, {**SETTINGS, "longest": 12})
    assert x.shape == (1, 6, 12)
    with pytest.raises(ValueError, match=r"an image is uint8, \(1, H, W\)"):
        detect._prepared(image.float(), SETTINGS)


def test_a_detector_predicts_and_finishes_in_pixels_of_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    class Whole(nn.Module):
        """Detects one box over the whole image, of the second class."""

        def forward(self, images: list[torch.Tensor]) -> list[dict[str, torch.Tensor]]:
            boxes = [torch.tensor([[0.0, 0.0, x.shape[2], x.shape[1]]]) for x in images]
            return [{"boxes": b, "scores": torch.tensor([0.5]), "labels": torch.tensor([2])} for b in boxes]

    network = nn.Sequential(nn.Identity(), Whole())
    monkeypatch.setattr(detect, "_loaded", lambda: (network, SETTINGS))
    images = [torch.zeros(1, 20, 40, dtype=torch.uint8), torch.zeros(1, 8, 16, dtype=torch.uint8)]
    detections = detect.predict(images)
    assert detections == [[("b", 0.5, (0.0, 0.0, 40.0, 20.0))], [("b", 0.5, (0.0, 0.0, 16.0, 8.0))]]
    assert detect.predict(images[0]) == detect.predict(images[0][None]) == detections[:1]
    assert detect.finish([torch.zeros(1, 3, 4)])[0]["boxes"].tolist() == [[0.0, 0.0, 4.0, 3.0]]
    monkeypatch.setattr(detect, "_loaded", lambda: (network, {**SETTINGS, "classes": []}))
    assert detect.predict(images[0])[0][0][0] == 2


def test_the_runner_names_the_artefact_that_fails(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text("def load():\n    raise RuntimeError('two\\nlines')\n")
    torch.save([torch.zeros(1)], tmp_path / "inputs.pt")
    with pytest.raises(SystemExit, match=r"^model\.py: RuntimeError: two lines$"):
        runner.run(tmp_path, tmp_path, 0)
    sys.modules.pop("model")
    with pytest.raises(ModuleNotFoundError, match=r"must not import 'timm\.layers'"):
        runner.Block().find_spec("timm.layers")
    with pytest.raises(TypeError, match=r"output\[0\] is of type str"):
        runner.leaves(["text"])
