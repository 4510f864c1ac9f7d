"""Limits: exact counts, uniform samples within them, and searchers that never exceed them."""

import functools
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from scipy import stats

from helpers.tables import every_cost, table_of
from searchers import AgingEvolution, LocalSearch, RandomSearch, Study, TopKEvolution, search
from searchers.testing import check_searcher, evaluate
from supernet import Chain
from supernet.blocks.choice import ChoiceBlock
from supernet.blocks.plain import ConvBNAct
from supernet.cost import CostTable, Feasible
from supernet.cost.table import MOST_LISTED
from supernet.errors import InputError
from supernet.space import Arch

SEARCHERS: dict[str, Callable[..., Any]] = {
    "random": RandomSearch,
    "aging": functools.partial(AgingEvolution, population_size=20, tournament_size=5),
    "topk": TopKEvolution,
    "spos": functools.partial(TopKEvolution.spos, crossover="one-point"),
    "local": LocalSearch,
}


@pytest.fixture(scope="module")
def macro() -> CostTable:
    return table_of("nasbench-macro")


@pytest.fixture(scope="module")
def detnas() -> CostTable:
    return table_of("detnas-300m")


def shared() -> CostTable:
    """Returns a table of a space whose steps share decisions and that is too large to be listed."""
    names = [f"b{i % 10}" for i in range(11)]
    blocks = [ChoiceBlock({f"k{kernel}": ConvBNAct(2, 2, kernel=kernel) for kernel in (1, 3, 5)}) for _ in names]
    return CostTable(Chain("twice", list(zip(names, blocks, strict=True)), input_shape=(2, 4, 4)))


def quantile(space: str, cost: str, *, share: float) -> int:
    costs = sorted(row[cost] for row in every_cost(space).values())
    return costs[int(share * len(costs))]


def inside(feasible: Feasible) -> list[Arch]:
    return [arch for arch in feasible.cost.space.enumerate() if feasible(arch)]


# -- counts and draws -------------------------------------------------------------------------------------------------


def test_counts_equal_enumeration_under_twenty_limits(macro: CostTable) -> None:
    costs = sorted(row["params"] for row in every_cost("nasbench-macro").values())
    for limit in random.Random(0).sample(costs, 20):
        assert Feasible(macro, {"params": limit}).count() == sum(cost <= limit for cost in costs)
    assert Feasible(macro, {}).count() == 6561


@pytest.mark.parametrize("toy", ["chain", "sliced", "loose"])
@pytest.mark.parametrize("costs", [("macs",), ("params", "macs")], ids=" ".join)
def test_draws_are_uniform_within_one_and_within_two_limits(toy: str, costs: tuple[str, ...]) -> None:
    table = table_of(toy)
    feasible = Feasible(table, {cost: quantile(toy, cost, share=0.4) for cost in costs})
    archs = inside(feasible)
    assert feasible.count() == len(archs) < table.space.size()
    rng = random.Random(1)
    drawn = Counter(feasible.sample(rng) for _ in range(8 * len(archs)))
    assert set(drawn) <= set(archs)
    assert stats.chisquare([drawn[arch] for arch in archs]).pvalue > 1e-3


def test_without_limits_every_architecture_is_drawn() -> None:
    table = table_of("chain")
    feasible, rng = Feasible(table, {}), random.Random(0)
    assert {feasible.sample(rng) for _ in range(40 * table.space.size())} == set(table.space.enumerate())


def test_one_limit_of_a_large_space_rejects_nothing(detnas: CostTable, monkeypatch: pytest.MonkeyPatch) -> None:
    """One architecture in 2.6 million fits; rejection sampling would need as many draws for each."""
    cheapest, _ = detnas.extremes("macs") or (0, 0)
    feasible, rng = Feasible(detnas, {"macs": 1.02 * cheapest}), random.Random(0)
    assert 0 < (feasible.count() or 0) < 4**20 // 10**6
    monkeypatch.setattr("supernet.cost.feasible.TRIES", 1)
    drawn = [feasible.sample(rng) for _ in range(50)]
    assert len(set(drawn)) == 50
    assert all(map(feasible, drawn))


def test_the_tightest_limit_is_drawn_from_and_the_others_reject(detnas: CostTable) -> None:
    low, _ = detnas.extremes("macs") or (0, 0)
    _, most = detnas.extremes("params") or (0, 0)
    feasible = Feasible(detnas, {"params": 0.95 * most, "macs": 1.05 * low})
    assert all(feasible(feasible.sample(random.Random(i))) for i in range(20))
    assert feasible.count() is None


def test_costs_that_cannot_be_counted_are_drawn_by_rejection() -> None:
    table = shared()
    assert table.space.size() > MOST_LISTED
    costs = sorted(table(table.space.sample(random.Random(i)))["macs"] for i in range(200))
    feasible = Feasible(table, {"macs": costs[20]})
    assert all(feasible(feasible.sample(random.Random(i))) for i in range(20))
    assert feasible.count() is None


# -- words ------------------------------------------------------------------------------------------------------------


def test_explain_says_how_many_fit(macro: CostTable, detnas: CostTable) -> None:
    limit = quantile("nasbench-macro", "macs", share=0.25)
    count = Feasible(macro, {"macs": limit}).count()
    assert Feasible(macro, {"macs": limit}).explain().endswith(f"; {count:,} of 6,561 architectures fit")
    text = Feasible(detnas, {"macs": 3e8}).explain()
    assert text.endswith("(the space spans 270,359,360 to 398,609,216); 1.3e10 of 1.1e12 architectures fit")


def test_limits_that_leave_nothing_name_the_tightest_cost(macro: CostTable) -> None:
    cheapest, _ = macro.extremes("macs") or (0, 0)
    with pytest.raises(InputError, match=f"the cheapest has {cheapest:,}"):
        Feasible(macro, {"macs": cheapest - 1})
    loose = table_of("loose")
    tightest = quantile("loose", "macs", share=0.0)
    for make in SEARCHERS.values():
        with pytest.raises(InputError, match=f"the nearest has {tightest:,}"):
            make(loose.space, feasible=Feasible(loose, {"macs": 1})).ask(1)


def test_limits_that_leave_nothing_together_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """No architecture has the fewest MACs, activations and parameters at once."""
    table = table_of("chain")
    archs = list(table.space.enumerate())
    least = {cost: min(table(arch)[cost] for arch in archs) for cost in ("macs", "activations", "params")}
    feasible = Feasible(table, least)
    monkeypatch.setattr("supernet.cost.feasible.TRIES", 300)
    assert not inside(feasible)
    with pytest.raises(InputError, match=r"none of 300 architectures with .* is within all limits; the limits are"):
        feasible.sample(random.Random(0))


# -- searchers within limits ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("toy", ["sliced", "loose"])
@pytest.mark.parametrize("name", SEARCHERS)
def test_searchers_keep_their_contract_under_real_limits(name: str, toy: str) -> None:
    """`loose` has conditions, `sliced` costs that depend on the step before."""
    table = table_of(toy)
    check_searcher(
        SEARCHERS[name], table.space, feasible=Feasible(table, {"macs": quantile(toy, "macs", share=0.5)}), trials=20
    )


@pytest.mark.parametrize("name", SEARCHERS)
def test_proposals_keep_a_limit_that_one_in_millions_keeps(name: str, detnas: CostTable) -> None:
    proposals_within(SEARCHERS[name], detnas, trials=100)


@pytest.mark.slow
@pytest.mark.parametrize("name", SEARCHERS)
def test_a_hundred_thousand_proposals_keep_it(name: str, detnas: CostTable) -> None:
    proposals_within(SEARCHERS[name], detnas, trials=100_000)


def proposals_within(make: Callable[..., Any], table: CostTable, *, trials: int) -> None:
    cheapest, _ = table.extremes("macs") or (0, 0)
    feasible = Feasible(table, {"macs": 1.02 * cheapest})
    asked: list[Arch] = []
    searcher = make(table.space, feasible=feasible)
    with Study(None, table.space) as study:
        search(searcher, evaluate, study, trials=trials, batch=50, on_trial=lambda trial: asked.append(trial.arch))
        assert len(study) == trials or study.ended
    assert len(asked) >= min(trials, 10_000)
    assert all(table(arch)["macs"] <= 1.02 * cheapest for arch in asked)


@pytest.mark.parametrize("name", SEARCHERS)
def test_a_search_ends_with_a_message_when_the_limits_leave_nothing_new(name: str) -> None:
    table = table_of("sliced")
    feasible = Feasible(table, {"macs": quantile("sliced", "macs", share=0.08)})
    networks = {table.space.normal_form(arch).key for arch in inside(feasible)}
    assert 10 < len(networks) < 40
    with Study(None, table.space) as study:
        search(SEARCHERS[name](table.space, feasible=feasible), evaluate, study, trials=10**6)
        evaluated = {trial.key for trial in study.trials()}
        converged = name == "aging" and len(evaluated) > 0.8 * len(networks)  # aging evolution may end earlier
        assert evaluated == networks or converged
        assert "nothing new" in study.ended or "no new network" in study.ended
