"""NSGA-II follows the paper, and fronts and volumes agree with their definitions written out."""

import itertools
import math
from collections import Counter as Tally
from collections.abc import Callable, Mapping
from random import Random
from typing import Any

import pytest

from helpers.searcher_cases import LIMITS, SPACES, AtMost, chain_space, letters, noise
from searchers import NSGA2, RandomSearch, Study, Trial, hypervolume, pareto_front, search
from searchers.pareto import crowding_distance, nondominated_sort
from searchers.testing import stand_in
from supernet.errors import InputError
from supernet.space import Arch

SPACE = chain_space(6, form=False)
ARCHS = list(SPACE.enumerate())


def scored(number: int, arch: Arch, failed: str = "", **metrics: float) -> Trial:
    return Trial.of(SPACE, arch, metrics, number=number, failed=failed)


def dominates(p: tuple[float, ...], q: tuple[float, ...]) -> bool:
    return p != q and all(a >= b for a, b in zip(p, q, strict=True))


# -- sorting, crowding, volume -----------------------------------------------------------------------------------------


def test_each_front_is_not_dominated_by_the_rest() -> None:
    rng = Random(0)
    for objectives in (2, 3):
        points = [tuple(rng.randrange(6) for _ in range(objectives)) for _ in range(60)]
        left = list(range(60))
        for front in nondominated_sort(points):
            assert front == [i for i in left if not any(dominates(points[j], points[i]) for j in left)]
            left = [i for i in left if i not in front]
        assert not left
    assert nondominated_sort([]) == []


def test_constraints_come_before_objectives() -> None:
    """Points without violation come first, the others in the order of their violation, whatever their values."""
    points = [(0.0, 0.0), (9.0, 9.0), (1.0, 0.0), (8.0, 8.0), (5.0, 5.0), (5.0, 6.0)]
    assert nondominated_sort(points, [0, 2.0, 0, 1.0, math.inf, math.inf]) == [[2], [0], [3], [1], [4, 5]]


def test_crowding_is_the_sum_of_the_gaps_between_neighbours() -> None:
    points = [(0.0, 10.0), (1.0, 8.0), (4.0, 2.0), (10.0, 0.0)]
    assert crowding_distance(points) == [math.inf, 0.4 + 0.8, 0.9 + 0.8, math.inf]
    assert crowding_distance(points[:2]) == [math.inf, math.inf]
    assert crowding_distance([(1.0, 3.0)] * 3) == [0.0] * 3
    assert crowding_distance([]) == []


@pytest.mark.parametrize("objectives", [1, 2, 3, 4])
def test_the_volume_is_the_number_of_unit_cubes_below(objectives: int) -> None:
    rng = Random(objectives)
    for _ in range(10):
        points = [tuple(rng.randrange(-2, 5) for _ in range(objectives)) for _ in range(8)]
        cubes = itertools.product(range(5), repeat=objectives)
        expected = sum(any(all(c < v for c, v in zip(cube, p, strict=True)) for p in points) for cube in cubes)
        assert hypervolume(points, (0,) * objectives) == expected


def test_the_volume_needs_points_that_compare() -> None:
    assert hypervolume([], (0.0, 0.0)) == 0
    assert hypervolume([(2.5, 0.5), (1.0, -1.0)], (0.5, -2.0)) == pytest.approx(2.0 * 2.5)
    for points, reference in (([(1.0,)], (0.0, 0.0)), ([(1.0, math.nan)], (0.0, 0.0)), ([(1.0, 1.0)], (0.0, math.nan))):
        with pytest.raises(InputError, match="does not compare with the reference"):
            hypervolume(points, reference)


# -- the searcher ------------------------------------------------------------------------------------------------------


def grown(values: Mapping[Arch, tuple[float, float]], **settings: Any) -> NSGA2:
    """A searcher that knows these values of accuracy and MACs."""
    searcher = NSGA2(SPACE, **{"population_size": len(values), **settings})
    searcher.tell([scored(i, arch, accuracy=a, macs=m) for i, (arch, (a, m)) in enumerate(values.items())])
    return searcher


def test_the_next_population_is_the_best_fronts_and_the_least_crowded_of_the_last() -> None:
    """Two fronts: all of the first stays; of the second its ends, and of the rest the one with room around it."""
    first = {ARCHS[0]: (9.0, 50.0), ARCHS[1]: (10.0, 90.0), ARCHS[2]: (5.0, 10.0)}
    second = {ARCHS[3]: (4.0, 11.0), ARCHS[4]: (9.0, 95.0), ARCHS[5]: (4.2, 12.0), ARCHS[6]: (4.4, 13.0)}
    second |= {ARCHS[7]: (7.0, 60.0)}
    searcher = NSGA2(SPACE, population_size=6)
    values = {**second, **first}
    trials = [scored(i, arch, accuracy=a, macs=m) for i, (arch, (a, m)) in enumerate(values.items())]
    searcher.tell(trials[:4])
    assert not searcher._population
    searcher.tell(trials[4:6])
    searcher.tell(trials[6:])
    searcher.tell([scored(20 + i, ARCHS[20 + i], accuracy=0.0, macs=100.0) for i in range(4)])
    kept = {member.arch for member in searcher._population}
    assert kept == {*first, ARCHS[3], ARCHS[4], ARCHS[7]}


@pytest.mark.parametrize(
    "values",
    [
        {ARCHS[0]: (9.0, 1.0), ARCHS[1]: (8.0, 2.0), ARCHS[2]: (7.0, 3.0)},  # one front each
        {ARCHS[0]: (9.0, 9.0), ARCHS[1]: (5.0, 4.0), ARCHS[2]: (1.0, 1.0), ARCHS[3]: (8.0, 8.0)},  # one front in all
    ],
)
def test_a_parent_wins_a_tournament_by_front_then_by_crowding(values: dict[Arch, tuple[float, float]]) -> None:
    """The chance of each member of a binary tournament with replacement, by its place in the crowded order."""
    searcher, draws = grown(values), 20_000
    order = sorted(searcher._population, key=lambda member: (member.rank, -member.distance))
    counts = Tally(searcher._parent().arch for _ in range(draws))
    for place, member in enumerate(order):
        equal = [m for m in order if (m.rank, m.distance) == (member.rank, member.distance)]
        behind = sum((m.rank, -m.distance) > (member.rank, -member.distance) for m in order)
        expected = (len(equal) + 2 * behind) / len(order) ** 2
        assert counts[member.arch] / draws == pytest.approx(expected, abs=0.015), place


def test_children_come_from_their_parents_and_are_new() -> None:
    """Without mutation every value is a parent's; without crossover children are mutants of one; none is known."""
    a, b = SPACE.from_indices((0, 0, 0, 0, 0, 0)), SPACE.from_indices((1, 1, 1, 1, 1, 1))
    values = {a: (9.0, 2.0), b: (1.0, 1.0)}
    crossed = grown(values, mutation=0.0, crossover=1.0, population_size=2).ask(30)
    assert all(set(arch.values()) == {"skip", "k3"} for arch in crossed)
    mutants = grown(values, mutation=0.3, crossover=0.0, population_size=2).ask(30)
    assert any("k5" in arch.values() for arch in mutants)
    for children in (crossed, mutants):
        assert len(set(children)) == 30
        assert not {a, b} & set(children)


def test_constrained_domination_of_a_warm_start() -> None:
    """Those outside the limits stay behind those inside, the least violation first; nothing outside is asked for."""
    limit = AtMost({"k5": 1})
    rows = ((2, 2, 0, 0, 0, 0), (2, 2, 2, 2, 2, 2), (2, 2, 2, 0, 0, 0), (0, 0, 0, 0, 0, 0))
    rows += ((2, 2, 2, 2, 2, 0), (2, 2, 2, 2, 0, 0))
    archs = [SPACE.from_indices(row) for row in rows]
    searcher = NSGA2(SPACE, feasible=limit, population_size=3)
    trials = [
        scored(i, arch, accuracy=90.0 - 9 * i, macs=1.0, k5=float(sum(v == "k5" for v in arch.values())))
        for i, arch in enumerate(archs)
    ]
    searcher.tell(trials)
    assert [member.arch for member in searcher._population] == [archs[3], archs[0], archs[2]]
    assert all(limit(arch) for arch in searcher.ask(40))


def test_costs_that_the_evaluation_lacks_come_from_the_table() -> None:
    space = SPACES["conditional"]
    searcher = NSGA2(space, objectives=("accuracy", "-letters"), cost=letters, population_size=8)
    with Study(None, space) as study:
        search(searcher, lambda archs: [{"accuracy": noise(arch)} for arch in archs], study, trials=30)
        trials = {t.arch: t for t in study.trials()}
    for member in searcher._population:
        assert member.point == (trials[member.arch].metrics["accuracy"], -letters(member.arch)["letters"])
    with pytest.raises(InputError, match="has no objective 'macs'"):
        NSGA2(space).tell([Trial.of(space, space.sample(Random(0)), {"accuracy": 1.0, "params": 3.0})])


def test_failures_and_infinite_values_are_never_parents() -> None:
    searcher = NSGA2(SPACE, population_size=2)
    searcher.tell([scored(0, ARCHS[0], "boom"), scored(1, ARCHS[1], accuracy=1.0, macs=math.inf)])
    searcher.tell([scored(2, ARCHS[2], accuracy=2.0, macs=3.0), scored(3, ARCHS[3], accuracy=1.0, macs=1.0)])
    assert {member.arch for member in searcher._population} == {ARCHS[2], ARCHS[3]}
    assert not set(ARCHS[:4]) & set(searcher.ask(100))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"objectives": ("accuracy", "macs")}, "objective 'macs' would be maximised; write '-macs'"),
        ({"objectives": ("-loss", "latency_ms")}, "write '-latency_ms'"),
        ({"objectives": "accuracy"}, "objectives='accuracy' should be"),
        ({"objectives": ("accuracy",)}, "two or more different metrics"),
        ({"objectives": ("accuracy", "-accuracy")}, "two or more different metrics"),
        ({"objectives": ("accuracy", "-")}, "two or more different metrics"),
        ({"population_size": 1}, "population_size=1"),
        ({"crossover": 1.5}, "crossover=1.5"),
        ({"mutation": -0.1}, "mutation=-0.1"),
        ({"cost": 3.0}, "cost=3.0 should be callable"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        NSGA2(SPACE, **settings)


def test_the_front_is_larger_than_that_of_random_search() -> None:
    """Hypervolume of score and letters over three seeds and 120 evaluations; within limits it is kept too."""
    space, limit = chain_space(8, form=False), AtMost({"k5": 4})

    def evaluate(archs: Any) -> list[dict[str, float]]:
        return [{"accuracy": stand_in(arch), **letters(arch)} for arch in archs]

    def volume(make: Callable[..., Any]) -> float:
        total = 0.0
        for seed in range(3):
            with Study(None, space) as study:
                search(make(space, seed=seed, feasible=limit), evaluate, study, trials=120)
                front = pareto_front(study.trials(), ("accuracy", "-letters"))
            total += hypervolume([(t.metrics["accuracy"], -t.metrics["letters"]) for t in front], (0.0, -33.0))
        return total

    def ours(*args: Any, **more: Any) -> NSGA2:
        return NSGA2(*args, **more, objectives=("accuracy", "-letters"), population_size=16)

    assert volume(ours) > 1.03 * volume(RandomSearch)


def test_the_limits_of_the_contract_are_kept() -> None:
    limit = LIMITS["conditional"]
    assert all(limit(arch) for arch in NSGA2(SPACES["conditional"], feasible=limit).ask(50))


def test_a_mutation_never_draws_the_old_value_again() -> None:
    """Without crossover and with a chance of one, every decision of a child differs from its parent."""
    searcher = NSGA2(
        SPACE, population_size=2, crossover=0.0, mutation=1.0, cost=letters, objectives=("accuracy", "-letters")
    )
    parents = searcher.ask(2)
    searcher.tell([scored(i, arch, accuracy=noise(arch)) for i, arch in enumerate(parents)])
    for child in searcher.ask(30):
        assert any(all(child[name] != parent[name] for name in child) for parent in parents)


def test_the_population_is_a_fifteenth_of_the_budget() -> None:
    assert NSGA2.for_budget(SPACE, 100) == {"population_size": 10}
    assert NSGA2.for_budget(SPACE, 600) == {"population_size": 40}
    assert NSGA2.for_budget(SPACE, 1_500) == NSGA2.for_budget(SPACE, 20_000) == {}


def test_given_networks_come_first_and_breed() -> None:
    """Those that are new and within the limits, each once; then random ones until the population is full."""
    limit = AtMost({"k5": 2})
    inside, outside = ARCHS[5], next(arch for arch in ARCHS if not limit(arch))
    searcher = NSGA2(SPACE, population_size=4, initial=[inside, outside, dict(ARCHS[7]), inside], feasible=limit)
    assert searcher.initial == [inside.key, outside.key, ARCHS[7].key]
    first = searcher.ask(4)
    assert first[:2] == [inside, ARCHS[7]]
    assert outside not in first
    searcher.tell([scored(i, arch, accuracy=noise(arch), macs=float(i)) for i, arch in enumerate(first)])
    known = NSGA2(SPACE, population_size=4, initial=[inside, ARCHS[9]])
    known.tell([scored(0, inside, accuracy=0.5, macs=1.0)])  # of a warm start
    assert known.ask(1) == [ARCHS[9]]
    with pytest.raises(InputError, match="other"):
        NSGA2(SPACE, initial=[Arch({"other": 1})])
