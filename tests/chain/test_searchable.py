"""Chains, layouts and bound searchables; and the two functions that build networks from a space's name."""

import random
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from helpers.toy_spaces import TOY_SPACES
from supernet import Chain, Layout, Searchable, create_network, create_supernet
from supernet.blocks.choice import ChoiceBlock
from supernet.blocks.plain import ClassifierHead, ConvBNAct
from supernet.chain import Layouts, initialize, plain_layout, realize, step_layout
from supernet.errors import InputError
from supernet.space import Arch
from supernet.spaces.create import Phase
from supernet.testing import randomize


def choice(width: int = 4) -> ChoiceBlock:
    return ChoiceBlock({"k1": ConvBNAct(width, width), "k3": ConvBNAct(width, width, kernel=3)})


def network(arch: Arch, seed: int) -> nn.Module:
    return create_network("shufflenet-small", arch=arch, input_size=16, generator=torch.Generator().manual_seed(seed))


def small_arch(seed: int = 0) -> Arch:
    return create_supernet("shufflenet-small").space.sample(random.Random(seed))


def same(one: nn.Module, other: nn.Module) -> bool:
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


# -- chains -----------------------------------------------------------------------------------------------------------


def test_steps_of_one_name_share_decisions_but_not_weights() -> None:
    chain = Chain("c", [("stem", ConvBNAct(3, 4)), ("cell", choice()), ("other", choice()), ("cell", choice())])
    assert [c.name for c in chain.space.choices] == ["cell.op", "other.op"]
    assert [name for name, _ in chain.steps] == ["stem", "cell", "other", "cell"]
    subnet = chain.subnet({"cell.op": "k3", "other.op": "k1"})
    assert [part.kernel for part in subnet] == [1, 3, 1, 3]  # type: ignore[union-attr]
    assert subnet[1].conv.weight.shape == subnet[3].conv.weight.shape  # type: ignore[union-attr]
    assert not torch.equal(subnet[1].conv.weight, subnet[3].conv.weight)  # type: ignore[union-attr, arg-type]


def test_different_spaces_under_one_name_are_refused() -> None:
    wider = ChoiceBlock({"k1": ConvBNAct(4, 4), "k5": ConvBNAct(4, 4, kernel=5)})
    with pytest.raises(InputError, match=r"'cell' of 'c' have different spaces, .* different names"):
        Chain("c", [("cell", choice()), ("cell", wider)])
    with pytest.raises(InputError, match="steps named 'cell' of 'c' have different spaces"):
        Chain("c", [("cell", ConvBNAct(4, 4)), ("cell", choice())])


def test_forward_is_the_fold_of_its_steps() -> None:
    chain = TOY_SPACES["chain"]()
    randomize(chain, 0)
    chain.eval()
    arch = chain.space.canonical({"a.op": "mb", "b.op": "skip", "c.op": "conv"})
    x = torch.randn(2, 3, 16, 16)
    stem, a, b, c, head = (step for _, step in chain.steps)
    assert torch.equal(chain(x, arch), head(c.options["conv"](b.options["skip"](a.options["mb"](stem(x))))))


def test_walk_hands_every_step_its_part_and_the_layout_before_it() -> None:
    chain = TOY_SPACES["sliced"](input_size=16)
    arch = chain.space.canonical({"a.width": 8, "a.mid": 4, "a.kernel": 3, "b.width": 12, "b.mid": 8, "b.kernel": 5})
    steps = list(chain.walk(arch))
    assert [step for step, _, _ in steps] == [step for _, step in chain.steps]
    assert [sub for _, sub, _ in steps] == [
        Arch(),
        Arch({"width": 8, "mid": 4, "kernel": 3}),
        Arch({"width": 12, "mid": 8, "kernel": 5}),
        Arch(),
    ]
    assert [layout for _, _, layout in steps] == [Layout(3), Layout(6, 2), Layout(8, 2), Layout(12, 2)]
    assert chain.out_layout(arch) == Layout(5, 0)
    assert chain.input_layout == Layout(3)
    moved = [layout for _, _, layout in chain.walk(arch, Layout(3, 4))]
    assert [layout.stride for layout in moved] == [4, 8, 8, 8]  # type: ignore[union-attr]


def test_layouts_of_loose_ends_and_feature_maps() -> None:
    loose = TOY_SPACES["loose"]()
    arch = loose.space.canonical(
        {
            "cell.nodes": 3,
            "cell.node1.input": 0,
            "cell.node1.op": "conv1",
            "cell.node2.input": 0,
            "cell.node2.op": "pool",
            "cell.node3.input": 2,
            "cell.node3.op": "conv3",
        }
    )
    layouts = [layout for _, _, layout in loose.walk(arch)]
    assert layouts == [Layout(3), Layout(6, 2), Layout(12, 2, (1, 3)), Layout(12, 2, (1, 3)), Layout(16, 2)]
    detector = TOY_SPACES["detector"]()
    layouts = [layout for _, _, layout in detector.walk(detector.space.sample(random.Random(0)))]
    assert layouts[-2:] == [
        (Layout(8, 2), Layout(12, 4), Layout(16, 8)),
        (Layout(8, 2), Layout(8, 4), Layout(8, 8)),
    ]
    assert detector.out_layout(detector.space.sample(random.Random(0))) is None


@pytest.mark.parametrize("values", [{"a.op": "conv"}, {"a.op": "conv", "b.op": "skip", "c.op": "pool"}, {"z.op": 1}])
def test_a_subnet_of_a_foreign_arch_is_refused(values: dict[str, str | int]) -> None:
    with pytest.raises(InputError, match=r"space 'toy-chain'"):
        TOY_SPACES["chain"]().subnet(values)


# -- weights that are shared, and copies ------------------------------------------------------------------------------


@pytest.mark.parametrize("toy", TOY_SPACES)
def test_bound_follows_the_supernet_and_a_subnet_does_not(toy: str) -> None:
    supernet = TOY_SPACES[toy]()
    randomize(supernet, 0)
    supernet.eval()
    arch = supernet.space.sample(random.Random(1))
    bound, subnet = supernet.bind(arch), supernet.subnet(arch).eval()
    mine = {tensor.data_ptr() for tensor in supernet.state_dict().values()}
    assert {tensor.data_ptr() for tensor in bound.state_dict().values()} == mine
    assert not mine & {tensor.data_ptr() for tensor in subnet.state_dict().values()}
    x = torch.randn(2, *supernet.input_shape)
    before = leaves(subnet(x))
    assert all(map(torch.equal, leaves(bound(x)), before))
    randomize(supernet, 1)
    assert all(map(torch.equal, leaves(bound(x)), leaves(supernet(x, arch))))
    assert not any(map(torch.equal, leaves(bound(x)), before))
    assert all(map(torch.equal, leaves(subnet(x)), before))


@pytest.mark.parametrize("toy", TOY_SPACES)
def test_a_subnet_is_in_the_mode_of_its_supernet(toy: str) -> None:
    supernet = TOY_SPACES[toy]()
    arch = supernet.space.sample(random.Random(1))
    for mode in (True, False):
        supernet.train(mode)
        assert {part.training for part in supernet.subnet(arch).modules()} == {mode}


def leaves(output: Tensor | dict[str, Tensor]) -> list[Tensor]:
    return list(output.values()) if isinstance(output, dict) else [output]


def test_bound_checks_its_architecture() -> None:
    with pytest.raises(InputError, match=r"lacks 'b\.op'"):
        TOY_SPACES["chain"]().bind(Arch({"a.op": "conv"}))


def test_active_parameters_are_listed_once_in_order() -> None:
    chain = TOY_SPACES["loose"]()
    arch = chain.space.sample(random.Random(0))
    identities = [id(parameter) for parameter in chain.active_parameters(arch)]
    assert len(set(identities)) == len(identities)
    place = {id(parameter): number for number, parameter in enumerate(chain.parameters())}
    heads = [place[one] for one in identities]
    assert heads[0] == 0
    assert heads[-1] == len(place) - 1


# -- layouts of ordinary modules --------------------------------------------------------------------------------------


class Doubles(nn.Module):
    """Says itself what it hands on; the attribute must then not count."""

    out_channels = 99

    def out_layout(self, layout: Layouts) -> Layouts:
        assert isinstance(layout, Layout)
        return Layout(layout.channels * 2, layout.stride * 4)


class Strided(nn.Module):
    def __init__(self, out_channels: int, stride: int | tuple[int, int]) -> None:
        super().__init__()
        self.out_channels, self.stride = out_channels, stride


LAYOUTS = {
    "method": (Doubles(), Layout(16, 8)),
    "attributes": (Strided(5, 3), Layout(5, 6)),
    "pair-of-strides": (Strided(5, (2, 2)), Layout(5, 4)),
    "global-pooling": (ClassifierHead(8, 10, hidden=4), Layout(10, 0)),
    "conv": (nn.Conv2d(8, 6, 3, 2), Layout(6, 4)),
    "no-stride": (nn.Sequential(nn.Conv2d(8, 6, 1)), Layout(6, 2)),
    "sequential": (nn.Sequential(nn.Conv2d(8, 6, 3, 2), nn.BatchNorm2d(6), nn.Conv2d(6, 4, 3, 2)), Layout(4, 8)),
    "block": (ConvBNAct(8, 12, kernel=3, stride=2), Layout(12, 4)),
    "identity": (nn.Identity(), Layout(8, 2, (1, 3))),
    "activation": (nn.Sequential(nn.ReLU6(), nn.Dropout(), nn.Hardswish()), Layout(8, 2, (1, 3))),
    "empty": (nn.Sequential(), Layout(8, 2, (1, 3))),
}


@pytest.mark.parametrize("case", LAYOUTS)
def test_plain_layout(case: str) -> None:
    module, expected = LAYOUTS[case]
    before = Layout(8, 2, (1, 3))
    assert plain_layout(module, before) == expected
    assert step_layout(module, Arch(), before) == expected


@pytest.mark.parametrize("module", [nn.MaxPool2d(2), nn.Linear(4, 4), nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten())])
def test_a_module_without_a_known_layout_is_named(module: nn.Module) -> None:
    name = type(module[-1] if isinstance(module, nn.Sequential) else module).__name__
    with pytest.raises(InputError, match=f"^{name} is a step of a chain .* out_channels and stride, or a method"):
        plain_layout(module, Layout(3))


def test_a_transposed_convolution_does_not_reduce() -> None:
    try:
        layout = plain_layout(nn.ConvTranspose2d(8, 6, 2, 2), Layout(8, 4))
    except InputError:
        return
    assert layout == Layout(6, 2)


# -- fresh networks ---------------------------------------------------------------------------------------------------


def forgets_linear(module: nn.Module, generator: torch.Generator | None) -> None:
    """Everything but linear layers."""
    for part in module.modules():
        if not isinstance(part, nn.Linear):
            initialize(
                nn.Sequential(part) if isinstance(part, nn.Conv2d | nn.BatchNorm2d) else nn.Sequential(), generator
            )


def test_realize_names_the_tensor_that_init_forgets() -> None:
    with torch.device("meta"):
        network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    with pytest.raises(InputError, match=r"init leaves '3\.weight' unset"):
        realize(network, forgets_linear)
    with torch.device("meta"):
        counted = nn.Sequential(nn.GroupNorm(2, 4))
        counted.register_buffer("seen", torch.zeros((), dtype=torch.long))
    with pytest.raises(InputError, match="init leaves 'seen' unset"):
        realize(counted, lambda module, _: module[0].reset_parameters())  # type: ignore[index, operator]


def test_realize_sees_buffers_outside_the_state_dict() -> None:
    with torch.device("meta"):
        conv = nn.Conv2d(3, 4, 1)
        conv.register_buffer("grid", torch.arange(9.0), persistent=False)
    with pytest.raises(InputError, match="init leaves 'grid' unset"):
        realize(conv, initialize)


def test_realize_takes_boolean_buffers() -> None:
    with torch.device("meta"):
        conv = nn.Conv2d(3, 4, 1)
        conv.register_buffer("mask", torch.ones(3, dtype=torch.bool))

    def init(module: nn.Module, generator: torch.Generator | None) -> None:
        initialize(module, generator)
        module.get_buffer("mask").fill_(True)

    assert realize(conv, init).get_buffer("mask").all()


def test_initialize_is_he_fan_out() -> None:
    conv, grouped, linear = nn.Conv2d(64, 128, 3), nn.Conv2d(256, 256, 5, groups=256), nn.Linear(500, 200)
    bn = nn.BatchNorm2d(4)
    module = nn.ModuleList([conv, grouped, linear, bn])
    randomize(module, 0)
    initialize(module, torch.Generator().manual_seed(0))
    assert float(conv.weight.detach().std()) == pytest.approx((2 / (9 * 128)) ** 0.5, rel=0.02)
    assert float(grouped.weight.detach().std()) == pytest.approx((2 / 25) ** 0.5, rel=0.03)
    assert float(linear.weight.detach().std()) == pytest.approx(0.01, rel=0.02)
    assert not conv.bias.any()  # type: ignore[union-attr]
    assert not linear.bias.any()
    assert bn.weight.eq(1).all()
    assert bn.running_var.eq(1).all()  # type: ignore[union-attr]
    assert not bn.running_mean.any()  # type: ignore[union-attr]


def test_create_network_is_a_function_of_the_generator() -> None:
    arch = small_arch()
    torch.manual_seed(1)
    one = network(arch, seed=0)
    torch.manual_seed(2)
    assert same(one, network(arch, seed=0))
    other = network(arch, seed=1)
    assert all(
        not torch.equal(mine, other.get_parameter(name)) for name, mine in one.named_parameters() if mine.ndim > 1
    )
    assert one(torch.randn(2, 3, 16, 16)).shape == (2, 10)
    assert all(tensor.device.type == "cpu" for tensor in one.state_dict().values())


def test_create_network_has_the_layers_of_the_standalone_phase() -> None:
    arch = small_arch()
    plain, shared = network(arch, 0), create_supernet("shufflenet-small", input_size=16).subnet(arch)
    added = set(plain.state_dict()) - set(shared.state_dict())
    assert added  # SPOS trains its supernet without scale and shift
    assert all(name.endswith(("bn.weight", "bn.bias")) for name in added)
    standalone = create_supernet("shufflenet-small", input_size=16, phase="standalone").subnet(arch)
    assert plain.state_dict().keys() == standalone.state_dict().keys()


def test_create_network_refuses_an_arch_of_another_space() -> None:
    macro = create_supernet("nasbench-macro").space.sample(random.Random(0))
    with pytest.raises(InputError, match=r"space 'shufflenet-small' has no choice 'stage3\.block2\.op'"):
        create_network("shufflenet-small", arch=macro)
    with pytest.raises(InputError, match="lacks"):
        create_network("shufflenet-small", arch={})


def beyond_memory(*, phase: Phase = "supernet") -> Chain:
    """One option is a small convolution, the other has 3e17 weights: no machine can hold the supernet."""
    options = {"small": nn.Conv2d(3, 4, 1), "huge": nn.Conv2d(3, 10**17, 1)}
    return Chain("huge", [("a", ChoiceBlock(options))])


def test_create_network_never_allocates_the_supernet() -> None:
    with pytest.raises(RuntimeError):
        beyond_memory()
    network = create_network(f"{__name__}:beyond_memory", arch={"a.op": "small"})
    assert network(torch.zeros(1, 3, 8, 8)).shape == (1, 4, 8, 8)


# -- supernets by name ------------------------------------------------------------------------------------------------


def test_create_supernet_is_reproducible() -> None:
    def by_seed(seed: int) -> Chain:
        torch.manual_seed(seed)
        return create_supernet("shufflenet-small")

    def by_generator(seed: int) -> Chain:
        return create_supernet("shufflenet-small", generator=torch.Generator().manual_seed(seed))

    for make in (by_seed, by_generator):
        one, other = make(0), make(1)
        assert same(one, make(0))
        assert not any(
            torch.equal(w, other.get_parameter(n))
            for n, w in one.named_parameters()
            if w.ndim > 1 and "xception" not in n
        )


def test_create_supernet_passes_its_settings_on() -> None:
    chain = create_supernet(
        "shufflenet-small", num_classes=7, input_size=20, in_channels=1, widths=(24, 48, 96), head=9
    )
    assert chain.input_shape == (1, 20, 20)
    assert chain(torch.zeros(2, 1, 20, 20), chain.space.sample(random.Random(0))).shape == (2, 7)
    assert create_supernet("shufflenet-small").input_shape == (3, 32, 32)


@pytest.mark.parametrize("name", ["shufflenet-smal", "Shufflenet-small"])
def test_an_unknown_space_offers_the_nearest(name: str) -> None:
    with pytest.raises(InputError, match=f"no space '{name}'; did you mean 'shufflenet-small'"):
        create_supernet(name)


@pytest.fixture
def own_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A space outside the project, in a package on the path."""
    package = tmp_path / "own_spaces"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "tiny.py").write_text(
        "from torch import nn\nfrom supernet import Chain\nfrom supernet.blocks.choice import ChoiceBlock\n"
        "def build(*, phase, num_classes=4, bias=True):\n"
        "    options = {f'k{k}': nn.Conv2d(3, num_classes, k, padding=k // 2, bias=bias) for k in (1, 3)}\n"
        "    return Chain(f'tiny-{phase}', [('a', ChoiceBlock(options))])\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield "own_spaces.tiny:build"
    for name in [name for name in sys.modules if name.startswith("own_spaces")]:
        del sys.modules[name]


def test_a_space_from_outside(own_package: str) -> None:
    chain = create_supernet(own_package, num_classes=6, bias=False)
    assert chain.space.name == "tiny-supernet"
    assert isinstance(chain, Searchable)
    network = create_network(own_package, arch={"a.op": "k3"}, num_classes=6)
    assert network(torch.zeros(1, 3, 8, 8)).shape == (1, 6, 8, 8)
    for wrong in ("own_spaces.tiny:biuld", "own_spaces.tinny:build", "no_such_package:build"):
        with pytest.raises(InputError, match=f"space '{wrong}' cannot be imported: .*PYTHONPATH") as caught:
            create_supernet(wrong)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", [":build", ".tiny:build"])
def test_a_space_without_a_module_is_an_input_error(name: str) -> None:
    with pytest.raises(InputError, match=r"cannot be imported|there is no space"):
        create_supernet(name)
