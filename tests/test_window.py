"""Cost windows: counts equal enumeration, draws are uniform, and empty windows name what exists."""

import random
from collections import Counter

import pytest
from grounds import GROUNDS
from scipy import stats

from supernet import create_supernet
from supernet.cost import CostTable
from supernet.errors import InputError
from supernet.window import CostWindow


@pytest.fixture(scope="module")
def macro() -> CostTable:
    return CostTable(create_supernet("nasbench-macro"))


def test_counts_equal_enumeration_in_twenty_windows(macro: CostTable) -> None:
    costs = sorted(macro(arch)["macs"] for arch in macro.space.enumerate())
    rng = random.Random(0)
    for _ in range(20):
        low, high = sorted(rng.sample(costs, 2))
        assert CostWindow(macro, "macs", low, high).count == sum(low <= cost <= high for cost in costs)
    assert CostWindow(macro, "macs").count == 6561


@pytest.mark.parametrize("ground", ["chain", "sliced"])
def test_layouts_that_depend_on_the_arch_are_counted(ground: str) -> None:
    """In `sliced`, what a step costs depends on the width of the one before it."""
    table = CostTable(GROUNDS[ground]())
    costs = sorted(table(arch)["params"] for arch in table.space.enumerate())
    low, high = costs[len(costs) // 4], costs[len(costs) // 2]
    assert CostWindow(table, "params", low, high).count == sum(low <= cost <= high for cost in costs)


@pytest.mark.parametrize("ground", ["chain", "sliced"])
def test_draws_are_uniform_within_the_window(ground: str) -> None:
    table = CostTable(GROUNDS[ground]())
    costs = {arch: table(arch)["macs"] for arch in table.space.enumerate()}
    ordered = sorted(costs.values())
    window = CostWindow(table, "macs", ordered[len(ordered) // 5], ordered[len(ordered) * 3 // 5])
    inside = [arch for arch, cost in costs.items() if window.low <= cost <= window.high]
    assert len(inside) == window.count < len(costs)
    rng = random.Random(1)
    drawn = Counter(window.sample(rng) for _ in range(30 * len(inside)))
    assert set(drawn) <= set(inside)
    assert stats.chisquare([drawn[arch] for arch in inside]).pvalue > 1e-3


def test_a_space_too_large_to_enumerate_is_counted() -> None:
    table = CostTable(create_supernet("shufflenet-small", depths=(4, 4, 8, 4), widths=(64, 160, 320, 640)))
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
    with pytest.raises(InputError, match="share decisions"):
        CostWindow(CostTable(GROUNDS["loose"]()), "macs")
