"""Exports equal the trained network, run without this project, and refuse networks that cannot be exported."""

import hashlib
import importlib
import inspect
import json
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchvision.transforms.v2.functional import center_crop, resize

from supernet.config import Preprocess
from supernet.errors import InputError
from supernet.export import check_parity, export, load_exported
from supernet.export.runtime import classify, weights
from supernet.export.source import bundle
from supernet.spaces import create_supernet

CLASSES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
PREPROCESS = Preprocess(input_size=32, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4), classes=CLASSES)
RAW = Preprocess(input_size=8, mean=(0.0,) * 3, std=(1.0,) * 3, classes=())
Write = Callable[[str, str], ModuleType]
SPACES: dict[str, dict[str, object]] = {"nasbench-macro": {}}

# -- networks of the published spaces --------------------------------------------------------------------------------


def randomize(network: nn.Module) -> nn.Module:
    """Draws batch-norm statistics and affine parameters far from their defaults, which would hide mistakes."""
    generator = torch.Generator().manual_seed(5)
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_(0, 0.3, generator=generator)
            part.running_var.uniform_(0.5, 2.0, generator=generator)
            if part.affine:
                nn.init.normal_(part.weight, 1.0, 0.3, generator=generator)
                nn.init.normal_(part.bias, 0.0, 0.3, generator=generator)
        elif isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, 0.0, 0.3, generator=generator)
    return network


@dataclass
class Exported:
    network: nn.Module
    folder: Path
    arch: dict[str, object]
    result: dict[str, object]


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Exported]:
    exported = {}
    for space, settings in SPACES.items():
        chain = create_supernet(space, phase="standalone", generator=torch.Generator().manual_seed(1), **settings)
        arch = chain.space.sample(random.Random(3))
        network = randomize(chain.subnet(arch)).train()
        before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        folder = tmp_path_factory.mktemp("exports") / space
        result = export(network, folder, arch=arch, space=space, preprocess=PREPROCESS)
        assert network.training
        assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
        exported[space] = Exported(network.eval(), folder, dict(arch), result)
    return exported


@pytest.mark.parametrize("space", SPACES)
def test_export_is_complete_and_equal(exports: dict[str, Exported], space: str) -> None:
    exported = exports[space]
    names = {path.name for path in exported.folder.iterdir()}
    assert names == {"model.py", "model.safetensors", "arch.json", "preprocess.json", "model.pt2", "parity.json"}
    assert [path.name for path in exported.folder.parent.iterdir()] == [space]
    assert json.loads((exported.folder / "parity.json").read_text()) == exported.result
    assert exported.result["differences"].keys() == {"model.py", "model.pt2"}
    assert all(0 <= difference <= 1e-5 for difference in exported.result["differences"].values())
    assert exported.result["parameters"] == sum(p.numel() for p in exported.network.parameters())
    assert exported.result["requires"] == ["torch"]
    batches = [shape[0] for shape in exported.result["inputs"]["shapes"]]
    assert exported.result["inputs"]["traced_batch"] in batches
    assert len(set(batches)) > 1
    assert json.loads((exported.folder / "arch.json").read_text())["values"] == exported.arch
    text = (exported.folder / "model.py").read_text()
    assert "supernet" not in text
    assert "NotImplementedError" not in text
    for function in (weights.load, weights._tensors, classify._resized, classify._prepared, classify.predict):
        assert inspect.getsource(function) in text  # unchanged

    x = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(9))
    state = torch.random.get_rng_state()
    loaded = load_exported(exported.folder)
    assert torch.equal(torch.random.get_rng_state(), state)
    graph = torch.export.load(exported.folder / "model.pt2").module()
    with torch.no_grad():
        expected = exported.network(x)
        assert expected.std() > 0.1
        torch.testing.assert_close(loaded(x), expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(graph(x), expected, rtol=0, atol=1e-5)


APART = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("supernet", "searchers", "detection", "timm", "einops", "safetensors"):
            raise ImportError(name + " imported")
sys.meta_path.insert(0, Refuse())
import json, runpy, torch
images, answers = torch.load(sys.argv[1], weights_only=True), {}
for folder in sys.argv[2:]:
    model = runpy.run_path(folder + "/model.py")
    one, many = model["predict"](images[0]), model["predict"](images)
    with torch.no_grad():
        logits = model["load"](folder)(images[:, :, :32, :32].float() / 255)
    answers[folder] = {"one": one, "many": many, "logits": logits.tolist()}
print(json.dumps(answers))
"""


def test_model_py_runs_alone_and_predicts(exports: dict[str, Exported], tmp_path: Path) -> None:
    images = torch.randint(0, 256, (3, 3, 40, 50), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    torch.save(images, tmp_path / "images.pt")
    folders = [str(exported.folder) for exported in exports.values()]
    command = [sys.executable, "-I", "-B", "-c", APART, str(tmp_path / "images.pt"), *folders]
    done = subprocess.run(command, cwd="/", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout)
    # as images in folders are decoded for training: the shorter side is resized, then the centre is cropped
    decoded = center_crop(resize(images, [32], antialias=True), [32, 32])
    resized = center_crop(resize(images.float(), [32], antialias=True).round(), [32, 32])
    assert (decoded.float() - resized).abs().max() <= 1  # torchvision rounds bytes on its way, by a level at most
    x = (resized / 255 - torch.tensor(PREPROCESS.mean).view(3, 1, 1)) / torch.tensor(PREPROCESS.std).view(3, 1, 1)
    for exported in exports.values():
        answer = answers[str(exported.folder)]
        with torch.no_grad():
            torch.testing.assert_close(
                torch.tensor(answer["logits"]), exported.network(images[:, :, :32, :32] / 255), rtol=0, atol=1e-5
            )
            expected = exported.network(x).softmax(dim=1)
        assert len(answer["one"]) == 1
        assert [name for name, _ in answer["one"][0]] == [name for name, _ in answer["many"][0]]
        for row, ranking in zip(expected, answer["many"], strict=True):
            assert {name for name, _ in ranking} == set(CLASSES)
            assert [p for _, p in ranking] == sorted((p for _, p in ranking), reverse=True)
            for name, probability in ranking:
                assert probability == pytest.approx(row[CLASSES.index(name)].item(), abs=1e-5)


def test_changed_files_are_detected(exports: dict[str, Exported], tmp_path: Path) -> None:
    exported = exports["nasbench-macro"]
    folder = tmp_path / "copy"
    shutil.copytree(exported.folder, folder)
    weights = bytearray((folder / "model.safetensors").read_bytes())
    header = json.loads(weights[8 : 8 + int.from_bytes(weights[:8], "little")])
    place = 8 + int.from_bytes(weights[:8], "little") + header["head.fc.bias"]["data_offsets"][0]
    weights[place : place + 4] = torch.tensor([0.01]).numpy().tobytes()
    (folder / "model.safetensors").write_bytes(weights)
    with pytest.raises(InputError, match=r"model\.safetensors has changed"):
        load_exported(folder)
    shutil.copy(exported.folder / "model.safetensors", folder)
    load_exported(folder)
    with (folder / "model.py").open("a") as file:
        file.write("\n")
    with pytest.raises(InputError, match=r"model\.py has changed"):
        load_exported(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"lacks model\.safetensors"):
        load_exported(folder)
    (folder / "parity.json").unlink()
    with pytest.raises(InputError, match="is not an export"):
        check_parity(exported.network, folder)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("model.py", "def load(", r"model\.py is not Python \(line 1: "),
        ("model.py", "import os", r"model\.py cannot be loaded: it defines no load"),
        ("model.py", "def load(folder):\n    return 1", r"load\(\) of .*model\.py returns a int, not a network"),
        ("model.py", "raise SystemExit(3)", r"model\.py cannot be loaded .*SystemExit"),
        ("model.py", "import no_such_module", r"needs torch, but No module named"),
        ("model.safetensors", "x" * 9, r"model\.py cannot be loaded with the weights in model\.safetensors"),
        ("parity.json", "[" * 10**5, r"parity\.json is damaged .*brackets"),
        ("parity.json", '{"format": 1, "sha256": [1], "inputs": {}}', r"parity\.json is damaged"),
        ("parity.json", '{"format": 1, "sha256": {}, "inputs": {"shapes": [[1, 2, 3, "x"]]}}', "is damaged .*shapes"),
    ],
)
def test_a_folder_with_other_content_is_named(
    exports: dict[str, Exported], tmp_path: Path, file: str, content: str, message: str
) -> None:
    """Hashes that agree protect from accidents only: whoever changes a file can write its hash too."""
    folder = tmp_path / "copy"
    shutil.copytree(exports["nasbench-macro"].folder, folder)
    (folder / file).write_text(content)
    if file != "parity.json":
        parity = json.loads((folder / "parity.json").read_text())
        parity["sha256"][file] = hashlib.sha256((folder / file).read_bytes()).hexdigest()
        (folder / "parity.json").write_text(json.dumps(parity))
    with pytest.raises(InputError, match=message) as caught:
        load_exported(folder)
    assert str(folder) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


# -- networks of users -----------------------------------------------------------------------------------------------

USER = '''
"""A user's blocks."""

from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import init as torch_init

from user_helpers import SCALES, Base, halve as half

if TYPE_CHECKING:
    import numpy as np

LEVELS = ("p3", "p4")  # a literal
LAYERS = {"relu": nn.ReLU, "gelu": nn.GELU}


class Heads(Base):
    """Two outputs per level."""

    def __init__(self, width: int, *, act: str = "relu", body: nn.Module | None = None) -> None:
        super().__init__(width)
        self.act = act
        self.body = body
        self.after = LAYERS[act]()
        self.table = nn.Parameter(torch_init.zeros_(self.scales(width)))

    def out_layout(self, layout):
        return Layout(layout)

    def forward(self, x: Tensor, hint: "np.ndarray | None" = None) -> dict[str, object]:
        x = self.after(self.conv(x) * self.ramp + self.table.sum())
        if self.body is not None:
            x = self.body(x)
        return {name: {"map": x * scale, "pair": (half(x), [F.relu(x)])} for name, scale in zip(LEVELS, SCALES)}
'''

HELPERS = """
import math

import torch
from torch import nn

SCALES = tuple(math.sqrt(n) for n in (2, 3))


def halve(x):
    return x / divisor()


def divisor():
    return 2 * Base.UNIT


class Base(nn.Module):
    UNIT = 1

    def __init__(self, width):
        super().__init__()
        self.width = width
        self.conv = nn.Conv2d(3, width, 1)
        self.register_buffer("ramp", torch.linspace(0, halve(1.0), width).view(-1, 1, 1), persistent=False)
        self.register_buffer("count", torch.tensor(7))

    @staticmethod
    def scales(width):
        return torch.empty(width)
"""


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Returns a function that writes modules and imports them from a folder that exported code cannot reach."""
    folder = tmp_path / "user"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    names: list[str] = []

    def write(name: str, text: str) -> ModuleType:
        (folder / f"{name}.py").write_text(text)
        importlib.invalidate_caches()
        names.append(name)
        return importlib.import_module(name)

    yield write
    for name in names:
        sys.modules.pop(name, None)


@pytest.mark.usefixtures("forked_runner")
def test_users_code_is_bundled(user: Write, exports: dict[str, Exported], tmp_path: Path) -> None:
    helpers = user("user_helpers", HELPERS)
    module = user("user_blocks", USER)
    body = nn.Sequential()
    body.add_module("mix", nn.Conv2d(4, 4, 3, padding=1))
    network = randomize(module.Heads(4, act="gelu", body=body))
    network.count += 1
    folder = tmp_path / "out"
    shutil.copytree(exports["nasbench-macro"].folder, folder)  # an earlier export is replaced
    result = export(network, folder, arch={"op": "mine"}, space="user:heads", preprocess=RAW)
    assert max(result["differences"].values()) <= 1e-5
    assert not list(tmp_path.glob("out.*"))
    text = (folder / "model.py").read_text()
    assert "out_layout" not in text
    assert "user_" not in text
    assert 'LEVELS = ("p3", "p4")' in text
    assert 'body=nn.Sequential(OrderedDict({"mix": nn.Conv2d(4, 4, 3, padding=1)}))' in text
    assert text.index("class Base") < text.index("class Heads")
    assert helpers.SCALES == (2**0.5, 3**0.5)

    loaded = load_exported(folder)
    assert loaded.count == 8
    x = torch.rand(2, 3, 6, 6)
    with torch.no_grad():
        mine, theirs = network(x), loaded(x)
    torch.testing.assert_close(theirs["p4"]["pair"][1][0], mine["p4"]["pair"][1][0], rtol=0, atol=1e-5)
    torch.testing.assert_close(theirs["p3"]["pair"][0], mine["p3"]["pair"][0], rtol=0, atol=1e-5)
    raw = sys.modules[type(loaded).__module__].predict(torch.full((3, 8, 8), 51, dtype=torch.uint8))
    with torch.no_grad():
        expected = network(torch.full((1, 3, 8, 8), 0.2))["p3"]["map"]
    torch.testing.assert_close(raw["p3"]["map"], expected, rtol=0, atol=1e-5)


def source_of(*used: type) -> str:
    imported = {"torch": torch, "nn": nn}
    return bundle(used, imported=imported, defined=("build", "load")).definitions


BLOCK = "from torch import nn\n{imports}\n\nclass Block(nn.Module):\n    def forward(self, x):\n        {body}\n"


@pytest.mark.parametrize(
    ("imports", "body", "message"),
    [
        ("from einops import rearrange", 'return rearrange(x, "n c h w -> n h w c")', "Block needs 'einops'"),
        ("from timm.layers import DropPath", "return DropPath()(x)", "Block needs 'timm.layers'"),
        ("import numpy as np", "return np.abs(x)", "Block needs 'numpy'"),
        ("", "import einops; return einops.rearrange(x, 'n c -> c n')", "Block needs 'einops'"),
        ("import user_other", "return user_other.f(x)", "whole module 'user_other'"),
        ("def load(x):\n    return x", "return load(x)", "two different things are called 'load'"),
        ("from user_other import torch", "return torch(x)", "two different things are called 'torch'"),
    ],
)
def test_foreign_imports_are_refused(user: Write, tmp_path: Path, imports: str, body: str, message: str) -> None:
    user("user_other", "def f(x):\n    return x\n\n\ndef torch(x):\n    return x\n")
    module = user("user_block", BLOCK.format(imports=imports, body=body))
    with pytest.raises(InputError, match=message):
        source_of(module.Block)


def test_a_refused_export_leaves_nothing_behind(user: Write, tmp_path: Path) -> None:
    body = 'return rearrange(x, "n c h w -> n (c h w)")'
    module = user("user_block", BLOCK.format(imports="from einops import rearrange", body=body))
    with pytest.raises(InputError, match="Block needs 'einops'"):
        export(module.Block(), tmp_path / "out", arch={}, space="mine", preprocess=RAW)
    timm_layer = importlib.import_module("timm.layers").SelectAdaptivePool2d()
    with pytest.raises(InputError, match="SelectAdaptivePool2d needs 'timm"):
        export(timm_layer, tmp_path / "out", arch={}, space="mine", preprocess=RAW)
    assert [path.name for path in tmp_path.iterdir()] == ["user"]


def test_two_classes_of_one_name_and_hidden_classes(user: Write) -> None:
    text = BLOCK.format(imports="", body="return x")
    first, second = user("user_first", text), user("user_second", text)
    with pytest.raises(InputError, match=r"'Block', of user_first and of user_second"):
        source_of(first.Block, second.Block)

    class Hidden(nn.Module):
        pass

    with pytest.raises(InputError, match=r"Hidden is not at the top level"):
        source_of(Hidden)


def test_circular_needs_and_aliases_are_written_in_an_order_that_runs(user: Write) -> None:
    user(
        "user_parts", "class Bottom:\n    def grow(self):\n        return Top()\n\n\nclass Top(Bottom):\n    size = 3\n"
    )
    imports = "from user_parts import Bottom as Under\nfrom user_parts import Top"
    module = user("user_use", imports + "\n\n\nclass Use(Under):\n    top = Top.size\n")
    scope: dict[str, type] = {}
    exec(source_of(module.Use), scope)
    assert scope["Use"].top == 3
    assert type(scope["Use"]().grow()).__name__ == "Top"


def test_torchvision_is_recorded(user: Write) -> None:
    module = user("user_block", BLOCK.format(imports="from torchvision.ops import nms", body="return nms(x, x, 0.5)"))
    code = bundle([module.Block], imported={"nn": nn}, defined=())
    assert code.requires == ("torch", "torchvision")
    assert "from torchvision.ops import nms" in code.imports.splitlines()


class Shifted(nn.Module):
    """Its `shift`, set after construction, is neither a constructor argument nor a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = 0.0

    def forward(self, x: Tensor) -> Tensor:
        return x + self.shift


@pytest.mark.usefixtures("forked_runner")
def test_export_fails_if_parity_fails(tmp_path: Path) -> None:
    network = Shifted()
    network.shift = 0.25
    with pytest.raises(InputError, match=r"model\.py differs from the trained network by 0\.25"):
        export(network, tmp_path / "out", arch={}, space="mine", preprocess=RAW)
    assert not list(tmp_path.iterdir())


def test_bad_requests_are_refused(tmp_path: Path) -> None:
    arguments = {"arch": {}, "space": "mine", "preprocess": RAW}
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="other than an export"):
        export(Shifted(), tmp_path, **arguments)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    with pytest.raises(InputError, match=r"std=\(0.25,\) and mean=\(0.5, 0.5\) should have one value each"):
        Preprocess(8, (0.5, 0.5), (0.25,), ())
    with pytest.raises(InputError, match="names 10 classes"):
        export(Shifted(), tmp_path / "out", **{**arguments, "preprocess": PREPROCESS})
    with pytest.raises(InputError, match="fails on images"):
        export(nn.Linear(3, 4), tmp_path / "out", **arguments)
    with pytest.raises(InputError, match="export the network of one architecture"):
        export(create_supernet("nasbench-macro"), tmp_path / "out", **arguments)
    with pytest.raises(InputError, match="is not an export"):
        load_exported(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.slow  # test_export_fails_if_parity_fails
def test_changed_weights_are_another_network(exports: dict[str, Exported], tmp_path: Path) -> None:
    exported = exports["nasbench-macro"]
    folder = tmp_path / "copy"
    shutil.copytree(exported.folder, folder)
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, "head.fc.bias": tensors["head.fc.bias"] + 0.01}, folder / "model.safetensors")
    with pytest.raises(InputError, match=r"model\.py differs from the trained network by 0\.01"):
        check_parity(exported.network, folder)


@pytest.mark.slow
def test_onnx_and_check_parity(user: Write, tmp_path: Path) -> None:
    user("user_helpers", HELPERS)
    network = randomize(user("user_blocks", USER).Heads(4))
    result = export(network, tmp_path / "out", arch={}, space="mine", preprocess=RAW, onnx=True)
    assert result["differences"].keys() == {"model.py", "model.pt2", "model.onnx"}
    assert "model.onnx" in result["sha256"]
    assert max(check_parity(network, tmp_path / "out").values()) <= 1e-5
    with torch.no_grad():
        network.table += 1
    with pytest.raises(InputError, match="differs from the trained network"):
        check_parity(network, tmp_path / "out")


@pytest.mark.slow
def test_imports_hidden_from_the_source_are_detected_when_loading(user: Write, tmp_path: Path) -> None:
    body = 'return importlib.import_module("einops").rearrange(x, "n c h w -> n (c h w)")'
    module = user("user_block", BLOCK.format(imports="import importlib", body=body))
    with pytest.raises(InputError, match=r"model\.py: ModuleNotFoundError: exported code must not import 'einops'"):
        export(module.Block(), tmp_path / "out", arch={}, space="mine", preprocess=RAW)
    assert [path.name for path in tmp_path.iterdir()] == ["user"]
