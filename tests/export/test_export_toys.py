"""Exports of every toy space run without this project: loose ends, slices and detector heads included."""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from helpers.toy_spaces import TOY_SPACES
from supernet.config import Preprocess
from supernet.export import export
from supernet.testing import randomize

APART = """
import sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("supernet", "searchers", "detection", "timm", "safetensors", "helpers"):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Block())
import importlib.util, json, pathlib, torch
report = {}
for toy in json.loads(sys.argv[1]):
    folder = pathlib.Path(sys.argv[2]) / toy
    spec = importlib.util.spec_from_file_location("model_" + toy, folder / "model.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    images, expected = torch.load(folder.with_suffix(".pt"), weights_only=True)
    for name, network in (("py", module.load()), ("pt2", torch.export.load(folder / "model.pt2").module())):
        with torch.no_grad():
            outputs = network(images)
        outputs = outputs if isinstance(outputs, dict) else {"logits": outputs}
        assert outputs.keys() == expected.keys()
        report[toy + "." + name] = max(float((outputs[k] - expected[k]).abs().max()) for k in expected)
print(json.dumps(report))
"""


@pytest.mark.slow  # test_export.py does the same for one network; sources of all of them: tests/spaces/test_spaces.py
def test_every_toy_space_runs_where_the_project_cannot_be_imported(tmp_path: Path) -> None:
    for toy in TOY_SPACES:
        supernet = TOY_SPACES[toy]()
        randomize(supernet, seed=1)
        arch = supernet.space.sample(random.Random(5))
        network = supernet.subnet(arch).eval()
        size, classes = supernet.input_shape[-1], () if toy == "detector" else tuple("abcde")
        preprocess = Preprocess(size, (0.5,) * 3, (0.25,) * 3, classes)
        export(network, tmp_path / toy, arch=arch, space=supernet.space.name, preprocess=preprocess)
        images = torch.randn(3, *supernet.input_shape, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            outputs = network(images)
        torch.save((images, outputs if isinstance(outputs, dict) else {"logits": outputs}), tmp_path / f"{toy}.pt")
    command = [sys.executable, "-I", "-c", APART, json.dumps(list(TOY_SPACES)), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd="/", check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert len(report) == 2 * len(TOY_SPACES)
    assert max(report.values()) <= 1e-5, report
