"""Samplers are pure functions of the step, keep fairness and balance over many steps, and respect windows exactly."""

import functools
from collections import Counter

import pytest
import torch
from scipy import stats

from helpers import tables
from helpers.toy_spaces import TOY_SPACES
from supernet import Arch, Chain, Choice, SearchSpace, create_supernet
from supernet.blocks.choice import ChoiceBlock
from supernet.blocks.plain import ConvBNAct
from supernet.config import Data, Train, Window
from supernet.cost import CostTable
from supernet.data.load import load
from supernet.errors import InputError
from supernet.training.loop import train_supernet
from supernet.training.sampling import SAMPLERS, balanced, create_sampler, fair, sandwich, uniform

CONFINED = tuple(name for name in SAMPLERS if name not in ("weighted", "even"))  # those that work in a window
EQUAL = SearchSpace("equal", [Choice(f"c{i}", ("a", "b", "c"), ordered=True) for i in range(5)])
UNEQUAL = SearchSpace("unequal", [Choice("two", (0, 1)), Choice("five", tuple("abcde")), Choice("three", range(3))])
DEEP = SearchSpace(
    "deep",
    [
        Choice("depth", (1, 2), ordered=True),
        Choice("width1", (8, 16, 32), ordered=True),
        Choice("width2", (8, 16, 32), when=("depth", (2,)), ordered=True),
        Choice("kernel", (3,)),  # with one option, which needs no order
    ],
)


def block(*kernels: int) -> ChoiceBlock:
    return ChoiceBlock({f"k{kernel}": ConvBNAct(2, 2, kernel=kernel) for kernel in kernels})


def shared() -> Chain:
    """Two steps of one name share a decision, so that architectures are enumerated instead of counted; there are 54."""
    names = ("a", "b", "a", "c", "d")
    steps = [(name, block(1, 3) if name == "d" else block(1, 3, 5)) for name in names]
    return Chain("shared", steps, input_shape=(2, 4, 4))


@functools.cache
def table_of(space: str) -> CostTable:
    return CostTable(shared()) if space == "shared" else tables.table_of(space)


@pytest.fixture(scope="module")
def macro() -> CostTable:
    return table_of("nasbench-macro")


@pytest.fixture(scope="module")
def detnas() -> CostTable:
    return table_of("detnas-300m")


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sampler_is_a_function_of_step_and_seed(name: str) -> None:
    first, again, other = (create_sampler(name, EQUAL, seed) for seed in (0, 0, 1))
    steps = range(50)
    assert [first(step) for step in steps] == [again(step) for step in reversed(steps)][::-1]
    assert [first(step) for step in steps] != [other(step) for step in steps]


@pytest.mark.parametrize("name", CONFINED)
def test_a_sampler_in_a_window_is_one_too_and_stays_inside(name: str, detnas: CostTable) -> None:
    window = Window("macs", 320e6, 335e6)  # the mean of a fair step is 327 million
    samplers = [create_sampler(name, detnas.space, seed, table=detnas, window=window) for seed in (0, 0, 1)]
    first, again, other = ([sample(step) for step in range(20)] for sample in samplers)
    assert first == again != other
    costs = [detnas(arch)["macs"] for archs in first for arch in archs]
    assert all(320e6 <= cost <= 335e6 for cost in costs)
    outside = [create_sampler(name, detnas.space, table=detnas)(step) for step in range(20)]
    assert not all(320e6 <= detnas(arch)["macs"] <= 335e6 for archs in outside for arch in archs)


# -- uniform ----------------------------------------------------------------------------------------------------------


def test_uniform_trains_normal_forms() -> None:
    space = create_supernet("nasbench-macro").space
    sample = uniform(space)
    archs = [sample(step)[0] for step in range(200)]
    assert all(space.normal_form(arch) == arch for arch in archs)
    assert len(set(archs)) > 150


def test_uniform_in_a_window_trains_normal_forms(macro: CostTable) -> None:
    sample = uniform(macro.space, table=macro, window=Window("macs", 30e6, 40e6))
    archs = [sample(step)[0] for step in range(200)]
    assert all(macro.space.normal_form(arch) == arch for arch in archs)
    assert all(30e6 <= macro(arch)["macs"] <= 40e6 for arch in archs)
    assert len(set(archs)) > 120


@pytest.mark.parametrize("space", ["sliced", "shared"])
def test_a_bin_is_drawn_first_then_an_architecture_in_it(space: str) -> None:
    table = table_of(space)
    costs = {arch: table(arch)["macs"] for arch in table.space.enumerate()}
    low, high = sorted(costs.values())[3], sorted(costs.values())[-3]
    width = (high - low) / 4.5
    inside = {arch: int((cost - low) // width) for arch, cost in costs.items() if low <= cost <= high}
    sizes = Counter(inside.values())
    assert max(sizes.values()) > 2 * min(sizes.values())  # so that a uniform draw without bins would fail
    sample = uniform(table.space, table=table, window=Window("macs", low, high, width))
    draws = 8 * len(inside)
    drawn = Counter(sample(step)[0] for step in range(draws))
    assert set(drawn) <= set(inside)
    expected = [draws / len(sizes) / sizes[number] for number in inside.values()]
    assert stats.chisquare([drawn[arch] for arch in inside], expected).pvalue > 1e-3


def test_a_normal_form_of_another_cost_is_refused() -> None:
    chain = Chain("wrong", [("a", block(1, 3))], input_shape=(2, 4, 4), normal_form=always_k1)
    table = CostTable(chain)
    assert table.space.size() == 2
    sample = uniform(chain.space, table=table, window=Window("macs", low=1))
    with pytest.raises(InputError, match="correct the normal form of 'wrong'"):
        [sample(step) for step in range(20)]


def always_k1(arch: Arch) -> dict[str, str]:
    """Not a normal form: it replaces one network by another."""
    return {"a.op": "k1"}


# -- fair and balanced ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("confined", [False, True])
def test_a_strictly_fair_step_uses_every_option_once(confined: bool, detnas: CostTable) -> None:
    space = detnas.space if confined else EQUAL
    window = Window("macs", 326.8e6, 327.5e6) if confined else Window()
    sample = fair(space, table=detnas if confined else None, window=window)
    names = [choice.name for choice in space.choices]
    options = sorted(map(str, space.choices[0].options))
    pairs: Counter[object] = Counter()
    for step in range(100):
        archs = sample(step)
        assert len(archs) == len(options)
        for name in names:
            assert sorted(str(arch[name]) for arch in archs) == options
        pairs.update((arch[names[0]], arch[names[1]]) for arch in archs)
    assert len(pairs) == len(options) ** 2  # new permutations in every step give every combination
    assert max(pairs.values()) < 60


def test_balanced_counts_differ_by_one_at_most() -> None:
    sample = balanced(UNEQUAL)
    for step in range(100):
        archs = sample(step)
        assert len(archs) == 5
        for choice in UNEQUAL.choices:
            counts = [sum(arch[choice.name] == option for arch in archs) for option in choice.options]
            assert max(counts) - min(counts) <= 1


@pytest.mark.parametrize(("space", "part"), [("sliced", 0.2), ("shared", 0.3)])
def test_balanced_in_a_window_keeps_counts_and_costs(space: str, part: float) -> None:
    """The choices have two and three options; in `sliced` the cost of a step depends on the step before it."""
    table = table_of(space)
    free = [table(arch)["macs"] for step in range(50) for arch in balanced(table.space)(step)]
    mean = sum(free) / len(free)
    low, high = (1 - part) * mean, (1 + part) * mean
    assert sum(low <= cost <= high for cost in free) < 0.8 * len(free)
    sample = balanced(table.space, table=table, window=Window("macs", low, high))
    drawn = set()
    for step in range(50):
        archs = sample(step)
        drawn.update(archs)
        assert all(low <= table(arch)["macs"] <= high for arch in archs)
        for choice in table.space.choices:
            counts = [sum(arch[choice.name] == option for arch in archs) for option in choice.options]
            assert max(counts) - min(counts) <= 1
    assert len(drawn) >= 4


def test_a_window_out_of_reach_of_a_fair_step_is_named_at_creation(
    detnas: CostTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("supernet.training.sampling.SWAPS", 2000)  # faster
    message = r"all have macs between 290,000,000 and 320,000,000; on average such paths have 327,174,272: choose a"
    with pytest.raises(InputError, match=message):
        fair(detnas.space, table=detnas, window=Window("macs", 290e6, 320e6))  # the mean of any fair step is above it
    with pytest.raises(InputError, match="or the sampler 'uniform'"):
        balanced(detnas.space, table=detnas, window=Window("macs", 327_174_272, 327_174_272))
    with pytest.raises(InputError, match=r"window\.bin works with the samplers 'uniform' and 'sandwich'"):
        fair(detnas.space, table=detnas, window=Window("macs", 290e6, 360e6, 1e7))


def test_a_fair_step_trains_every_weight_of_a_choice_chain() -> None:
    torch.manual_seed(0)
    net = TOY_SPACES["chain"](num_classes=10, input_size=8, in_channels=1)
    before = {name: parameter.detach().clone() for name, parameter in net.named_parameters()}
    data = load(Data(size=8))
    config = Train(epochs=1, batch=1000, warmup_epochs=0)  # a single step
    train_supernet(net, data, config, sampler=balanced(net.space), verbose=False)
    assert all(not torch.equal(parameter, before[name]) for name, parameter in net.named_parameters())


def test_strict_fairness_refuses_spaces_that_do_not_suit_it() -> None:
    with pytest.raises(InputError, match=r"they have \[2, 3, 5\] options; use the sampler 'balanced'"):
        fair(UNEQUAL)
    nested = SearchSpace("nested", [Choice("a", (0, 1)), Choice("b", (0, 1), when=("a", (1,)))])
    with pytest.raises(InputError, match="'b' is conditional"):
        fair(nested)


# -- sandwich ---------------------------------------------------------------------------------------------------------


def test_a_sandwich_of_ordered_choices_starts_with_the_last_options() -> None:
    sample = sandwich(DEEP, random_paths=3)
    largest, smallest, *others = sample(0)
    assert largest == Arch({"depth": 2, "width1": 32, "width2": 32, "kernel": 3})
    assert smallest == Arch({"depth": 1, "width1": 8, "width2": 8, "kernel": 3})
    assert len(others) == 3
    assert all(sample(step)[:2] == (largest, smallest) for step in range(20))
    assert len({arch for step in range(20) for arch in sample(step)[2:]}) >= 10
    assert len(create_sampler("sandwich", DEEP)(0)) == 4
    assert create_sampler("sandwich", DEEP, random_paths=0)(7) == (largest, smallest)


@pytest.mark.parametrize("space", ["chain", "shared"])
def test_a_sandwich_of_unordered_choices_starts_with_most_and_fewest_macs(space: str) -> None:
    table = table_of(space)
    costs = [table(arch)["macs"] for arch in table.space.enumerate()]
    sample = create_sampler("sandwich", table.space, table=table)
    for archs in map(sample, range(5)):
        assert [table(arch)["macs"] for arch in archs[:2]] == [max(costs), min(costs)]


@pytest.mark.parametrize("space", ["sliced", "shared"])
def test_a_sandwich_in_a_window_starts_with_its_extremes(space: str) -> None:
    table = table_of(space)
    costs = sorted(table(arch)["params"] for arch in table.space.enumerate())
    low, high = costs[len(costs) // 4] + 1, costs[3 * len(costs) // 4] - 1
    inside = [cost for cost in costs if low <= cost <= high]
    sample = create_sampler("sandwich", table.space, table=table, window=Window("params", low, high))
    for archs in map(sample, range(20)):
        drawn = [table(arch)["params"] for arch in archs]
        assert drawn[:2] == [inside[-1], inside[0]]
        assert all(low <= cost <= high for cost in drawn[2:])


def test_a_sandwich_without_a_largest_architecture_names_the_remedy() -> None:
    with pytest.raises(InputError, match=r"'two' of 'unequal' is not ordered.*CostTable\(supernet\), or mark"):
        sandwich(UNEQUAL)
    large = Chain("large", [(f"b{i % 10}", block(1, 3, 5)) for i in range(11)], input_shape=(2, 4, 4))
    with pytest.raises(InputError, match=r"share decisions .* mark all choices as ordered, or use the sampler"):
        sandwich(large.space, table=CostTable(large))
    with pytest.raises(InputError, match="random_paths=-1 must be 0 or more"):
        sandwich(DEEP, random_paths=-1)


# -- impossible windows -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONFINED)
def test_bad_windows_are_refused_by_every_sampler(name: str, macro: CostTable) -> None:
    space = macro.space
    with pytest.raises(InputError, match=r"'equal': pass table=CostTable\(supernet\)"):
        create_sampler(name, EQUAL, window=Window("macs", high=1e6))
    with pytest.raises(InputError, match="low=2 should be at most high=1; swap them"):
        create_sampler(name, space, table=macro, window=Window("macs", 2, 1))
    with pytest.raises(InputError, match="did you mean 'params'"):
        create_sampler(name, space, table=macro, window=Window("param", 1, 2))
    with pytest.raises(InputError, match="set low and high too"):
        create_sampler(name, space, table=macro, window=Window("macs", high=1e8, bin=1e7))
    with pytest.raises(InputError, match="between 1 and 2"):
        create_sampler(name, space, table=macro, window=Window("macs", 1, 2))
    with pytest.raises(AssertionError, match="'nasbench-macro', not to 'equal'"):
        create_sampler(name, EQUAL, table=macro)


def test_the_largest_architecture_comes_first(macro: CostTable) -> None:
    """It is trained alone for `largest_steps`, also in a window; then the sampler takes over."""
    space = macro.space
    low, high = macro.extremes("macs") or (0, 0)
    for window in (Window(), Window("macs", low, (low + high) / 2)):
        usual = create_sampler("uniform", space, 3, table=macro, window=window)
        warmed = create_sampler("uniform", space, 3, table=macro, window=window, largest_steps=2)
        (largest,), (again,) = warmed(0), warmed(1)
        assert largest == again == create_sampler("sandwich", space, table=macro, window=window)(0)[0]
        assert [warmed(step) for step in range(2, 9)] == [usual(step) for step in range(2, 9)]


# -- weights by what there is to train --------------------------------------------------------------------------------


def test_options_without_weights_are_drawn_half_as_often() -> None:
    net = create_supernet("nasbench201", input_size=8, channels=2, cells=1)
    weightless = net.weightless_options()
    assert set(weightless) == {choice.name for choice in net.space.choices}
    assert set(map(frozenset, weightless.values())) == {frozenset(("none", "skip_connect", "avg_pool_3x3"))}
    sample, steps = create_sampler("weighted", net.space, 3, weightless=weightless), 4000
    drawn = [sample(step)[0] for step in range(steps)]
    for choice in net.space.choices:
        counts = Counter(arch[choice.name] for arch in drawn)
        expected = [steps / 7 if option in weightless[choice.name] else steps * 2 / 7 for option in choice.options]
        assert stats.chisquare([counts[option] for option in choice.options], expected).pvalue > 1e-4
    assert len(set(drawn) - {net.space.normal_form(arch) for arch in drawn}) > 1000  # trained as drawn


def test_options_take_turns() -> None:
    """After any number of steps the counts of two options differ by one at most, and paths are trained as drawn."""
    space = create_supernet("nasbench201", input_size=8, channels=2, cells=1).space
    sample, steps = create_sampler("even", space, 3), 1001
    drawn = [sample(step)[0] for step in range(steps)]
    for until in (7, 500, steps):
        for choice in space.choices:
            counts = Counter(arch[choice.name] for arch in drawn[:until])
            assert max(counts.values()) - min(counts[option] for option in choice.options) <= 1
    assert len(set(drawn)) > 900  # decisions do not move together
    assert len(set(drawn) - {space.normal_form(arch) for arch in drawn}) > 200
    assert [sample(step)[0] for step in (400, 3)] == [drawn[400], drawn[3]]
    assert create_sampler("even", space, 4)(0) != create_sampler("even", space, 3)(0)


def test_large_cells_come_as_often_as_they_have_decisions() -> None:
    """Of one to five blocks of four decisions: the first has 1 of 45 rounds, five have 17."""
    with torch.device("meta"):
        space = create_supernet("pnasnet-small", filters=2, input_size=8).space
    sample = create_sampler("even", space, 0)
    counts = Counter(sample(step)[0]["cell.blocks"] for step in range(90))
    assert counts == {1: 2, 2: 10, 3: 18, 4: 26, 5: 34}


@pytest.mark.parametrize(
    ("space", "settings", "weightless"),
    [
        ("nasbench-macro", {}, {"identity"}),
        ("nasnet-small", {"filters": 4, "input_size": 8, "blocks": 2}, {"identity", "avg3", "max3", "max5", "max7"}),
        ("shufflenet-small", {}, set()),
        ("resnet-20-widths", {}, set()),
    ],
)
def test_options_without_weights_are_known_by_their_modules(
    space: str, settings: dict[str, int], weightless: set[str]
) -> None:
    with torch.device("meta"):
        net = create_supernet(space, **settings)
    assert set[object]().union(*net.weightless_options().values()) == weightless


@pytest.mark.parametrize("name", ["weighted", "even"])
def test_a_window_of_samplers_without_one_is_refused(macro: CostTable, name: str) -> None:
    with pytest.raises(InputError, match="a window works with the samplers 'uniform'"):
        create_sampler(name, macro.space, table=macro, window=Window("macs", high=1e8))
