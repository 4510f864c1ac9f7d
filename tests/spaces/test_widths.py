"""Width spaces: groups follow the topology, costs and weights are those of the known networks, branches can go."""

import contextlib
import copy
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision import models

from supernet import create_network, create_supernet
from supernet.blocks.elastic import ElasticBlock, ElasticHead
from supernet.blocks.plain import ConvBNAct, Residual
from supernet.chain import Chain, largest
from supernet.config import Preprocess
from supernet.cost import CostTable, count
from supernet.errors import InputError
from supernet.export import export, load_exported
from supernet.export.expression import expression
from supernet.space import Arch
from supernet.spaces.pretrained import check_pretrained, expected_normalisation, load_pretrained
from supernet.spaces.widths import WidthChain, mobilenetv2_widths, resnet_20_widths, resnet_50_widths
from supernet.testing import check_expressions, check_space, randomize
from supernet.training.sparse_step import step_active

SMALL: dict[str, dict[str, Any]] = {
    "plain-small-widths": {"input_size": 8, "widths": (4, 6, 8)},
    "resnet-20-widths": {"input_size": 8, "widths": (4, 6, 8), "blocks": 2},
    "resnet-50-widths": {"input_size": 32, "base": 4, "depths": (1, 2), "num_classes": 7},
    "mobilenetv2-widths": {
        "input_size": 32,
        "stem": 6,
        "table": ((1, 4, 1, 1), (6, 6, 2, 2), (3, 8, 2, 2)),
        "last": 20,
        "num_classes": 7,
    },
}
every_space = pytest.mark.parametrize("name", SMALL)


def small(name: str) -> WidthChain:
    chain = create_supernet(name, generator=torch.Generator().manual_seed(0), **SMALL[name])
    assert isinstance(chain, WidthChain)
    return chain


def images(chain: WidthChain) -> Tensor:
    return torch.randn((2, *chain.input_shape), generator=torch.Generator().manual_seed(1))


def some(chain: WidthChain, rng: random.Random, *, gone: float = 0.3) -> Arch:
    """A random architecture, in which branches are missing more often than uniform draws leave them out."""
    values = dict(chain.space.sample(rng))
    for choice in chain.space.choices:
        if 0 in choice.options and rng.random() < gone:
            values[choice.name] = 0
    return chain.space.normal_form(chain.space.canonical(values))


# -- groups -----------------------------------------------------------------------------------------------------------


def meta(build: Callable[..., WidthChain], **settings: Any) -> WidthChain:
    with torch.device("meta"):
        return build(**settings)


def test_resnet_20_has_a_group_per_sum_and_one_per_branch() -> None:
    chain = meta(resnet_20_widths)
    mids = [f"stage{stage}.block{block}.mid" for stage in (1, 2, 3) for block in range(3)]
    assert {c.name for c in chain.space.choices} == {*mids, "stem.width", "stage2.block0.out", "stage3.block0.out"}
    stem = chain.space["stem.width"]
    assert (stem.options, stem.ordered) == (range(1, 33), True)
    assert chain.space["stage3.block2.mid"].options == range(129)
    assert chain.space["stage3.block0.out"].options == range(1, 129)
    assert chain.space.size() == 32 * 64 * 128 * 33**3 * 65**3 * 129**3
    makers = [name for name, entry, _ in chain.elastic_layers() if entry.makes == "stem.width"]
    assert makers == ["stem.0", "stage1.block0.1", "stage1.block1.1", "stage1.block2.1"]
    seed = {"stem.width": 16, "stage2.block0.mid": 32, "stage2.block0.out": 32, "stage3.block0.out": 64}
    assert seed.items() <= dict(chain.seed).items()


def test_convolutions_convolutions_tie_their_input_and_output_widths() -> None:
    chain = meta(mobilenetv2_widths)
    groups = {name: (entry.reads, entry.makes) for name, entry, _ in chain.elastic_layers()}
    assert groups["stage1.block0.0"] == ("stem.width", "stem.width")
    assert groups["stage2.block0.1"] == ("stage2.block0.mid", "stage2.block0.mid")
    assert groups["stage2.block1.2"] == ("stage2.block1.mid", "stage2.block0.out")
    assert groups["stage3.block0.0"] == ("stage2.block0.out", "stage3.block0.mid")
    assert chain.space["stage2.block0.mid"].options == range(1, 193)  # no shortcut around it
    assert chain.space["stage2.block1.mid"].options == range(289)
    assert len(chain.space.choices) == 1 + 7 + 16 + 1


def test_resnet_50_has_two_groups_per_bottleneck() -> None:
    names = [choice.name for choice in meta(resnet_50_widths).space.choices]
    assert len(names) == 1 + 2 * 16 + 4
    assert sum(name.endswith(".out") for name in names) == 4


@every_space
def test_costs_of_layers_add_up_to_the_trace(name: str) -> None:
    chain, rng = small(name), random.Random(3)
    table, layers = CostTable(chain), chain.layers()
    archs = [some(chain, rng) for _ in range(6)]
    assert name == "plain-small-widths" or any(0 in arch.values() for arch in archs)
    for arch in [chain.seed, *archs]:
        traced = table(arch)
        assert sum(layer.macs(arch) for layer in layers) == traced["macs"]
        assert sum(layer.params(arch) for layer in layers) == traced["params"]


# -- the known networks -----------------------------------------------------------------------------------------------

KNOWN = {
    "resnet-50-widths": (resnet_50_widths, models.resnet50, 25_557_032),
    "mobilenetv2-widths": (mobilenetv2_widths, models.mobilenet_v2, 3_504_872),
}


@pytest.mark.parametrize("name", KNOWN)
def test_the_seed_is_torchvisions_network(name: str) -> None:
    build, reference, params = KNOWN[name]
    chain = meta(build)
    with torch.device("meta"):
        theirs = count(reference(), (3, 224, 224))
    ours = CostTable(chain)(chain.seed)
    assert ours["params"] == theirs["params"] == params
    assert ours["macs"] == theirs["macs"]
    assert chain.space["stem.width"].options[-1] == 2 * chain.seed["stem.width"]


@pytest.mark.parametrize("name", KNOWN)
def test_torchvisions_weights_give_torchvisions_outputs(name: str) -> None:
    build, reference, _ = KNOWN[name]
    with torch.device("meta"):
        theirs, ours = reference().eval(), build(input_size=64, headroom=1.0).eval()
    randomize(theirs.to_empty(device="cpu"), 0)
    theirs_state, ours_state = theirs.state_dict(), ours.state_dict()
    assert [t.shape for t in theirs_state.values()] == [t.shape for t in ours_state.values()]
    ours.load_state_dict(dict(zip(ours_state, theirs_state.values(), strict=True)), assign=True)
    x = images(ours)
    with torch.no_grad():
        expected = theirs(x)
        torch.testing.assert_close(ours(x, ours.seed), expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
        assert float(expected.std()) > 0.1


@pytest.mark.parametrize("name", [pytest.param("resnet-50-widths", marks=pytest.mark.slow), "mobilenetv2-widths"])
def test_weights_of_torchvision_are_loaded_from_files(name: str, tmp_path: Path) -> None:
    """Sorted channels give the same outputs; other classes begin at zero, and other settings are refused."""
    theirs, file = KNOWN[name][1](num_classes=9).eval(), tmp_path / "weights.pth"
    randomize(theirs, 0)
    torch.save(theirs.state_dict(), file)
    chain = create_supernet(name, headroom=1.0, input_size=32, num_classes=9).eval()
    x, arch = images(chain), largest(chain.space)
    load_pretrained(chain, file, sort=False)
    before = chain.state_dict()["stem.body.0.conv.weight"].clone()
    with torch.no_grad():
        expected = theirs(x)
        scale = float(expected.abs().max())
        torch.testing.assert_close(chain(x, arch), expected, rtol=0, atol=1e-5 * scale)
        load_pretrained(chain, file)
        torch.testing.assert_close(chain(x, arch), expected, rtol=0, atol=1e-4 * scale)
    assert not torch.equal(chain.state_dict()["stem.body.0.conv.weight"], before)
    assert expected_normalisation(chain) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    other = create_supernet(name, headroom=1.0, input_size=32, num_classes=3).eval()
    load_pretrained(other, file)
    assert not list(other.state_dict().values())[-1].any()
    with torch.device("meta"), pytest.raises(InputError, match=r"is as wide as torchvision/.* only with headroom=1"):
        check_pretrained(KNOWN[name][0](), file)
    state = theirs.state_dict()
    first = next(iter(state))
    torch.save(state | {first: torch.zeros(3, 3, 3, 3)}, file)
    with pytest.raises(InputError, match=rf"{first}' is \(3, 3, 3, 3\) in the file and \("):
        load_pretrained(chain, file)


def test_resnet_20_has_the_layers_of_the_paper() -> None:
    chain = meta(resnet_20_widths)
    shortcuts = sum(isinstance(step, ElasticBlock) and isinstance(step.shortcut, ConvBNAct) for _, step in chain.steps)
    assert (len(chain.layers()), shortcuts) == (20 + 2, 2)
    costs = CostTable(chain)(chain.seed)
    assert costs["params"] == 269_722 + 2 * 32 * 2 // 2 + 16 * 32 + 2 * 64 + 32 * 64  # 0.27M, and two projections


# -- branches ---------------------------------------------------------------------------------------------------------

GONE: dict[str, dict[str, int]] = {
    "resnet-20-widths": {"stage1.block1.mid": 0, "stage2.block0.mid": 0},
    "resnet-50-widths": {
        "stage1.block0.mid1": 3,
        "stage1.block0.mid2": 0,
        "stage2.block1.mid1": 0,
        "stage2.block1.mid2": 3,
    },
    "mobilenetv2-widths": {"stage2.block1.mid": 0},
}


@pytest.mark.parametrize("name", GONE)
def test_a_width_of_0_leaves_the_branch_out(name: str) -> None:
    chain = small(name)
    arch = chain.space.canonical({**chain.seed, **GONE[name]})
    whole, subnet = (chain.steps_in(chain.subnet(values)) for values in (chain.seed, arch))
    missing = [
        chain.step_names[i] for i, (a, b) in enumerate(zip(whole, subnet, strict=True)) if type(a) is not type(b)
    ]
    assert missing == list(dict.fromkeys(group.rpartition(".")[0] for group in GONE[name]))
    for step in missing:
        layer = subnet[chain.step_names.index(step)]
        identity = isinstance(whole[chain.step_names.index(step)].shortcut, nn.Identity)
        assert isinstance(layer, nn.Identity if identity else ConvBNAct)
    chain.space = chain.space.fix(dict.fromkeys(GONE[name], 0))
    check_space(chain, archs=1)


def test_a_shortcut_with_a_projection_stays_with_its_activation() -> None:
    chain = small("resnet-20-widths")
    randomize(chain, 0)
    arch = chain.space.canonical({**chain.seed, "stage2.block0.mid": 0})
    whole = chain.steps_in(chain.subnet(chain.seed))[3]
    assert isinstance(whole, Residual)
    left = chain.steps_in(chain.subnet(arch).eval())[3]
    x = images(chain)[:, :1].expand(-1, 4, -1, -1)
    assert torch.equal(left(x), nn.functional.relu(whole.shortcut.eval()(x)))


@pytest.fixture
def without_branch() -> tuple[WidthChain, Arch]:
    """A supernet of two blocks, and an architecture in which one of them has no branch."""
    settings: dict[str, Any] = {"input_size": 8, "widths": (4,), "blocks": 2, "num_classes": 3}
    chain = create_supernet("resnet-20-widths", **settings)
    assert isinstance(chain, WidthChain)
    return chain, chain.space.canonical({"stem.width": 3, "stage1.block0.mid": 2, "stage1.block1.mid": 0})


def test_a_network_without_a_branch_can_be_written_as_source(without_branch: tuple[WidthChain, Arch]) -> None:
    chain, arch = without_branch
    network = chain.subnet(arch)
    check_expressions(network)
    source = expression(network)
    assert source.count("Residual(") == 1  # one block of two
    assert "Elastic" not in source


@pytest.mark.slow
def test_a_network_without_a_branch_is_exported_and_runs(
    without_branch: tuple[WidthChain, Arch], tmp_path: Path
) -> None:
    chain, arch = without_branch
    network = chain.subnet(arch)
    randomize(network, 2)
    preprocess = Preprocess(8, (0.5,) * 3, (0.25,) * 3, ("a", "b", "c"))
    export(network, tmp_path / "out", arch=arch, space="resnet-20-widths", preprocess=preprocess)
    x = images(chain)
    assert torch.equal(load_exported(tmp_path / "out")(x), network.eval()(x))
    source = (tmp_path / "out" / "model.py").read_text()
    assert source.count("Residual(") == 2  # the class, and one block of two
    assert "Elastic" not in source


def test_a_width_of_0_where_a_channel_is_needed_is_named() -> None:
    for name, group in (("plain-small-widths", "block0.out"), ("mobilenetv2-widths", "stage2.block0.mid")):
        chain = small(name)
        with pytest.raises(InputError, match=rf"0 is not an option of '{group}'"):
            chain.subnet({**chain.seed, group: 0})


# -- what a searcher does to the weights ------------------------------------------------------------------------------


@every_space
def test_a_permutation_of_channels_leaves_the_outputs(name: str) -> None:
    chain, generator = small(name), torch.Generator().manual_seed(4)
    randomize(chain, 1)
    rng, x = random.Random(0), images(chain)
    for arch in (chain.seed, some(chain, rng)):
        moved = copy.deepcopy(chain).eval()
        orders = {group: torch.randperm(int(n), generator=generator) for group, n in arch.items()}
        moved.permute(orders)
        with torch.no_grad():
            expected, actual = chain.eval()(x, arch), moved(x, arch)
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-6 * max(1.0, float(expected.abs().max())))
        before, after = chain.scales(arch), moved.scales(arch)
        for group, order in orders.items():
            for old, new in zip(before[group], after[group], strict=True):
                assert torch.equal(new, old[order])
        assert not torch.equal(moved.step_modules[0].body[0].conv.weight, chain.step_modules[0].body[0].conv.weight)


def test_scales_are_those_of_the_layers_that_meet() -> None:
    chain = small("resnet-20-widths")
    stage = [chain.step_modules[i] for i in (1, 2)]
    chain.step_modules[0].body[0].bn.weight.data.fill_(2.0)
    for number, step in enumerate(stage):
        step.body[1].bn.weight.data.fill_(3.0 + number)
    arch = chain.space.canonical({**chain.seed, "stem.width": 3, "stage1.block0.mid": 0})
    assert [scale.tolist() for scale in chain.scales(arch)["stem.width"]] == [[2.0] * 3, [4.0] * 3]
    assert chain.scales(arch)["stage1.block0.mid"] == []
    assert [len(scale) for scale in chain.scales(chain.seed)["stage1.block0.mid"]] == [4]


def test_reinitialised_channels_start_like_new_ones() -> None:
    chain = small("mobilenetv2-widths")
    randomize(chain, 0)
    before = copy.deepcopy(chain.state_dict())
    chain.reset_scales({"stage2.block0.mid": 5})
    changed = {name for name, tensor in chain.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {f"stage2.block0.body.{layer}.bn.{part}" for layer in (0, 1) for part in ("weight", "bias")}
    for layer in (0, 1):
        bn = chain.step_modules[2].body[layer].bn
        assert bn.weight[5:].eq(1).all()
        assert bn.bias[5:].eq(0).all()
        assert torch.equal(bn.weight[:5], before[f"stage2.block0.body.{layer}.bn.weight"][:5])


# -- mistakes ---------------------------------------------------------------------------------------------------------


def test_a_width_chain_accepts_only_widths() -> None:
    head = ("head", ElasticHead(4, 2))
    with pytest.raises(InputError, match="step 'stem' is a ConvBNAct"):
        WidthChain("x", [("stem", ConvBNAct(3, 4)), head], seed={}, input_shape=(3, 8, 8))
    kernels = ElasticBlock([ConvBNAct(3, 4, kernel=3)], ["width"], kernels=(1, 3))
    with pytest.raises(InputError, match=r"'stem\.kernel' of 'x' is not a width"):
        WidthChain("x", [("stem", kernels), head], seed={"stem.width": 2}, input_shape=(3, 8, 8))
    with pytest.raises(InputError, match=r"headroom=0\.5"):
        create_supernet("resnet-20-widths", headroom=0.5)


def test_a_fresh_network_of_any_widths_trains() -> None:
    chain = small("resnet-20-widths")
    arch = some(chain, random.Random(5))
    network = create_network("resnet-20-widths", arch=arch, **SMALL["resnet-20-widths"])
    network(images(chain)).sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


# -- a training step ---------------------------------------------------------------------------------------------------

CUTTING = {
    "as_strided",
    "slice",
    "zeros",
    "new_zeros",
    "zero_",
    "fill_",
    "empty",
    "new_empty_strided",
    "copy_",
    "clone",
    "detach",
    "squeeze",
    "t",
}
"""What cutting weights and filling their gradients takes, and views."""


class Operations(TorchDispatchMode):
    """The aten operations that run inside but for `CUTTING`, with the sizes of what they return."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        leaves = [leaf for leaf in (out if isinstance(out, tuple | list) else (out,)) if isinstance(leaf, Tensor)]
        counts = all(leaf.ndim == 0 and not leaf.is_floating_point() for leaf in leaves)  # batches, in a batch norm
        if func.overloadpacket.__name__ not in CUTTING and not counts:
            sizes = [tuple(leaf.shape) for leaf in leaves]
            if func.overloadpacket.__name__ == "mm":  # or its transpose, as the strides of a weight advise
                sizes = [tuple(sorted(size)) for size in sizes]
            self.seen.append((str(func), tuple(sizes)))
        return out


@pytest.mark.parametrize("name", ["plain-small-widths", "mobilenetv2-widths"])
def test_a_step_runs_the_operations_of_the_materialised_network_but_for_the_slices(name: str) -> None:
    chain = small(name).train()
    arch = chain.space.canonical({c.name: max(1, int(c.options[-1]) // 2) for c in chain.space.choices})
    twin = Chain("twin", [("network", chain.subnet(arch))]).train()
    x, outputs = images(chain), []
    for net, chosen in ((chain, arch), (twin, Arch())):
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
        parts = list(net.active_parts(chosen))
        for step in range(2):  # in the first, momentum is made
            operations = Operations() if step else contextlib.nullcontext()
            with operations:
                torch.manual_seed(0)  # dropout
                net(x, chosen).square().sum().backward()
                step_active(optimizer, parts)
            optimizer.zero_grad()
        assert isinstance(operations, Operations)
        outputs.append(operations.seen)
    assert sum("convolution_backward" in name for name, _ in outputs[0]) >= 6  # not of nothing
    assert outputs[0] == outputs[1]
