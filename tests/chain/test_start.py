"""How the weights of a supernet begin: which modules copy their input, and which residual branches add nothing."""

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from supernet import Arch, Chain, Choice, Searchable, SearchSpace, create_supernet
from supernet.blocks.choice import ChoiceBlock
from supernet.blocks.plain import ClassifierHead, ConvBNAct, Residual
from supernet.chain import Layout, Layouts, Part, initialize, initialize_copying, largest, parameters_of
from supernet.chain.start import Start, find_start
from supernet_tools.pipeline.recipes import RECIPES
from supernet_tools.pipeline.runs import kind_of
from supernet_tools.pipeline.train import prepare

LAYOUT = Layout(8)


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def start_of(module: nn.Module) -> Start:
    return find_start(module, LAYOUT)


# -- residual branches ------------------------------------------------------------------------------------------------


class Added(nn.Module):
    """A user's block: what its convolutions compute is added to its input, in one of several ways."""

    out_channels, stride = 8, 1

    def __init__(self, how: Callable[["Added", Tensor], Tensor]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.bn = nn.BatchNorm2d(8)
        self.plain = nn.BatchNorm2d(8, affine=False)
        self.gate = nn.Linear(8, 8)
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        return self.how(self, x)


WAYS: dict[str, tuple[Callable[[Any, Tensor], Tensor], tuple[str, ...]]] = {
    "norm last": (lambda m, x: x + m.bn(m.conv(x)), ("bn.weight", "bn.bias")),
    "in place": (lambda m, x: m.bn(m.conv(x)).add_(x), ("bn.weight", "bn.bias")),
    "dropout behind the norm": (
        lambda m, x: x + nn.functional.dropout(m.bn(m.conv(x)), 0.5, m.training),
        ("bn.weight", "bn.bias"),
    ),
    "convolution last": (lambda m, x: x + m.conv(m.bn(x)), ("conv.weight", "conv.bias")),
    "activation behind the sum": (lambda m, x: (x + m.bn(m.conv(x))).relu(), ("bn.weight", "bn.bias")),
    "activation last": (lambda m, x: x + m.bn(m.conv(x)).relu(), ()),
    "norm without scale last": (lambda m, x: x + m.plain(m.conv(x)), ()),
    "gated": (lambda m, x: x + m.bn(m.conv(x)) * m.gate(x.mean((2, 3)))[:, :, None, None].sigmoid(), ()),
    "no sum": (lambda m, x: m.bn(m.conv(x)), ()),
    "two branches of one length": (lambda m, x: m.bn(m.conv(x)) + m.bn(m.conv(x.relu())), ()),
}


@pytest.mark.parametrize("way", WAYS)
def test_residual_branches_are_found_by_what_they_compute(way: str) -> None:
    how, ends = WAYS[way]
    assert start_of(Added(how)).ends == ends


def test_the_longer_branch_of_a_residual_block_with_a_projection_begins_at_zero() -> None:
    body = nn.Sequential(ConvBNAct(8, 16, kernel=3, stride=2), ConvBNAct(16, 16, kernel=3, act=False))
    block = Residual(body, ConvBNAct(8, 16, stride=2, act=False))
    assert start_of(block).ends == ("body.1.bn.weight", "body.1.bn.bias")


@pytest.mark.parametrize(
    ("space", "copying", "ends"),
    [
        ("nasbench-macro", 0, 20),  # two residual options in each of the five layers that keep the shape
        ("resnet-20-widths", 0, 18),
        ("mobilenetv2-widths", 0, 20),
        ("nasbench201", 15 * 12, 4),  # all convolutions of cells; the two reductions between the stages
        ("shufflenet-small", 0, 0),
    ],
)
def test_published_spaces(space: str, copying: int, ends: int) -> None:
    chain = create_supernet(space)
    starts = [find_start(step, layout, chain.input_shape[-1]) for step, _, layout in chain.walk(largest(chain.space))]
    assert sum(len(start.copying) for start in starts) == copying
    assert sum(len(start.ends) for start in starts) == ends
    zeros = sum(not parameter.any() for name, parameter in chain.named_parameters() if name.endswith("bn.weight"))
    assert zeros == (0 if copying else ends // 2)  # where all convolutions copy, fixed layers copy in both branches


def test_residual_branches_may_begin_with_scale_one() -> None:
    """The recipe's `zero_gamma`, as BigNAS publishes it; everything else begins the same."""
    recipe = replace(RECIPES["demo"](), sampler="sandwich")
    begun = [prepare(kind_of(replace(recipe, zero_gamma=zero))).supernet.state_dict() for zero in (True, False)]
    zeros = {name for name, value in begun[0].items() if name.endswith("bn.weight") and not value.any()}
    assert len(zeros) == 10  # two residual options in each of the five layers that keep the shape
    for name, value in begun[1].items():
        assert torch.equal(value, torch.ones_like(value) if name in zeros else begun[0][name]), name


def test_a_recipe_may_begin_with_he_initialisation_alone() -> None:
    """As SPOS and DetNAS are published; their ImageNet recipes say so."""
    recipe = replace(RECIPES["demo"](), alike=False)
    chain = prepare(kind_of(recipe)).supernet
    assert all(bool(p.any()) for name, p in chain.named_parameters() if name.endswith(".weight"))  # no residual zeros
    assert not RECIPES["spos-imagenet"]().alike
    assert not RECIPES["detnas-imagenet"]().alike


class AlwaysAdds(Searchable):
    """A user's searchable block with a residual sum that every architecture makes."""

    def __init__(self) -> None:
        super().__init__()
        self.space = SearchSpace("always", [Choice("op", ("conv", "skip"))])
        self.ops = nn.ModuleDict({"conv": nn.Conv2d(8, 8, 1), "skip": nn.Identity()})
        self.bn = nn.BatchNorm2d(8)

    def forward(self, state: Tensor, arch: Arch) -> Tensor:
        return state + self.bn(self.ops[str(arch["op"])](state))

    def out_layout(self, arch: Arch, layout: Layouts) -> Layouts:
        return layout

    def active_parts(self, arch: Arch, layout: Layouts) -> Iterator[Part]:
        return parameters_of([self.ops[str(arch["op"])], self.bn])


def test_a_users_searchable_needs_nothing_of_its_own() -> None:
    assert start_of(AlwaysAdds()) == Start(("ops.conv",), ("bn.weight", "bn.bias"))


# -- options ----------------------------------------------------------------------------------------------------------


def block(*, skip: bool) -> ChoiceBlock:
    options: dict[str, nn.Module] = {f"conv{k}": ConvBNAct(8, 8, kernel=k, act=False) for k in (3, 5)}
    return ChoiceBlock(options | ({"skip": nn.Identity()} if skip else {}))


def test_options_beside_one_without_weights_copy_their_input() -> None:
    assert start_of(block(skip=True)).copying == ("options.conv3", "options.conv5")
    assert start_of(block(skip=False)) == Start(alike=(("options.conv3", "options.conv5"),))
    assert start_of(ConvBNAct(8, 8)) == Start()


def begun(*, skip: bool) -> Chain:
    steps = [("stem", ConvBNAct(3, 8, kernel=3)), ("block", block(skip=skip)), ("head", ClassifierHead(8, 4, hidden=8))]
    chain = Chain("alike", steps, input_shape=(3, 8, 8))
    chain.initialize(seeded())
    return chain


def test_options_and_the_layers_before_them_begin_alike() -> None:
    """In training mode batch norm normalises the copy, which is why features are compared by their correlation."""
    chain, x = begun(skip=True), torch.rand(4, 3, 8, 8, generator=seeded())
    stem = chain.stem(x)
    options = (chain.get_submodule(f"block.options.{name}")(stem).flatten() for name in ("skip", "conv3", "conv5"))
    assert torch.corrcoef(torch.stack([*options])).min() > 0.9
    channels = [torch.stack([stem[:, c].flatten(), x[:, c % 3].flatten()]) for c in range(8)]
    assert min(torch.corrcoef(pair)[0, 1].item() for pair in channels) > 0.5  # the stem ends in a ReLU


def test_without_a_weightless_option_all_begin_as_the_smallest_with_he_initialisation() -> None:
    chain = begun(skip=False)
    he = Chain("alike", list(zip(chain.step_names, chain.step_modules, strict=True)), init=initialize)
    weights = {name: value.clone() for name, value in chain.state_dict().items()}
    he.initialize(seeded())
    for name, value in he.state_dict().items():
        expected = weights[name]
        if name.endswith("conv5.conv.weight"):
            assert expected[:, :, 0].abs().sum() == 0
            expected, value = expected[:, :, 1:4, 1:4], he.get_submodule("block.options.conv3").conv.weight
        torch.testing.assert_close(value, expected, rtol=0, atol=0)


@pytest.mark.parametrize(("space", "options"), [("shufflenet-small", slice(0, 3)), ("nasbench-macro", slice(1, 3))])
def test_paths_of_published_spaces_begin_with_like_features(space: str, options: slice) -> None:
    chain = create_supernet(space, input_size=16, generator=seeded()).train()
    rng, x = random.Random(0), torch.rand(32, 3, 16, 16, generator=seeded())
    choices = {c.name: c.options[options] or c.options for c in chain.space.choices}
    archs = [chain.space.canonical({name: rng.choice(of) for name, of in choices.items()}) for _ in range(4)]

    def likeness() -> float:
        with torch.no_grad():
            features = torch.stack([next(_features(chain, x, arch)) for arch in archs])
        return torch.corrcoef(features).min().item()

    assert likeness() > 0.9
    initialize(chain, seeded())
    assert likeness() < 0.5


def _features(chain: Chain, x: Tensor, arch: Arch) -> Iterator[Tensor]:
    """Yields what the last step reads."""
    for name, step in chain.steps[:-1]:
        x = step(x, arch.sub(name)) if isinstance(step, Searchable) else step(x)
    yield x.flatten()


def test_convolutions_copy_channel_for_channel() -> None:
    """Without noise exactly: repeated where there are more output channels, summed where there are fewer."""
    x = torch.rand(2, 6, 5, 5)
    for out, expected in ((6, x), (12, torch.cat([x, x], 1)), (3, x[:, :3] + x[:, 3:])):
        conv = nn.Conv2d(6, out, 3, padding=1, bias=False)
        initialize_copying(conv, noise=0.0)
        torch.testing.assert_close(conv(x), expected)
    depthwise = nn.Conv2d(6, 6, 5, padding=2, groups=6, bias=False)
    initialize_copying(depthwise, noise=0.0)
    torch.testing.assert_close(depthwise(x), x)


def test_a_space_with_its_own_init_uses_it_everywhere() -> None:
    def ones(module: nn.Module, generator: torch.Generator | None = None) -> None:
        for parameter in module.parameters():
            nn.init.ones_(parameter)

    chain = Chain("own", [("block", block(skip=True))], input_shape=(8, 8, 8), init=ones)
    chain.initialize()
    assert all((parameter == 1).all() for parameter in chain.parameters())


def test_a_fresh_supernet_depends_on_its_generator_alone() -> None:
    """Statistics, modes and global generators stay as they were; equal generators give equal bits."""
    chains = [create_supernet("nasbench201", input_size=16) for _ in range(2)]
    before = torch.get_rng_state()
    for chain in chains:
        chain.initialize(seeded())
    assert torch.equal(torch.get_rng_state(), before)
    states = zip(chains[0].state_dict().values(), chains[1].state_dict().values(), strict=True)
    assert all(torch.equal(*pair) for pair in states)
    assert all(part.training for part in chains[0].modules())
    assert all((value == (1 if "var" in name else 0)).all() for name, value in chains[0].named_buffers())


def test_a_standalone_network_begins_as_published() -> None:
    chain = create_supernet("nasnet-small", filters=4, input_size=8, blocks=2)
    assert chain.init is initialize


# -- what it is for ---------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_paths_of_a_fresh_cell_supernet_start_with_like_features() -> None:
    """Correlation of the mean state of two random paths over images and channels; He initialisation gives 0.1."""

    def features(chain: Chain, arch: Arch, x: Tensor) -> Tensor:
        state: Any = x
        for step, sub, _ in list(chain.walk(arch))[:-1]:
            state = step(state, sub) if sub or isinstance(state, tuple) else step(state)
        return state[1].tensor.unflatten(1, (len(state[1].ids), -1)).mean(dim=(1, 3, 4)).flatten()

    rng, x = random.Random(0), torch.randn(16, 3, 8, 8, generator=seeded()).cumsum(2).cumsum(3)
    similarity = []
    for alike in (True, False):
        settings: dict[str, Any] = {"ops": ("sep3", "sep5", "max3", "identity"), "chosen": False, "combiners": ("add",)}
        chain = create_supernet("nasnet-small", filters=4, input_size=8, blocks=2, generator=seeded(), **settings)
        if not alike:
            initialize(chain, seeded())
        rows = torch.stack([features(chain.train(), chain.space.sample(rng), x) for _ in range(6)])
        similarity.append(float(torch.corrcoef(rows)[*torch.triu_indices(6, 6, 1)].mean()))
    print(similarity)
    assert similarity[0] > 0.5 > 0.3 > similarity[1]
