"""Cost windows: counts equal enumeration, samples are uniform, and empty windows name the nearest cost."""

import itertools
import random
from collections import Counter

import pytest
from scipy import stats

from helpers.tables import every_cost, table_of
from helpers.toy_spaces import TOY_SPACES
from supernet import Chain
from supernet.blocks.choice import ChoiceBlock
from supernet.blocks.plain import ConvBNAct
from supernet.cost import CostTable, CostWindow
from supernet.cost.table import MOST_LISTED
from supernet.errors import InputError


@pytest.fixture(scope="module")
def macro() -> CostTable:
    return table_of("nasbench-macro")


def test_counts_equal_enumeration_in_twenty_windows(macro: CostTable) -> None:
    costs = sorted(row["macs"] for row in every_cost("nasbench-macro").values())
    rng = random.Random(0)
    for _ in range(20):
        low, high = sorted(rng.sample(costs, 2))
        assert CostWindow(macro, "macs", low, high).count == sum(low <= cost <= high for cost in costs)
    assert CostWindow(macro, "macs").count == 6561


@pytest.fixture(scope="module")
def detnas() -> CostTable:
    return table_of("detnas-300m")


@pytest.mark.parametrize("toy", ["chain", "sliced"])
def test_layouts_that_depend_on_the_arch_are_counted(toy: str) -> None:
    """In `sliced`, what a step costs depends on the width of the one before it."""
    table = table_of(toy)
    costs = sorted(table(arch)["params"] for arch in table.space.enumerate())
    low, high = costs[len(costs) // 4], costs[len(costs) // 2]
    assert CostWindow(table, "params", low, high).count == sum(low <= cost <= high for cost in costs)


@pytest.mark.parametrize("toy", ["chain", "sliced", "loose"])
def test_draws_are_uniform_within_the_window(toy: str) -> None:
    """The steps of `loose` share decisions, so its architectures are listed."""
    table = table_of(toy)
    costs = {arch: table(arch)["macs"] for arch in table.space.enumerate()}
    ordered = sorted(costs.values())
    window = CostWindow(table, "macs", ordered[len(ordered) // 5], ordered[len(ordered) * 3 // 5])
    inside = [arch for arch, cost in costs.items() if window.low <= cost <= window.high]
    assert len(inside) == window.count < len(costs)
    rng = random.Random(1)
    drawn = Counter(window.sample(rng) for _ in range(8 * len(inside)))
    assert set(drawn) <= set(inside)
    assert stats.chisquare([drawn[arch] for arch in inside]).pvalue > 1e-3


@pytest.mark.parametrize("toy", ["chain", "sliced", "loose"])
def test_extremes_within_a_window_exist_and_nothing_lies_outside(toy: str) -> None:
    table = table_of(toy)
    costs = sorted(table(arch)["macs"] for arch in table.space.enumerate())
    rng = random.Random(2)
    for low, high in [(0, float("inf")), *(sorted(rng.choices(costs, k=2)) for _ in range(20))]:
        window = CostWindow(table, "macs", low - 0.5, high + 0.5)
        inside = [cost for cost in costs if low <= cost <= high]
        assert (window.count, window.extremes) == (len(inside), (inside[0], inside[-1]))


def test_the_published_window_of_detnas_is_drawn_from(detnas: CostTable) -> None:
    """290 to 360 million MACs of 4**20 architectures (released code of SPOS and DetNAS)."""
    window = CostWindow(detnas, "macs", 290e6, 360e6)
    rng = random.Random(0)
    costs = [detnas(window.sample(rng))["macs"] for _ in range(200)]
    low, high = window.extremes
    assert all(290e6 <= low <= cost <= high <= 360e6 for cost in costs)
    assert max(costs) - min(costs) > 30e6
    assert {detnas(CostWindow(detnas, "macs", end, end).sample(rng))["macs"] for end in (low, high)} == {low, high}
    assert sum(bin_.count for bin_ in window.bins(1e7)) == window.count < 4**20


def test_a_space_too_large_to_enumerate_is_counted(detnas: CostTable) -> None:
    table = detnas
    low, high = table.extremes("macs") or (0, 0)
    everything, half = CostWindow(table, "macs"), CostWindow(table, "macs", low, (low + high) // 2)
    assert everything.count == 4**20
    rest = CostWindow(table, "macs", (low + high) // 2 + 1, high)
    assert half.count + rest.count == 4**20
    rng = random.Random(0)
    assert all(table(half.sample(rng))["macs"] <= half.high for _ in range(50))


def test_bad_windows_are_named(macro: CostTable) -> None:
    with pytest.raises(InputError, match=r"spans 7,713,280 to 105,660,928, the nearest has 7,713,280"):
        CostWindow(macro, "macs", 1, 2)
    with pytest.raises(InputError, match="the nearest has 105,660,928"):
        CostWindow(macro, "macs", 2e8, 3e8)
    with pytest.raises(InputError, match="did you mean 'macs'"):
        CostWindow(macro, "mac")
    with pytest.raises(InputError, match="the nearest has"):
        CostWindow(table_of("loose"), "macs", 1, 2)


def test_shared_decisions_of_a_large_space_are_refused() -> None:
    def block() -> ChoiceBlock:
        return ChoiceBlock({f"k{kernel}": ConvBNAct(2, 2, kernel=kernel) for kernel in (1, 3, 5)})

    table = CostTable(Chain("twice", [(f"b{i % 10}", block()) for i in range(11)], input_shape=(2, 4, 4)))
    assert table.space.size() == 3**10 > MOST_LISTED
    with pytest.raises(InputError, match=r"'twice' share decisions .* with 59,049 architectures"):
        CostWindow(table, "macs")


@pytest.mark.parametrize("toy", ["sliced", "loose"])
def test_bins_partition_a_window(toy: str) -> None:
    table = table_of(toy)
    costs = sorted(table(arch)["macs"] for arch in table.space.enumerate())
    low, high = costs[5], costs[-5]
    width = (high - low) / 6.5
    bins = CostWindow(table, "macs", low, high).bins(width)
    expected = Counter(int((cost - low) // width) for cost in costs if low <= cost <= high)
    assert [window.count for window in bins] == [expected[i] for i in sorted(expected)]
    assert bins[0].extremes[0] == low
    assert bins[-1].extremes[1] == high
    assert all(lower.extremes[1] < upper.extremes[0] for lower, upper in itertools.pairwise(bins))


def test_an_edge_belongs_to_the_upper_bin_and_the_last_bin_is_closed(macro: CostTable) -> None:
    costs = sorted({row["macs"] for row in every_cost("nasbench-macro").values()})
    low, middle = costs[0], costs[50]
    lower, upper = CostWindow(macro, "macs", low, 2 * middle - low).bins(middle - low)
    assert lower.extremes == (low, costs[49])
    assert upper.extremes[0] == middle
    (only,) = CostWindow(macro, "macs", low, middle).bins(middle - low)
    assert only.extremes == (low, middle)
    ends = CostWindow(macro, "macs", low, costs[1]).bins((costs[1] - low) / 7)  # the five bins between are empty
    assert [window.extremes for window in ends] == [(cost, cost) for cost in costs[:2]]


def test_bad_bins_are_named(macro: CostTable) -> None:
    window = CostWindow(macro, "macs", 1e7, 2e7)
    with pytest.raises(InputError, match="must be positive, not 0"):
        window.bins(0)
    with pytest.raises(InputError, match=r"into 10,000 bins; choose a width that gives at most 1,000"):
        window.bins(1000)
    with pytest.raises(InputError, match="need an upper bound"):
        CostWindow(macro, "macs").bins(1e6)


@pytest.mark.parametrize("toy", TOY_SPACES)
def test_costs_by_index_are_those_of_the_table(toy: str) -> None:
    table = table_of(toy)
    price = table.by_indices("params")
    rng = random.Random(3)
    for arch in (table.space.sample(rng) for _ in range(30)):
        assert price(table.space.to_indices(arch)) == table(arch)["params"]
